"""The cost of a payment does not grow with the history: SQLite's steps are counted, not time.

A step is a call of SQLite's progress handler: at least one for each row it visits.
"""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest
from kit.effort import pick

from benchmarks.store import ACCOUNT, APP, ORIGIN, Payer
from payagent.agent.chain_sync import recovery
from payagent.agent.chain_sync.recovery import ExternalSpend
from payagent.chain.provider import Movement
from payagent.core.aggregate import TxSeen
from payagent.core.money import LOVELACE
from payagent.core.prepaid_balance import CALLS
from payagent.store.db import opening
from payagent.store.db.readers import Readers
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import approvals, apps, limit_counters, operator_log, payments, prepaid, topups, writes
from payagent.store.rows import prepaid_uses as uses
from payagent.store.rows.journal import EVERYTHING
from payagent.store.rows.operator_log import refusals_page
from payagent.wallet.utxo_index import UtxoIndex
from sim.signing import sign

MAKER = Path(__file__).resolve().parents[2] / "scripts" / "make_ledger"
FEW, MANY = pick(60, 300), pick(600, 3_000)
"""Payments or refusals. Of what is cheaper to count it is `SOME` and `MORE`."""

SOME, MORE = 10, pick(200, 1_000)
GROWTH_MAX = 1.1
ASKED = 1_000_000
"""Far from the numbers used in the history."""


@contextmanager
def counted(conn: Connection) -> Iterator[list[int]]:
    """Count the steps taken meanwhile."""
    steps = [0]

    def step() -> None:
        steps[0] += 1

    conn.set_progress_handler(step, 1)
    try:
        yield steps
    finally:
        conn.set_progress_handler(None, 1)


def connection(payer: Payer) -> Connection:
    conn: Connection = payer.do(lambda unit: unit.conn)
    return conn


def steps_of_a_payment(payer: Payer) -> dict[str, int]:
    """The steps of admission, of recording the attempt and of the rest, with prepared statements."""
    told = {}
    for number in range(ASKED, ASKED + 3):
        with counted(connection(payer)) as admit:
            plan = payer.admit(number)
        with counted(connection(payer)) as record:
            payer.record(number, plan, sign(plan, ACCOUNT.signer))
        with counted(connection(payer)) as follow:
            payer.follow(number, plan)
        told = {"admit": admit[0], "record": record[0], "follow": follow[0]}
    return told


def pay(payer: Payer, count: int) -> None:
    for number in range(count):
        plan = payer.admit(number)
        payer.record(number, plan, sign(plan, ACCOUNT.signer))
        payer.follow(number, plan)


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A ledger of few payments and one of many, to read or to copy."""
    made = {count: tmp_path_factory.mktemp("ledgers") / f"{count}.db" for count in (FEW, MANY)}
    for count, path in made.items():
        subprocess.run([sys.executable, MAKER, path, str(count)], check=True)
    return made


def steps_on_copies(ledgers: dict[int, Path], folder: Path, change: str) -> list[dict[str, int]]:
    """The steps of a payment on each ledger, after a change of its schema."""
    told = []
    for path in ledgers.values():
        copy = shutil.copy(path, folder)
        with closing(sqlite3.connect(copy)) as conn:
            conn.execute(change)
        with closing(Payer(Path(copy), 5)) as payer:
            told.append(steps_of_a_payment(payer))
    return told


def test_a_payment_costs_no_more_after_many_payments_than_after_few(
    ledgers: dict[int, Path], tmp_path: Path
) -> None:
    few, many = steps_on_copies(ledgers, tmp_path, "SELECT 1")
    for name, steps in few.items():
        assert 500 < steps < many[name] * GROWTH_MAX, "the steps are counted"
        assert many[name] <= steps * GROWTH_MAX, name


def test_without_an_index_a_payment_costs_more_after_many_payments(
    ledgers: dict[int, Path], tmp_path: Path
) -> None:
    """The ledgers are large enough to show a query that reads the whole history."""
    few, many = steps_on_copies(ledgers, tmp_path, "DROP INDEX payments_by_intent")
    for name, steps in few.items():
        assert many[name] > steps * GROWTH_MAX, name


PAGES: dict[str, dict[str, object]] = {
    "of a merchant that has none": {"origin": "https://nobody.example"},
    "since tomorrow": {"since_ms": 4_000_000_000_000},
    "since it began": {"since_ms": 1},
    "of an app that has none, at a merchant": {"app_id": "app_other", "origin": ORIGIN},
    "in a state that none is in, at a merchant": {"state": "in_flight", "origin": ORIGIN},
    "that were decided": {"is_decided": True},
}
SCANNED: dict[str, dict[str, object]] = {
    "by text": {"text": "no such thing"},
    "by delivery": {"delivery": "paid_not_served"},
}
"""Filters without an index: they look at so many payments a page."""


def test_a_page_of_payments_costs_no_more_after_many_payments_than_after_few(
    ledgers: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a page with few payments or none."""
    monkeypatch.setattr(payments, "FEW_MAX", FEW)
    monkeypatch.setattr(payments, "SCAN_MAX", FEW)
    monkeypatch.setattr(approvals, "STANDING_MAX", FEW)
    every = dict.fromkeys(("app_id", "state", "origin", "since_ms", "before_seq"))
    told: dict[str, list[int]] = {name: [] for name in PAGES}
    for path in ledgers.values():
        with closing(Readers(path).conn) as conn:
            for name, asked in PAGES.items():
                with counted(conn) as steps:
                    payments.payments_page(conn, limit=50, **every | asked)
                told[name].append(steps[0])
            for name, asked in SCANNED.items():
                with counted(conn) as steps:
                    floor = {"from_seq": payments.scan_floor(conn, None)}
                    assert payments.payments_page(conn, limit=50, **every | asked | floor) == []
                told.setdefault(name, []).append(steps[0])
            with counted(conn) as steps:
                approvals.standing_at(conn, "https://nobody.example", "pay_new")
            told.setdefault("of a question about a new merchant", []).append(steps[0])
            with counted(conn) as steps:
                assert approvals.standing_at(conn, ORIGIN, "pay_new")
            told.setdefault("of a question about a merchant with many payments", []).append(steps[0])
            with counted(conn) as steps:
                assert limit_counters.totals_by_app(conn, ["", ORIGIN], [LOVELACE])
            told.setdefault("of the spend of each app, for the metrics", []).append(steps[0])
    for name, (few, many) in told.items():
        assert many <= few * GROWTH_MAX, name


