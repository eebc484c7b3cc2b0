"""The daemon with its key in an HSM: what it pays when the HSM is slow, away, wrong or gone."""

import json
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from kit.canaries import plant
from kit.cli import until
from kit.daemon import children, refused, start, stop
from kit.forks import Process
from kit.http import NO_TLS
from kit.softhsm import PIN, SoftHsm, make_softhsm, needs_cc, needs_softhsm

from payagent.api.http.tokens import hash_token
from payagent.core.network import NETWORKS
from payagent.devnet.server import DevnetThread
from payagent.store.db.writer import Writer
from payagent.store.rows import apps
from payagent.wallet.keystore import enterprise_address

pytestmark = [needs_softhsm, needs_cc]

TOKEN = plant("the operator's token", "an operator of the HSM's tests")
OTHER = enterprise_address(NETWORKS["devnet"], bytes(32)).text
UTXOS = 20
EXIT_LOST, EXIT_LOCKED = 4, 5


@pytest.fixture
def devnet() -> Iterator[DevnetThread]:
    with DevnetThread(block_time_s=1) as devnet:
        yield devnet


@pytest.fixture
def hsm(tmp_path: Path) -> SoftHsm:
    hsm = make_softhsm(tmp_path / "hsm", shim=True)
    hsm.opened("payagent-0", "payagent-1", generate=True)
    return hsm


@pytest.fixture
def wallet(folder: Path, devnet: DevnetThread, hsm: SoftHsm) -> Path:
    """A folder whose wallet has its key in an HSM, 20 UTxOs of 10 ADA, and an app that may order transfers."""
    (folder / "data/keystore.json").unlink()
    address = hsm.keystore(folder / "data/keystore.json").address
    (hsm.folder / "log").unlink()
    writer = Writer(folder / "data/ledger.db")
    scopes = ("operate", "pay", "read")
    writer.submit(
        "app", lambda unit: apps.add_with_token(unit, "app", "op", hash_token(TOKEN), scopes, 1)
    ).result()
    writer.close()
    variables = ", ".join(f'{name} = "{value}"' for name, value in hsm.environment.items())
    with (folder / "config.toml").open("a") as config:
        config.write(f'pin_file = "{hsm.pin_file}"\nanswer_s = 3\nenvironment = {{ {variables} }}\n')
    with httpx.Client(base_url=f"{devnet.origin}/devnet", verify=NO_TLS, trust_env=False) as control:
        for _ in range(UTXOS):
            control.post("/faucet", json={"address": address, "lovelace": "10000000"}).raise_for_status()
        control.post("/blocks", json={"count": 1}).raise_for_status()
    return folder


class Daemon:
    """A running daemon, reached by its socket, and its processes."""

    def __init__(self, process: Process, path: Path, ledger: Path) -> None:
        self.process, self._ledger = process, ledger
        transport = httpx.HTTPTransport(uds=str(path), verify=NO_TLS)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        self.http = httpx.Client(transport=transport, base_url="http://localhost", headers=headers, timeout=120)
        (self.launcher,) = children(process.pid)
        (self.signer,) = children(self.launcher)
        (self.token,) = children(self.signer)

    def send(self, key: str) -> httpx.Response:
        order = {"address": OTHER, "asset": "lovelace", "units": "2000000"}
        return self.http.post("/v1/wallet/send", json=order, headers={"Idempotency-Key": key})

    def payments(self) -> list[dict[str, Any]]:
        return list(self.http.get("/v1/payments").json()["payments"])

    def landed(self) -> bool:
        states = {payment["state"] for payment in self.payments()}
        return bool(states) and states <= {"confirmed", "settled"}

    def count(self, query: str) -> int:
        with closing(sqlite3.connect(f"file:{self._ledger}?mode=ro", uri=True)) as conn:
            return int(conn.execute(f"SELECT count(*) FROM {query}").fetchone()[0])


@contextmanager
def daemon_of(wallet: Path) -> Iterator[Daemon]:
    """A daemon that is ready."""
    process, path = start(wallet)
    running = Daemon(process, path, wallet / "data/ledger.db")
    try:
        until(lambda: running.http.get("/readyz").status_code == 200, "the daemon is ready")
        yield running
    finally:
        running.http.close()
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=60)


