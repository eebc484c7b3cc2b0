"""The database of a fleet fails. For `scripts/evidence fleet`: when a purchase is paid again, and what answers."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import psycopg
from fleetpair import fail_over, fresh, keep_first_account, landed, two_accounts, until_ready
from kit.cli import until
from kit.daemons_of_a_fleet import Member, asked, member
from kit.postgresql import Server
from kit.postgresql_pair import server_pair

FAULT_S = 15
"""How long a table is locked, and how long a frozen primary has no successor."""


class Fleet:
    """Two daemons. `paid`: the transactions that each purchase was answered with."""

    def __init__(self, folder: Path, url: str, stack: ExitStack) -> None:
        folder.mkdir()
        self.devnet = stack.enter_context(two_accounts(url, folder))
        folders = [fresh(folder / name, self.devnet, url) for name in "ab"]
        self.one, self.other = (stack.enter_context(member(at)) for at in folders)
        until_ready(self.one, self.other)
        self.paid: dict[str, set[str]] = {}

    def buy(self, key: str, *members: Member) -> None:
        """Ask all of them at once, and again with the same key, until each names a transaction."""
        body, paid = asked(self.devnet, key), self.paid.setdefault(key, set())

        def ask(at: Member) -> bool:
            told = at.http.post("/v1/payments", json=body, headers={"Idempotency-Key": key}).json()
            paid.update({told["tx_hash"]} if told.get("tx_hash") else ())
            return bool(told.get("tx_hash"))

        with ThreadPoolExecutor(len(members)) as pool:
            list(pool.map(lambda at: until(lambda: ask(at), f"{key} is not paid"), members))

    def measure(self, fail: Callable[[], object]) -> str:
        """Let the database fail, and buy. The cells of a row; /healthz is asked all the time."""
        self.buy("before", self.one)
        is_over, began_s, answers_s = threading.Event(), time.monotonic(), list[float]()

        def watch() -> None:
            while not is_over.wait(0.1):
                asked_s = time.monotonic()
                self.one.http.get("/healthz").raise_for_status()
                answers_s.append(time.monotonic() - asked_s)

        with ThreadPoolExecutor(1) as pool:
            watching = pool.submit(watch)
            try:
                fail()
                self.buy("meanwhile", self.one)
            finally:
                is_over.set()
            watching.result()
        return f"{time.monotonic() - began_s:.1f} s | {len(answers_s)} times, {max(answers_s):.1f} s at most"

    def judged(self) -> str:
        """The last cells: one transaction for each purchase, and none beside."""
        until(lambda: len(landed(self.devnet)) >= len(self.paid), "not all payments land")
        assert sorted(landed(self.devnet)) == sorted(tx for one in self.paid.values() for tx in one), self.paid
        return f"{len(self.paid)} | {len(landed(self.devnet))}"


def rows(folder: Path, server: Server) -> Iterator[str]:
    """A row for each fault."""
    local = server.new_database()
    with psycopg.connect(local) as operator, ExitStack() as stack:
        fleet = Fleet(folder / "locked", server.tcp_url(local), stack)

        def lock() -> None:
            operator.execute("LOCK TABLE payments")
            threading.Timer(FAULT_S, operator.rollback).start()

        yield f"| `LOCK TABLE payments` for {FAULT_S} s | {fleet.measure(lock)} | {fleet.judged()} |"
    with server_pair(is_synchronous=True) as servers, ExitStack() as stack:
        fleet = Fleet(folder / "frozen", servers.tcp_url, stack)

        def freeze() -> None:
            servers.freeze_primary()
            threading.Timer(FAULT_S, partial(servers.promote, is_synchronous=True)).start()

        row = f"primary frozen (SIGSTOP), standby promoted after {FAULT_S} s"
        yield f"| {row} | {fleet.measure(freeze)} | {fleet.judged()} |"
    for place, order in (("first", (0, 1)), ("last", (1, 0))):
        with server_pair(is_synchronous=True) as servers, ExitStack() as stack:
            fleet = Fleet(folder / place, servers.tcp_url_in(*order), stack)
            fleet.other.leave()
            measured = fleet.measure(partial(fail_over, servers))
            servers.start_again(0)
            keep_first_account(servers.url_of(0))
            fleet.other = stack.enter_context(member(folder / place / "b"))
            until_ready(fleet.one, fleet.other)
            for key in ("before", "meanwhile", "after"):
                fleet.buy(key, fleet.one, fleet.other)
            yield f"| primary killed, then back, {place} in the URL | {measured} | {fleet.judged()} |"
