"""Bodies that are read twice: a request's to replay it, an answer's to inspect it before it is forwarded.

Never: decodes a body.
"""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import cast

import httpx

from payagent.body_buffer import BodyBuffer

Stream = httpx.SyncByteStream | httpx.AsyncByteStream


class Replay(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A request's body. It is buffered while it is first sent, and then replayed."""

    def __init__(self, source: Stream, most_bytes: int) -> None:
        self.buffer = BodyBuffer(most_bytes)
        self._source: Iterator[bytes] | AsyncIterator[bytes] | None = (
            iter(source) if isinstance(source, httpx.SyncByteStream) else aiter(source)
        )

    def __iter__(self) -> Iterator[bytes]:
        if self._source is None:
            yield from self.buffer
            return
        for chunk in cast("Iterator[bytes]", self._source):
            self.buffer.add(chunk)
            yield chunk
        self._source = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if not isinstance(self._source, AsyncIterator):
            for chunk in self:
                yield chunk
            return
        async for chunk in self._source:
            self.buffer.add(chunk)
            yield chunk
        self._source = None

    def rest(self) -> None:
        """Buffer the part that was not sent because the merchant answered first, as far as there is room."""
        if self._source is not None:
            for _ in self:
                if not self.buffer.is_whole:
                    return

    async def arest(self) -> None:
        if self._source is not None:
            async for _ in self:
                if not self.buffer.is_whole:
                    return


class Begun(httpx.SyncByteStream, httpx.AsyncByteStream):
    """An answer's body whose beginning was already read."""

    def __init__(
        self, parts: Sequence[bytes], rest: Iterable[bytes] | AsyncIterator[bytes], stream: Stream
    ) -> None:
        self._parts = parts
        self._rest = rest
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        yield from self._parts
        yield from cast("Iterable[bytes]", self._rest)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part
        async for part in cast("AsyncIterator[bytes]", self._rest):
            yield part

    def close(self) -> None:
        cast("httpx.SyncByteStream", self._stream).close()

    async def aclose(self) -> None:
        await cast("httpx.AsyncByteStream", self._stream).aclose()


def watched(parts: Iterable[bytes], at_end: Callable[[], None]) -> Iterator[bytes]:
    """The parts of a body. `at_end` is called only after the last one was read."""
    yield from parts
    at_end()


async def awatched(parts: AsyncIterable[bytes], at_end: Callable[[], Awaitable[None]]) -> AsyncIterator[bytes]:
    """`watched` for `async for`."""
    async for part in parts:
        yield part
    await at_end()


def read_up_to(stream: httpx.SyncByteStream, most_bytes: int) -> tuple[bytes | None, Stream]:
    """Return (the whole body, or None if it is longer; a stream from its start)."""
    raw = bytearray()
    rest = iter(stream)
    for part in rest:
        raw += part
        if len(raw) > most_bytes:
            return None, Begun((bytes(raw),), rest, stream)
    stream.close()
    return bytes(raw), httpx.ByteStream(bytes(raw))


async def aread_up_to(stream: httpx.AsyncByteStream, most_bytes: int) -> tuple[bytes | None, Stream]:
    """`read_up_to` for `async for`."""
    raw = bytearray()
    rest = aiter(stream)
    async for part in rest:
        raw += part
        if len(raw) > most_bytes:
            return None, Begun((bytes(raw),), rest, stream)
    await stream.aclose()
    return bytes(raw), httpx.ByteStream(bytes(raw))
