"""The keystore: only the right passphrase opens it, and only from an unchanged file private to its owner."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from kit.wallet import payee

from payagent.core.network import NETWORKS
from payagent.core.problems import Refused
from payagent.wallet import keystore
from payagent.wallet.keystore import Header, open_keystore, read_header, unlock
from payagent.wallet.new_keystore import create, new_words

WORDS = "abandon " * 23 + "art"
PASSPHRASE = "correct horse"
CHEAP = 2**4
PREPROD = NETWORKS["preprod"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "keystore.json"
    create(file, WORDS, PASSPHRASE, PREPROD, scrypt_n=CHEAP)
    return file


def refusal(path: Path, passphrase: str = PASSPHRASE) -> Refused:
    with pytest.raises(Refused) as caught:
        unlock(path, passphrase)
    assert WORDS not in str(caught.value)
    assert passphrase not in str(caught.value) or not passphrase
    return caught.value


def test_the_words_written_to_a_keystore_are_read_back(path: Path) -> None:
    assert open_keystore(path, PASSPHRASE).words == WORDS
    (account,) = unlock(path, PASSPHRASE)
    assert read_header(path) == Header(PREPROD, 0, account.address.text)
    assert account.network is PREPROD


def test_the_default_scrypt_cost_is_written_into_the_keystore(tmp_path: Path) -> None:
    file = tmp_path / "keystore.json"
    create(file, WORDS, PASSPHRASE, NETWORKS["mainnet"], 3)
    assert json.loads(file.read_text())["kdf"]["n"] == 2**16
    assert [one.number for one in unlock(file, PASSPHRASE, 2)] == [3, 4]


def test_the_keystore_is_readable_by_its_owner_only_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        create(tmp_path / "k", WORDS, PASSPHRASE, PREPROD, scrypt_n=CHEAP)
    finally:
        os.umask(before)
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600


def test_the_keystore_file_contains_no_secret_in_plain_text(path: Path) -> None:
    text = path.read_text()
    assert "abandon" not in text
    assert PASSPHRASE not in text
    assert open_keystore(path, PASSPHRASE).entropy.hex() not in text


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o660, 0o700, 0o777, 0o4600])
def test_a_keystore_open_to_others_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)
    assert refusal(path).code == "keystore_invalid"
    with pytest.raises(Refused):
        read_header(path)


def test_a_keystore_with_a_stricter_mode_is_accepted(path: Path) -> None:
    path.chmod(0o400)
    assert unlock(path, PASSPHRASE)[0].network is PREPROD


def test_a_keystore_is_never_overwritten(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(Refused) as caught:
        create(path, WORDS, "another", PREPROD, scrypt_n=CHEAP)
    assert caught.value.name == "already_exists/keystore"
    assert path.read_bytes() == before


def test_a_failed_write_leaves_no_keystore_file(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            create(tmp_path / "k", WORDS, PASSPHRASE, PREPROD, scrypt_n=CHEAP)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("passphrase", ["", "Correct horse", "correct horse ", "x" * 5000])
def test_a_wrong_passphrase_is_refused(path: Path, passphrase: str) -> None:
    assert refusal(path, passphrase).code == "keystore_invalid"


def test_an_empty_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused):
        create(tmp_path / "k", WORDS, "", PREPROD, scrypt_n=CHEAP)
    assert not (tmp_path / "k").exists()


def test_no_keystore_is_created_from_invalid_words(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        create(tmp_path / "k", "abandon " * 24, PASSPHRASE, PREPROD, scrypt_n=CHEAP)
    assert caught.value.name == "mnemonic_invalid"
    assert not (tmp_path / "k").exists()


OTHER_ADDRESS = payee(1).text
TAMPERED: dict[str, Any] = {
    "network": ("network", "devnet"),
    "mainnet": ("network", "mainnet"),
    "no network": ("network", "nonet"),
    "account": ("account", 1),
    "account as text": ("account", "0"),
    "account as truth": ("account", False),
    "address": ("address", OTHER_ADDRESS),
    "version": ("version", 2),
    "version as truth": ("version", True),
    "less cost": ("kdf.n", 2**5),
    "no cost": ("kdf.n", 1),
    "cost that is no power": ("kdf.n", 17),
    "cost of a terabyte": ("kdf.n", 2**30),
    "salt": ("kdf.salt", "00" * 16),
    "short salt": ("kdf.salt", "00"),
    "kdf": ("kdf.name", "none"),
    "r": ("kdf.r", 1),
    "nonce": ("cipher.nonce", "00" * 12),
    "cipher": ("cipher.name", "aes-128-gcm"),
    "ciphertext": ("ciphertext", "00" * 48),
    "short ciphertext": ("ciphertext", ""),
    "upper-case hex": ("ciphertext", "AA" * 48),
    "a field more": ("more", 1),
    "a field more inside": ("kdf.more", 1),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_changed_keystore_is_refused(path: Path, name: str) -> None:
    place, value = TAMPERED[name]
    document = json.loads(path.read_text())
    inner = document
    *folders, key = place.split(".")
    for folder in folders:
        inner = inner[folder]
    assert inner.get(key) != value or isinstance(value, bool)
    inner[key] = value
    path.write_text(json.dumps(document))
    assert refusal(path).code == "keystore_invalid"


NO_KEYSTORES = [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 3000, b" " * 5000, b'{"version": 1}']


@pytest.mark.parametrize("content", NO_KEYSTORES)
def test_a_file_that_is_not_a_keystore_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert refusal(path).code == "keystore_invalid"


def test_a_flipped_bit_in_the_keystore_is_refused_or_changes_nothing(path: Path) -> None:
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 7):
        bent = bytearray(content)
        bent[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bent)
        try:
            seed = open_keystore(path, PASSPHRASE)
        except Refused:
            continue
        assert json.loads(bytes(bent)) == json.loads(content)
        assert seed.words == WORDS


def test_a_keystore_path_that_is_not_a_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nothing").code == "keystore_invalid"
    assert refusal(tmp_path).code == "keystore_invalid"


def test_a_keystore_whose_words_give_another_address_is_refused(tmp_path: Path, path: Path) -> None:
    """The file is authentic, but another program wrote an address that the words do not give."""
    document = json.loads(path.read_text())
    document["address"] = OTHER_ADDRESS
    cipher = AESGCM(keystore.stretch(PASSPHRASE, document["kdf"]))
    nonce = bytes.fromhex(document["cipher"]["nonce"])
    entropy = open_keystore(path, PASSPHRASE).entropy
    document["ciphertext"] = cipher.encrypt(nonce, entropy, keystore.authenticated(document)).hex()
    path.write_text(json.dumps(document))
    assert open_keystore(path, PASSPHRASE).words == WORDS
    assert "another address" in str(refusal(path))


def written_elsewhere(path: Path, **cost: int) -> None:
    """Encrypt the same entropy with another cost, as another program might."""
    document = json.loads(path.read_text())
    entropy = open_keystore(path, PASSPHRASE).entropy
    document["kdf"] |= cost
    salt, nonce = bytes.fromhex(document["kdf"]["salt"]), bytes.fromhex(document["cipher"]["nonce"])
    key = Scrypt(salt, 32, *(document["kdf"][name] for name in "nrp")).derive(PASSPHRASE.encode())
    del document["ciphertext"]
    public = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    document["ciphertext"] = AESGCM(key).encrypt(nonce, entropy, public).hex()
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("cost", [{"r": 1}, {"p": 1}, {"r": 16, "p": 16}, {"n": 2**10, "r": 4, "p": 3}], ids=str)
def test_the_scrypt_cost_is_read_from_the_keystore(path: Path, cost: dict[str, int]) -> None:
    written_elsewhere(path, **cost)
    assert open_keystore(path, PASSPHRASE).words == WORDS


@pytest.mark.parametrize(
    "cost",
    [
        {"n": 2**19},
        {"n": 2**18, "r": 9},
        {"n": 2**4, "r": 2**18},
        {"r": 0},
        {"r": -8},
        {"p": 0},
        {"p": 17},
        {"n": 2**3},
        {"n": 3 * 2**10},
        {"r": 8.0},
        {"p": "1"},
        {"p": True},
    ],
    ids=str,
)
def test_a_scrypt_cost_out_of_bounds_is_refused_before_it_is_used(path: Path, cost: dict[str, Any]) -> None:
    document = json.loads(path.read_text())
    document["kdf"] |= cost
    path.write_text(json.dumps(document))
    assert "scrypt" in refusal(path).detail
    with pytest.raises(Refused, match="scrypt"):
        read_header(path)


def test_a_keystore_that_could_not_be_opened_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="scrypt"):
        create(tmp_path / "k", WORDS, PASSPHRASE, PREPROD, scrypt_n=2**19)
    assert list(tmp_path.iterdir()) == []


def test_new_words_come_from_the_given_randomness() -> None:
    assert new_words(bytes) == WORDS
    assert len(set(new_words(os.urandom).split())) > 12


KILLED = """
import os, signal, sys
from pathlib import Path
from payagent.core.problems import Refused
from payagent.wallet import new_keystore
from payagent.wallet.keystore import open_keystore

