"""The signer process: what it signs, what it cannot do, who cannot read its memory, and how it ends."""

import asyncio
import ctypes
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from kit.canaries import plant
from kit.signer_bodies import CAPS, DAY_CAPS, REFUSED
from kit.waiting_signer import WaitingSigner
from kit.wallet import OWN, pay
from nacl.bindings import crypto_sign_open

from payagent.core.network import NETWORKS
from payagent.core.problems import Refused
from payagent.secret_file import SecretFile
from payagent.signer.client import AccountSigner, SignerProcess, unlocked
from payagent.wallet.channel_tx import iou_message
from payagent.wallet.keys import derive, seed_from_words
from payagent.wallet.new_keystore import create
from payagent.wallet.transaction import check, select
from payagent.wallet.utxo_index import Utxo, UtxoIndex
from sim.signing import sign

WORDS = plant(
    "the signer's words",
    "legal winner thank year wave sausage worth useful " * 2 + "legal winner thank year wave sausage worth title",
)
PASSPHRASE = plant("the signer's passphrase", "a canary that unlocks a signer")
PREPROD = NETWORKS["preprod"]
ADA = 1_000_000
SOMEBODY = 12_345
ROOT = Path(__file__).parents[2]

Unlocked = tuple[AccountSigner, SignerProcess]


def furnished(folder: Path) -> Path:
    create(folder / "keystore.json", WORDS, PASSPHRASE, PREPROD, scrypt_n=16)
    passphrase_of(folder, PASSPHRASE)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return furnished(tmp_path)


def passphrase_of(folder: Path, text: str) -> SecretFile:
    path = folder / "passphrase"
    path.touch(mode=0o600)
    path.write_text(text)
    return SecretFile(path, private=True)


@contextmanager
def unlocking(folder: Path, network: str = "preprod", number: int = 0) -> Iterator[Unlocked]:
    source = SecretFile(folder / "passphrase", private=True)
    where, caps = (folder / "keystore.json", source, NETWORKS[network], number), (CAPS, DAY_CAPS)
    with unlocked(*where, *caps) as (signer, _):
        yield signer.accounts[0], signer


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unlocked]:
    """One process for all tests that leave it running."""
    with unlocking(furnished(tmp_path_factory.mktemp("signer"))) as found:
        yield found


