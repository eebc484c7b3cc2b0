"""Bodies that are read twice: a request's to replay it, an answer's to inspect it before it is forwarded.

Never: holds more than `MEMORY_BYTES` of a streamed request in memory, or leaves a body on disk: the rest is in an
unnamed file.
"""

import hashlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import cast

import httpx

MEMORY_BYTES = 1024 * 1024
_PIECE_BYTES = 128 * 1024

Stream = httpx.SyncByteStream | httpx.AsyncByteStream


class Replay(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A request's body. It is buffered while it is first sent, and then replayed.

    `is_whole` is False if the body was longer than `most_bytes` or the disk was full. It was sent then, but cannot
    be replayed.
    """

    def __init__(self, source: Stream, most_bytes: int) -> None:
        self.is_whole = True
        self._most_bytes = most_bytes
        self._hash = hashlib.sha256()
        self._size = 0
        self._buffer = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES)  # noqa: SIM115  until end()
        self._source: Iterator[bytes] | AsyncIterator[bytes] | None = (
            iter(source) if isinstance(source, httpx.SyncByteStream) else aiter(source)
        )

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[bytes]:
        if self._source is None:
            yield from self._replay()
            return
        for chunk in cast("Iterator[bytes]", self._source):
            self._buffer_chunk(chunk)
            yield chunk
        self._end_source()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if not isinstance(self._source, AsyncIterator):
            for chunk in self:
                yield chunk
            return
        async for chunk in self._source:
            self._buffer_chunk(chunk)
            yield chunk
        self._end_source()

    def rest(self) -> None:
        """Buffer the part that was not sent because the merchant answered first, as far as there is room."""
        if self._source is not None:
            for _ in self:
                if not self.is_whole:
                    return

    async def arest(self) -> None:
        if self._source is not None:
            async for _ in self:
                if not self.is_whole:
                    return

    def end(self) -> None:
        """Drop the body. httpx calls `close` after each send, which does nothing."""
        self._buffer.close()

    def _buffer_chunk(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self.is_whole and self._size > self._most_bytes:
            self._drop_buffer()
        if self.is_whole:
            self._hash.update(chunk)
            try:
                self._buffer.write(chunk)
            except OSError:  # disk full: the request goes on, but cannot be replayed
                self._drop_buffer()

    def _end_source(self) -> None:
        self._source = None
        if self.is_whole:
            try:
                self._buffer.flush()
            except OSError:
                self._drop_buffer()

    def _drop_buffer(self) -> None:
        self.is_whole = False
        with suppress(OSError):  # closing writes the rest, which may fail on a full disk
            self._buffer.close()

    def _replay(self) -> Iterator[bytes]:
        self._buffer.seek(0)
        while piece := self._buffer.read(_PIECE_BYTES):
            yield piece


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


class Watched(httpx.SyncByteStream):
    """An answer's body. `at_end` is called only after its last byte was read."""

    def __init__(self, stream: httpx.SyncByteStream, at_end: Callable[[], None]) -> None:
        self._stream = stream
        self._at_end = at_end

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream
        self._at_end()

    def close(self) -> None:
        self._stream.close()


class AsyncWatched(httpx.AsyncByteStream):
    """`Watched` for `async for`."""

    def __init__(self, stream: httpx.AsyncByteStream, at_end: Callable[[], Awaitable[None]]) -> None:
        self._stream = stream
        self._at_end = at_end

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            yield part
        await self._at_end()

    async def aclose(self) -> None:
        await self._stream.aclose()


def read_up_to(stream: httpx.SyncByteStream, most_bytes: int) -> tuple[bytes | None, Stream]:
    """Return (the whole body, or None if it is longer; a stream from its start)."""
    parts: list[bytes] = []
    size = 0
    rest = iter(stream)
    for part in rest:
        parts.append(part)
        size += len(part)
        if size > most_bytes:
            return None, Begun(parts, rest, stream)
    stream.close()
    raw = b"".join(parts)
    return raw, httpx.ByteStream(raw)


async def aread_up_to(stream: httpx.AsyncByteStream, most_bytes: int) -> tuple[bytes | None, Stream]:
    """`read_up_to` for `async for`."""
    parts: list[bytes] = []
    size = 0
    rest = aiter(stream)
    async for part in rest:
        parts.append(part)
        size += len(part)
        if size > most_bytes:
            return None, Begun(parts, rest, stream)
    await stream.aclose()
    raw = b"".join(parts)
    return raw, httpx.ByteStream(raw)
