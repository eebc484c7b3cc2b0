"""The client's side of one request: its body, and whether it is still connected.

Never: parses a body.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from payagent.body_buffer import BodyBuffer

_AHEAD_BYTES = 256 * 1024

BODY_BYTES_PER_S = 500
"""Each received byte extends the time limit at this rate."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientBody:
    """Reads the client's body after `listen`, and notices when the client hangs up.

    `lost` is called if the client hangs up before `close`, or is too slow: it may take `slow_s` in all, plus a
    second for each `BODY_BYTES_PER_S` bytes. `gone` is done when the connection has ended: while the buffer is
    full nothing is received, so a disconnect would not show.
    """

    def __init__(
        self,
        receive: Receive,
        buffer: BodyBuffer,
        lost: Callable[[], object],
        slow_s: float,
        gone: "asyncio.Future[None]",
    ) -> None:
        self.buffer = buffer
        self.is_gone = self.is_slow = False
        self._left_s = slow_s
        self._receive = receive
        self._lost = lost
        self._gone = gone
        self._closed = self._complete = False
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._has_chunk = asyncio.Event()
        self._has_room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def listen(self) -> None:
        """Start to read the body. A client that expects 100 sends it only once the request is accepted."""
        self._task = asyncio.create_task(self._listen())
        self._gone.add_done_callback(self._wake)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives, once, to one reader."""
        while True:
            while self._waiting:
                chunk = self._waiting.popleft()
                self._waiting_bytes -= len(chunk)
                self._has_room.set()
                yield chunk
            if self._complete:
                return
            self._has_chunk.clear()
            await self._has_chunk.wait()

    async def rest(self) -> None:
        """Read the rest of the body into the buffer, unless the buffer dropped it."""
        chunks = aiter(self)
        while self.buffer.is_whole and await anext(chunks, None) is not None:
            continue

    def close(self) -> None:
        """Stop watching the client: the answer is complete, or there will be none."""
        self._closed = True

    async def aclose(self) -> None:
        self.close()
        self._gone.remove_done_callback(self._wake)
        if self._task is not None:
            self._task.cancel()
        self.buffer.close()
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def _next(self) -> MutableMapping[str, Any]:
        """Return the client's next message. Raises TimeoutError if the client was too slow in total.

        The time that the merchant needs for received data does not count.
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
                self.buffer.add(chunk)
                self._waiting.append(chunk)
                self._waiting_bytes += len(chunk)
            self._complete = not message.get("more_body", False)
            self._has_chunk.set()
            while self._waiting_bytes > _AHEAD_BYTES and not self._gone.done():
                self._has_room.clear()
                await self._has_room.wait()

    def _wake(self, _gone: "asyncio.Future[None]") -> None:
        self._has_room.set()
