"""The signer as a process: what it signs over a real line, what it cannot do, who cannot read it, how it ends."""

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from canaries import plant
from nacl.bindings import crypto_sign_open
from signer.test_signer_policy import POLICY, REFUSED
from wallet.worlds import OWN, pay

from payagent.core.network import NETWORKS
from payagent.core.problem import Refused
from payagent.secretfile import SecretFile
from payagent.signer.handle import SignerProcess, unlocked
from payagent.wallet.coins import Coin, Coins
from payagent.wallet.creation import create
from payagent.wallet.keys import Account, derive, seed_from_words
from payagent.wallet.transaction import check, select, sign

WORDS = plant(
    "the signer's words",
    "legal winner thank year wave sausage worth useful " * 2 + "legal winner thank year wave sausage worth title",
)
PASSPHRASE = plant("the signer's passphrase", "a canary that unlocks a signer")
PREPROD = NETWORKS["preprod"]
ADA = 1_000_000
CAPS = POLICY.caps
SOMEBODY = 12_345
ROOT = Path(__file__).parents[2]

Unlocked = tuple[Account, SignerProcess]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create(tmp_path / "keystore.json", WORDS, PASSPHRASE, PREPROD, scrypt_n=16)
    passphrase_of(tmp_path, PASSPHRASE)
    return tmp_path


def passphrase_of(folder: Path, text: str) -> SecretFile:
    path = folder / "passphrase"
    path.touch(mode=0o600)
    path.write_text(text)
    return SecretFile(path, private=True)


@contextmanager
def unlocking(folder: Path, network: str = "preprod", number: int = 0) -> Iterator[Unlocked]:
    source = SecretFile(folder / "passphrase", private=True)
    with unlocked(folder / "keystore.json", source, NETWORKS[network], number, CAPS) as (account, signer, _):
        yield account, signer


@pytest.fixture
def signer(folder: Path) -> Iterator[Unlocked]:
    with unlocking(folder) as found:
        yield found


def status_of(pid: int) -> dict[str, str]:
    """The kernel's account of a process, by name."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def has_ended(pid: int) -> bool:
    try:
        return status_of(pid)["State"].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


def until_ended(pid: int) -> None:
    end_s = time.monotonic() + 20
    while not has_ended(pid):
        assert time.monotonic() < end_s, f"{pid} lives on"
        time.sleep(0.01)


# What it signs


def test_it_signs_what_the_same_key_would_sign_here(signer: Unlocked) -> None:
    account, process = signer
    here = derive(seed_from_words(WORDS), PREPROD)
    assert account.address == here.address
    plan = select(
        Coins([Coin("ab" * 32, 0, 100 * ADA)]), pay(3 * ADA, ADA), change=account.address, ttl_slot=9, network_id=0
    )
    raw = sign(plan, process)
    check(raw, plan, here.signer.public_key)
    assert raw == sign(plan, here.signer)


def test_it_refuses_by_itself_what_its_policy_forbids_and_goes_on(signer: Unlocked) -> None:
    account, process = signer
    for name, (body, paid, _) in REFUSED.items():
        raw = body.raw.replace(OWN.raw, account.address.raw)
        with pytest.raises(Refused) as caught:
            process.sign(raw, paid)
        assert caught.value.code == "signer_refused", name
    assert process.problem is None
    plan = select(Coins([Coin("ab" * 32, 0, 9 * ADA)]), pay(ADA), change=account.address, ttl_slot=9, network_id=0)
    signature = process.sign(plan.body, plan.paid)
    assert crypto_sign_open(signature + bytes.fromhex(plan.tx_id), process.public_key) == bytes.fromhex(plan.tx_id)


# How it is opened


@pytest.mark.parametrize(
    ("change", "code", "why"),
    [
        ({"passphrase": "not the passphrase"}, "keystore_invalid", "the passphrase is wrong"),
        ({"network": "devnet"}, "keystore_invalid", "of preprod, not of devnet"),
        ({"number": 3}, "keystore_invalid", "of account 0"),
        ({"mode": 0o640}, "config_invalid", "open to others"),
        ({"keystore": 0o644}, "keystore_invalid", "0644"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_keeps_it_from_opening_is_told_and_it_ends(
    folder: Path, change: dict[str, object], code: str, why: str
) -> None:
    passphrase_of(folder, str(change.get("passphrase", PASSPHRASE)))
    (folder / "passphrase").chmod(int(str(change.get("mode", 0o600))))
    (folder / "keystore.json").chmod(int(str(change.get("keystore", 0o600))))
    network, number = str(change.get("network", "preprod")), int(str(change.get("number", 0)))
    with pytest.raises(Refused) as caught, unlocking(folder, network, number):
        pass
    assert (caught.value.code, why in caught.value.detail) == (code, True), caught.value
    assert PASSPHRASE not in str(caught.value)


def test_where_nobody_answers_at_a_terminal_it_says_so(folder: Path) -> None:
    """In a session of its own, so that no terminal is there to be asked."""
    script = f"""
