"""The bare prototype: what a payment takes when nothing is asked of it but to be signed and durable.

A body of JSON comes by the server that the daemon has too; one transaction is built, signed and read again; one
commit takes it, shared by those that wait together; the transaction is the answer. No rules, no limits, no books,
no dialects, one process that holds its key, and nothing is ever sent. So it is no rival: it says how fast this
machine is at what every payment needs, in the same run.

    python -m benchmarks.bare PORT FOLDER

May import: benchmarks.wallets, payagent.wallet, uvicorn, sqlite3. Never: is measured without the daemon beside it.
"""

import asyncio
import json
import sqlite3
import sys
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from itertools import cycle
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import uvicorn

from benchmarks.wallets import outputs, pay
from payagent.wallet.utxo_index import Utxo, UtxoIndex

Message = MutableMapping[str, Any]
Row = tuple[bytes, bytes, bytes]

UTXOS = [UtxoIndex([Utxo(f"{number:064x}", 0, 100_000_000)]) for number in range(1_000)]


class Ledger:
    """One table, one thread that writes it, one event loop that is told."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._conn = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._conn.execute("PRAGMA journal_mode = WAL")
        self._conn.execute("PRAGMA synchronous = FULL")
        self._conn.execute("CREATE TABLE payments(seq INTEGER PRIMARY KEY, key TEXT UNIQUE, body BLOB, tx BLOB)")
        self._queue: SimpleQueue[tuple[Row, asyncio.Future[None]]] = SimpleQueue()
        threading.Thread(target=self._write, daemon=True).start()

    async def add(self, row: Row) -> None:
        done: asyncio.Future[None] = self._loop.create_future()
        self._queue.put((row, done))
        await done

    def _write(self) -> None:
        while True:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            self._conn.execute("BEGIN IMMEDIATE")
            self._conn.executemany(
                "INSERT INTO payments(key, body, tx) VALUES (?, ?, ?)", [row for row, _ in batch]
            )
            self._conn.execute("COMMIT")
            self._loop.call_soon_threadsafe(_end, [done for _, done in batch])


def _end(waiting: list[asyncio.Future[None]]) -> None:
    for done in waiting:
        done.set_result(None)


def serve(port: int, folder: Path) -> None:
    asked, utxos = outputs("ada"), cycle(UTXOS)
    ledger: list[Ledger] = []

    async def app(
        scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if not ledger:
            ledger.append(Ledger(folder / "bare.db", asyncio.get_running_loop()))
        message = await receive()
        body = message["body"]
        while message.get("more_body"):
            message = await receive()
            body += message["body"]
        json.loads(body)
        tx = pay(next(utxos), asked)
        await ledger[0].add((dict(scope["headers"])[b"idempotency-key"], body, tx))
        answer = json.dumps({"state": "signed", "tx": tx.hex()}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    uvicorn.run(
        app, host="127.0.0.1", port=port, http="h11", lifespan="off", access_log=False, log_level="warning"
    )


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]))