def status_of(pid: int) -> dict[str, str]:
    """The kernel's status of a process, by field."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def has_ended(pid: int) -> bool:
    try:
        return status_of(pid)["State"].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


def send(pid: int, number: int) -> None:
    """Send a signal to one process: 0 or less would mean many."""
    assert pid > 1
    os.kill(pid, number)


def until_ended(pid: int) -> None:
    end_s = time.monotonic() + 60
    while not has_ended(pid):
        assert time.monotonic() < end_s, f"{pid} lives on"
        time.sleep(0.01)


# What it signs


def test_the_signer_process_signs_the_same_bytes_as_the_key_itself(signer: Unlocked) -> None:
    account, _ = signer
    here = derive(seed_from_words(WORDS), PREPROD)
    assert account.address == here.address
    plan = select(
        UtxoIndex([Utxo("ab" * 32, 0, 100 * ADA)]),
        pay(3 * ADA, ADA),
        change=account.address,
        ttl_slot=9,
        network_id=0,
    )
    raw = sign(plan, WaitingSigner(account))
    check(raw, plan, here.signer.public_key)
    assert raw == sign(plan, here.signer)


def test_the_signer_refuses_what_its_policy_forbids_and_keeps_running(signer: Unlocked) -> None:
    account, process = signer
    for name, (body, paid, _) in REFUSED.items():
        if "TTL" in name:
            continue  # this network's slot is far beyond the case's TTL
        raw = body.raw.replace(OWN.raw, account.address.raw)
        with pytest.raises(Refused) as caught:
            WaitingSigner(account).sign(raw, paid)
        assert caught.value.name in ("signer_refused", "limit_exceeded", "asset_not_allowed"), name
        assert (caught.value.name == "limit_exceeded") == ("limit" in caught.value.context), name
    assert process.problem is None
    plan = select(
        UtxoIndex([Utxo("ab" * 32, 0, 9 * ADA)]), pay(ADA), change=account.address, ttl_slot=9, network_id=0
    )
    signature = WaitingSigner(account).sign(plan.body, plan.paid)
    assert crypto_sign_open(signature + bytes.fromhex(plan.tx_id), account.public_key) == bytes.fromhex(plan.tx_id)


def test_each_account_signs_with_its_own_key_and_only_change_to_its_own_address(folder: Path) -> None:
    source, seed = SecretFile(folder / "passphrase", private=True), seed_from_words(WORDS)
    with unlocked(folder / "keystore.json", source, PREPROD, 0, CAPS, DAY_CAPS, 3) as (process, _):
        assert [one.address for one in process.accounts] == [derive(seed, PREPROD, n).address for n in range(3)]
        assert [one.number for one in process.accounts] == [0, 1, 2]
        for account in process.accounts:
            inputs = UtxoIndex([Utxo(f"{account.number:064x}", 0, 9 * ADA)])
            plan = select(inputs, pay(ADA), change=account.address, ttl_slot=9, network_id=0)
            raw = sign(plan, WaitingSigner(account))
            assert raw == sign(plan, derive(seed, PREPROD, account.number).signer)
            for other in {*process.accounts} - {account}:
                with pytest.raises(Refused, match="change, and does not pay this wallet"):
                    WaitingSigner(other).sign(plan.body, plan.paid)


def test_what_all_accounts_sign_counts_against_the_same_cap_of_a_day(folder: Path) -> None:
    source, day_caps = SecretFile(folder / "passphrase", private=True), {"lovelace": 10 * ADA}
    with unlocked(folder / "keystore.json", source, PREPROD, 0, CAPS, day_caps, 2) as (process, _):
        one, two = (
            select(
                UtxoIndex([Utxo(place * 64, 0, 9 * ADA)]),
                pay(6 * ADA),
                change=of.address,
                ttl_slot=9,
                network_id=0,
            )
            for place, of in zip("ab", process.accounts, strict=True)
        )
        WaitingSigner(process.accounts[0]).sign(one.body, one.paid)
        with pytest.raises(Refused, match="10 ADA may be signed out of the wallet in 24 hours"):
            WaitingSigner(process.accounts[1]).sign(two.body, two.paid)


def test_a_voucher_is_signed_where_channels_are_on_and_counts_after_it(folder: Path) -> None:
    source, place = SecretFile(folder / "passphrase", private=True), {"tag": "11" * 32, "asset": "lovelace"}
    place |= {"provider": "ab" * 28}
    rules = {"network": "cardano:preprod", "scripts": [], "providers": {"ab" * 28: (20 * ADA, 0)}}
    rules |= {"locked_per_day": 0, "signed_per_day": 9 * ADA}
    where = (folder / "keystore.json", source, PREPROD, 0, CAPS, DAY_CAPS, 1, None, None, rules)

    async def ask(process: SignerProcess) -> None:
        process.watch(lambda: None)
        key = await process.channel(0, "key", **place)
        message = iou_message(bytes.fromhex("11" * 32), 9 * ADA)
        assert (
            crypto_sign_open(await process.channel(0, "voucher", amount=9 * ADA, **place) + message, key)
            == message
        )
        with pytest.raises(Refused, match=r"channels\.signed_per_day"):
            await process.channel(0, "voucher", amount=9 * ADA + 1, **place)
        process.unwatch()

    with unlocked(*where) as (process, _):
        asyncio.run(ask(process))


# How it starts


@pytest.mark.parametrize(
    ("change", "code", "why"),
    [
        ({"passphrase": "not the passphrase"}, "keystore_invalid", "the passphrase is wrong"),
        ({"network": "devnet"}, "keystore_invalid", "for preprod, not devnet"),
        ({"number": 3}, "keystore_invalid", "for account 0"),
        ({"mode": 0o640}, "config_invalid", "open to others"),
        ({"keystore": 0o644}, "keystore_invalid", "0644"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_an_error_while_opening_the_keystore_is_reported_with_its_code(
    folder: Path, change: dict[str, object], code: str, why: str
) -> None:
    passphrase_of(folder, str(change.get("passphrase", PASSPHRASE)))
    (folder / "passphrase").chmod(int(str(change.get("mode", 0o600))))
    (folder / "keystore.json").chmod(int(str(change.get("keystore", 0o600))))
    network, number = str(change.get("network", "preprod")), int(str(change.get("number", 0)))
    with pytest.raises(Refused) as caught, unlocking(folder, network, number):
        pass
    assert (caught.value.name, why in caught.value.detail) == (code, True), caught.value
    assert PASSPHRASE not in str(caught.value)


def test_a_missing_terminal_for_the_passphrase_is_reported(folder: Path) -> None:
    """In its own session, so there is no terminal to ask."""
    script = f"""