from pathlib import Path
from payagent.core.network import NETWORKS
from payagent.core.problem import Refused
from payagent.signer.handle import unlocked
try:
    with unlocked(Path({str(folder / "keystore.json")!r}), None, NETWORKS["preprod"], 0, {{}}):
        print("opened")
except Refused as refused:
    print(refused.code)
"""
    ended = run_script(script, start_new_session=True)
    assert ended.stdout == "keystore_locked\n", ended.stderr


def run_script(script: str, **options: bool) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        **options,
    )


# What it has given up


def test_it_has_no_file_but_its_line_no_environment_and_no_library_that_it_does_not_need(folder: Path) -> None:
    with (folder / "left open").open("w") as left, socket.socket() as also_left:
        os.set_inheritable(left.fileno(), True)
        os.set_inheritable(also_left.fileno(), True)
        with unlocking(folder) as (_, process):
            proc = Path(f"/proc/{process.pid}")
            links = {path.name: str(path.readlink()) for path in (proc / "fd").iterdir()}
            (line,) = (name for name, place in links.items() if place.startswith("socket:"))
            assert {place for name, place in links.items() if name != line} == {"/dev/null"}
            assert (proc / "environ").read_bytes() == b""
            assert PASSPHRASE not in (proc / "cmdline").read_text()
            mapped = (proc / "maps").read_text()
            assert not [name for name in ("_ssl", "_sqlite3", "pydantic", "cbor2") if name in mapped]


def test_the_kernel_has_it_confined(signer: Unlocked) -> None:
    _, process = signer
    status = status_of(process.pid)
    assert (status["NoNewPrivs"], status["Seccomp"], status["Threads"]) == ("1", "2", "1")
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    for limit in ("core file size", "open files", "processes", "file size"):
        line = next(line for line in limits.splitlines() if line.lower().startswith(f"max {limit}"))
        assert line.split()[-3:-1] == ["0", "0"], line


ATTEMPTS = """
import os, socket, subprocess, sys
from payagent.signer.confine import before_the_secret, for_good

def program(): os.execv("/bin/true", ["true"])
attempts = {
    "open": lambda: os.open("/etc/hostname", os.O_RDONLY),
    "socket": lambda: socket.socket(),
    "unix socket": lambda: socket.socket(socket.AF_UNIX),
    "pair": lambda: socket.socketpair(),
    "process": lambda: os.fork(),
    "program": program,
    "kill": lambda: os.kill(os.getppid(), 0),
    "remove": lambda: os.unlink(sys.argv[1]),
    "write": lambda: os.write(1, b"out"),
}
line = socket.socket(fileno=0)
before_the_secret()
missing = for_good()
line.send(repr(missing).encode())
for name, attempt in attempts.items():
    try:
        attempt()
    except OSError as error:
        line.send(f"{name}: {type(error).__name__}".encode())
    else:
        line.send(f"{name}: done".encode())
line.send(b"")
os._exit(0)
"""


def test_once_confined_a_process_can_open_nothing_start_nothing_and_reach_nobody(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.touch()
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, its:
        process = subprocess.Popen(
            [sys.executable, "-c", ATTEMPTS, str(kept)], stdin=its.fileno(), env={"PYTHONPATH": str(ROOT)}
        )
        its.close()
        assert ours.recv(1000) == b"[]"
        told = [ours.recv(1000).decode() for _ in range(9)]
        assert process.wait(20) == 0
    assert told == [
        f"{name}: PermissionError"
        for name in ("open", "socket", "unix socket", "pair", "process", "program", "kill", "remove", "write")
    ]
    assert kept.exists()


# Who can read it


READER = """
import ctypes, os, sys
from payagent.signer.confine import before_the_secret
os.setgroups([]); os.setgid(12345); os.setuid(12345)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # dumpable again, as after a start
reading, ready = os.pipe()
holder = os.fork()
if holder == 0:
    if sys.argv[1] == "confined":
        before_the_secret()
    os.write(ready, b"x")
    os.read(os.pipe()[0], 1)
