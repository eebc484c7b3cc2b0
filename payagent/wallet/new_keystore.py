"""Creates keystores and changes their passphrases.

The address of a new wallet is derived twice, by `keys` and by pycardano. A wrong derivation would otherwise show
only when the words are restored in another wallet, and the money would be lost. Randomness comes in as a port.

Never: overwrites a keystore, except with the same words under another passphrase.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from payagent.core.network import Network
from payagent.core.problems import Refused
from payagent.secret_file import sync_folder
from payagent.wallet.keys import ENTROPY_BYTES, Seed, derive, seed_from_words
from payagent.wallet.keystore import (
    MODE,
    SCRYPT_N,
    SCRYPT_P,
    SCRYPT_R,
    VERSION,
    VERSION_HSM,
    Header,
    Hsm,
    HsmKey,
    authenticated,
    enterprise_address,
    open_keystore,
    read_header,
    require_bounded,
    stretch,
)

RandomBytes = Callable[[int], bytes]


def new_words(randomness: RandomBytes) -> str:
    """Make 24 new recovery words. `randomness(32)` returns the entropy."""
    return Seed(randomness(ENTROPY_BYTES)).words


def create(
    path: Path,
    words: str,
    passphrase: str,
    network: Network,
    account: int = 0,
    *,
    scrypt_n: int = SCRYPT_N,
    randomness: RandomBytes = os.urandom,
) -> Header:
    """Write a new keystore durably and return its public part.

    `scrypt_n` is the cost: a power of two, and n KiB of memory. Refused: `mnemonic_invalid`, `already_exists`,
    `keystore_invalid` for an empty passphrase or a cost that `keystore` would refuse to read.
    """
    seed = seed_from_words(words)
    address = derive(seed, network, account).address
    _check_with_pycardano(seed, account, address.raw)
    header = Header(network, account, address.text)
    _write_new(path, _encrypted(path, seed, header, passphrase, scrypt_n, randomness))
    return header


def hsm_of(uris: Sequence[str]) -> Hsm:
    """Parse PKCS#11 URIs (RFC 7512) of the keys in an HSM, in the order of the accounts.

    Example: `pkcs11:token=payagent;object=payagent-0?module-path=/usr/lib/softhsm/libsofthsm2.so`. Refused:
    `config_invalid`.
    """
    places = [_parts(uri) for uri in uris]
    if len(set(places)) < len(places) or len({place[:2] for place in places}) > 1:
        raise Refused(
            "config_invalid", "--keystore: all keys need the same token and module, and another label each"
        )
    token, module, _ = places[0]
    return Hsm(module, token, "", tuple(HsmKey(label) for *_, label in places))


def _parts(uri: str) -> tuple[str, str, str]:
    """The token's label, the module's path and the key's label."""
    parts = re.fullmatch(r"pkcs11:token=([^;?&]+);object=([^;?&]+)\?module-path=(/[^;?&]+)", uri)
    if parts is None or not unquote(uri).isprintable():
        raise Refused("config_invalid", "--keystore: write pkcs11:token=TOKEN;object=KEY?module-path=/PATH")
    token, label, module = map(unquote, parts.groups())
    return token, module, label


def create_hsm(path: Path, hsm: Hsm, network: Network) -> Header:
    """Write a new keystore that names keys of an HSM. Refused: as `create`."""
    address = enterprise_address(network, hsm.public_keys[0]).text
    document = {"version": VERSION_HSM, "network": network.name, "address": address, **asdict(hsm)}
    _write_new(path, json.dumps(document, indent=2).encode() + b"\n")
    return Header(network, 0, address, hsm)


def change_passphrase(path: Path, old: str, new: str) -> Header:
    """Encrypt the same words under another passphrase and replace the file atomically and durably.

    If the path is a symlink, its target is replaced. Otherwise the old passphrase would still open the target.
    Refused: `keystore_invalid`, for example for a wrong old passphrase. The file is then unchanged.
    """
    header, seed = read_header(path), open_keystore(path, old)
    path = path.resolve()
    new_path = path.with_name(f".{path.name}.new")
    new_path.unlink(missing_ok=True)  # left over from an interrupted change
    _write_new(new_path, _encrypted(path, seed, header, new, SCRYPT_N, os.urandom))
    if open_keystore(new_path, new).entropy != seed.entropy:
        raise Refused("keystore_invalid", f"{new_path} does not hold the bytes that were written to it")
    new_path.rename(path)
    sync_folder(path.parent)
    return header


def _encrypted(
    path: Path, seed: Seed, header: Header, passphrase: str, scrypt_n: int, randomness: RandomBytes
) -> bytes:
    """Build a keystore's content with a fresh salt and nonce."""
    if not passphrase:
        raise Refused("keystore_invalid", "the passphrase is empty")
    document: dict[str, Any] = {
        "version": VERSION,
        "network": header.network.name,
        "account": header.account,
        "address": header.address,
        "kdf": {
            "name": "scrypt",
            "n": scrypt_n,
            "r": SCRYPT_R,
            "p": SCRYPT_P,
            "salt": randomness(16).hex(),
        },
        "cipher": {"name": "aes-256-gcm", "nonce": randomness(12).hex()},
    }
    require_bounded(path, document["kdf"])
    cipher = AESGCM(stretch(passphrase, document["kdf"]))
    nonce = bytes.fromhex(document["cipher"]["nonce"])
    document["ciphertext"] = cipher.encrypt(nonce, seed.entropy, authenticated(document)).hex()
    return json.dumps(document, indent=2).encode() + b"\n"


def _check_with_pycardano(seed: Seed, account: int, raw_address: bytes) -> None:
    """Refuse a wallet for which pycardano derives other keys: no other wallet software would find its money."""
    # Imported here because it is slow and large. Its logger gets a handler that prints to stderr, removed below.
    from pycardano.crypto.bip32 import HDWallet

    logger = logging.getLogger("PyCardano")
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.ERROR)
    root = HDWallet.from_entropy(seed.entropy.hex())
    keys = (root.derive_from_path(f"m/1852'/1815'/{account}'/{role}/0").public_key for role in (0, 2))
    hashes = b"".join(hashlib.blake2b(key, digest_size=28).digest() for key in keys)
    if raw_address[1:] != hashes:
        raise Refused("keystore_invalid", "pycardano derives another address: nothing was created")


def _write_new(path: Path, content: bytes) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
    except FileExistsError:
        raise Refused("already_exists/keystore", f"{path} already exists; nothing is overwritten") from None
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), MODE)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except BaseException:
        path.unlink()
        raise