def test_a_page_of_the_log_or_of_refusals_costs_no_more_after_many_refusals_than_after_few(tmp_path: Path) -> None:
    detail = {"code": "limit_exceeded", "reason": None, "app": APP, "origin": ORIGIN, "received": "x" * 4_000}
    told: dict[str, list[int]] = {}
    for count in (FEW, MANY):
        with closing(Payer(tmp_path / f"{count}.db", 1)) as payer:

            def refuse(unit: Unit, count: int = count) -> None:
                for number in range(count):
                    writes.note(unit, None, "refused", None, number, detail)

            payer.do(refuse)
            for before_seq in (None, 20):
                with counted(connection(payer)) as steps:
                    assert operator_log.page(connection(payer), before_seq=before_seq, limit=50)
                told.setdefault(f"log, {before_seq}", []).append(steps[0])
                page = partial(refusals_page, code=None, before_seq=before_seq, limit=50)
                with counted(connection(payer)) as steps:
                    assert page(connection(payer), EVERYTHING)
                told.setdefault(f"refusals, {before_seq}", []).append(steps[0])
    for name, (few, many) in told.items():
        assert many <= few * GROWTH_MAX, name


def test_a_batch_costs_no_more_after_many_batches_than_after_few(tmp_path: Path) -> None:
    told = {}
    for count in (10, 100):
        with closing(Payer(tmp_path / f"{count}.db", count + 5, batch_target=10)) as payer:
            pay(payer, count)
            told[count] = steps_of_a_payment(payer)
    for name, few in told[10].items():
        assert told[100][name] <= few * GROWTH_MAX, name


def test_the_last_served_batch_is_found_as_fast_after_many_refused_payments(tmp_path: Path) -> None:
    told = {}
    for count in (10, 300):
        with closing(Payer(tmp_path / f"{count}.db", 1, batch_target=10)) as payer:
            pay(payer, 1)
            for number in range(1, count):
                with pytest.raises(RuntimeError, match="not_enough_funds"):
                    payer.admit(number)
            conn = connection(payer)
            (pool,) = prepaid.all_pools(conn)
            with counted(conn) as steps:
                assert prepaid.last_served_ms(conn, pool.id) == payer.now_ms
            told[count] = steps[0]
    assert told[300] <= told[10] * GROWTH_MAX


def test_a_payment_costs_no_more_when_other_apps_have_many_tokens(tmp_path: Path) -> None:
    told = {}
    for count in (SOME, MORE):
        with closing(Payer(tmp_path / f"{count}.db", 5)) as payer:

            def give(unit: Unit, count: int = count) -> None:
                apps.add_with_token(unit, "app_other", "other", "f" * 64, ("pay",), 1)
                for number in range(count):
                    apps.give_token(unit, "app_other", f"{number + 1:064x}", None, "app_other", 1)

            payer.do(give)
            told[count] = steps_of_a_payment(payer)
    assert told[MORE]["admit"] <= told[SOME]["admit"] * GROWTH_MAX