def on_chain(devnet: DevnetThread, address: str) -> int:
    """How much lovelace the address has."""
    with httpx.Client(base_url=devnet.chain_url, verify=NO_TLS, trust_env=False) as chain:
        answer = chain.get(f"/addresses/{address}/utxos")
    rows = answer.json() if answer.status_code == 200 else []
    return sum(int(one["quantity"]) for row in rows for one in row["amount"] if one["unit"] == "lovelace")


def test_a_daemon_pays_with_a_key_that_no_file_of_the_wallet_has(
    wallet: Path, devnet: DevnetThread, hsm: SoftHsm
) -> None:
    with daemon_of(wallet) as daemon:
        assert daemon.send("k").status_code == 201
        until(daemon.landed, "it is confirmed")
        assert on_chain(devnet, OTHER) == 2_000_000
        code, log = stop(daemon.process)
        assert (code, PIN in log, str(hsm.module) in log) == (0, False, False)


def test_a_token_that_is_away_refuses_nothing_and_pays_once_when_it_is_back(
    wallet: Path, devnet: DevnetThread, hsm: SoftHsm, tmp_path: Path
) -> None:
    with daemon_of(wallet) as daemon:
        hsm.tokens.rename(tmp_path / "gone")
        answer = daemon.send("k")
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["retryable"]) == (503, "signer_away", True)
        assert "money held" in json.dumps(problem)
        assert [payment["state"] for payment in daemon.payments()] == ["reserved"]
        assert daemon.count("attempts") == 0
        assert daemon.count("events WHERE event IN ('refused', 'reject')") == 0
        (tmp_path / "gone").rename(hsm.tokens)
        until(daemon.landed, "it is confirmed", every_s=0.2)
        assert daemon.send("k").status_code == 200
        assert (daemon.count("attempts"), on_chain(devnet, OTHER)) == (1, 2_000_000)
        assert stop(daemon.process)[0] == 0


def test_a_slow_hsm_pays_everything_and_the_api_answers_meanwhile(
    wallet: Path, devnet: DevnetThread, hsm: SoftHsm
) -> None:
    codes: list[int] = []
    with daemon_of(wallet) as daemon:
        hsm.go("slow")
        orders = [
            threading.Thread(target=lambda key=key: codes.append(daemon.send(f"k{key}").status_code))
            for key in range(UTXOS)
        ]
        for order in orders:
            order.start()
        until(lambda: hsm.noted("sign") > 0, "the first signature")
        while len(codes) < 5:
            assert daemon.http.get("/healthz").status_code == 200
        for order in orders:
            order.join(120)
        assert set(codes) <= {201, 503}, codes  # a repeated request finds one that had to wait too long
        until(lambda: daemon.landed() and len(daemon.payments()) == UTXOS, "all are confirmed", every_s=0.2)
        assert on_chain(devnet, OTHER) == UTXOS * 2_000_000
        assert stop(daemon.process)[0] == 0


def test_a_hanging_hsm_is_given_up_for_now_and_pays_once_when_it_answers(
    wallet: Path, devnet: DevnetThread, hsm: SoftHsm
) -> None:
    with daemon_of(wallet) as daemon:
        hsm.go("hang")
        assert daemon.send("k").json()["code"] == "signer_away"
        assert daemon.count("attempts") == 0
        hsm.go("")
        until(daemon.landed, "it is confirmed", every_s=0.2)
        assert (daemon.count("attempts"), on_chain(devnet, OTHER)) == (1, 2_000_000)


@pytest.mark.parametrize("mode", ["bit", "short", "other"])
def test_a_wrong_signature_is_neither_recorded_nor_sent(
    wallet: Path, devnet: DevnetThread, hsm: SoftHsm, mode: str
) -> None:
    with daemon_of(wallet) as daemon:
        hsm.go(mode)
        answer = daemon.send("k")
        assert (answer.status_code, answer.json()["code"]) == (503, "signer_wrong")
        assert daemon.send("another").json()["code"] == "signer_wrong"
        assert daemon.count("attempts") == 0
        hsm.go("")
        assert stop(daemon.process)[0] == 0
    assert on_chain(devnet, OTHER) == 0
    with daemon_of(wallet) as daemon:
        until(lambda: daemon.landed() and len(daemon.payments()) == 2, "both are confirmed", every_s=0.2)
        assert on_chain(devnet, OTHER) == 4_000_000


