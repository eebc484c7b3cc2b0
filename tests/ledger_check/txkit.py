"""A small transaction builder for the ledger's cases: every part can be bent on purpose.

Independent of payagent's own builder and of pycardano: raw CBOR from `raw`, keys and signatures from PyNaCl.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b, sha512
from typing import Self

import cbor2
from ledger_check.raw import array, encode_output, encode_value, mapping, tagged
from nacl import bindings

OutRef = tuple[str, int]
FEE_A, FEE_B, COINS_PER_BYTE = 44, 155_381, 4_310


def blake(data: bytes, size: int = 32) -> bytes:
    return blake2b(data, digest_size=size).digest()


def ref(number: int, index: int = 0) -> OutRef:
    """An input reference that differs for every number."""
    return blake(b"tx %d" % number).hex(), index


def asset(number: int, name: bytes = b"TOKEN") -> str:
    return blake(b"policy %d" % number, 28).hex() + name.hex()


@dataclass(frozen=True)
class Key:
    """A signing key: extended (BIP32-Ed25519, as HD wallets use) or plain (RFC 8032)."""

    scalar: bytes
    prefix: bytes

    @classmethod
    def extended(cls, number: int) -> Self:
        left = bytearray(sha512(b"extended %d" % number).digest()[:32])
        left[0] &= 0xF8
        left[31] = left[31] & 0x1F | 0x40
        return cls(bytes(left), sha512(b"prefix %d" % number).digest()[:32])

    @classmethod
    def plain(cls, number: int) -> Self:
        digest = bytearray(sha512(blake(b"seed %d" % number)).digest())
        digest[0] &= 0xF8
        digest[31] = digest[31] & 0x7F | 0x40
        return cls(bytes(digest[:32]), bytes(digest[32:]))

    @property
    def public(self) -> bytes:
        return bindings.crypto_scalarmult_ed25519_base_noclamp(self.scalar)

    @property
    def key_hash(self) -> bytes:
        return blake(self.public, 28)

    def sign(self, message: bytes) -> bytes:
        reduce = bindings.crypto_core_ed25519_scalar_reduce
        nonce = reduce(sha512(self.prefix + message).digest())
        point = bindings.crypto_scalarmult_ed25519_base_noclamp(nonce)
        challenge = reduce(sha512(point + self.public + message).digest())
        product = bindings.crypto_core_ed25519_scalar_mul(challenge, reduce(self.scalar + bytes(32)))
        return point + bindings.crypto_core_ed25519_scalar_add(nonce, product)

    def address(self, network_id: int = 0, *, base: bool = True) -> bytes:
        if base:
            return bytes([network_id]) + self.key_hash + blake(b"stake", 28)
        return bytes([0x60 | network_id]) + self.key_hash


def byron_address(magic: int | None, path: bytes = b"") -> bytes:
    attributes = [(b"\x01", cbor2.dumps(cbor2.dumps(path)))] if path else []
    if magic is not None:
        attributes.append((b"\x02", cbor2.dumps(cbor2.dumps(magic))))
    payload = array(cbor2.dumps(blake(b"byron", 28)), mapping(attributes), b"\x00")
    return array(tagged(24, cbor2.dumps(payload)), cbor2.dumps(zlib.crc32(payload)))


@dataclass(frozen=True)
class Out:
    """An output; `raw` replaces the encoding."""

    address: bytes
    lovelace: int
    assets: Mapping[str, int] = field(default_factory=dict)
    datum_hash: str | None = None
    inline_datum: str | None = None
    reference_script: str | None = None
    raw: bytes | None = None

    def encode(self) -> bytes:
        return encode_output(self) if self.raw is None else self.raw

    def with_value(self, raw_value: bytes) -> "Out":
        """The same output with a value encoded by hand."""
        return replace(self, raw=mapping([(b"\x00", cbor2.dumps(self.address)), (b"\x01", raw_value)]))

    def min_lovelace(self) -> int:
        """The least lovelace for this output with its value's width as it is (cardano-ledger Babbage)."""
        return (160 + len(self.encode())) * COINS_PER_BYTE

    def value_size(self) -> int:
        return len(encode_value(self.lovelace, self.assets))