from pathlib import Path
from payagent.core.network import NETWORKS
from payagent.core.problems import Refused
from payagent.signer.client import unlocked
try:
    with unlocked(Path({str(folder / "keystore.json")!r}), None, NETWORKS["preprod"], 0, {{}}, {{}}):
        print("opened")
except Refused as refused:
    print(refused.code)
"""
    ended = run_script(script, start_new_session=True)
    assert ended.stdout == "keystore_locked\n", ended.stderr


def run_script(script: str, *arguments: str, **options: bool) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        **options,
    )


# What it has given up


def test_the_signer_has_one_socket_no_environment_and_no_unneeded_library(folder: Path) -> None:
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


def test_the_kernel_reports_the_signer_as_confined(signer: Unlocked) -> None:
    _, process = signer
    status = status_of(process.pid)
    assert (status["NoNewPrivs"], status["Seccomp"], status["Threads"]) == ("1", "2", "1")
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    for limit in ("core file size", "open files", "processes", "file size"):
        line = next(line for line in limits.splitlines() if line.lower().startswith(f"max {limit}"))
        assert line.split()[-3:-1] == ["0", "0"], line


ATTEMPTS = """
import os, socket, subprocess, sys
from payagent.signer.hardening import before_the_secret, for_good

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


def test_a_confined_process_cannot_open_files_start_programs_or_use_the_network(tmp_path: Path) -> None:
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
        assert process.wait(60) == 0
    assert told == [
        f"{name}: PermissionError"
        for name in ("open", "socket", "unix socket", "pair", "process", "program", "kill", "remove", "write")
    ]
    assert kept.exists()


OTHER_ARCHITECTURE = """
import ctypes, mmap, os, sys
from payagent.signer.hardening import before_the_secret, for_good
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(b"\\xb8\\x0b\\x00\\x00\\x00\\x31\\xdb\\x31\\xc9\\x31\\xd2\\xcd\\x80\\xc3")  # execve(0, 0, 0), 32 bits
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
if sys.argv[1] == "confined":
    before_the_secret()
    for_good()
call()
os._exit(0)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the other architecture of this kind is x86_64's")
@pytest.mark.parametrize(("kind", "code"), [("confined", -signal.SIGSYS), ("as it is", 0)])
def test_system_calls_of_another_architecture_cannot_bypass_the_filter(kind: str, code: int) -> None:
    """Call 11 starts a program there, while here it is an allowed call."""
    assert run_script(OTHER_ARCHITECTURE.replace("sys.argv[1]", repr(kind))).returncode == code


def test_the_keystore_stays_locked_when_system_calls_cannot_be_filtered(folder: Path) -> None:
    """As on an architecture without a filter."""
    with pytest.raises(Refused, match="could not be confined") as caught, without_filters(), unlocking(folder):
        pass
    assert caught.value.name == "signer_lost"


@contextmanager
def without_filters() -> Iterator[None]:
    """Make new programs report another architecture (personality, uname)."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = libc.personality(0xFFFFFFFF)
    libc.personality(before | 0x0008)  # PER_LINUX32
    try:
        yield
    finally:
        libc.personality(before)