def with_topups(unit: Unit, count: int) -> int:
    """Add `count` ended top-ups of one balance; return the balance's id."""
    pool = prepaid.ensure_pool(unit, ORIGIN, "bench", ACCOUNT.address.text, 1)
    for number in range(count):
        name = f"top_{number}"
        topups.add(
            unit,
            topup_id=name,
            pool_id=pool.id,
            app_id=APP,
            key=name,
            trigger="manual",
            unit_name=CALLS,
            units=10,
            request="{}",
            is_call=False,
            now_ms=1,
            clock_ms=1,
        )
        topups.end(unit, name, dict.fromkeys(("code", "reason", "detail")), number + 1, number + 1)
    return pool.id


ASKED_OF_TOPUPS: dict[str, Callable[[Connection, int], object]] = {
    "which are open": lambda conn, _: topups.all_open(conn),
    "when the last one ended": topups.last_ended_ms,
}


def test_reading_top_ups_costs_no_more_after_many_than_after_few(tmp_path: Path) -> None:
    told = {}
    for count in (SOME, MORE):
        with closing(Payer(tmp_path / f"{count}.db", 1)) as payer:
            pool = payer.do(lambda unit, count=count: with_topups(unit, count))
            conn = connection(payer)
            for name, ask in ASKED_OF_TOPUPS.items():
                for _ in range(2):
                    with counted(conn) as steps:
                        ask(conn, pool)
                told[name, count] = steps[0]
    for name in ASKED_OF_TOPUPS:
        assert told[name, MORE] <= told[name, SOME] * GROWTH_MAX + 1, name


def test_taking_back_a_use_costs_no_more_after_many_taken_back(tmp_path: Path) -> None:
    """Requests that a balance might have served but that were answered with 402."""
    told = {}
    for count in (SOME, MORE):
        with closing(Payer(tmp_path / f"{count}.db", 5)) as payer:

            def use(unit: Unit, count: int = count) -> int:
                pool = prepaid.ensure_pool(unit, ORIGIN, "bench", ACCOUNT.address.text, 1)
                for _ in range(count):
                    call = uses.add(unit, pool.id, APP, (CALLS, 1), {LOVELACE: 5}, 1)
                    assert call is not None
                    uses.take_back(unit, call)
                return pool.id

            pool = payer.do(use)
            with counted(connection(payer)) as steps:
                payer.do(lambda unit, pool=pool: uses.take_back_newest(unit, pool, CALLS, 0))
            told[count] = steps[0]
    assert told[MORE] <= told[SOME] * GROWTH_MAX


def test_booking_an_external_spend_costs_no_more_after_many_than_after_few(tmp_path: Path) -> None:
    """After a lost ledger, the wallet's whole history is booked in one commit."""
    told = {}
    for count in (SOME, MORE):
        with closing(Payer(tmp_path / f"{count}.db", 5)) as payer:

            def spend(unit: Unit, number: int) -> None:
                seen = TxSeen(f"{number:064x}", "b" * 64, number, number)
                moved = Movement({f"{number - 1:064x}#0": {"lovelace": 5_000_000}}, {})
                assert recovery.take_in(unit, ExternalSpend(seen, moved, "p"), "forgotten_spend", UtxoIndex(), 1)

            for number in range(1, count):
                payer.do(lambda unit, number=number: spend(unit, number))
            with counted(connection(payer)) as steps:
                payer.do(lambda unit, number=count: spend(unit, number))
            told[count] = steps[0]
    assert told[MORE] <= told[SOME] * GROWTH_MAX


def test_the_write_ahead_log_shrinks_again_after_a_long_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow export keeps everything written meanwhile in the write-ahead log."""
    monkeypatch.setattr(opening, "LOG_MAX_PAGES", 16)
    path = tmp_path / "ledger.db"
    page = 4096
    with closing(opening.open_database(path)) as conn, closing(opening.open_read_only(path)) as reader:

        def log_bytes_after(count: int) -> int:
            for _ in range(count):
                conn.execute("INSERT INTO rows VALUES (randomblob(4096))")
            return (tmp_path / "ledger.db-wal").stat().st_size

        conn.execute("CREATE TABLE rows(content BLOB)")
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM rows").fetchone()
        assert log_bytes_after(200) > 200 * page
        reader.execute("COMMIT")
        assert log_bytes_after(50) < 50 * page
