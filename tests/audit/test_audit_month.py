"""A month's record equals the ledger: each balance is the one before it plus what changed it."""

import sqlite3
from contextlib import closing

import pytest
from kit.audit import Past

from payagent.audit.month import MonthRecord, MonthRecords
from payagent.core import ledger
from payagent.core.ledger import HELD, WALLET
from payagent.store.db.readers import Readers
from payagent.store.rows import journal
from payagent.store.rows.journal import Selection


def months(lived: Past) -> list[str]:
    """The months of the ledger's life, with the one before and the one after."""
    with closing(sqlite3.connect(lived.path)) as conn:
        rows = conn.execute(
            "SELECT DISTINCT strftime('%Y-%m', at_ms / 1000, 'unixepoch', 'start of month', n || ' months') "
            "FROM entries, (SELECT -1 AS n UNION SELECT 0 UNION SELECT 1) ORDER BY 1"
        )
        return [month for (month,) in rows]


@pytest.fixture
def records(lived: Past) -> list[MonthRecord]:
    with Readers(lived.path).snapshot() as conn:
        return [MonthRecords().read(conn, month) for month in months(lived)]


def owned(balances: tuple[tuple[str, str, int], ...]) -> dict[str, int]:
    """Units in wallet and held together."""
    return dict(ledger.add({asset: units} for account, asset, units in balances if account in (WALLET, HELD)))


def test_opening_plus_changes_is_closing_and_the_next_opening(records: list[MonthRecord]) -> None:
    for record in records:
        changes = [{asset: units} for _, asset, units in record.changes]
        assert dict(ledger.add((owned(record.opening), *changes))) == owned(record.closing)
    assert [record.opening for record in records[1:]] == [record.closing for record in records[:-1]]
    assert [record.since_ms for record in records[1:]] == [record.until_ms for record in records[:-1]]
    assert not records[0].opening
    assert records[-1].closing


def test_the_spend_of_all_months_is_the_ledgers_and_is_what_changed_the_balance(
    lived: Past, records: list[MonthRecord]
) -> None:
    rows = [row for record in records for row in record.spend]
    spent = dict(ledger.add({row.asset: row.total} for row in rows))
    with Readers(lived.path).snapshot() as conn:
        assert spent == {row.asset: row.total for row in journal.spend(conn, (), Selection())}
    changed = (
        {asset: -units}
        for record in records
        for kind, asset, units in record.changes
        if kind in ("post", "post_reversed", "release")
    )
    assert dict(ledger.add(changed)) == spent


def test_refusals_and_top_ups_of_the_month_are_counted_and_the_newest_seal_is_named(
    lived: Past, records: list[MonthRecord]
) -> None:
    with closing(sqlite3.connect(lived.path)) as conn:
        (refused,) = conn.execute("SELECT COUNT(*) FROM v_refusals").fetchone()
        seal = conn.execute("SELECT seq, hash FROM seals ORDER BY seq DESC LIMIT 1").fetchone()
    assert refused > 0
    assert sum(count for record in records for *_, count in record.refusals) == refused
    assert {str(record.head) for record in records} == {f"{seal[0]}:{seal[1]}"}


def test_a_record_that_was_read_before_takes_only_what_came_since_and_equals_a_new_one(
    lived: Past, records: list[MonthRecord]
) -> None:
    again = MonthRecords()
    for path in (lived.early, lived.path, lived.path):
        with Readers(path).snapshot() as conn:
            read_again = [again.read(conn, month) for month in months(lived)]
    assert read_again == records
