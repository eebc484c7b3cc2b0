"""Keys in an HSM: what its token process signs, how it fails and comes back, and what it cannot do."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kit.cli import until
from kit.signer_bodies import CAPS, DAY_CAPS
from kit.softhsm import PIN, SoftHsm, make_softhsm, needs_softhsm
from kit.waiting_signer import WaitingSigner
from kit.wallet import pay
from ledger_check.scalus import Scalus, needs_scalus

from payagent.core.address import KEY_ENTERPRISE
from payagent.core.network import NETWORKS
from payagent.core.problems import Refused
from payagent.devnet.ledger import TxOut
from payagent.secret_file import SecretFile
from payagent.signer import token as tokens
from payagent.signer.client import AccountSigner, HsmOptions, SignerProcess, unlocked
from payagent.signer.messages import unpacked
from payagent.signer.token import TokenAway, TokenRefused
from payagent.wallet.transaction import TxPlan, check, select, send_all
from payagent.wallet.utxo_index import Utxo, UtxoIndex
from sim.signing import sign

ADA = 1_000_000
ROOT = Path(__file__).parents[2]
DEVNET = NETWORKS["devnet"]

pytestmark = needs_softhsm


@pytest.fixture(scope="module")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> SoftHsm:
    """SoftHSM itself, with three keys."""
    hsm = make_softhsm(tmp_path_factory.mktemp("hsm") / "hsm")
    hsm.opened("payagent-0", "payagent-1", "payagent-2", generate=True)
    return hsm


@pytest.fixture
def shim(tmp_path: Path) -> SoftHsm:
    """SoftHSM behind the shim, with one key."""
    hsm = make_softhsm(tmp_path / "hsm", shim=True)
    hsm.opened(generate=True)
    hsm.keystore(tmp_path / "keystore.json")
    (hsm.folder / "log").unlink()
    return hsm


@contextmanager
def unlocking(hsm: SoftHsm, keystore: Path, count: int = 1, answer_s: int = 10) -> Iterator[SignerProcess]:
    options, pin = HsmOptions(answer_s, hsm.environment), SecretFile(hsm.pin_file, private=True)
    with unlocked(keystore, pin, DEVNET, 0, CAPS, DAY_CAPS, count, hsm=options) as (process, _):
        yield process


def plan_of(account: AccountSigner, number: int = 0, ada: int = 3) -> TxPlan:
    """A payment of its own UTxO, by number."""
    utxos = UtxoIndex([Utxo(f"{number:064x}", 0, 100 * ADA)])
    return select(utxos, pay(ada * ADA), change=account.address, ttl_slot=9, network_id=0)


def signed(account: AccountSigner, number: int = 0, ada: int = 3) -> bytes:
    """A signed payment, checked as the daemon does."""
    plan = plan_of(account, number, ada)
    raw = sign(plan, WaitingSigner(account))
    check(raw, plan, account.public_key)
    return raw


def refusal(account: AccountSigner, number: int = 0, ada: int = 3) -> Refused:
    with pytest.raises(Refused) as caught:
        signed(account, number, ada)
    return caught.value


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def token_process(process: SignerProcess) -> int:
    (pid,) = children(process.pid)
    return pid


def no_start(hsm: SoftHsm, keystore: Path, count: int = 1) -> Refused:
    with pytest.raises(Refused) as caught, unlocking(hsm, keystore, count):
        pass
    return caught.value


def until_signed(account: AccountSigner, number: int) -> None:
    """Ask again while the HSM is away, as the daemon does."""
    until(lambda: answered(account, number) == "signed", "the HSM is back", every_s=0.05)


def answered(account: AccountSigner, number: int) -> str:
    try:
        signed(account, number)
    except Refused as refused:
        return refused.code
    return "signed"


# What it signs


def test_each_account_signs_with_its_own_key_from_an_enterprise_address(hsm: SoftHsm, tmp_path: Path) -> None:
    header = hsm.keystore(tmp_path / "keystore.json", "payagent-0", "payagent-1", "payagent-2")
    with unlocking(hsm, tmp_path / "keystore.json", 3) as process:
        assert process.accounts[0].address.text == header.address
        assert len({account.address for account in process.accounts}) == 3
        for number, account in enumerate(process.accounts):
            assert account.address.raw[0] >> 4 == KEY_ENTERPRISE
            assert signed(account, number) == signed(account, number)
            for other in {*process.accounts} - {account}:
                with pytest.raises(Refused, match="change, and does not pay this wallet"):
                    WaitingSigner(other).sign(plan_of(account, number).body, 1)


@needs_scalus
def test_an_independent_ledger_accepts_what_each_account_pays_and_cancels(hsm: SoftHsm, tmp_path: Path) -> None:
    hsm.keystore(tmp_path / "keystore.json", "payagent-0", "payagent-1", "payagent-2")
    with unlocking(hsm, tmp_path / "keystore.json", 3) as process, Scalus() as scalus:
        for number, account in enumerate(process.accounts):
            own, coin = account.address, Utxo(f"{number:064x}", 0, 100 * ADA)
            cancel = send_all(UtxoIndex([coin]), own, own=own, ttl_slot=9, network_id=0)
            for raw in (signed(account, number), sign(cancel, WaitingSigner(account))):
                unspent = {(coin.tx_id, 0): TxOut(own.raw, coin.lovelace, {})}
                assert scalus.validate(raw, unspent, 5, 0) is None


def test_hosts_of_a_fleet_make_the_same_accounts_of_the_same_keys(hsm: SoftHsm, tmp_path: Path) -> None:
    for host in ("one", "two"):
        hsm.keystore(tmp_path / host, "payagent-0", "payagent-1")
    with unlocking(hsm, tmp_path / "one", 2) as one, unlocking(hsm, tmp_path / "two", 2) as two:
        assert [each.address for each in one.accounts] == [each.address for each in two.accounts]
        assert signed(one.accounts[1]) == signed(two.accounts[1])


def test_more_accounts_than_keys_are_refused(hsm: SoftHsm, tmp_path: Path) -> None:
    hsm.keystore(tmp_path / "keystore.json")
    why = no_start(hsm, tmp_path / "keystore.json", 2)
    assert (why.code, why.detail) == ("keystore_invalid", "wallet.accounts is 2, it names 1 keys")


def test_the_hsm_signs_no_more_than_the_signers_policy_allows(hsm: SoftHsm, tmp_path: Path) -> None:
    hsm.keystore(tmp_path / "keystore.json")
    with unlocking(hsm, tmp_path / "keystore.json") as process:
        assert refusal(process.accounts[0], ada=90).code == "limit_exceeded"


# What is not the wallet's


def test_a_wrong_pin_is_tried_once(shim: SoftHsm, tmp_path: Path) -> None:
    shim.pin_file.write_text("another PIN")
    why = no_start(shim, tmp_path / "keystore.json")
    assert (why.code, why.detail) == ("keystore_invalid", "the HSM says PinIncorrect")
    assert shim.noted("login") == 1


@pytest.mark.parametrize("mode", ["final", "locked"])
def test_a_last_try_of_the_pin_is_not_used_up(shim: SoftHsm, tmp_path: Path, mode: str) -> None:
    shim.go(mode)
    why = no_start(shim, tmp_path / "keystore.json")
    assert (why.code, "one try of the PIN left, or none" in why.detail) == ("keystore_invalid", True), why
    assert shim.noted("login") == 0


def test_a_token_with_another_serial_is_refused_before_the_pin_is_sent(shim: SoftHsm, tmp_path: Path) -> None:
    shim.go("serial")
    why = no_start(shim, tmp_path / "keystore.json")
    assert (why.code, "has the serial x" in why.detail) == ("keystore_invalid", True), why
    assert shim.noted("login") == 0


def test_another_public_key_than_the_keystores_is_refused(hsm: SoftHsm, tmp_path: Path) -> None:
    path = tmp_path / "keystore.json"
    hsm.keystore(path, "payagent-1")
    text = path.read_text().replace("payagent-1", "payagent-2")
    path.write_text(text)
    why = no_start(hsm, path)
    assert (why.code, why.detail) == ("keystore_invalid", "key payagent-2 is another one than in keystore.json")


def test_one_key_for_two_accounts_is_refused(hsm: SoftHsm, tmp_path: Path) -> None:
    """Both accounts would count the same UTxOs as their own."""
    path = tmp_path / "keystore.json"
    hsm.keystore(path, "payagent-1")
    document = json.loads(path.read_text())
    document["keys"] *= 2
    path.write_text(json.dumps(document))
    assert no_start(hsm, path, 2).code == "keystore_invalid"


def test_two_keys_of_one_label_are_refused(hsm: SoftHsm, tmp_path: Path) -> None:
    hsm.opened("twice", "once", generate=True)
    hsm.keystore(tmp_path / "keystore.json", "twice")
    hsm.rename("once", "twice")
    why = no_start(hsm, tmp_path / "keystore.json")
    assert (why.code, "MultipleObjectsReturned" in why.detail) == ("keystore_invalid", True), why


def test_a_missing_key_or_token_may_come_back(hsm: SoftHsm, tmp_path: Path) -> None:
    path = tmp_path / "keystore.json"
    hsm.keystore(path)
    text = path.read_text()
    for here, there in (("payagent-0", "none such"), ('token": "payagent"', 'token": "none such"')):
        path.write_text(text.replace(here, there))
        assert no_start(hsm, path).code == "signer_away"


def test_a_module_that_its_user_can_replace_is_refused_off_the_devnet(shim: SoftHsm) -> None:
    os.chown(shim.module, 12_345 if os.geteuid() == 0 else -1, -1)
    with pytest.raises(Refused, match=r"belongs to another user|is not root's") as caught:
        shim.opened(network=NETWORKS["preprod"])
    assert caught.value.code == "config_invalid"


# How it fails and comes back


def test_an_hsm_that_hangs_is_away_and_its_late_answer_is_dropped(shim: SoftHsm, tmp_path: Path) -> None:
    with unlocking(shim, tmp_path / "keystore.json", answer_s=1) as process:
        (account,) = process.accounts
        shim.go("hang")
        assert [refusal(account, number).code for number in (1, 2)] == ["signer_away"] * 2
        shim.go("")
        until_signed(account, 3)
        assert signed(account, 4) != signed(account, 5)
        assert (process.problem, shim.noted("login")) == (None, 1)


def test_a_token_that_was_away_signs_again_and_what_was_counted_stays_counted(
    shim: SoftHsm, tmp_path: Path
) -> None:
    with unlocking(shim, tmp_path / "keystore.json") as process:
        (account,) = process.accounts
        signed(account, 1, ada=9)
        shim.tokens.rename(tmp_path / "gone")
        for _ in range(9):  # the same inputs count once
            assert refusal(account, 2, ada=9).code == "signer_away"
        (tmp_path / "gone").rename(shim.tokens)
        until_signed(account, 3)
        left = DAY_CAPS["lovelace"] // ADA - 9 - 9 - 3
        why = refusal(account, 4, ada=left)
        assert (why.code, why.context["limit"]) == ("limit_exceeded", "signed_per_day")
        signed(account, 4, ada=left - 1)


def test_an_hsm_that_is_away_is_left_alone_for_a_pause(shim: SoftHsm, tmp_path: Path) -> None:
    with unlocking(shim, tmp_path / "keystore.json") as process:
        (account,) = process.accounts
        shim.go("away")
        before = shim.noted("sign")
        for _ in range(20):
            assert refusal(account).code == "signer_away"
        assert shim.noted("sign") - before < 20
        assert process.problem is None


class LateRefusal:
    """An HSM that refuses its PIN after the signer has given up waiting."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()

    def keys(self) -> tuple[bytes, ...]:
        return (bytes(32),)

    def sign_hash(self, key: int, tx_id: bytes) -> bytes:
        self.may_answer.wait()
        raise TokenRefused("keystore_invalid", "the HSM says PinIncorrect")


