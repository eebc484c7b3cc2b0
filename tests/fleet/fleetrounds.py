"""Rounds of a drill: the holders of all accounts are killed or stopped at commit points, and another carries on.

Three accounts, and one daemon more than fail in a round. `DAEMONS` are those of a long run: one holds no account,
and in a round each of the other three fails once.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import httpx
from fleetrelay import Relay, Way
from fleetworld import UTXO_LOVELACE, DrillFleet
from kit.cli import until
from kit.daemons_of_a_fleet import ADDRESSES

from payagent.store.db.postgresql.connection import PostgresqlConnection
from payagent.store.rows import fleet

DAEMONS = "abcd"
POINTS = (
    *("admit", "sign", "submit", "answer", "observe", "confirm", "settle", "deposit", "delivery", "request"),
    "lease",
)
"""The commit points that the holder of an account passes again and again."""


@dataclass
class Failure:
    """A daemon that is killed or stopped at a commit point.

    `taken_s`: until another daemon held its account. `stalled_s`: until the gate was free for the others.
    """

    action: str
    point: str
    taken_s: float = 0.0
    stalled_s: float = 0.0


def every_round() -> Iterator[list[Failure]]:
    """Each point, before and after its commit, killed and stopped."""
    sides = [f"{side} {point}" for point in POINTS for side in ("before", "after")]
    every = [Failure(action, point) for action in ("kill", "stop") for point in sides]
    for count in range(0, len(every), len(ADDRESSES)):
        yield every[count : count + len(ADDRESSES)]


def run_round(drill: DrillFleet, failures: Sequence[Failure]) -> None:
    """Let the holders fail, see others take their accounts, put the fleet together again, and judge."""
    held = {name: one.ready()["accounts"] for name, one in drill.daemons.items()}
    victims = [(name, account) for name, accounts in sorted(held.items()) for account in accounts][: len(failures)]
    spare = min(held.keys() - {name for name, _ in victims}, key=lambda name: len(held[name]))
    with ThreadPoolExecutor(len(failures)) as pool:
        failing = [
            pool.submit(_fail, drill, name, account, failure, spare)
            for (name, account), failure in zip(victims, failures, strict=True)
        ]
        for one in failing:
            one.result()
    for (name, _), failure in zip(victims, failures, strict=True):
        if failure.action == "kill":
            drill.start(name)
        else:
            drill.daemons[name].wake()
            drill.daemons[name].until_it_lost()
    drill.until_shared()
    drill.judge()


def _fail(drill: DrillFleet, name: str, account: int, failure: Failure, spare: str) -> None:
    """Let one holder fail, and measure how long the others take."""
    is_over = threading.Event()
    provoking = threading.Thread(target=_provoke, args=(drill, name, account, spare, is_over), daemon=True)
    conn: Any = PostgresqlConnection(drill.database)
    with closing(conn):
        before = fleet.all_accounts(conn)[account].holder
        drill.daemons[name].order(failure.action, failure.point)
        provoking.start()
        drill.daemons[name].reach()
        drill.daemons[name].is_out = True
        is_over.set()
        failed_s = time.monotonic()
        conn.execute("SELECT one FROM gate FOR UPDATE")
        failure.stalled_s = time.monotonic() - failed_s
        until(lambda: fleet.all_accounts(conn)[account].holder not in (before, None), "nobody took the account")
        failure.taken_s = time.monotonic() - failed_s
    provoking.join()


def _provoke(drill: DrillFleet, name: str, account: int, spare: str, is_over: threading.Event) -> None:
    """Do what makes a daemon pass all its commit points, until it has failed."""
    while not is_over.is_set():
        one = drill.buy(name)
        drill.serve(one, name)
        with suppress(httpx.HTTPError):  # its holder refuses to cancel it: it is on the chain
            drill.daemons[spare].http.post(f"/v1/payments/{one.payment_id}/resolve")
            drill.control("faucet", address=ADDRESSES[account], lovelace=str(UTXO_LOVELACE))


_PAYMENT = "SELECT p.id FROM payments p JOIN intents i ON i.id = p.intent_id WHERE i.idempotency_key = ?"
WRITTEN = {"admit": _PAYMENT, "sign": f"SELECT 1 FROM attempts WHERE payment_id IN ({_PAYMENT})"}
"""What a commit of a purchase writes."""


def lose_answer(drill: DrillFleet, database: Relay, point: str, way: Way) -> None:
    """Let `a` lose its database in a commit of a purchase. Who asks again is told whether it took place."""
    one = drill.wanted()
    drill.daemons["a"].order("wait", f"before {point}")
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(drill.ask, one, "a")
        drill.daemons["a"].reach()
        database.become(way)
        drill.daemons["a"].go_on()
        assert told.result() is None
    database.become("open")
    assert one.codes == ["store_failed"]
    took_place = way == "answers are lost"
    assert len(drill.conn.execute(WRITTEN[point], (f"key:{one.key}",)).fetchall()) == took_place
    drill.pay(one, "a")
    drill.until_shared()
    drill.judge()
