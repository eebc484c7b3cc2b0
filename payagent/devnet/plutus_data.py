"""Reads and writes Plutus data: the datums and redeemers of scripts.

Pure.

Never: keeps the form of what it read; a datum's bytes stay in the output that holds them.
"""

from dataclasses import dataclass

from payagent.devnet import cbor
from payagent.devnet.cbor import MalformedError, Reader
from payagent.devnet.ledger_types import UNSUPPORTED, LedgerError

_CHUNK_MOST_BYTES = 64
_GENERAL = 102
_SMALL_TAG, _LARGE_TAG = 121, 1280
_BIG, _BIG_NEGATIVE = 2, 3


@dataclass(frozen=True, slots=True)
class Constr:
    """A constructor with its fields. Other data are `int`, `bytes`, `list`, and a tuple of pairs for a map."""

    number: int
    fields: list[object]


def read_plutus_data(reader: Reader, depth: int = 0) -> object:
    """Read one datum."""
    if depth > cbor.MAX_DEPTH:
        raise LedgerError(UNSUPPORTED, f"datum nested deeper than {cbor.MAX_DEPTH}")
    major = reader.major()
    if major in (cbor.UINT, cbor.NINT):
        argument = reader.head()[1]
        return argument if major == cbor.UINT else -1 - argument
    if major == cbor.BYTES:
        return reader.chunks(cbor.BYTES, "datum bytes", _CHUNK_MOST_BYTES)
    if major == cbor.ARRAY:
        return [read_plutus_data(reader, depth + 1) for _ in reader.items("datum list")]
    if major == cbor.MAP:
        pairs = reader.pairs("datum map")
        return tuple([(read_plutus_data(reader, depth + 1), read_plutus_data(reader, depth + 1)) for _ in pairs])
    if major == cbor.TAG:
        return _read_tagged(reader, depth)
    raise MalformedError(f"datum: major type {major}")


def _read_tagged(reader: Reader, depth: int) -> object:
    _, tag = reader.head()
    if tag in (_BIG, _BIG_NEGATIVE):
        number = int.from_bytes(reader.chunks(cbor.BYTES, "datum integer", _CHUNK_MOST_BYTES), "big")
        return number if tag == _BIG else -1 - number
    if tag == _GENERAL:
        with reader.array(2, "datum constructor"):
            return Constr(reader.uint("datum constructor"), _read_fields(reader, depth))
    if _SMALL_TAG <= tag <= _SMALL_TAG + 6:
        return Constr(tag - _SMALL_TAG, _read_fields(reader, depth))
    if _LARGE_TAG <= tag <= _LARGE_TAG + 120:
        return Constr(tag - _LARGE_TAG + 7, _read_fields(reader, depth))
    raise MalformedError(f"datum: tag {tag}")


def _read_fields(reader: Reader, depth: int) -> list[object]:
    return [read_plutus_data(reader, depth + 1) for _ in reader.items("datum fields")]


def write_plutus_data(value: object) -> bytes:
    """The usual encoding of numbers from 0 on, bytes, constructors 0 to 6, and lists, of open length."""
    match value:
        case int():
            return cbor.head(cbor.UINT, value)
        case bytes():
            return cbor.byte_string(value)
        case Constr(number, fields):
            return cbor.head(cbor.TAG, _SMALL_TAG + number) + write_plutus_data(fields)
        case list() if value:
            return b"\x9f" + b"".join(map(write_plutus_data, value)) + b"\xff"
    return b"\x80"
