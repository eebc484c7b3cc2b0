"""Keys: derives one base address and a signer from the recovery words.

Standards: BIP-39, CIP-3 Icarus, CIP-1852, BIP32-Ed25519.

Never: a secret in a repr, a pickle, an exception or a log; pycardano, which takes over a second and 79 MB to
import (only `new_keystore` uses it).
"""

import hashlib
import hmac
from dataclasses import dataclass
from typing import NoReturn, Protocol, final

from mnemonic import Mnemonic
from nacl import bindings

from payagent.core.address import Address, encode_address
from payagent.core.network import Network
from payagent.core.problems import Refused

WORD_COUNT = 24
ENTROPY_BYTES = 32
_HARDENED = 2**31
_ENGLISH = Mnemonic("english")


class Signer(Protocol):
    """Signs for the wallet's one payment key. Its repr reveals nothing about the secret."""

    @property
    def public_key(self) -> bytes:
        """The 32 bytes of the public key in the witness."""

    @property
    def payment_key_hash(self) -> bytes:
        """blake2b-224 of the public key, as it is in the address."""

    def sign(self, body: bytes, paid: int) -> bytes:
        """Return the 64-byte signature over the hash of a transaction body.

        The first `paid` outputs may leave the wallet. All later outputs must pay the wallet itself. A signer in
        another process may refuse (`signer_refused`) or be gone (`signer_lost`).
        """


@final
class SoftwareSigner:
    """Signs in this process with libsodium and an extended key (64 bytes: scalar and nonce key)."""

    __slots__ = ("_nonce_key", "_scalar", "payment_key_hash", "public_key")

    def __init__(self, extended_key: bytes) -> None:
        self._scalar, self._nonce_key = extended_key[:32], extended_key[32:]
        self.public_key = bindings.crypto_scalarmult_ed25519_base_noclamp(self._scalar)
        self.payment_key_hash = key_hash(self.public_key)

    def __repr__(self) -> str:
        return "SoftwareSigner()"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a signer is neither copied nor pickled")

    def sign(self, body: bytes, paid: int) -> bytes:
        """Sign any body, without checks: whoever holds this object holds the key."""
        return self.sign_hash(body_hash(body))

    def sign_hash(self, tx_id: bytes) -> bytes:
        """Sign with Ed25519 (RFC 8032), using the scalar unchanged as BIP32-Ed25519 requires. Returns 64 bytes."""
        reduce = bindings.crypto_core_ed25519_scalar_reduce
        nonce = reduce(hashlib.sha512(self._nonce_key + tx_id).digest())
        commitment = bindings.crypto_scalarmult_ed25519_base_noclamp(nonce)
        challenge = reduce(hashlib.sha512(commitment + self.public_key + tx_id).digest())
        product = bindings.crypto_core_ed25519_scalar_mul(challenge, self._scalar)
        return commitment + bindings.crypto_core_ed25519_scalar_add(product, nonce)


@final
class Seed:
    """The entropy behind the recovery words. Keep it only while deriving keys."""

    __slots__ = ("entropy",)

    def __init__(self, entropy: bytes) -> None:
        if len(entropy) != ENTROPY_BYTES:
            raise Refused("mnemonic_invalid", f"{WORD_COUNT} words stand for {ENTROPY_BYTES} bytes")
        self.entropy = entropy

    def __repr__(self) -> str:
        return "Seed()"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a seed is neither copied nor pickled")

    @property
    def words(self) -> str:
        """The 24 recovery words. They are shown once, when the wallet is created."""
        return str(_ENGLISH.to_mnemonic(self.entropy))


def seed_from_words(text: str) -> Seed:
    """Parse 24 English BIP-39 words, in any case and with any white space. Refused: `mnemonic_invalid`.

    The error never quotes a word.
    """
    words = text.lower().split()
    if len(words) != WORD_COUNT:
        raise Refused("mnemonic_invalid", f"{len(words)} words given, {WORD_COUNT} are needed")
    try:
        return Seed(bytes(_ENGLISH.to_entropy(words)))
    except (ValueError, LookupError):
        raise Refused("mnemonic_invalid", "a word is not in the list, or the checksum is wrong") from None


@dataclass(frozen=True, slots=True)
class Account:
    """An account of the wallet: one fixed address and its signer. `number`: of its derivation path (CIP-1852)."""

    network: Network
    number: int
    address: Address
    signer: Signer


def derive(seed: Seed, network: Network, account: int = 0) -> Account:
    """Derive an account. Payment key m/1852'/1815'/account'/0/0, stake key m/1852'/1815'/account'/2/0."""
    payment, stake = _derive_keys(seed, account)
    signer = SoftwareSigner(payment)
    stake_hash = key_hash(bindings.crypto_scalarmult_ed25519_base_noclamp(stake[:32]))
    raw = bytes((network.network_id,)) + signer.payment_key_hash + stake_hash
    return Account(network, account, encode_address(raw), signer)


def _derive_keys(seed: Seed, account: int) -> tuple[bytes, bytes]:
    root = _root(seed.entropy)
    for index in (1852, 1815, account):
        root = _child(root, index + _HARDENED)
    payment, stake = (_child(_child(root, role), 0)[:64] for role in (0, 2))
    return payment, stake


def _root(entropy: bytes) -> bytes:
    """CIP-3 Icarus root key: scalar (clamped for Ed25519), nonce key and chain code, 32 bytes each."""
    node = bytearray(hashlib.pbkdf2_hmac("sha512", b"", entropy, 4096, 96))
    node[0] &= 0b1111_1000
    node[31] = node[31] & 0b0001_1111 | 0b0100_0000
    return bytes(node)


def _child(node: bytes, index: int) -> bytes:
    """BIP32-Ed25519 private child derivation. Hardened indexes hash the private key, others the public key."""
    scalar, nonce_key, chain_code = node[:32], node[32:64], node[64:]
    if index >= _HARDENED:
        tags, key = b"\x00\x01", scalar + nonce_key
    else:
        tags, key = b"\x02\x03", bindings.crypto_scalarmult_ed25519_base_noclamp(scalar)
    message = key + index.to_bytes(4, "little")
    z, code = (hmac.digest(chain_code, tags[n : n + 1] + message, "sha512") for n in (0, 1))
    left = 8 * int.from_bytes(z[:28], "little") + int.from_bytes(scalar, "little")
    right = (int.from_bytes(z[32:], "little") + int.from_bytes(nonce_key, "little")) % 2**256
    return left.to_bytes(32, "little") + right.to_bytes(32, "little") + code[32:]


def body_hash(body: bytes) -> bytes:
    """blake2b-256: the id of the transaction that has this body."""
    return hashlib.blake2b(body, digest_size=32).digest()


def key_hash(public_key: bytes) -> bytes:
    """blake2b-224, as in an address."""
    return hashlib.blake2b(public_key, digest_size=28).digest()