os.read(reading, 1)
for name in ("mem", "environ", "maps"):
    try:
        with open(f"/proc/{holder}/{name}", "rb") as file:
            if name == "mem":
                file.seek(int(open(f"/proc/{holder}/maps").read().split("-")[0], 16))
            file.read(16)
        print(name, "read")
    except OSError as error:
        print(name, type(error).__name__)
os.kill(holder, 9)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a second user")
@pytest.mark.parametrize(("kind", "told"), [("confined", "PermissionError"), ("as it is", "read")])
def test_a_process_of_its_own_user_cannot_read_it(kind: str, told: str) -> None:
    """The second row is the control: what is not confined is read by the same means."""
    script = READER.replace("sys.argv[1]", repr(kind))
    ended = run_script(script)
    assert ended.stdout.splitlines() == [f"{name} {told}" for name in ("mem", "environ", "maps")], ended.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a second user")
def test_another_user_can_read_nothing_of_the_real_one(signer: Unlocked) -> None:
    _, process = signer
    script = f"""
import os
os.setgroups([]); os.setgid({SOMEBODY}); os.setuid({SOMEBODY})
for name in ("mem", "environ", "maps", "fd"):
    try:
        path = f"/proc/{process.pid}/{{name}}"
        os.listdir(path) if name == "fd" else open(path, "rb").read(1)
        print("read", name)
    except OSError as error:
        print(type(error).__name__)
try:
    os.kill({process.pid}, 9)
except OSError as error:
    print(type(error).__name__)
"""
    assert run_script(script).stdout.splitlines() == ["PermissionError"] * 5
    assert not has_ended(process.pid)


# How it ends


def test_a_signer_that_was_killed_is_lost_for_good_and_signs_nothing(signer: Unlocked) -> None:
    _, process = signer
    os.kill(process.pid, signal.SIGKILL)
    until_ended(process.pid)
    for _ in range(2):
        with pytest.raises(Refused) as caught:
            process.sign(b"whatever", 0)
        assert caught.value.code == "signer_lost"
    assert process.problem is not None


def test_signals_for_the_daemon_leave_it_alone(signer: Unlocked) -> None:
    """Ctrl-C and systemd's stop reach every process: what the daemon still has to sign is signed."""
    account, process = signer
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(process.pid, number)
    plan = select(Coins([Coin("ab" * 32, 0, 9 * ADA)]), pay(ADA), change=account.address, ttl_slot=9, network_id=0)
    assert len(process.sign(plan.body, plan.paid)) == 64


def test_an_answer_that_comes_late_is_never_taken_for_that_to_the_next_question() -> None:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, its:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 1000))
        slow = SignerProcess(ours, 0, bytes(32), bytes(28))
        with pytest.raises(Refused, match="does not answer"):
            slow.sign(b"first", 0)
        assert its.recv(100) == b"\0\0first"
        with pytest.raises(BrokenPipeError):
            its.send(b"\0" + bytes(64))
        with pytest.raises(Refused, match="does not answer"):
            slow.sign(b"second", 0)
        assert its.recv(100) == b""


def test_it_ends_with_the_block_that_holds_it(folder: Path) -> None:
    with unlocking(folder) as (_, process):
        assert not has_ended(process.pid)
    assert has_ended(process.pid)


def test_it_ends_with_the_daemon_however_that_ends(folder: Path) -> None:
    script = f"""
import time
from pathlib import Path
from payagent.core.network import NETWORKS
from payagent.secretfile import SecretFile
from payagent.signer.handle import unlocked
folder = Path({str(folder)!r})
source = SecretFile(folder / "passphrase", True)
with unlocked(folder / "keystore.json", source, NETWORKS["preprod"], 0, {{}}) as found:
    print(found[1].pid, flush=True)
    time.sleep(60)
"""
    daemon = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert daemon.stdout is not None
    with closing(daemon.stdout):
        pid = int(daemon.stdout.readline())
        assert not has_ended(pid)
        daemon.kill()
        daemon.wait(20)
        until_ended(pid)
