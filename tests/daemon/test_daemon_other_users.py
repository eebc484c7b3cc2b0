"""Another user of the machine, a real one, can neither read the daemon's files nor call it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from kit.canaries import plant
from kit.daemon import SOMEBODY, Process, announced, children, furnish, health, stop
from kit.webhook import target

from payagent.devnet.server import DevnetThread

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a second user")

SECRET = plant("a provider's project id", "project-id-that-strangers-want")
TOKEN = plant("the operator's own token", "operator-token-that-strangers-want")

STRANGER = """
import ctypes, encodings.idna, json, os, socket, sys, urllib.request
wanted = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))

def traced(pid):
    if libc.ptrace(16, pid, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")

def connected(path):
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(60)
        door.connect(path)
        door.sendall(b"GET /healthz HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n")
        return door.recv(100).decode()

def asked(url, headers={}):
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.build_opener().open(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code

def listed(path):
    return len(os.listdir(path))

ways = {
    "read": lambda path: len(open(path, "rb").read(16)),
    "write": lambda path: open(path, "ab").close(),
    "list": listed,
    "remove": os.unlink,
    "signal": lambda pid: os.kill(pid, 0),
    "trace": traced,
    "connect": connected,
    "ask": asked,
}
for way, what, *more in wanted:
    try:
        told = ways[way](what, *more)
    except OSError as error:
        told = type(error).__name__
    print(json.dumps([way, what, told]))
"""

Try = tuple[object, ...]


def write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def stranger(*wanted: Try) -> list[list[object]]:
    """What another user gets for each attempt."""
    command = [sys.executable, "-c", STRANGER, json.dumps(wanted), str(SOMEBODY)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(told) == len(wanted), result.stderr
    return told


@pytest.fixture(scope="module")
def folder(devnet: DevnetThread) -> Iterator[Path]:
    """A folder open to everyone, so that only the daemon's own protection is in the way."""
    with TemporaryDirectory(prefix="payagent-strangers-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        furnish(folder, devnet)
        write_private(folder / "project-id", SECRET)
        write_private(folder / "api-key", SECRET)
        write_private(folder / "webhook-secret", "whsec_" + 8 * "QUFB")
        write_private(folder / "data/operator.token", TOKEN)
        (folder / "data/recovery-words.txt").touch(mode=0o600)
        config = folder / "config.toml"
        provider = f'project_id_file = "{folder}/project-id"\n[keystore]'
        config.write_text(
            config.read_text().replace("[keystore]", provider)
            + f'[merchants.t]\norigin = "http://127.0.0.1:1"\napi_key_file = "{folder}/api-key"\n'
            + target("http://127.0.0.1:1/", folder / "webhook-secret")
        )
        (folder / "for everybody").write_text("open to all")
        yield folder


@pytest.fixture(scope="module")
def daemon(folder: Path) -> Iterator[tuple[Process, int, Path]]:
    """The process, its port and its socket."""
    process, port, path = announced(folder)
    try:
        yield process, port, path
    finally:
        assert stop(process)[0] == 0


def test_another_user_cannot_read_files_or_call_the_api(folder: Path, daemon: tuple[Process, int, Path]) -> None:
    process, port, path = daemon
    (launcher,) = children(process.pid)
    (signer,) = children(launcher)
    data, api = folder / "data", f"http://127.0.0.1:{port}/v1"
    files = [data / name for name in ("keystore.json", "ledger.db", "ledger.db-wal", "ledger.db-shm")]
    files += [data / name for name in ("operator.token", "recovery-words.txt", "lock")]
    files += [folder / name for name in ("passphrase", "project-id", "api-key", "webhook-secret")]
    assert all(file.exists() for file in files)
    private = [("read", str(file)) for file in files] + [("write", str(file)) for file in files]
    private += [("list", str(data)), ("list", str(path.parent)), ("remove", str(path)), ("connect", str(path))]
    private += [("write", str(folder / "config.toml")), ("remove", str(data / "keystore.json"))]
    for pid in (process.pid, launcher, signer):
        private += [("read", f"/proc/{pid}/{name}") for name in ("mem", "environ", "maps", "auxv", "fd/0")]
        private += [("list", f"/proc/{pid}/fd"), ("list", f"/proc/{pid}/root"), ("signal", pid), ("trace", pid)]
    told = stranger(*private)
    assert [one for one in told if one[-1] != "PermissionError"] == []
    calls = [("ask", f"{api}/{name}") for name in ("wallet", "payments", "ledger/balance", "limits")]
    calls += [("ask", f"{api}/wallet", {"Authorization": "Bearer guessed"})]
    assert {answer for *_, answer in stranger(*calls)} == {401}
    assert stranger(("read", str(folder / "for everybody"))) == [["read", str(folder / "for everybody"), 11]]


def test_the_socket_answers_only_its_owner_even_when_its_mode_is_open_to_all(
    daemon: tuple[Process, int, Path],
) -> None:
    """The other user connects and is dropped before a byte is read; the owner is still served."""
    _, _, path = daemon
    path.parent.chmod(0o755)
    path.chmod(0o666)
    ((_, _, answer),) = stranger(("connect", str(path)))
    path.chmod(0o600)
    path.parent.chmod(0o700)
    assert answer in ("", "ConnectionResetError", "BrokenPipeError")
    assert b" 200 " in health(1, str(path))
