"""A strict CBOR reader, and the few encodings that the devnet's ledger needs.

Start at `Reader`, a cursor that the decoder moves item by item. Every decoded value thus knows its span of bytes:
the ledger hashes and measures bytes as sent, never a re-encoding.

It accepts what the ledger's decoder accepts (cardano-ledger-binary, protocol version 9 and later): integers and
lengths in any width, arrays and maps of definite or indefinite length, byte strings of definite length.

Never: builds a generic tree, guesses or repairs; what it does not understand raises `MalformedError`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

UINT, NINT, BYTES, TEXT, ARRAY, MAP, TAG = range(7)
INDEFINITE = -1
MAX_DEPTH = 128  # the ledger has no such limit; ours guards the interpreter's stack
NULL = 0xF6
_BREAK = 0xFF
_WORD64_MAX = 2**64 - 1


class MalformedError(ValueError):
    """The ledger's decoder would not accept the bytes at this position."""


def require(holds: bool, otherwise: str) -> None:
    """Raise `MalformedError` unless the condition holds."""
    if not holds:
        raise MalformedError(otherwise)


class Reader:
    """A cursor over one buffer. `pos` is the offset of the next item's first byte."""

    __slots__ = ("buf", "pos")

    def __init__(self, buf: bytes, pos: int = 0) -> None:
        self.buf = buf
        self.pos = pos

    def major(self) -> int:
        """The major type of the next item. The cursor does not move."""
        require(self.pos < len(self.buf), f"the bytes end at {self.pos}, where an item was expected")
        return self.buf[self.pos] >> 5

    def head(self) -> tuple[int, int]:
        """Read an item's head: (major type, argument). The argument is INDEFINITE for an open length."""
        major = self.major()
        info = self.buf[self.pos] & 0x1F
        self.pos += 1
        if info < 24:
            return major, info
        if info == 31 and major in (BYTES, TEXT, ARRAY, MAP):
            return major, INDEFINITE
        require(info <= 27, f"reserved additional information {info} at byte {self.pos - 1}")
        return major, int.from_bytes(self.take(1 << (info - 24)), "big")

    def take(self, count: int) -> bytes:
        """The next `count` raw bytes."""
        end = self.pos + count
        require(
            end <= len(self.buf), f"{count} bytes needed at byte {self.pos}, {len(self.buf) - self.pos} are left"
        )
        taken = self.buf[self.pos : end]
        self.pos = end
        return taken

    def expect(self, expected: int, what: str) -> int:
        """Read a head of the expected major type and return its argument."""
        start = self.pos
        major, argument = self.head()
        require(major == expected, f"{what}: major type {major} at byte {start}, {expected} was expected")
        return argument

    def uint(self, what: str, most: int = _WORD64_MAX) -> int:
        """Read an unsigned integer of any width, at most `most`."""
        value = self.expect(UINT, what)
        require(value <= most, f"{what}: {value} is above {most}")
        return value

    def bytes_(self, what: str, length: int | None = None) -> bytes:
        """Read a byte string of definite length; of exactly `length` bytes if given."""
        count = self.expect(BYTES, what)
        require(count != INDEFINITE, f"{what}: byte string of indefinite length")
        require(length in (None, count), f"{what}: {count} bytes, {length} were expected")
        return self.take(count)

    def boolean(self, what: str) -> bool:
        """Read true or false in their one-byte forms."""
        byte = self.take(1)[0]
        require(byte in (0xF4, 0xF5), f"{what}: neither true nor false")
        return byte == 0xF5

    def skip(self, byte: int) -> bool:
        """Whether the next byte is this one, such as `NULL`. If so, skip it."""
        if self.pos < len(self.buf) and self.buf[self.pos] == byte:
            self.pos += 1
            return True
        return False

    def tag(self, number: int, what: str) -> None:
        """Skip one expected tag."""
        actual = self.expect(TAG, what)
        require(actual == number, f"{what}: tag {actual}, {number} was expected")

    def items(self, what: str) -> Iterator[int]:
        """Iterate over an array. The caller reads one item per iteration."""
        yield from self._turns(self.expect(ARRAY, what))

    @contextmanager
    def array(self, length: int, what: str) -> Iterator[None]:
        """Read an array of exactly `length` items, which the block reads."""
        count = self.expect(ARRAY, what)
        require(count in (length, INDEFINITE), f"{what}: {count} items, {length} were expected")
        yield
        require(count != INDEFINITE or self.skip(_BREAK), f"{what}: more than {length} items")

    def pairs(self, what: str) -> Iterator[int]:
        """Iterate over a map. The caller reads one key and one value per iteration."""
        yield from self._turns(self.expect(MAP, what))

    def keys(self, what: str, most: int = _WORD64_MAX) -> Iterator[int]:
        """Iterate over a map with unsigned keys, each at most once. The caller reads the values."""
        seen: set[int] = set()
        for _ in self.pairs(what):
            key = self.uint(f"{what} key", most)
            require(key not in seen, f"{what}: key {key} twice")
            seen.add(key)
            yield key

    def set_items(self, what: str) -> Iterator[int]:
        """Iterate over a set, which is an array with or without tag 258 (Conway CDDL)."""
        if self.major() == TAG:
            self.tag(258, what)
        yield from self.items(what)

    def _turns(self, count: int) -> Iterator[int]:
        if count != INDEFINITE:
            yield from range(count)
            return
        turn = 0
        while not self.skip(_BREAK):
            yield turn
            turn += 1

    def text_size(self, what: str) -> int:
        """Skip a text string, in one piece or in chunks. Returns its length in UTF-8 bytes."""
        raw = self.chunks(TEXT, what)
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise MalformedError(f"{what}: not UTF-8") from error
        return len(raw)

    def chunks(self, major: int, what: str, chunk_most_bytes: int | None = None) -> bytes:
        """Read a byte or text string in one piece or in chunks, which metadata and Plutus data allow."""
        count = self.expect(major, what)
        if count != INDEFINITE:
            return self._chunk(count, what, chunk_most_bytes)
        parts = []
        while not self.skip(_BREAK):
            parts.append(self._chunk(self.expect(major, what), what, chunk_most_bytes))
        return b"".join(parts)

    def _chunk(self, size: int, what: str, most_bytes: int | None) -> bytes:
        is_small = most_bytes is None or size <= most_bytes
        require(size != INDEFINITE and is_small, f"{what}: a piece of {size} bytes")
        return self.take(size)

    def end(self, what: str) -> None:
        """Require that nothing follows."""
        require(self.pos == len(self.buf), f"{what}: {len(self.buf) - self.pos} trailing bytes")


def head(major: int, argument: int) -> bytes:
    """The shortest encoding of an item's head."""
    if argument < 24:
        return bytes([major << 5 | argument])
    for power in range(4):
        if argument < 1 << (8 << power):
            return bytes([major << 5 | 24 + power]) + argument.to_bytes(1 << power, "big")
    raise ValueError("a CBOR head holds at most 64 bits")


def head_size(argument: int) -> int:
    """The size in bytes of the shortest head for `argument`."""
    return len(head(UINT, argument))


def byte_string(value: bytes) -> bytes:
    """A byte string in its shortest encoding."""
    return head(BYTES, len(value)) + value


def text_string(value: str) -> bytes:
    """A text string in its shortest encoding."""
    raw = value.encode("utf-8")
    return head(TEXT, len(raw)) + raw
