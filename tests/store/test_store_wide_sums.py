"""Sums of units are exact at any size, as Python adds them."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit import holds

from payagent.core import ledger
from payagent.core.ledger import Entry, Posting
from payagent.core.policy import WALLET
from payagent.store import executor
from payagent.store.db.opening import migrate, open_database
from payagent.store.db.unit import Unit
from payagent.store.rows import journal, limit_counters
from payagent.store.rows import writes as records
from payagent.store.rows.journal import Selection

MOST = 2**63 - 1


@pytest.fixture
def unit(tmp_path: Path) -> Iterator[Unit]:
    conn = open_database(tmp_path / "ledger.db")
    migrate(conn)
    conn.execute("PRAGMA foreign_keys = OFF")
    yield Unit(conn)
    conn.close()


def test_a_balance_may_exceed_what_one_column_can_hold(unit: Unit) -> None:
    for _ in range(3):
        records.write_entry(unit, ledger.deposit({"token": MOST}), 1)
    assert journal.balances(unit.conn) == [("external", "token", -3 * MOST), ("wallet", "token", 3 * MOST)]


def test_an_account_with_a_zero_balance_is_not_listed(unit: Unit) -> None:
    for entry in (
        ledger.deposit({"token": MOST}),
        ledger.deposit({"ada": 5}),
        ledger.deposit_reversed({"token": MOST}),
    ):
        records.write_entry(unit, entry, 1)
    assert journal.balances(unit.conn) == [("external", "ada", -5), ("wallet", "ada", 5)]


def test_a_spent_total_may_exceed_what_one_column_can_hold(unit: Unit) -> None:
    for n in range(3):
        executor.open_intent(
            unit,
            intent_id=f"int{n}",
            app_id="app",
            idempotency_key=f"key{n}",
            is_key_derived=False,
            fingerprint="f",
            origin="https://merchant.example",
            request=None,
            request_id="req",
            now_ms=5,
        )
        executor.open_payment(
            unit,
            payment_id=f"pay{n}",
            kind="invoice",
            app_id="app",
            intent_id=f"int{n}",
            invoice_seq=n + 1,
            outputs=[],
            now_ms=5,
        )
        holds.place_hold(unit, f"pay{n}", {"token": MOST, "lovelace": n + 1}, 5, 5, is_counted=True)
    assert limit_counters.totals(unit.conn, WALLET) == {"token": 3 * MOST, "lovelace": 6}
    holds.release_hold(unit, "pay0", 6)
    holds.release_hold(unit, "pay0", 7)  # it was released at 6 and stays so
    assert limit_counters.totals(unit.conn, WALLET) == {"token": 2 * MOST, "lovelace": 5}


UNITS = st.integers(-MOST, MOST).filter(bool)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.sampled_from(["wallet", "held"]), st.sampled_from("ab"), UNITS), max_size=30))
def test_balances_equal_the_sums_computed_in_python(unit: Unit, rows: list[tuple[str, str, int]]) -> None:
    expected: dict[tuple[str, str], int] = {}
    unit.conn.execute("BEGIN")
    try:
        for account, asset, units in rows:
            entry = Entry("deposit", (Posting(account, asset, units), Posting("external", asset, -units)))
            for posting in entry.postings:
                key = posting.account, posting.asset
                expected[key] = expected.get(key, 0) + posting.units
            records.write_entry(unit, entry, 1)
        kept, added_up = journal.balances(unit.conn), journal.added_up(unit.conn)
        of_one_asset = journal.balances(unit.conn, Selection(asset="a"))
    finally:
        unit.conn.execute("ROLLBACK")
    assert added_up == [(*key, total) for key, total in sorted(expected.items())]
    assert kept == [row for row in added_up if row[2]]
    assert of_one_asset == [row for row in kept if row[1] == "a"]
    assert journal.balances(unit.conn) == [], "a rolled back entry left a balance"


def test_a_plain_sqlite_sum_would_overflow(unit: Unit) -> None:
    """Why sums are kept in two halves: without them these two rows are an error."""
    with pytest.raises(sqlite3.OperationalError, match="integer overflow"):
        unit.conn.execute("SELECT SUM(n) FROM (SELECT ? AS n UNION ALL SELECT ?)", (MOST, MOST)).fetchall()
