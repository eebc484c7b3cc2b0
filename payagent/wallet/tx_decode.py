"""Decodes one of our transactions from its bytes alone, and accepts only the canonical form of a plain payment.

Start with `decode`. Each function reads the only item that is allowed at offset `at`, and returns it with the
offset behind it. Canonical means shortest heads, keys in order, definite lengths, and no trailing bytes. Anything
else raises `Undecodable`.

Never: `cbor_write`, pycardano, or anything that builds a plan.
"""

import hashlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

Reader = Callable[[bytes, int], tuple[Any, int]]
"""Reads an item at an offset, and returns it with the offset behind it."""

NUMBER, BYTES, ARRAY, MAP = 0, 2, 4, 5
_KINDS = {NUMBER: "an unsigned integer", BYTES: "a byte string", ARRAY: "an array", MAP: "a map"}
_LONGER_FROM = (24, 1 << 8, 1 << 16, 1 << 32)
"""The smallest number that needs a head with one, two, four or eight more bytes."""

_PAIR = b"\x82"
_SET = b"\xd9\x01\x02"
_BYTES_28, _BYTES_32, _BYTES_64 = b"\x58\x1c", b"\x58\x20", b"\x58\x40"
_COMMITMENT = re.compile(rb"\xa1\x19\x01\x92\xa2\x61h\x58\x20(.{32})\x61p\x66http:1", re.DOTALL)
_OTHER_FIELDS = "the body has other fields than inputs, outputs, fee, TTL, network and its commitment's hash"


class Undecodable(ValueError):  # noqa: N818  a verdict
    """The bytes are not a plain payment in canonical form."""


class DecodedOutput(NamedTuple):
    """One decoded output. `size` is its length in bytes."""

    address: bytes
    lovelace: int
    assets: dict[str, int]
    size: int


class DecodedBody(NamedTuple):
    """A decoded transaction body. `network_id` is optional. `auxiliary_hash` is None without a commitment."""

    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[DecodedOutput, ...]
    fee_lovelace: int
    ttl_slot: int
    network_id: int | None
    auxiliary_hash: bytes | None


class DecodedTransaction(NamedTuple):
    """A decoded transaction. `body` is the bytes whose hash is the transaction id."""

    body: bytes
    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[DecodedOutput, ...]
    fee_lovelace: int
    ttl_slot: int
    network_id: int | None
    witnesses: tuple[tuple[bytes, bytes], ...]
    commitment: bytes | None


def read_head(buf: bytes, at: int, kind: int, name: str) -> tuple[int, int]:
    """Read the number in the head of an item of this kind: its value or its length."""
    first = buf[at]
    if first >> 5 != kind:
        raise Undecodable(f"{name} is not {_KINDS[kind]}")
    info = first & 31
    if info < 24:
        return info, at + 1
    if info > 27:
        raise Undecodable(f"byte {at} opens an item without a definite length")
    end = at + 1 + (1 << (info - 24))
    if end > len(buf):
        raise Undecodable("the bytes end inside a head")
    value = int.from_bytes(buf[at + 1 : end], "big")
    if value < _LONGER_FROM[info - 24]:
        raise Undecodable(f"the head at byte {at} is longer than needed")
    return value, end


def read_bytes(buf: bytes, at: int, name: str) -> tuple[bytes, int]:
    size, at = read_head(buf, at, BYTES, name)
    end = at + size
    if end > len(buf):
        raise Undecodable("the bytes end inside a byte string")
    return buf[at:end], end


def read_fixed(buf: bytes, at: int, prefix: bytes, size: int, problem: str) -> tuple[bytes, int]:
    """Read `size` bytes that follow the required bytes `prefix`."""
    begin = at + len(prefix)
    end = begin + size
    if buf[at:begin] != prefix or end > len(buf):
        raise Undecodable(f"{problem}, at byte {at}")
    return buf[begin:end], end


def read_set(buf: bytes, at: int, name: str) -> tuple[int, int]:
    """Read the number of elements of a set."""
    if buf[at : at + 3] != _SET:
        raise Undecodable(f"{name} are not a set")
    return read_head(buf, at + 3, ARRAY, name)


def read_items(buf: bytes, at: int, count: int, read: Reader) -> tuple[tuple[Any, ...], int]:
    """Read `count` items in a row."""
    items = []
    for _ in range(count):
        item, at = read(buf, at)
        items.append(item)
    return tuple(items), at


def read_inputs(buf: bytes, at: int) -> tuple[tuple[tuple[str, int], ...], int]:
    """Read a set of inputs."""
    count, at = read_set(buf, at, "the inputs")
    return read_items(buf, at, count, _input)


def _input(buf: bytes, at: int) -> tuple[tuple[str, int], int]:
    tx_id, at = read_fixed(buf, at, _PAIR + _BYTES_32, 32, "an input is not a transaction id and an index")
    index, at = read_head(buf, at, NUMBER, "an input's index")
    return (tx_id.hex(), index), at


def _outputs(buf: bytes, at: int) -> tuple[tuple[DecodedOutput, ...], int]:
    count, at = read_head(buf, at, ARRAY, "the list of outputs")
    return read_items(buf, at, count, read_output)


def read_output(buf: bytes, at: int) -> tuple[DecodedOutput, int]:
    """Read an output [address, value], which has no datum and no script."""
    start = at
    if buf[at] != 0x82:
        raise Undecodable("an output is not an address and a value")
    address, at = read_bytes(buf, at + 1, "an address")
    lovelace, assets, at = read_value(buf, at)
    return DecodedOutput(address, lovelace, assets, at - start), at


