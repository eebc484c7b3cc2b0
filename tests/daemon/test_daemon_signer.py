"""The daemon and its signer: no secret in the daemon's memory, and nothing paid twice if the signer dies."""

import ctypes
import hashlib
import json
import os
import re
import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from kit.canaries import plant
from kit.daemon import PASSPHRASE, Process, children, launch, start, stop
from kit.http import NO_TLS

from payagent.core.network import NETWORKS
from payagent.devnet.server import DevnetThread
from payagent.doctor.advice import check_choices
from payagent.settings.loading import load_settings
from payagent.store.db.writer import Writer
from payagent.store.rows import apps
from payagent.wallet.keys import SoftwareSigner, derive, seed_from_words
from payagent.wallet.new_keystore import create, new_words

TOKEN = plant("the operator's token", "an operator of the signer tests")
SPLIT = {"count": 2, "lovelace": "5000000"}
WORDS = plant("the words of a wallet", new_words(lambda size: hashlib.sha256(b"canary").digest()[:size]))
OWN = derive(seed_from_words(WORDS), NETWORKS["devnet"])
PATIENCE_S = 60.0
EXIT_LOST = 4
PR_CAPBSET_DROP, CAP_IPC_LOCK = 24, 14


@pytest.fixture
def devnet() -> Iterator[DevnetThread]:
    """One for each wallet: a new ledger of a used wallet may not sign."""
    with DevnetThread(block_time_s=1) as devnet:
        yield devnet


@pytest.fixture
def wallet(folder: Path, devnet: DevnetThread) -> Path:
    """A folder whose wallet has money, and an app that may order transfers."""
    (folder / "data/keystore.json").unlink()
    create(folder / "data/keystore.json", WORDS, PASSPHRASE, NETWORKS["devnet"], scrypt_n=16)
    writer = Writer(folder / "data/ledger.db")
    token_hash = hashlib.sha256(TOKEN.encode()).hexdigest()
    scopes = ("operate", "pay", "read")
    writer.submit("app", lambda unit: apps.add_with_token(unit, "app", "op", token_hash, scopes, 1)).result()
    writer.close()
    faucet = {"address": OWN.address.text, "lovelace": "100000000"}
    with httpx.Client(base_url=f"{devnet.origin}/devnet", verify=NO_TLS, trust_env=False) as control:
        control.post("/faucet", json=faucet).raise_for_status()
        control.post("/blocks", json={"count": 1}).raise_for_status()
    return folder


class Daemon:
    """A running daemon, reached by its socket."""

    def __init__(self, process: Process, path: Path) -> None:
        self.process = process
        transport = httpx.HTTPTransport(uds=str(path), verify=NO_TLS)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        self.http = httpx.Client(transport=transport, base_url="http://localhost", headers=headers, timeout=60)
        (launcher,) = children(process.pid)
        (self.signer,) = children(launcher)

    def until_ready(self) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while self.http.get("/readyz").status_code != 200:
            assert time.monotonic() < end_s, self.http.get("/readyz").text
            time.sleep(0.05)

    def split(self, key: str) -> httpx.Response:
        return self.http.post("/v1/wallet/split", json=SPLIT, headers={"Idempotency-Key": key})


@contextmanager
def daemon_of(wallet: Path, module: str | None = None) -> Iterator[Daemon]:
    """A daemon that is ready. `module` is as for `kit.daemon.launch`."""
    process, path = start(wallet, module=module)
    running = Daemon(process, path)
    try:
        running.until_ready()
        yield running
    finally:
        running.http.close()
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=60)


