"""A strict CIP-19 address decoder that accepts only key addresses of the configured network.

Only types 0 (key payment, key stake) and 6 (key payment) can be paid. Each kind of refusal has its own code.

Never: accepts a text that is not the canonical spelling of its bytes.
"""

from dataclasses import dataclass
from functools import lru_cache

from payagent.core.network import Network
from payagent.core.problems import Refused

_CHARSET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_VALUE = {char: index for index, char in enumerate(_CHARSET)}
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_BASE58 = frozenset("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz")

KEY_BASE, KEY_ENTERPRISE = 0, 6
LENGTH_OF_TYPE = {KEY_BASE: 57, KEY_ENTERPRISE: 29}
"""Length in bytes, header included, for each payable CIP-19 type."""

_REFUSED_TYPES = {
    1: "address_invalid/script",
    2: "address_invalid/script",
    3: "address_invalid/script",
    4: "address_invalid/pointer",
    5: "address_invalid/pointer",
    7: "address_invalid/script",
    8: "address_invalid/byron",
}


@dataclass(frozen=True, slots=True)
class Address:
    """A payable address: its bech32 text and its raw bytes."""

    text: str
    raw: bytes

    def __str__(self) -> str:
        return self.text

    @property
    def payment_key_hash(self) -> bytes:
        return self.raw[1:29]


def parse_address(value: object, network: Network) -> Address:
    """Parse an address that can be paid on `network`. Each kind of refusal has its own code (`address_*`)."""
    text = _require_text(value)
    prefix, raw = _bech32_decode(text)
    header, network_id = raw[0] >> 4, raw[0] & 0x0F
    if prefix.startswith("stake") or header in (14, 15):
        raise Refused("address_invalid/stake", f"{text} names a stake account, which no output can pay")
    if prefix not in ("addr", "addr_test"):
        raise Refused("address_invalid/wrong_prefix", f"the prefix of {text} is {prefix!r}")
    if (prefix == "addr") != (network_id == 1) or network_id not in (0, 1):
        raise Refused(
            "address_invalid/wrong_prefix", f"the prefix of {text} and its header name different networks"
        )
    if header in _REFUSED_TYPES:
        raise Refused(_REFUSED_TYPES[header], f"{text} is of CIP-19 type {header}")
    if header not in LENGTH_OF_TYPE:
        raise Refused("address_invalid/unknown_type", f"{text} is of type {header}, which CIP-19 does not define")
    if len(raw) != (length := LENGTH_OF_TYPE[header]):
        raise Refused("address_invalid/wrong_length", f"{text} has {len(raw)} bytes, type {header} has {length}")
    if network_id != network.network_id:
        raise Refused("address_invalid/wrong_network", f"{text} is not an address of {network.name}")
    return Address(text, raw)


@lru_cache(maxsize=1000)  # payments and views repeat the same few addresses
def encode_address(raw: bytes) -> Address:
    """Encode trusted raw bytes (type 0 or 6, header included) as an address."""
    prefix = "addr" if raw[0] & 0x0F == 1 else "addr_test"
    return Address(_bech32_encode(prefix, raw), raw)


def _require_text(value: object) -> str:
    if not isinstance(value, str) or not value:
        kind = "empty" if value == "" else type(value).__name__
        raise Refused("address_invalid/not_text", f"an address must be text, not {kind}")
    if len(value) > 200 or not value.isascii() or not value.isprintable() or " " in value:
        raise Refused("address_invalid/not_text", "an address must be at most 200 visible ASCII characters")
    if value != value.lower():
        if "1" not in value or (value[:2] in ("Ae", "Dd", "37", "2c") and set(value) <= _BASE58):
            raise Refused("address_invalid/byron", f"{value} looks like a Byron address")
        raise Refused("address_invalid/mixed_case", f"{value} is not in lower case")
    return value


def _polymod(values: list[int]) -> int:
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_GENERATOR):
            check ^= generator if (top >> bit) & 1 else 0
    return check


def _expand(prefix: str) -> list[int]:
    return [ord(char) >> 5 for char in prefix] + [0] + [ord(char) & 31 for char in prefix]


@lru_cache(maxsize=1000)
def _bech32_decode(text: str) -> tuple[str, bytes]:
    """Decode BIP-173 bech32 without its 90-character limit, which CIP-19 lifts. Bech32m is refused."""
    prefix, separator, data = text.rpartition("1")
    if not separator or not prefix:
        raise Refused("address_invalid/wrong_prefix", f"{text} has no bech32 prefix")
    if len(data) < 7 or any(char not in _VALUE for char in data):
        raise Refused("address_invalid/bad_checksum", f"{text} is not bech32")
    values = [_VALUE[char] for char in data]
    if _polymod(_expand(prefix) + values) != 1:
        raise Refused("address_invalid/bad_checksum", f"the checksum of {text} is wrong")
    raw = _to_bytes(values[:-6])
    if raw is None or not raw:
        raise Refused("address_invalid/bad_checksum", f"{text} has padding that is not canonical")
    return prefix, raw


def _to_bytes(values: list[int]) -> bytes | None:
    number, bits = 0, 5 * len(values)
    for value in values:
        number = number << 5 | value
    padding = bits % 8
    if padding >= 5 or number & ((1 << padding) - 1):
        return None
    return (number >> padding).to_bytes(bits // 8, "big")


def _bech32_encode(prefix: str, raw: bytes) -> str:
    bits = 8 * len(raw)
    padding = -bits % 5
    number = int.from_bytes(raw, "big") << padding
    count = (bits + padding) // 5
    values = [(number >> 5 * (count - 1 - index)) & 31 for index in range(count)]
    check = _polymod(_expand(prefix) + values + [0] * 6) ^ 1
    values += [(check >> 5 * (5 - index)) & 31 for index in range(6)]
    return prefix + "1" + "".join(_CHARSET[value] for value in values)
