"""A request's body, kept so that the request can be sent again.

Never: holds more than `MEMORY_BYTES` of it in memory, or leaves it on disk: a longer one is in an unnamed file of
its owner.
"""

import hashlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

MEMORY_BYTES = 1024 * 1024
_PIECE_BYTES = 128 * 1024


class BodyBuffer:
    """Iterating over it gives the body again, each time from its start.

    `is_whole` is False if the body was longer than `most_bytes` or the disk was full. Then nothing is kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self.is_whole = True
        self._most_bytes = most_bytes
        self._hash = hashlib.sha256()
        self._size = 0
        self._file = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES)  # noqa: SIM115  until close()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def add(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self.is_whole and self._size > self._most_bytes:
            self._drop()
        if self.is_whole:
            self._hash.update(chunk)
            try:
                self._file.write(chunk)
                self._file.flush()
            except OSError:  # disk full: the request goes on, but cannot be replayed
                self._drop()

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(0)
        while piece := self._file.read(_PIECE_BYTES):
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def close(self) -> None:
        with suppress(OSError):  # closing writes the rest, which may fail on a full disk
            self._file.close()

    def _drop(self) -> None:
        self.is_whole = False
        self.close()