def test_a_pin_that_is_refused_too_late_is_told_to_the_next_request() -> None:
    """Otherwise the signer would be restarted, and the PIN tried again and again."""
    hsm = LateRefusal()
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    thread = threading.Thread(target=lambda: tokens.serve(its, lambda: hsm, hsm.keys()))
    thread.start()
    with ours, its:
        ours.recv(100)
        process = tokens.TokenProcess(ours, 1)
        with pytest.raises(Refused, match="signer_away"):
            process.signature(0, bytes(32), b"\1" * 32)
        hsm.may_answer.set()
        with pytest.raises(Refused, match="PinIncorrect"):
            process.signature(0, bytes(32), b"\2" * 32)
        thread.join()


def test_a_pin_that_was_changed_meanwhile_is_tried_once_and_ends_the_signer(shim: SoftHsm, tmp_path: Path) -> None:
    with unlocking(shim, tmp_path / "keystore.json") as process:
        (account,) = process.accounts
        new = ["--init-token", "--token", "payagent", "--label", "payagent", "--so-pin", "security officer"]
        command = ["softhsm2-util", *new, "--pin", "the new PIN"]
        subprocess.run(command, env=os.environ | shim.environment, check=True, capture_output=True, timeout=60)
        assert refusal(account).code == "signer_lost"
        assert refusal(account).code == "signer_lost"
        assert (process.code, process.problem) == ("keystore_invalid", "the HSM says PinIncorrect")
        assert shim.noted("login") == 2