def test_a_module_that_aborts_ends_the_daemon_and_its_next_start_pays_once(
    wallet: Path, devnet: DevnetThread, hsm: SoftHsm
) -> None:
    with daemon_of(wallet) as daemon:
        hsm.go("abort")
        assert daemon.send("k").json()["code"] == "signer_lost"
        _, talk = daemon.process.communicate(timeout=60)
        assert (daemon.process.returncode, "signer_lost" in talk) == (EXIT_LOST, True), talk
    hsm.go("")
    pays_once(wallet, devnet)


def test_a_token_process_killed_before_it_answers_ends_the_daemon_and_its_next_start_pays_once(
    wallet: Path, devnet: DevnetThread, hsm: SoftHsm
) -> None:
    answers: list[httpx.Response] = []
    with daemon_of(wallet) as daemon:
        hsm.go("hang")
        asking = threading.Thread(target=lambda: answers.append(daemon.send("k")))
        asking.start()
        until(lambda: hsm.noted("sign"), "the HSM is asked")
        os.kill(daemon.token, signal.SIGKILL)
        asking.join(60)
        _, talk = daemon.process.communicate(timeout=60)
        assert (daemon.process.returncode, "signer_lost" in talk) == (EXIT_LOST, True), talk
    assert answers[0].json()["code"] == "signer_lost"
    hsm.go("")
    pays_once(wallet, devnet)


def test_a_token_process_killed_after_it_answered_is_noticed_at_the_next_signature(
    wallet: Path, devnet: DevnetThread, hsm: SoftHsm
) -> None:
    with daemon_of(wallet) as daemon:
        assert daemon.send("k").status_code == 201
        os.kill(daemon.token, signal.SIGKILL)
        assert daemon.send("another").json()["code"] == "signer_lost"
        _, talk = daemon.process.communicate(timeout=60)
        assert (daemon.process.returncode, "signer_lost" in talk) == (EXIT_LOST, True), talk
    with daemon_of(wallet) as daemon:
        until(lambda: daemon.landed() and len(daemon.payments()) == 2, "both are confirmed", every_s=0.2)
        assert (daemon.count("attempts"), on_chain(devnet, OTHER)) == (2, 4_000_000)


def pays_once(wallet: Path, devnet: DevnetThread) -> None:
    with daemon_of(wallet) as daemon:
        until(daemon.landed, "it is confirmed", every_s=0.2)
        assert daemon.send("k").status_code == 200
        assert (daemon.count("attempts"), on_chain(devnet, OTHER)) == (1, 2_000_000)


@pytest.mark.parametrize(("mode", "tried"), [("", 1), ("final", 0), ("locked", 0)])
def test_a_pin_that_is_refused_stops_the_start_for_a_person(
    wallet: Path, hsm: SoftHsm, mode: str, tried: int
) -> None:
    """Exit code 5: the unit does not start it again."""
    hsm.go(mode)
    hsm.pin_file.write_text("another PIN")
    code, talk = refused(wallet)
    assert (code, "keystore_invalid" in talk, "another PIN" in talk) == (EXIT_LOCKED, True, False), talk
    assert hsm.noted("login") == tried


def test_a_pin_that_may_not_be_tried_when_the_token_is_back_ends_the_daemon_for_a_person(
    wallet: Path, hsm: SoftHsm
) -> None:
    with daemon_of(wallet) as daemon:
        hsm.go("away,final")
        tries = hsm.noted("login")
        assert daemon.send("k").json()["code"] == "signer_lost"
        _, talk = daemon.process.communicate(timeout=120)
        assert (daemon.process.returncode, "keystore_invalid" in talk) == (EXIT_LOCKED, True), talk
        assert hsm.noted("login") == tries
