"""Writes the few CBOR forms that our transactions need, in canonical form (RFC 8949, 4.2.1).

Never: a generic encoder, because `tx_plan` must know every size in advance.
"""

from collections.abc import Iterable

TAGGED_SET = b"\xd9\x01\x02"  # tag 258, Conway's tag for sets
WIDTH_4_MAX = 2**32 - 1

AssetUnits = Iterable[tuple[str, int]]


def head(major: int, argument: int) -> bytes:
    """Encode an item's head in its shortest form. `argument` is 0 to 2^64-1, OverflowError above."""
    top = major << 5
    if argument < 24:
        return bytes((top | argument,))
    if argument < 0x100:
        return bytes((top | 24, argument))
    if argument < 0x10000:
        return bytes((top | 25,)) + argument.to_bytes(2, "big")
    if argument <= WIDTH_4_MAX:
        return bytes((top | 26,)) + argument.to_bytes(4, "big")
    return bytes((top | 27,)) + argument.to_bytes(8, "big")


def uint(value: int) -> bytes:
    """Encode an unsigned integer."""
    return head(0, value)


def head_size(argument: int) -> int:
    """Return the size in bytes of a head with this argument."""
    if argument < 24:
        return 1
    return 2 if argument < 0x100 else 3 if argument < 0x10000 else 5 if argument <= WIDTH_4_MAX else 9


def byte_string(value: bytes) -> bytes:
    """Encode a byte string."""
    return head(2, len(value)) + value


def canonical_key(asset: str) -> tuple[str, int, str]:
    """Sort key for assets in the order of canonical CBOR maps: policy id, then length of the name, then name."""
    return asset[:56], len(asset), asset


def multiasset(assets: AssetUnits) -> bytes:
    """Encode {policy: {name: units}}. The assets must already be in canonical order."""
    names_of: dict[bytes, list[bytes]] = {}
    for asset, units in assets:
        whole = bytes.fromhex(asset)
        names_of.setdefault(whole[:28], []).append(byte_string(whole[28:]) + head(0, units))
    parts = [head(5, len(names_of))]
    for policy, names in names_of.items():
        parts += [b"\x58\x1c", policy, head(5, len(names)), *names]
    return b"".join(parts)


def single_asset(asset: str, units: int) -> bytes:
    """Like `multiasset`, but for one asset, the common case."""
    whole = bytes.fromhex(asset)
    return b"\xa1\x58\x1c" + whole[:28] + b"\xa1" + byte_string(whole[28:]) + uint(units)


def commitment(value: bytes) -> bytes:
    """Encode the metadata {402: {"h": value, "p": "http:1"}} of x402's cardano-request-commitment."""
    return b"\xa1" + uint(402) + b"\xa2\x61h" + byte_string(value) + b"\x61p\x66http:1"


def tx_input(tx_id: str, index: int) -> bytes:
    """Encode an input, [transaction id, index]."""
    return b"\x82\x58\x20" + bytes.fromhex(tx_id) + uint(index)


def output(raw_address: bytes, lovelace: int, assets: bytes) -> bytes:
    """Encode an output [address, value] without datum or script. `assets` is an encoded multiasset map, or empty.

    This is Shelley's array form. It is two bytes shorter than Babbage's map, which lowers the ledger's min-ADA.
    """
    start = b"\x82" + head(2, len(raw_address)) + raw_address
    return start + (b"\x82" + head(0, lovelace) + assets if assets else head(0, lovelace))
