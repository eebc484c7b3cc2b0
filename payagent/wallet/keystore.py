"""The keystore: one owner-only file that holds the recovery words, encrypted under a passphrase.

The file is JSON, version 1. The cipher is AES-256-GCM over the 32 bytes of entropy, with a key from scrypt
(RFC 7914). Everything but the ciphertext is public and authenticated: network, account and address can be read
without the passphrase, and a change to them is detected.

Version 2 holds no secret: it names the keys of an HSM, by account. The signer compares them with the HSM's.

Never: writes a file (`new_keystore` does); opens a file that others may read; reveals a secret in an error.
"""

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from payagent.core.address import KEY_ENTERPRISE, Address, encode_address, parse_address
from payagent.core.network import NETWORKS, Network
from payagent.core.problems import Refused
from payagent.wallet.keys import ENTROPY_BYTES, Account, Seed, derive, key_hash

VERSION, VERSION_HSM = 1, 2
SCRYPT_N = 2**16  # p = 2 gives the strength of 2**17 with p = 1 (OWASP) in half the memory, the daemon's peak
MODE = 0o600
SCRYPT_R, SCRYPT_P = 8, 2
_SCRYPT_N_MIN, _SCRYPT_P_MAX = 2**4, 16
_SCRYPT_BYTES_MAX = 256 * 1024 * 1024  # 128 n r; an untrusted file must not demand more memory
SIZE_MAX = 32_768  # of 100 keys of an HSM
_FIELDS = {"version", "network", "account", "address", "kdf", "cipher", "ciphertext"}
_FIELDS_HSM = {"version", "network", "address", "module", "token", "serial", "keys"}
_KDF_FIELDS, _CIPHER_FIELDS = {"name", "n", "r", "p", "salt"}, {"name", "nonce"}


@dataclass(frozen=True, slots=True)
class HsmKey:
    """A key pair in an HSM. `id` and `public_key` are hex, and empty while they are not known."""

    label: str
    id: str = ""
    public_key: str = ""


@dataclass(frozen=True, slots=True)
class Hsm:
    """The HSM's token that holds a wallet's keys, by account, and its PKCS#11 module.

    `serial` is empty while it is not known.
    """

    module: str
    token: str
    serial: str
    keys: tuple[HsmKey, ...]

    @property
    def public_keys(self) -> tuple[bytes, ...]:
        return tuple(bytes.fromhex(key.public_key) for key in self.keys)


@dataclass(frozen=True, slots=True)
class Header:
    """The public part of a keystore. `hsm`: where the keys are, if the file has no words."""

    network: Network
    account: int
    address: str
    hsm: Hsm | None = None


def read_header(path: Path) -> Header:
    """Read the public part without verifying it; only `open_keystore` does. Refused: `keystore_invalid`."""
    document = _read(path)
    network = NETWORKS[document["network"]]
    if document["version"] == VERSION:
        return Header(network, document["account"], document["address"])
    keys = tuple(HsmKey(**key) for key in document["keys"])
    hsm = Hsm(document["module"], document["token"], document["serial"], keys)
    return Header(network, 0, document["address"], hsm)


def enterprise_address(network: Network, public_key: bytes) -> Address:
    """The address of a key without a stake key (CIP-19, type 6)."""
    return encode_address(bytes((KEY_ENTERPRISE << 4 | network.network_id,)) + key_hash(public_key))


def open_keystore(path: Path, passphrase: str) -> Seed:
    """Decrypt the seed. Refused: `keystore_invalid` (wrong passphrase, changed file, or mode wider than 0600)."""
    document = _read(path)
    if document["version"] == VERSION_HSM:
        raise _invalid(path, "its keys are in an HSM, whose own tools change the PIN")
    try:
        entropy = AESGCM(stretch(passphrase, document["kdf"])).decrypt(
            bytes.fromhex(document["cipher"]["nonce"]),
            bytes.fromhex(document["ciphertext"]),
            authenticated(document),
        )
        return Seed(entropy)
    except (InvalidTag, ValueError):
        raise _invalid(path, "the passphrase is wrong, or the file was changed") from None


def unlock(path: Path, passphrase: str, count: int = 1) -> tuple[Account, ...]:
    """Open the keystore and derive its account and those that follow it, `count` in all.

    Refused: `keystore_invalid` if the first account's address is not the file's.
    """
    header = read_header(path)
    seed = open_keystore(path, passphrase)
    accounts = tuple(derive(seed, header.network, header.account + place) for place in range(count))
    if accounts[0].address.text != header.address:
        raise _invalid(path, "its words give another address than it names")
    return accounts


def _invalid(path: Path, detail: str, fix: str | None = None) -> Refused:
    return Refused("keystore_invalid", f"{path}: {detail}", fix=fix)