@pytest.mark.parametrize("mode", ["bit", "short", "other"])
def test_a_wrong_signature_stops_signing_until_a_restart(shim: SoftHsm, tmp_path: Path, mode: str) -> None:
    shim.opened("payagent-1", generate=True)
    with unlocking(shim, tmp_path / "keystore.json") as process:
        (account,) = process.accounts
        signed(account, 1)
        shim.go(mode)
        assert refusal(account, 2).code == "signer_wrong"
        shim.go("")
        assert refusal(account, 2).code == "signer_wrong"
        assert process.problem is None
    with unlocking(shim, tmp_path / "keystore.json") as process:
        signed(process.accounts[0], 2)


def test_a_module_that_aborts_ends_the_signer(shim: SoftHsm, tmp_path: Path) -> None:
    with unlocking(shim, tmp_path / "keystore.json") as process:
        shim.go("abort")
        assert refusal(process.accounts[0]).code == "signer_lost"


def test_a_killed_token_process_ends_the_signer(shim: SoftHsm, tmp_path: Path) -> None:
    with unlocking(shim, tmp_path / "keystore.json") as process:
        os.kill(token_process(process), signal.SIGKILL)
        assert refusal(process.accounts[0]).code == "signer_lost"


def test_stop_signals_for_the_daemon_do_not_stop_the_token_process(hsm: SoftHsm, tmp_path: Path) -> None:
    hsm.keystore(tmp_path / "keystore.json")
    with unlocking(hsm, tmp_path / "keystore.json") as process:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(token_process(process), number)
        signed(process.accounts[0])


