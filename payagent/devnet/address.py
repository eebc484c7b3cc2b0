"""Reads the raw form of addresses, as far as outputs and their spending need it (CIP-19, Byron CDDL).

It also verifies signatures by their keys.

Pure.

Never: makes an address.
"""

import zlib
from dataclasses import dataclass
from functools import lru_cache

from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from payagent.devnet.cbor import Reader, require
from payagent.devnet.ledger_types import UNSUPPORTED, LedgerError

MAINNET = 1
_BASE_LENGTH = 57
_ENTERPRISE_LENGTH = 29
_BYRON = 8


@dataclass(frozen=True, slots=True)
class AddressInfo:
    """The facts about an address that the ledger rules need.

    `key_hash` is the payment key's hash; None for a script and for Byron. `script_hash` is that of a script.
    `byron_attributes_bytes` is the size of a Byron address's attributes without the network magic.
    """

    network_id: int
    is_byron: bool
    key_hash: bytes | None
    byron_attributes_bytes: int = 0
    script_hash: bytes | None = None


def read_address(address: bytes) -> AddressInfo:
    """Read a payment address from its bytes.

    Raises `MalformedError` where the ledger's decoder refuses, and `LedgerError` for a pointer address, which the
    devnet does not support.
    """
    require(address != b"", "address: no bytes")
    kind = address[0] >> 4
    if kind == _BYRON:
        return _read_byron(address)
    if kind in (4, 5):
        raise LedgerError(UNSUPPORTED, "pointer address")
    require(kind <= 7, f"address: type {kind} is no payment address")
    expected = _BASE_LENGTH if kind < 4 else _ENTERPRISE_LENGTH
    require(len(address) == expected, f"address: {len(address)} bytes, {expected} were expected")
    network_id = address[0] & 0x0F
    require(network_id <= MAINNET, f"address: network {network_id}")
    is_script = bool(kind & 1)
    return AddressInfo(
        network_id,
        False,
        None if is_script else address[1:29],
        script_hash=address[1:29] if is_script else None,
    )


def _read_byron(address: bytes) -> AddressInfo:
    outer = Reader(address)
    _open_array(outer, 2, "Byron address")
    outer.tag(24, "Byron address")
    payload = outer.bytes_("Byron address payload")
    checksum = outer.uint("Byron address checksum", 2**32 - 1)
    outer.end("Byron address")
    require(zlib.crc32(payload) == checksum, "Byron address: the checksum does not fit")
    inner = Reader(payload)
    _open_array(inner, 3, "Byron address payload")
    inner.bytes_("Byron address root", 28)
    network_id, attributes_bytes = _read_byron_attributes(inner)
    inner.uint("Byron address type", 2)
    inner.end("Byron address payload")
    return AddressInfo(network_id, True, None, attributes_bytes)


def _read_byron_attributes(reader: Reader) -> tuple[int, int]:
    network_id, size = MAINNET, 0
    for key in reader.keys("Byron attributes", 255):
        value = reader.bytes_("Byron attribute")
        if key == 2:
            magic = Reader(value)
            magic.uint("Byron network magic", 2**32 - 1)
            magic.end("Byron network magic")
            network_id = 0
        else:
            size += len(value)
    return network_id, size


def _open_array(reader: Reader, length: int, what: str) -> None:
    require(reader.expect(4, what) == length, f"{what}: an array of {length} was expected")


@lru_cache(maxsize=256)
def is_signed(key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the signature is this key's for the message."""
    try:
        crypto_sign_open(signature + message, key)
    except (BadSignatureError, ValueError):
        return False
    return True
