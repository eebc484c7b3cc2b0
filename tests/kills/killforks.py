"""Daemon processes to start and kill: through the fork server, or cold, by the command itself."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BORN_S = 120.0


class Life:
    """One process from start to end.

    `ready` has where it listens, `open` is done once clients can buy, `killing_at` is where it kills itself.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.pid: asyncio.Future[int] = loop.create_future()
        self.ready: asyncio.Future[dict[str, str]] = loop.create_future()
        self.open: asyncio.Future[None] = loop.create_future()
        self.exit: asyncio.Future[int] = loop.create_future()
        self.killing_at: str | None = None
        self.failed: str | None = None
        self.tasks: tuple[asyncio.Task[None], ...] = ()

    async def is_ready(self) -> bool:
        """Waits until the daemon serves (True) or is dead (False)."""
        await asyncio.wait((self.ready, self.exit), timeout=BORN_S, return_when=asyncio.FIRST_COMPLETED)
        if not self.ready.done() and not self.exit.done():
            raise TimeoutError("a daemon neither served nor ended")
        return self.ready.done()

    async def opened(self) -> None:
        """Waits until clients can buy, or it is dead, or it seems to stand still."""
        await asyncio.wait((self.open, self.exit), timeout=BORN_S, return_when=asyncio.FIRST_COMPLETED)

    async def end(self, number: signal.Signals) -> int:
        """Send a signal if the process still runs; returns its exit status."""
        if not self.exit.done():
            os.kill(await self.pid, number)
        return await asyncio.wait_for(asyncio.shield(self.exit), BORN_S)


@dataclass
class ForkServer:
    """The fork server's process and its children."""

    process: asyncio.subprocess.Process
    lives: dict[int, Life] = field(default_factory=dict)
    ordered: dict[int, Life] = field(default_factory=dict)
    orders: int = 0

    def start(
        self,
        config: Path,
        log: Path,
        kill_at: tuple[str, int] | None,
        variant: str | None,
        armed: Path | None = None,
    ) -> Life:
        life = Life()
        self.orders += 1
        self.ordered[self.orders] = life
        order = {"order": self.orders, "config": str(config), "log": str(log)}
        armed_by = None if armed is None else str(armed)
        line = json.dumps(order | {"kill_at": kill_at, "variant": variant, "armed": armed_by}) + "\n"
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode())
        return life

    async def listen(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.take(json.loads(line))

    def take(self, news: dict[str, Any]) -> None:
        """One line of news. A child's first is its order, the last about it comes from the fork server."""
        pid = news["pid"]
        if "order" in news:
            self.lives[pid] = self.ordered.pop(news["order"])
            self.lives[pid].pid.set_result(pid)
        elif "ready" in news:
            self.lives[pid].ready.set_result(news["ready"])
        elif "killing_at" in news:
            self.lives[pid].killing_at = news["killing_at"]
        elif "failed" in news:
            self.lives[pid].failed = news["failed"]
        else:
            self.lives.pop(pid).exit.set_result(news["exit"])


@asynccontextmanager
async def fork_server() -> AsyncIterator[ForkServer]:
    """A running fork server; its children end with it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("forkserver.py")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    server = ForkServer(process)
    listening = asyncio.create_task(server.listen())
    try:
        yield server
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
        await listening


async def cold_start(config: Path, log: Path, socket: Path) -> Life:
    """`payagent serve` as an operator starts it: a fresh interpreter. It is reached by its Unix socket."""
    life = Life()
    with log.open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "payagent",
            "serve",
            "--config",
            str(config),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=stderr,
        )
    life.pid.set_result(process.pid)

    async def wait_for_end() -> None:
        life.exit.set_result(await process.wait())

    async def wait_for_socket() -> None:
        while not life.exit.done():
            try:
                _, writer = await asyncio.open_unix_connection(str(socket))
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                life.ready.set_result({"socket": str(socket)})
                return

    life.tasks = (asyncio.create_task(wait_for_end()), asyncio.create_task(wait_for_socket()))
    return life