def stretch(passphrase: str, kdf: dict[str, Any]) -> bytes:
    """Derive the 32-byte cipher key with scrypt, at the cost stated in the keystore."""
    n, r, p = kdf["n"], kdf["r"], kdf["p"]
    memory_max = 128 * r * (n + p + 2)
    return hashlib.scrypt(
        passphrase.encode(), salt=bytes.fromhex(kdf["salt"]), n=n, r=r, p=p, maxmem=memory_max, dklen=32
    )


def require_bounded(path: Path, kdf: dict[str, Any]) -> None:
    """Refuse a scrypt cost that is too low, or that takes too much memory or time (`keystore_invalid`)."""
    n, r, p = kdf["n"], kdf["r"], kdf["p"]
    is_whole = type(n) is type(r) is type(p) is int
    if not is_whole or not (
        n >= _SCRYPT_N_MIN
        and n.bit_count() == 1
        and r >= 1
        and 1 <= p <= _SCRYPT_P_MAX
        and 128 * n * r <= _SCRYPT_BYTES_MAX
    ):
        raise _invalid(
            path,
            f"its scrypt cost is out of bounds: n a power of two from {_SCRYPT_N_MIN}, p from 1 to "
            f"{_SCRYPT_P_MAX}, 128 n r up to {_SCRYPT_BYTES_MAX} bytes",
        )


def authenticated(document: dict[str, Any]) -> bytes:
    """Return the authenticated data: everything but the ciphertext, as canonical JSON."""
    public = {key: value for key, value in document.items() if key != "ciphertext"}
    return json.dumps(public, sort_keys=True, separators=(",", ":")).encode()


def _read(path: Path) -> dict[str, Any]:
    try:
        # O_NONBLOCK: if the path is a pipe, opening it must not wait for a writer
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(SIZE_MAX + 1) if stat.S_ISREG(mode) else b""
    except OSError as error:
        raise _invalid(path, f"it cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(mode) or stat.S_IMODE(mode) & ~MODE:
        raise _invalid(
            path,
            f"its mode is {stat.S_IMODE(mode):04o}, and only its owner may have access (0600)",
            f"Run: chmod 600 {path}" if stat.S_ISREG(mode) else None,
        )
    try:
        document: Any = json.loads(content) if len(content) <= SIZE_MAX else None
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict) and _is_hsm_keystore(document):
        return document
    if not isinstance(document, dict) or not _is_keystore(document):
        raise _invalid(path, "it is not a keystore of version 1 or 2")
    require_bounded(path, document["kdf"])
    return document


def _is_hsm_keystore(document: dict[str, Any]) -> bool:
    """Whether the file names keys of an HSM, and its address is the first key's."""
    if set(document) != _FIELDS_HSM or document["network"] not in list(NETWORKS):
        return False
    keys = document["keys"]
    return bool(
        document["version"] == VERSION_HSM
        and all(isinstance(document[name], str) for name in ("module", "token", "serial"))
        and document["module"].startswith("/")
        and document["module"].isprintable()
        and isinstance(keys, list)
        and keys
        and all(isinstance(key, dict) and set(key) == {"label", "id", "public_key"} for key in keys)
        and all(isinstance(text, str) for key in keys for text in key.values())
        and all(_is_hex(key["public_key"], 32) and _is_hex(key["id"], len(key["id"]) // 2) for key in keys)
        and len({key["public_key"] for key in keys}) == len(keys)
        and document["address"]
        == enterprise_address(NETWORKS[document["network"]], bytes.fromhex(keys[0]["public_key"])).text
    )


def _is_keystore(document: dict[str, Any]) -> bool:
    if set(document) != _FIELDS:
        return False
    kdf, cipher, account = document["kdf"], document["cipher"], document["account"]
    if type(document["version"]) is not int or document["version"] != VERSION:
        return False
    if not isinstance(document["network"], str) or document["network"] not in NETWORKS:
        return False
    if type(account) is not int or not 0 <= account < 2**31:
        return False
    if not _is_address(document["address"], NETWORKS[document["network"]]):
        return False
    return _is_kdf(kdf) and bool(
        isinstance(cipher, dict)
        and set(cipher) == _CIPHER_FIELDS
        and cipher["name"] == "aes-256-gcm"
        and _is_hex(cipher["nonce"], 12)
        and _is_hex(document["ciphertext"], ENTROPY_BYTES + 16)
    )


def _is_address(value: Any, network: Network) -> bool:
    try:
        parse_address(value, network)
    except Refused:
        return False
    return True


def _is_kdf(kdf: Any) -> bool:
    return bool(
        isinstance(kdf, dict) and set(kdf) == _KDF_FIELDS and kdf["name"] == "scrypt" and _is_hex(kdf["salt"], 16)
    )


def _is_hex(value: Any, length: int) -> bool:
    if not isinstance(value, str) or len(value) != 2 * length:
        return False
    return all(char in "0123456789abcdef" for char in value)