def test_the_token_process_ends_with_the_signer(hsm: SoftHsm, tmp_path: Path) -> None:
    hsm.keystore(tmp_path / "keystore.json")
    with unlocking(hsm, tmp_path / "keystore.json") as process:
        pid = token_process(process)
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{pid}").exists(), "it has ended", every_s=0.01)


# What it answers to a signer that asks wrongly


class Keys:
    """Two keys that are away at first."""

    def __init__(self) -> None:
        self.asked = 0

    def keys(self) -> tuple[bytes, ...]:
        return bytes(32), bytes(32)

    def sign_hash(self, key: int, tx_id: bytes) -> bytes:
        self.asked += 1
        raise TokenAway("signer_away", "not here")


@pytest.fixture
def served() -> Iterator[tuple[socket.socket, Keys]]:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keys = Keys()
    thread = threading.Thread(target=tokens.serve, args=(its, lambda: keys, keys.keys()))
    thread.start()
    with ours, its:
        ours.settimeout(60)
        assert ours.recv(100) == b"\0"
        yield ours, keys
        ours.close()
        thread.join(60)


@pytest.mark.parametrize("asked", [b"\0" + bytes(31), b"\0" + bytes(33), b"\x09" + bytes(32), b"\0"])
def test_it_signs_32_bytes_by_a_key_that_it_has_and_nothing_else(
    served: tuple[socket.socket, Keys], asked: bytes
) -> None:
    ours, keys = served
    ours.send(asked)
    answer = ours.recv(1000)
    assert answer.startswith(asked[1:] + b"\1")
    assert unpacked(answer[len(asked) :]).code == "keystore_invalid"
    assert keys.asked == 0