def test_an_error_that_stops_the_signer_from_starting_is_reported(folder: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from payagent.core.network import NETWORKS
from payagent.core.problems import Refused
from payagent.secret_file import SecretFile
from payagent.signer import client as handle
handle._ROOT = {str(folder)!r}
folder = Path({str(folder)!r})
(folder / "payagent").mkdir()
(folder / "payagent/__init__.py").write_text("raise ImportError('a library is missing here')")
try:
    source = SecretFile(folder / "passphrase", True)
    with handle.unlocked(folder / "keystore.json", source, NETWORKS["preprod"], 0, {{}}, {{}}):
        print("opened")
except Refused as refused:
    print(refused)
"""
    told = run_script(script).stdout
    assert "signer_lost" in told
    assert "a library is missing here" in told


# Who can read it


READER = """
import ctypes, os, sys
from payagent.signer.hardening import before_the_secret
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
libc = ctypes.CDLL(None, use_errno=True)
print("ptrace", "read" if libc.ptrace(16, holder, 0, 0) == 0 else os.strerror(ctypes.get_errno()))
os.kill(holder, 9)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a second user")
@pytest.mark.parametrize(("kind", "told"), [("confined", "PermissionError"), ("as it is", "read")])
def test_a_process_of_the_same_user_cannot_read_the_signers_memory(kind: str, told: str) -> None:
    """The second row is the control: an unconfined process is read by the same means."""
    script = READER.replace("sys.argv[1]", repr(kind))
    ended = run_script(script)
    traced = "Operation not permitted" if kind == "confined" else "read"
    read = [f"{name} {told}" for name in ("mem", "environ", "maps")]
    assert ended.stdout.splitlines() == [*read, f"ptrace {traced}"], ended.stderr


THIEF = """
import os, sys
os.set_blocking(0, False)
opened, before = {}, {int(name) for name in os.listdir("/proc") if name.isdigit()}
print("watching", flush=True)
while True:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in before and int(name) not in opened:
            try:
                opened[int(name)] = os.open(f"/proc/{name}/mem", os.O_RDONLY)
            except OSError:
                pass
    try:
        if os.read(0, 1) == b"":
            break
    except BlockingIOError:
        pass
print(*opened)
"""

ROBBED = """
import ctypes, os, subprocess, sys
from pathlib import Path
from payagent.core.network import NETWORKS
from payagent.secret_file import SecretFile
from payagent.signer.client import unlocked
libc = ctypes.CDLL(None, use_errno=True)
if os.geteuid() == 0:  # as any other user: without the capabilities of root, for all that is started from here
    assert libc.prctl(28, 3, 0, 0, 0) == 0
    assert libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
folder, thief = Path(sys.argv[1]), sys.argv[2]
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
with subprocess.Popen([sys.executable, "-c", thief], **pipes) as thief:
    assert thief.stdout.readline() == "watching\\n"
    source = SecretFile(folder / "passphrase", True)
    with unlocked(folder / "keystore.json", source, NETWORKS["preprod"], 0, {}, {}) as (signer, _):
        print(signer.pid)
        print(thief.communicate(timeout=60)[0], end="")
"""


def test_the_signers_memory_cannot_be_opened_while_it_starts(folder: Path) -> None:
    """A process of the same user opens the memory of each new process at once and keeps it open."""
    ended = run_script(ROBBED, str(folder), THIEF)
    signer, opened = (set(line.split()) for line in ended.stdout.splitlines())
    assert opened, "it opens the memory of ordinary programs"
    assert not signer & opened


TRACED = """
import ctypes, os, sys
from pathlib import Path
from payagent.signer.hardening import require_untraced
reading, ready = os.pipe()
child = os.fork()
if child == 0:
    os.read(reading, 1)
    require_untraced()
    os._exit(0)
libc = ctypes.CDLL(None, use_errno=True)
if sys.argv[1] == "traced":
    assert libc.ptrace(0x4206, child, 0, 0) == 0  # seize: it runs on
os.write(ready, b"x")
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize(("kind", "code"), [("traced", "1"), ("as it is", "0")])
def test_the_signer_refuses_to_start_while_it_is_traced(kind: str, code: str) -> None:
    assert run_script(TRACED.replace("sys.argv[1]", repr(kind))).stdout == f"{code}\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a second user")
def test_another_user_can_neither_read_nor_kill_the_signer(signer: Unlocked) -> None:
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
    assert {process.pid} > 1
    os.kill({process.pid}, 9)
except OSError as error:
    print(type(error).__name__)
"""
    assert run_script(script).stdout.splitlines() == ["PermissionError"] * 5
    assert not has_ended(process.pid)


# How it ends


def test_a_killed_signer_is_lost_for_good_and_signs_nothing(folder: Path) -> None:
    with unlocking(folder) as (account, process):
        send(process.pid, signal.SIGKILL)
        until_ended(process.pid)
        for _ in range(2):
            with pytest.raises(Refused) as caught:
                WaitingSigner(account).sign(b"whatever", 0)
            assert caught.value.name == "signer_lost"
        assert process.problem is not None


def test_stop_signals_for_the_daemon_do_not_stop_the_signer(signer: Unlocked) -> None:
    """Ctrl-C and systemd's stop reach every process, and the daemon may still have something to sign."""
    account, process = signer
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        send(process.pid, number)
    plan = select(
        UtxoIndex([Utxo("ab" * 32, 0, 9 * ADA)]), pay(ADA), change=account.address, ttl_slot=9, network_id=0
    )
    assert len(WaitingSigner(account).sign(plan.body, plan.paid)) == 64


@pytest.fixture
def slow() -> Iterator[tuple[SignerProcess, socket.socket]]:
    """The daemon's end of the socket, and the signer's end for the test."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, its:
        yield SignerProcess(ours, 0), its


async def test_signatures_are_answered_in_order_without_blocking_the_event_loop(
    slow: tuple[SignerProcess, socket.socket],
) -> None:
    process, its = slow
    process.watch(lambda: None)
    first, second = (asyncio.create_task(process.signature(body, 1, 0)) for body in (b"first", b"second"))
    loop = asyncio.get_running_loop()
    assert await loop.run_in_executor(None, its.recv, 100) == b"\0\0\1first"
    its.send(b"\0" + b"1" * 64)
    assert await first == b"1" * 64
    assert await loop.run_in_executor(None, its.recv, 100) == b"\0\0\1second"
    second.cancel()
    third = asyncio.create_task(process.signature(b"third", 0, 0))
    its.send(b"\0" + b"2" * 64)
    assert await loop.run_in_executor(None, its.recv, 100) == b"\0\0\0third"
    its.send(
        b'\1{"name": "limit_exceeded", "detail": "too much", "fix": "-", "context": {"limit": "signed_per_day"}}'
    )
    with pytest.raises(Refused, match="too much") as caught:
        await third
    assert caught.value.context == {"limit": "signed_per_day"}
    process.unwatch()


async def test_a_signature_cancelled_before_its_turn_is_not_requested(
    slow: tuple[SignerProcess, socket.socket],
) -> None:
    process, its = slow
    process.watch(lambda: None)
    first, second, third = (
        asyncio.create_task(process.signature(body, 1, 0)) for body in (b"1st", b"2nd", b"3rd")
    )
    loop = asyncio.get_running_loop()
    assert await loop.run_in_executor(None, its.recv, 100) == b"\0\0\0011st"
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    its.send(b"\0" + b"1" * 64)
    assert await first == b"1" * 64
    assert await loop.run_in_executor(None, its.recv, 100) == b"\0\0\0013rd"
    its.send(b"\0" + b"3" * 64)
    assert await third == b"3" * 64
    process.unwatch()


async def test_every_waiting_signature_fails_when_the_signer_does_not_answer(
    slow: tuple[SignerProcess, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payagent.signer.client.ANSWER_S", 0.05)
    process, its = slow
    lost: list[str] = []
    process.watch(lambda: lost.append("lost"))
    waiting = [asyncio.create_task(process.signature(b"body", 1, 0)) for _ in range(2)]
    for one in waiting:
        with pytest.raises(Refused, match="does not answer"):
            await one
    assert lost == ["lost"]
    assert its.recv(100) == b"\0\0\1body"
    with pytest.raises(BrokenPipeError):
        its.send(b"\0" + bytes(64))
    with pytest.raises(Refused, match="does not answer"):
        await process.signature(b"later", 1, 0)


async def test_when_the_signer_ends_every_waiting_signature_fails_and_the_daemon_is_told(
    slow: tuple[SignerProcess, socket.socket],
) -> None:
    process, its = slow
    lost: list[str] = []
    process.watch(lambda: lost.append("lost"))
    waiting = [asyncio.create_task(process.signature(b"body", 1, 0)) for _ in range(3)]
    await asyncio.get_running_loop().run_in_executor(None, its.recv, 100)
    its.close()
    for one in waiting:
        with pytest.raises(Refused, match="signer_lost"):
            await one
    assert lost == ["lost"]
    process.watch(lambda: lost.append("told again"))
    assert lost == ["lost", "told again"]


async def test_a_late_answer_is_never_taken_as_the_answer_to_the_next_request(
    slow: tuple[SignerProcess, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payagent.signer.client.ANSWER_S", 0.001)
    process, its = slow
    process.watch(lambda: None)
    with pytest.raises(Refused, match="does not answer"):
        await process.signature(b"first", 0, 0)
    assert its.recv(100) == b"\0\0\0first"
    with pytest.raises(BrokenPipeError):
        its.send(b"\0" + bytes(64))
    with pytest.raises(Refused, match="does not answer"):
        await process.signature(b"second", 0, 0)
    assert its.recv(100) == b""


def test_the_signer_ends_when_its_context_manager_exits(folder: Path) -> None:
    with unlocking(folder) as (_, process):
        assert not has_ended(process.pid)
    assert has_ended(process.pid)


def test_the_signer_ends_with_the_daemon_even_if_another_process_holds_its_socket(folder: Path) -> None:
    """A copy of the daemon's end must not allow signing without the daemon."""
    script = f"""
import os, socket, subprocess, sys, time
from pathlib import Path
from payagent.core.network import NETWORKS
from payagent.secret_file import SecretFile
from payagent.signer.client import unlocked
folder = Path({str(folder)!r})
source = SecretFile(folder / "passphrase", True)
with unlocked(folder / "keystore.json", source, NETWORKS["preprod"], 0, {{}}, {{}}) as found:
    handle = os.dup(found[0]._socket.fileno())
    holds = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    holder = subprocess.Popen(holds, pass_fds=[handle])
    print(found[0].pid, holder.pid, flush=True)
    time.sleep(60)
"""
    daemon = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert daemon.stdout is not None
    assert daemon.stdin is not None
    with closing(daemon.stdout), closing(daemon.stdin):
        pid, holder = map(int, daemon.stdout.readline().split())
        try:
            daemon.kill()
            daemon.wait(60)
            until_ended(pid)
        finally:
            with suppress(ProcessLookupError):
                send(holder, signal.SIGKILL)


def test_the_signer_ends_when_the_daemon_is_killed(folder: Path) -> None:
    script = f"""
import time
from pathlib import Path
from payagent.core.network import NETWORKS
from payagent.secret_file import SecretFile
from payagent.signer.client import unlocked
folder = Path({str(folder)!r})
source = SecretFile(folder / "passphrase", True)
with unlocked(folder / "keystore.json", source, NETWORKS["preprod"], 0, {{}}, {{}}) as found:
    print(found[0].pid, flush=True)
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
        daemon.wait(60)
        until_ended(pid)
