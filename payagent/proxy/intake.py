"""The client's side of one call: its body as it comes, kept for a replay, and whether the client is still there.

May import: the standard library, core.problem. Never: holds more of a body in memory than `MEMORY_BYTES`, or
leaves it on disk: beyond that it lies in a file without a name, open to its owner alone.
"""

import asyncio
import hashlib
import os
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import IO, Any

from payagent.core.problem import Refused

MEMORY_BYTES = 1024 * 1024
_PIECE_BYTES = 128 * 1024
_AHEAD_BYTES = 256 * 1024

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Spool:
    """A request's body, to be sent again; let go when it is more than `most_bytes`."""

    def __init__(self, most_bytes: int) -> None:
        self.is_whole = True
        self._most_bytes = most_bytes
        self._size = 0
        self._hash = hashlib.sha256()
        self._memory = bytearray()
        self._file: IO[bytes] | None = None

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def add(self, chunk: bytes) -> None:
        if not self.is_whole:
            return
        self._size += len(chunk)
        if self._size > self._most_bytes:
            self._let_go()
            return
        self._hash.update(chunk)
        if self._file is None and self._size <= MEMORY_BYTES:
            self._memory += chunk
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  it lives as long as the call
                _write(self._file, self._memory)
                self._memory = bytearray()
            _write(self._file, chunk)
        except OSError:  # no room on the disk: the call goes on, and cannot be sent again
            self._let_go()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body from its start."""
        position = 0
        while position < self._size:
            if self._file is None:
                piece = bytes(self._memory[position : position + _PIECE_BYTES])
            else:
                piece = os.pread(self._file.fileno(), _PIECE_BYTES, position)
            position += len(piece)
            yield piece

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _let_go(self) -> None:
        self.is_whole = False
        self._memory = bytearray()
        self.close()


def _write(file: IO[bytes], data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


class Intake:
    """Reads what the client sends, from `listen` on. `gone` is called when it hangs up before `close`."""

    def __init__(self, receive: Receive, spool: Spool, gone: Callable[[], object]) -> None:
        self.spool = spool
        self.is_gone = False
        self._receive = receive
        self._gone = gone
        self._closed = self._complete = False
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._come = asyncio.Event()
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def listen(self) -> None:
        """Take the body, now that the call is accepted: a client that expects 100 does not send it before."""
        self._task = asyncio.create_task(self._listen())

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes; for one reader, once."""
        while True:
            while self._waiting:
                chunk = self._waiting.popleft()
                self._waiting_bytes -= len(chunk)
                self._room.set()
                yield chunk
            if self._complete:
                return
            self._come.clear()
            await self._come.wait()

    async def rest(self, quiet_s: float) -> None:
        """Take the rest of the body for the spool alone, unless it is let go; refused when nothing more comes."""
        chunks = self.chunks()
        while self.spool.is_whole:
            try:
                async with asyncio.timeout(quiet_s):
                    await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise Refused("bad_request", f"no more of the request's body came in {quiet_s:g} s") from None

    def close(self) -> None:
        """The answer is complete, or none will be: whether the client is there does not matter any more."""
        self._closed = True

    async def aclose(self) -> None:
        self.close()
        if self._task is not None:
            self._task.cancel()
        self.spool.close()
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def _listen(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                if not self._closed:
                    self.is_gone = True
                    self._gone()
                return
            if chunk := message.get("body", b""):
                self.spool.add(chunk)
                self._waiting.append(chunk)
                self._waiting_bytes += len(chunk)
            self._complete = not message.get("more_body", False)
            self._come.set()
            while self._waiting_bytes > _AHEAD_BYTES:
                self._room.clear()
                await self._room.wait()
