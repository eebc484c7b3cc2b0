"""Bare HTTP clients on kept connections, so that what is measured is the server and not its client."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A request as its bytes."""

    raw: bytes

    @classmethod
    def of(cls, method: str, url: str, headers: Mapping[str, str], body: Json | bytes | None = None) -> "Call":
        parts = urlsplit(url)
        sent = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {parts.path or '/'} HTTP/1.1", f"Host: {parts.netloc}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(sent)}"]
        return cls("\r\n".join([*lines, "", ""]).encode() + sent)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came, how long after the call was sent, and when that was (POSIX)."""

    status: int
    body: bytes
    ms: float
    sent_s: float


async def in_turn(url: str, calls: Sequence[Call], pause_s: float = 0) -> list[Answer]:
    """The calls one after the other on one connection, each so long after the answer before."""
    parts, answers = urlsplit(url), []
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        for call in calls:
            answers.append(await _answered(reader, writer, call))
            await asyncio.sleep(pause_s)
        return answers
    finally:
        writer.close()


async def at_once(url: str, calls: Sequence[Call], clients: int) -> tuple[list[Answer], float]:
    """The calls dealt out to so many clients; with the seconds that all took."""
    start_s = time.perf_counter()
    dealt = await asyncio.gather(*(in_turn(url, calls[first::clients]) for first in range(clients)))
    return [answer for answers in dealt for answer in answers], time.perf_counter() - start_s


async def until_taken(url: str, calls: Sequence[Call], retry_s: float) -> tuple[list[Answer], Counter[str]]:
    """Each call by a client of its own, all at the same moment, and again while 503 is the answer.

    What came at last, in the time since the first try, and the codes of what came before.
    """
    again: Counter[str] = Counter()
    parts = urlsplit(url)

    async def one(call: Call) -> Answer:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        start_s = time.perf_counter()
        while (answer := await _answered(reader, writer, call)).status == 503:
            again[json.loads(answer.body)["code"]] += 1
            await asyncio.sleep(retry_s)
        writer.close()
        return replace(answer, ms=(time.perf_counter() - start_s) * 1000)

    return list(await asyncio.gather(*map(one, calls))), again


async def _answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, call: Call) -> Answer:
    start_s, sent_s = time.perf_counter(), time.time()
    writer.write(call.raw)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b"transfer-encoding: chunked" in head:
        body = await reader.readuntil(b"0\r\n\r\n")
    else:
        lengths = [line[15:] for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
        body = await reader.readexactly(int(lengths[0]))
    return Answer(int(head[9:12]), body, (time.perf_counter() - start_s) * 1000, sent_s)