path, left = Path(sys.argv[1]), 0
whole = path.read_bytes()
new_keystore.SCRYPT_N = 2**4  # as in the file: the kill must hit the writing, not scrypt

def step(frame, event, _):
    global left
    if not any(part in frame.f_code.co_filename for part in ("new_keystore.py", "pathlib", "os.py", "shutil.py")):
        return None
    left -= event == "line"
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return step

def words(passphrase):
    try:
        return open_keystore(path, passphrase).words
    except Refused:
        return None

for count in range(10_000):
    path.write_bytes(whole)
    child = os.fork()
    if child == 0:
        left = count
        sys.settrace(step)
        new_keystore.change_passphrase(path, "old", "new")
        sys.settrace(None)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    opened = [name for name in ("old", "new") if words(name) == sys.argv[2]]
    print(*opened, ended)
    if ended == 0:
        break
"""


def test_a_passphrase_change_killed_anywhere_leaves_the_old_or_the_new_passphrase(
    tmp_path: Path,
) -> None:
    """It is killed before each Python line of the change and of the libraries it calls."""
    path = tmp_path / "keystore.json"
    create(path, WORDS, "old", PREPROD, scrypt_n=CHEAP)
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), WORDS], capture_output=True, text=True, check=False
    )
    told = [line.split() for line in ran.stdout.splitlines()]
    assert told, ran.stderr
    assert told[-1] == ["new", "0"]
    killed = [line for line in told if line[-1] == str(-signal.SIGKILL)]
    assert len(killed) == len(told) - 1 > 50
    assert {tuple(opened) for *opened, _ in killed} == {("old",), ("new",)}
