"""The client's side of one call: its body as it comes, kept for a replay, and whether the client is still there.

May import: the standard library. Never: holds more of a body in memory than `MEMORY_BYTES`, or
leaves it on disk: beyond that it lies in a file without a name, open to its owner alone.
"""

import asyncio
import hashlib
import os
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import IO, Any

MEMORY_BYTES = 1024 * 1024
_PIECE_BYTES = 128 * 1024
_AHEAD_BYTES = 256 * 1024

BODY_BYTES_PER_S = 500
"""What comes in buys more time for the rest, at this rate."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class BodyBuffer:
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


class ClientBody:
    """Reads what the client sends, from `listen` on. `lost` is called when it hangs up before `close`, or is so
    slow that it was waited for longer than `slow_s`, and a second for each BODY_BYTES_PER_S that came. `gone` is
    done when its connection has ended: while there is room for nothing more, nothing is received that says so.
    """

    def __init__(
        self,
        receive: Receive,
        spool: BodyBuffer,
        lost: Callable[[], object],
        slow_s: float,
        gone: "asyncio.Future[None]",
    ) -> None:
        self.spool = spool
        self.is_gone = self.is_slow = False
        self._left_s = slow_s
        self._receive = receive
        self._lost = lost
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
        self._gone.add_done_callback(self._wake)

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

    async def rest(self) -> None:
        """Take the rest of the body for the spool alone, unless it is let go."""
        chunks = self.chunks()
        while self.spool.is_whole and await anext(chunks, None) is not None:
            continue

    def close(self) -> None:
        """The answer is complete, or none will be: whether the client is there does not matter any more."""
        self._closed = True

    async def aclose(self) -> None:
        self.close()
        self._gone.remove_done_callback(self._wake)
        if self._task is not None:
            self._task.cancel()
        self.spool.close()
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def _next(self) -> MutableMapping[str, Any]:
        """What the client does next; TimeoutError when it was waited for too long in all. How long the merchant
        takes for what came does not count.
        """
        if self._complete:
            return await self._receive()
        clock = asyncio.get_running_loop().time
        begun_s = clock()
        async with asyncio.timeout(self._left_s):
            message = await self._receive()
        self._left_s += len(message.get("body", b"")) / BODY_BYTES_PER_S - (clock() - begun_s)
        return message

    async def _listen(self) -> None:
        while True:
            try:
                message = await self._next()
            except TimeoutError:
                if not self._closed:
                    self.is_slow = True
                    self._lost()
                return
            if message["type"] == "http.disconnect":
                if not self._closed:
                    self.is_gone = True
                    self._lost()
                return
            if chunk := message.get("body", b""):
                self.spool.add(chunk)
                self._waiting.append(chunk)
                self._waiting_bytes += len(chunk)
            self._complete = not message.get("more_body", False)
            self._come.set()
            while self._waiting_bytes > _AHEAD_BYTES and not self._gone.done():
                self._room.clear()
                await self._room.wait()

    def _wake(self, _gone: "asyncio.Future[None]") -> None:
        self._room.set()