def test_an_hsm_that_is_away_is_not_asked_again_at_once(served: tuple[socket.socket, Keys]) -> None:
    ours, keys = served
    for number in range(3):
        ours.send(b"\1" + bytes([number]) * 32)
        assert unpacked(ours.recv(1000)[33:]).detail == "not here"
    assert keys.asked == 1


def test_an_hsm_with_other_keys_than_the_keystore_is_refused() -> None:
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, its:
        tokens.serve(its, Keys, (bytes(32),))
        assert unpacked(ours.recv(1000)[1:]).code == "keystore_invalid"


# What it has given up


def test_pin_and_module_are_in_no_argument_and_no_environment(shim: SoftHsm, tmp_path: Path) -> None:
    with unlocking(shim, tmp_path / "keystore.json") as process:
        launcher = int(re.findall(r"PPid:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())[0])
        for pid in (launcher, process.pid, token_process(process)):
            proc = Path(f"/proc/{pid}")
            shown = (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
            assert not [text for text in (PIN, str(shim.module), "softhsm") if text.encode() in shown]
            assert (str(shim.module) in (proc / "maps").read_text()) == (pid == token_process(process))
            limits = (proc / "limits").read_text()
            assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE), limits
        status = Path(f"/proc/{token_process(process)}/status").read_text()
        assert re.findall(r"^(?:NoNewPrivs|Seccomp):\s+(\d)", status, re.MULTILINE) == ["1", "2"]


ATTEMPTS = """
import ctypes, os, socket, subprocess
from payagent.signer.token import _confine
libc = ctypes.CDLL(None, use_errno=True)

def call(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")

def other(child):
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)

attempts = {
    "program": lambda: os.execv("/bin/true", ["true"]),
    "ptrace": lambda: call(101 if os.uname().machine == "x86_64" else 117, 0, 0, 0, 0),
    "bpf": lambda: call(321 if os.uname().machine == "x86_64" else 280, 99, 0, 0),
    "mount": lambda: call(165 if os.uname().machine == "x86_64" else 40, 0, 0, 0, 0, 0),
    "file": lambda: os.close(os.open("/etc/hostname", os.O_RDONLY)),
    "socket": lambda: socket.socket().close(),
    "process": lambda: other(os.fork()),
}
_confine(os.getppid())
for name, attempt in attempts.items():
    try:
        attempt()
        print(name)
    except OSError as error:
        print(name, os.strerror(error.errno))
"""


def test_it_may_open_files_and_sockets_and_starts_no_program() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ATTEMPTS],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    denied = [f"{name} Operation not permitted" for name in ("program", "ptrace", "bpf", "mount")]
    assert ended.stdout.splitlines() == [*denied, "file", "socket", "process"], ended.stderr