def cip20(*lines: str) -> bytes:
    return cbor2.dumps({674: {"msg": list(lines)}})


@dataclass(frozen=True)
class Draft:
    """A transaction to be. `raw_fee`, `raw_witnesses`, `aux_hash` and `tail` put in what should not be there."""

    inputs: tuple[OutRef, ...]
    outputs: tuple[Out, ...]
    keys: tuple[Key, ...]
    fee: int = 200_000
    ttl: int | None = 1_000_000
    start: int | None = None
    body_network_id: int | None = None
    aux: bytes | None = None
    aux_hash: bytes | str | None = "right"
    raw_fee: bytes | None = None
    extra: tuple[tuple[bytes, bytes], ...] = ()
    is_valid: bool = True
    tag_sets: bool = False

    def with_(self, **changes: object) -> "Draft":
        return replace(self, **changes)  # type: ignore[arg-type]

    def body(self) -> bytes:
        inputs = array(*(array(cbor2.dumps(bytes.fromhex(tx_id)), cbor2.dumps(ix)) for tx_id, ix in self.inputs))
        aux_hash = self.aux_hash
        if aux_hash == "right":
            aux_hash = None if self.aux is None else blake(self.aux)
        pairs = [
            (b"\x00", tagged(258, inputs) if self.tag_sets else inputs),
            (b"\x01", array(*(out.encode() for out in self.outputs))),
            (b"\x02", cbor2.dumps(self.fee) if self.raw_fee is None else self.raw_fee),
        ]
        optional = ((3, self.ttl), (7, aux_hash), (8, self.start), (15, self.body_network_id))
        pairs += [(cbor2.dumps(key), cbor2.dumps(value)) for key, value in optional if value is not None]
        return mapping([*pairs, *self.extra])

    def witness(self, key: Key) -> bytes:
        return array(cbor2.dumps(key.public), cbor2.dumps(key.sign(blake(self.body()))))

    def witness_set(self, *witnesses: bytes) -> bytes:
        if not witnesses:
            return b"\xa0"
        found = array(*witnesses)
        return mapping([(b"\x00", tagged(258, found) if self.tag_sets else found)])

    def tx(self, witnesses: bytes | None = None) -> bytes:
        """The transaction's bytes, signed by all keys unless a witness set is given."""
        if witnesses is None:
            witnesses = self.witness_set(*map(self.witness, self.keys))
        aux = b"\xf6" if self.aux is None else self.aux
        return array(self.body(), witnesses, b"\xf5" if self.is_valid else b"\xf4", aux)

    @property
    def tx_id(self) -> str:
        return blake(self.body()).hex()

    def balanced(self, utxos: Mapping[OutRef, Out], fee: int | None = None, extra_fee: int = 0) -> "Draft":
        """The last output takes what is left; without a fee, the fee for the full size plus `extra_fee`."""
        if fee is None:
            draft = self.balanced(utxos, 200_000)
            fee = FEE_A * len(draft.tx()) + FEE_B + extra_fee
            return self.balanced(utxos, fee)
        *others, change = self.outputs
        spent = [utxos[item] for item in dict.fromkeys(self.inputs) if item in utxos]
        left = {name: sum(out.assets.get(name, 0) for out in spent) for out in spent for name in out.assets}
        for out in others:
            for name, units in out.assets.items():
                left[name] = left.get(name, 0) - units
        lovelace = sum(out.lovelace for out in spent) - sum(out.lovelace for out in others) - fee
        assets = {name: units for name, units in left.items() if units}
        return self.with_(outputs=(*others, replace(change, lovelace=lovelace, assets=assets)), fee=fee)