def read_value(buf: bytes, at: int) -> tuple[int, dict[str, int], int]:
    """Read a value: lovelace, or [lovelace, assets]."""
    if buf[at] != 0x82:
        lovelace, at = read_head(buf, at, NUMBER, "an amount")
        return lovelace, {}, at
    lovelace, at = read_head(buf, at + 1, NUMBER, "an amount")
    assets, at = _assets(buf, at)
    return lovelace, assets, at


def _assets(buf: bytes, at: int) -> tuple[dict[str, int], int]:
    assets: dict[str, int] = {}
    policies, at = read_head(buf, at, MAP, "an output's list of assets")
    before = b""
    for _ in range(policies):
        policy, at = read_fixed(buf, at, _BYTES_28, 28, "a policy is not of 28 bytes")
        if policy <= before:
            raise Undecodable("a policy is out of order or duplicate")
        before = policy
        at = _assets_of(buf, at, policy, assets)
    if not assets:
        raise Undecodable("a value's list of assets is empty")
    return assets, at


def _assets_of(buf: bytes, at: int, policy: bytes, assets: dict[str, int]) -> int:
    """Add the assets of one policy to `assets`. Canonical order puts shorter names first."""
    count, at = read_head(buf, at, MAP, "a policy's assets")
    before: tuple[int, bytes] | None = None
    for _ in range(count):
        name, at = read_bytes(buf, at, "an asset's name")
        if len(name) > 32:
            raise Undecodable("an asset's name is longer than 32 bytes")
        if before is not None and (len(name), name) <= before:
            raise Undecodable("an asset's name is out of order or duplicate")
        before = len(name), name
        units, at = read_head(buf, at, NUMBER, "units")
        if not units:
            raise Undecodable("a value lists an asset with zero units")
        assets[(policy + name).hex()] = units
    if before is None:
        raise Undecodable("a policy without assets")
    return at


def _field(buf: bytes, at: int, key: int, name: str) -> tuple[int, int]:
    if buf[at] != key:
        raise Undecodable(_OTHER_FIELDS)
    return read_head(buf, at + 1, NUMBER, name)


def _witnesses(buf: bytes, at: int) -> tuple[tuple[tuple[bytes, bytes], ...], int]:
    if buf[at : at + 2] != b"\xa1\x00":
        raise Undecodable("there are other witnesses than key witnesses")
    count, at = read_set(buf, at + 2, "the witnesses")
    witnesses = []
    for _ in range(count):
        key, at = read_fixed(buf, at, _PAIR + _BYTES_32, 32, "a witness is not a key and a signature")
        signature, at = read_fixed(buf, at, _BYTES_64, 64, "a signature is not of 64 bytes")
        witnesses.append((key, signature))
    return tuple(witnesses), at


def _commitment(auxiliary: bytes, stated_hash: bytes | None) -> bytes | None:
    """Return the commitment in the auxiliary data, or None. `stated_hash` is the data's hash in the body."""
    if auxiliary == b"\xf6":
        if stated_hash is not None:
            raise Undecodable(_OTHER_FIELDS)
        return None
    match = _COMMITMENT.fullmatch(auxiliary)
    if match is None:
        raise Undecodable("a payment ends in null or a commitment, without trailing bytes")
    if stated_hash is None:
        raise Undecodable(_OTHER_FIELDS)
    if stated_hash != hashlib.blake2b(auxiliary, digest_size=32).digest():
        raise Undecodable("the body's auxiliary hash is not that of the auxiliary data")
    return match[1]


def decode(raw: bytes) -> DecodedTransaction:
    """Decode a payment's transaction: [body, witnesses, true, null or commitment]. Raises Undecodable."""
    if raw[:1] != b"\x84":
        raise Undecodable("a transaction is an array of four")
    try:
        return _transaction(raw)
    except IndexError:
        raise Undecodable("the bytes end where an item should begin") from None


def decode_body(raw: bytes) -> DecodedBody:
    """Decode a payment's body without trailing bytes. Raises Undecodable."""
    try:
        body, end = _body(raw, 0)
    except IndexError:
        raise Undecodable("the bytes end where an item should begin") from None
    if end != len(raw):
        raise Undecodable("the body has trailing bytes")
    return body


def _body(buf: bytes, at: int) -> tuple[DecodedBody, int]:
    count, at = read_head(buf, at, MAP, "the body")
    if buf[at] != 0:
        raise Undecodable(_OTHER_FIELDS)
    inputs, at = read_inputs(buf, at + 1)
    if buf[at] != 1:
        raise Undecodable(_OTHER_FIELDS)
    outputs, at = _outputs(buf, at + 1)
    fee_lovelace, at = _field(buf, at, 2, "the fee")
    ttl_slot, at = _field(buf, at, 3, "the TTL")
    stated_hash: bytes | None = None
    network_id: int | None = None
    fields = 4
    if buf[at : at + 1] == b"\x07":
        stated_hash, at = read_fixed(buf, at + 1, _BYTES_32, 32, _OTHER_FIELDS)
        fields += 1
    if buf[at : at + 1] == b"\x0f":
        network_id, at = _field(buf, at, 15, "the network")
        fields += 1
    if count != fields:
        raise Undecodable(_OTHER_FIELDS)
    return DecodedBody(inputs, outputs, fee_lovelace, ttl_slot, network_id, stated_hash), at


def _transaction(raw: bytes) -> DecodedTransaction:
    body, body_end = _body(raw, 1)
    witnesses, end = _witnesses(raw, body_end)
    if raw[end : end + 1] != b"\xf5":
        raise Undecodable("a payment is valid: true must precede its auxiliary data")
    commitment = _commitment(raw[end + 1 :], body.auxiliary_hash)
    return DecodedTransaction(raw[1:body_end], *body[:5], witnesses, commitment)
