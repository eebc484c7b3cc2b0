"""Raw CBOR for the ledger's cases: writing what a library would refuse to, reading what it would smooth over.

A second, plain implementation, so that a test never judges the devnet's reader with itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import cbor2


def encode_head(major: int, argument: int) -> bytes:
    """The head of an item, in its shortest form."""
    first, *rest = cbor2.dumps(argument)
    return bytes([major << 5 | first, *rest])


def array(*parts: bytes) -> bytes:
    return encode_head(4, len(parts)) + b"".join(parts)


def mapping(pairs: Sequence[tuple[bytes, bytes]]) -> bytes:
    return encode_head(5, len(pairs)) + b"".join(key + value for key, value in pairs)


def tagged(number: int, item: bytes) -> bytes:
    return encode_head(6, number) + item


def encode_assets(assets: Mapping[str, int]) -> bytes:
    policies: dict[str, list[tuple[bytes, bytes]]] = {}
    for asset in sorted(assets):
        pair = (cbor2.dumps(bytes.fromhex(asset[56:])), cbor2.dumps(assets[asset]))
        policies.setdefault(asset[:56], []).append(pair)
    return mapping([(cbor2.dumps(bytes.fromhex(policy)), mapping(names)) for policy, names in policies.items()])


def encode_value(lovelace: int, assets: Mapping[str, int]) -> bytes:
    return array(cbor2.dumps(lovelace), encode_assets(assets)) if assets else cbor2.dumps(lovelace)


def encode_output(output: Any) -> bytes:
    """An output in Babbage's map form, from anything with the attributes of the devnet's TxOut."""
    pairs = [
        (b"\x00", cbor2.dumps(output.address)),
        (b"\x01", encode_value(output.lovelace, output.assets)),
    ]
    if getattr(output, "datum_hash", None):
        pairs.append((b"\x02", array(b"\x00", cbor2.dumps(bytes.fromhex(output.datum_hash)))))
    if getattr(output, "inline_datum", None):
        datum = tagged(24, cbor2.dumps(bytes.fromhex(output.inline_datum)))
        pairs.append((b"\x02", array(b"\x01", datum)))
    if getattr(output, "reference_script", None):
        pairs.append((b"\x03", tagged(24, cbor2.dumps(bytes.fromhex(output.reference_script)))))
    return mapping(pairs)


def parse(data: bytes) -> Any:
    """Read the first item: an array as a list, a map as a list of pairs, a tag as (number, item).

    Nothing is dropped or merged, so that duplicates stay visible. Raises ValueError when the bytes end early.
    """
    return _parse(data, 0)[0]


def _parse(data: bytes, at: int) -> tuple[Any, int]:
    if at >= len(data):
        raise ValueError("the bytes end early")
    major, info = data[at] >> 5, data[at] & 31
    at += 1
    argument = info
    if 24 <= info <= 27:
        width = 1 << (info - 24)
        argument, at = int.from_bytes(data[at : at + width], "big"), at + width
    if major in (0, 1):
        return (argument if major == 0 else -1 - argument), at
    if major in (2, 3):
        if info == 31:
            raise ValueError("a string of open length")
        return data[at : at + argument], at + argument
    if major in (4, 5):
        return _parse_items(data, at, None if info == 31 else argument, pairs=major == 5)
    if major == 6:
        item, at = _parse(data, at)
        return (argument, item), at
    return argument, at


def _parse_items(data: bytes, at: int, count: int | None, *, pairs: bool) -> tuple[list[Any], int]:
    found: list[Any] = []
    while len(found) != count:
        if count is None and data[at : at + 1] == b"\xff":
            return found, at + 1
        item, at = _parse(data, at)
        if pairs:
            value, at = _parse(data, at)
            item = (item, value)
        found.append(item)
    return found, at