def memory_of(pid: int) -> Iterator[bytes]:
    """All that a core dump of the process would hold, one mapping at a time."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) r\S* .*?(\[v\w+\])?$", line)
            if found is None or found[3]:
                continue
            begin, end = int(found[1], 16), int(found[2], 16)
            memory.seek(begin)
            yield memory.read(end - begin)


def secrets() -> dict[str, bytes]:
    signer = OWN.signer
    assert isinstance(signer, SoftwareSigner)
    return {
        "the passphrase": PASSPHRASE.encode(),
        "the words": WORDS[-30:].encode(),
        "the entropy": seed_from_words(WORDS).entropy,
        "the scalar": signer._scalar,
        "the nonce key": signer._nonce_key,
    }


def found_in(pid: int, wanted: dict[str, bytes]) -> set[str]:
    return {name for part in memory_of(pid) for name, secret in wanted.items() if secret in part}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may read the memory of whoever is not dumpable")
def test_no_wallet_secret_is_in_the_daemons_memory_or_environment_after_signing(wallet: Path) -> None:
    wanted, address = secrets(), {"the address": OWN.address.text.encode()}
    with daemon_of(wallet, module="payagent") as daemon:
        assert daemon.split("k").status_code == 201
        pid = daemon.process.pid
        assert found_in(pid, wanted | address) == {"the address"}
        for name in ("environ", "cmdline"):
            text = Path(f"/proc/{pid}/{name}").read_bytes()
            assert not any(secret in text for secret in wanted.values())
        assert {"the scalar", "the nonce key"} <= found_in(daemon.signer, wanted)
        assert stop(daemon.process)[0] == 0


def test_no_process_of_the_daemon_can_leave_a_core_dump(wallet: Path) -> None:
    """A core dump would hold the process's memory: the daemon's has keys of merchants and providers."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        with daemon_of(wallet, module="payagent") as daemon:
            (launcher,) = children(daemon.process.pid)
            for pid in (daemon.process.pid, launcher, daemon.signer):
                limits = Path(f"/proc/{pid}/limits").read_text()
                assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE), limits
            assert stop(daemon.process)[0] == 0
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def test_a_signed_transaction_is_stored_in_the_ledger_and_in_no_other_file(
    wallet: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some libraries pass it through a temporary file, which a kill leaves behind for everyone to read."""
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(temporary))
    with daemon_of(wallet) as daemon:
        path = f"/v1/payments/{daemon.split('k').json()['id']}"
        end_s = time.monotonic() + PATIENCE_S
        while daemon.http.get(path, params={"wait": 5}).json()["state"] not in ("confirmed", "settled"):
            assert time.monotonic() < end_s
        daemon.process.kill()
    assert {path.name for path in (wallet / "data").iterdir() if path.stat().st_mode & 0o077} == set()
    files = {path: path.read_bytes() for path in (*wallet.rglob("*"), *temporary.rglob("*")) if path.is_file()}
    with closing(sqlite3.connect(wallet / "data/ledger.db")) as conn:
        (raw,) = conn.execute("SELECT cbor FROM attempts").fetchone()
    signature = raw[-70:-6]
    books = {path.name for path, text in files.items() if signature in text}
    assert books
    assert books <= {"ledger.db", "ledger.db-wal"}
    assert [path for path in files if temporary in path.parents or ".scratch" in path.parts] == []


def payments(daemon: Daemon) -> list[dict[str, Any]]:
    return list(daemon.http.get("/v1/payments").json()["payments"])


def test_a_daemon_whose_signer_is_killed_exits_and_its_next_start_continues(wallet: Path) -> None:
    with daemon_of(wallet) as daemon:
        first = daemon.split("before").json()
        os.kill(daemon.signer, signal.SIGKILL)
        _, talk = daemon.process.communicate(timeout=60)
        assert (daemon.process.returncode, "signer_lost" in talk) == (EXIT_LOST, True), talk
        assert PASSPHRASE not in talk
    with daemon_of(wallet) as daemon:
        again = daemon.split("before")
        assert (again.status_code, again.json()["tx_hash"]) == (200, first["tx_hash"])
        assert daemon.split("after").status_code == 201
        assert stop(daemon.process)[0] == 0


def test_a_payment_whose_signer_is_killed_is_signed_once_after_the_next_start(wallet: Path) -> None:
    answers: list[httpx.Response] = []
    with daemon_of(wallet) as daemon:
        os.kill(daemon.signer, signal.SIGSTOP)
        asking = threading.Thread(target=lambda: answers.append(daemon.split("k")))
        asking.start()
        until_admitted(wallet / "data/ledger.db")
        os.kill(daemon.signer, signal.SIGKILL)
        asking.join(60)
        _, talk = daemon.process.communicate(timeout=60)
        assert (daemon.process.returncode, "signer_lost" in talk) == (EXIT_LOST, True), talk
    (answer,) = answers
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["retryable"]) == (503, "signer_lost", True)
    assert "held" in json.dumps(problem)
    with daemon_of(wallet) as daemon:
        paid = daemon.split("k")
        assert paid.status_code == 200, paid.text
        assert [row["tx_hash"] for row in payments(daemon)] == [paid.json()["tx_hash"]]
        assert stop(daemon.process)[0] == 0


def until_admitted(ledger: Path) -> None:
    """The payment is durable: the daemon is about to ask for its signature, or waits for it already."""
    end_s = time.monotonic() + PATIENCE_S
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as conn:
        while not conn.execute("SELECT count(*) FROM payments").fetchone()[0]:
            assert time.monotonic() < end_s, "nothing was admitted"
            time.sleep(0.02)


def test_killing_the_daemon_ends_the_signer(wallet: Path) -> None:
    with daemon_of(wallet) as daemon:
        daemon.process.kill()
        daemon.process.communicate(timeout=60)
        end_s = time.monotonic() + PATIENCE_S
        while Path(f"/proc/{daemon.signer}").exists():
            if "\nState:\tZ" in Path(f"/proc/{daemon.signer}/status").read_text():
                break
            assert time.monotonic() < end_s
            time.sleep(0.02)


def test_a_transfer_above_per_transaction_or_signed_per_day_is_refused_and_a_restart_resets_the_day(
    wallet: Path,
) -> None:
    """Above per_transaction before anything is held; above signed_per_day by the signer, and it is rejected."""
    with (wallet / "config.toml").open("a") as config:
        config.write('[limits]\nper_transaction = "10 ADA"\nsigned_per_day = "15 ADA"\n')
    to = derive(seed_from_words("zoo " * 23 + "vote"), NETWORKS["devnet"]).address.text
    order = {"address": to, "asset": "lovelace", "units": "9000000"}
    with daemon_of(wallet) as daemon:
        answer = daemon.http.post("/v1/wallet/send", json=order | {"units": "10000000"})
        assert (answer.status_code, answer.json()["code"]) == (403, "limit_exceeded")
        assert "limits.per_transaction" in answer.json()["detail"]
        assert payments(daemon) == []
        assert daemon.http.post("/v1/wallet/send", json=order).status_code == 201
        answer = daemon.http.post("/v1/wallet/send", json=order)
        told = answer.json()
        assert (answer.status_code, told["code"], told["limit"]) == (403, "limit_exceeded", "signed_per_day")
        assert payments(daemon)[0]["state"] == "rejected"
        assert daemon.http.get("/healthz").status_code == 200
        assert stop(daemon.process)[0] == 0
    with daemon_of(wallet) as daemon:
        assert daemon.http.post("/v1/wallet/send", json=order).status_code == 201, "a restart resets the day"


def test_a_stopped_signer_does_not_block_other_requests(wallet: Path) -> None:
    answers: list[httpx.Response] = []
    with daemon_of(wallet) as daemon:
        os.kill(daemon.signer, signal.SIGSTOP)
        asking = threading.Thread(target=lambda: answers.append(daemon.split("k")))
        asking.start()
        until_admitted(wallet / "data/ledger.db")
        for _ in range(20):
            assert daemon.http.get("/healthz").status_code == 200
        assert answers == []
        os.kill(daemon.signer, signal.SIGCONT)
        asking.join(60)
        assert [answer.status_code for answer in answers] == [201]
        assert stop(daemon.process)[0] == 0


def _without_locked_memory() -> None:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0)  # root needs no limit; others lack it


@pytest.mark.parametrize(
    ("limits", "level", "missing", "doctor_warns"),
    [
        (_without_locked_memory, "warning", ["memory kept out of swap"], True),
        (None, "info", [], os.geteuid() != 0),
    ],
    ids=["no locked memory", "as it is"],
)
def test_a_signer_whose_memory_can_be_swapped_out_is_warned_of_in_the_log_and_by_doctor(
    folder: Path,
    limits: Callable[[], None] | None,
    level: str,
    missing: list[str],
    doctor_warns: bool,
) -> None:
    settings = load_settings(folder / "config.toml", {})

    def said_by_doctor() -> list[str]:
        return [one.detail for one in check_choices(settings, folder / "config.toml") if one.name == "signer"]

    process = launch(folder, preexec_fn=limits)
    try:
        assert process.stderr is not None
        told = json.loads(next(line for line in process.stderr if "signer.started" in line))
        assert (told["level"], told["not_possible_here"]) == (level, missing)
        next(line for line in process.stderr if line.startswith("payagent serves "))
        warnings = said_by_doctor()
        assert bool(warnings) == doctor_warns
        assert all("LimitMEMLOCK=64M" in detail for detail in warnings)
    finally:
        assert stop(process)[0] == 0
    assert said_by_doctor() == []
