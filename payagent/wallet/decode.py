"""Reads a signed transaction of ours again, from its bytes alone, and accepts one spelling only.

May import: the standard library. Never: `cbor` (the writer), pycardano, or anything that a plan is made of. What
is not the canonical form of a plain payment (shortest heads, keys in order, definite lengths, nothing behind)
raises `Undecodable`; there is no lenient way.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

_SET_TAG = 258
_BODY_KEYS = [0, 1, 2, 3, 15]
_BODY_KEYS_COMMITTED = [0, 1, 2, 3, 7, 15]
_COMMITMENT = re.compile(rb"\xa1\x19\x01\x92\xa2\x61h\x58\x20(.{32})\x61p\x66http:1", re.DOTALL)


class Undecodable(ValueError):  # noqa: N818  a verdict
    """The bytes are not a plain payment in canonical form."""


@dataclass(frozen=True, slots=True)
class DecodedOutput:
    """One output as the ledger will read it; `size` is that of its bytes."""

    address: bytes
    lovelace: int
    assets: dict[str, int]
    size: int


@dataclass(frozen=True, slots=True)
class DecodedTransaction:
    """What the bytes say; `body` is the span that the transaction id is the hash of."""

    body: bytes
    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[DecodedOutput, ...]
    fee_lovelace: int
    ttl_slot: int
    network_id: int
    witnesses: tuple[tuple[bytes, bytes], ...]
    commitment: bytes | None


class _Tagged:
    __slots__ = ("tag", "value")

    def __init__(self, tag: int, value: Any) -> None:
        self.tag = tag
        self.value = value


def _argument(buf: bytes, at: int) -> tuple[int, int]:
    info = buf[at] & 31
    if info < 24:
        return info, at + 1
    if info > 27:
        raise Undecodable(f"byte {at} opens an item without a definite length")
    end = at + 1 + (1 << (info - 24))
    if end > len(buf):
        raise Undecodable("the bytes end inside a head")
    value = int.from_bytes(buf[at + 1 : end], "big")
    if value < (24, 1 << 8, 1 << 16, 1 << 32)[info - 24]:
        raise Undecodable(f"the head at byte {at} is longer than it need be")
    return value, end


def _item(buf: bytes, at: int) -> tuple[Any, int]:
    if at >= len(buf):
        raise Undecodable("the bytes end where an item should begin")
    major = buf[at] >> 5
    if major == 7:
        if buf[at] not in (0xF5, 0xF6):
            raise Undecodable(f"byte {at} is neither true nor null")
        return (True if buf[at] == 0xF5 else None), at + 1
    count, at = (buf[at] & 31, at + 1) if buf[at] & 31 < 24 else _argument(buf, at)
    if major == 0:
        return count, at
    if major == 2:
        if at + count > len(buf):
            raise Undecodable("the bytes end inside a byte string")
        return buf[at : at + count], at + count
    if major == 4:
        items = []
        for _ in range(count):
            value, at = _item(buf, at)
            items.append(value)
        return items, at
    if major == 5:
        return _map(buf, at, count)
    if major == 6:
        value, at = _item(buf, at)
        return _Tagged(count, value), at
    raise Undecodable(f"major type {major} has no place in a payment")


def _map(buf: bytes, at: int, count: int) -> tuple[dict[Any, Any], int]:
    pairs: dict[Any, Any] = {}
    before: tuple[int, bytes] | None = None
    for _ in range(count):
        start = at
        key, at = _item(buf, at)
        order = (at - start, buf[start:at])
        if not isinstance(key, int | bytes) or (before is not None and order <= before):
            raise Undecodable(f"the map key at byte {start} is out of order, double or of a wrong kind")
        before = order
        pairs[key], at = _item(buf, at)
    return pairs, at


def _number(value: Any, what: str) -> int:
    if type(value) is not int:
        raise Undecodable(f"{what} is not an unsigned integer")
    return value


def _bytes(value: Any, what: str, length: int | None = None) -> bytes:
    if not isinstance(value, bytes) or (length is not None and len(value) != length):
        raise Undecodable(f"{what} is not a byte string of the right length")
    return value


def _list(value: Any, what: str, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise Undecodable(f"{what} is not an array of the right length")
    return value


def _map_of(value: Any, what: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise Undecodable(f"{what} is not a map")
    return value


def _set(value: Any, what: str) -> list[Any]:
    if not isinstance(value, _Tagged) or value.tag != _SET_TAG:
        raise Undecodable(f"{what} are not a set")
    return _list(value.value, what)


def _input(value: Any) -> tuple[str, int]:
    tx_id, index = _list(value, "an input", 2)
    return _bytes(tx_id, "an input's transaction id", 32).hex(), _number(index, "an input's index")


def _output_sizes(buf: bytes, at: int) -> list[int]:
    """How many bytes each output takes, of the body that begins at `at` and was found to be one."""
    _, at = _argument(buf, at)
    _, at = _item(buf, at + 1)  # behind key 0, which takes a byte: the inputs
    count, at = _argument(buf, at + 1)
    sizes = []
    for _ in range(count):
        start = at
        _, at = _item(buf, at)
        sizes.append(at - start)
    return sizes


def _output(value: Any, size: int) -> DecodedOutput:
    address, amount = _list(value, "an output", 2)
    _bytes(address, "an address")
    if not isinstance(amount, list):
        return DecodedOutput(address, _number(amount, "an amount"), {}, size)
    lovelace, policies = _list(amount, "a value", 2)
    assets: dict[str, int] = {}
    for policy, names in _map_of(policies, "the assets").items():
        _bytes(policy, "a policy", 28)
        if not _map_of(names, "a policy's assets"):
            raise Undecodable("a policy without assets")
        for name, units in names.items():
            if len(_bytes(name, "an asset's name")) > 32:
                raise Undecodable("an asset's name is longer than 32 bytes")
            assets[(policy + name).hex()] = _number(units, "units")
    if not assets or 0 in assets.values():
        raise Undecodable("a value lists assets of which it holds none")
    return DecodedOutput(address, _number(lovelace, "an amount"), assets, size)


def _commitment(body: dict[Any, Any], auxiliary: bytes) -> bytes | None:
    """What the auxiliary data commit to, when there are any; the body must say so by their hash, or not at all."""
    if auxiliary == b"\xf6":
        if list(body) != _BODY_KEYS:
            raise Undecodable("the body holds other fields than inputs, outputs, fee, TTL and network")
        return None
    match = _COMMITMENT.fullmatch(auxiliary)
    if match is None:
        raise Undecodable("a payment ends in null or a commitment, and nothing stands behind them")
    if list(body) != _BODY_KEYS_COMMITTED:
        raise Undecodable("the body holds other fields than inputs, outputs, fee, TTL, auxiliary hash and network")
    if body[7] != hashlib.blake2b(auxiliary, digest_size=32).digest():
        raise Undecodable("the body's auxiliary hash is not that of the auxiliary data")
    return match[1]


def decode(raw: bytes) -> DecodedTransaction:
    """The transaction [body, witnesses, true, null or commitment] of a payment; else Undecodable."""
    if raw[:1] != b"\x84":
        raise Undecodable("a transaction is an array of four")
    body, body_end = _item(raw, 1)
    witnesses, end = _item(raw, body_end)
    if raw[end : end + 1] != b"\xf5":
        raise Undecodable("a payment is valid: true stands before its auxiliary data")
    commitment = _commitment(_map_of(body, "the body"), raw[end + 1 :])
    if list(_map_of(witnesses, "the witnesses")) != [0]:
        raise Undecodable("there are other witnesses than those by key")
    outputs = _list(body[1], "the outputs")
    pairs = [_list(pair, "a witness", 2) for pair in _set(witnesses[0], "the witnesses")]
    return DecodedTransaction(
        body=raw[1:body_end],
        inputs=tuple(_input(value) for value in _set(body[0], "the inputs")),
        outputs=tuple(map(_output, outputs, _output_sizes(raw, 1))),
        fee_lovelace=_number(body[2], "the fee"),
        ttl_slot=_number(body[3], "the TTL"),
        network_id=_number(body[15], "the network"),
        witnesses=tuple(
            (_bytes(key, "a public key", 32), _bytes(signature, "a signature", 64)) for key, signature in pairs
        ),
        commitment=commitment,
    )
