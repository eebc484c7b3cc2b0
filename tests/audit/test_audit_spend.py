"""Spend reports equal what left the wallet on the chain, in every grouping; balances equal their postings."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from kit.agent import ADA, Clock, World
from kit.audit import TOKEN, Past, findings, fresh, live
from kit.handover import pass_ttl, with_handover
from kit.payments import wait_for_void

from payagent.core import ledger
from payagent.core.address import encode_address
from payagent.devnet.server import DevnetThread
from payagent.store.db.readers import Readers
from payagent.store.rows import journal
from payagent.store.rows.journal import EVERYTHING, Selection, SpendKey, SpendRow

DEPOSITED = {"lovelace": 420 * ADA, TOKEN: 1000}
STRANGER = encode_address(bytes([0x60]) + bytes(28))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A wallet with a full history, nothing in flight and one transfer to a stranger."""

    async def go_on(world: World) -> None:
        await live(world)
        async with world.run(terms=with_handover) as run:
            await run.run_pass()
            await pass_ttl(world, run)
            await wait_for_void(world, run)
            await run.agent.transfers.send("app_test", STRANGER, "lovelace", 3 * ADA)
            await run.agent.submitter.drain(60)
            await run.settle_down()

    clock = Clock()
    with DevnetThread(now_ms=clock.now_ms) as devnet:
        world = World(devnet, tmp_path_factory.mktemp("ended"))
        world.clock = clock
        world.terms = replace(world.terms, settle_depth=3)
        asyncio.run(go_on(world))
        yield world
        world.http.close()


def spent(path: Path, by: tuple[SpendKey, ...] = (), only: Selection = EVERYTHING) -> list[SpendRow]:
    with Readers(path).snapshot() as conn:
        return journal.spend(conn, by, only)


def in_all(rows: list[SpendRow]) -> dict[str, int]:
    return {asset: units for asset, units in ledger.add({row.asset: row.total} for row in rows).items() if units}


@pytest.mark.parametrize("by", [(), ("merchant", "day"), ("app", "month"), ("day",), ("app", "merchant")])
def test_total_spend_equals_deposits_minus_the_balance_on_the_chain(
    ended: World, by: tuple[SpendKey, ...]
) -> None:
    rows = spent(ended.folder / "ledger.db", by)
    left = {asset: units - ended.on_chain().get(asset, 0) for asset, units in DEPOSITED.items()}
    assert in_all(rows) == left
    assert sum(row.sent for row in rows) == 3 * ADA
    assert {asset: sum(row.paid for row in rows if row.asset == asset) > 0 for asset in DEPOSITED} == {
        "lovelace": True,
        TOKEN: True,
    }


def test_a_payment_counts_once_even_after_a_rollback(ended: World) -> None:
    path = ended.folder / "ledger.db"
    with closing(sqlite3.connect(path)) as conn:
        (posts,) = conn.execute("SELECT COUNT(*) FROM entries WHERE kind = 'post'").fetchone()
        (reverses,) = conn.execute("SELECT COUNT(*) FROM entries WHERE kind = 'post_reversed'").fetchone()
        (cancels,) = conn.execute("SELECT COUNT(*) FROM payments WHERE state = 'void'").fetchone()
    assert reverses
    counted = {row.asset: row.payments for row in spent(path)}
    assert counted == {"lovelace": posts - reverses + cancels, TOKEN: 1}
    groups = spent(path, ("merchant", "day"), Selection(asset="lovelace"))
    assert sum(row.payments for row in groups) == counted["lovelace"]


def test_spend_groups_by_utc_day_and_honours_each_filter(ended: World) -> None:
    path = ended.folder / "ledger.db"
    with closing(sqlite3.connect(path)) as conn:
        days = {day for (day,) in conn.execute("SELECT DISTINCT day FROM v_spend")}
    rows = spent(path, ("day", "month"))
    assert {row.group[0] for row in rows} == days
    assert {row.group[1] for row in rows} == {day[:7] for day in days}
    merchants = spent(path, ("merchant",), Selection(origin=ended.origin))
    assert {row.group for row in merchants} == {(ended.origin,)}
    assert {row.sent for row in merchants} == {0}
    assert spent(path, (), Selection(app="nobody")) == []
    assert spent(path, (), Selection(kind="deposit")) == []


def test_a_text_search_finds_an_entry_by_any_of_its_names_and_nothing_else(lived: Past) -> None:
    with closing(sqlite3.connect(lived.path)) as conn:
        payment, tx_id, origin, invoice = conn.execute(
            "SELECT p.id, p.tx_id, v.origin, v.invoice_id FROM payments p JOIN invoices v ON v.seq = "
            "p.invoice_seq "
            "WHERE p.state = 'settled'"
        ).fetchone()

        def found(text: str) -> set[str | None]:
            page = journal.entries_page(
                conn, payment_id=None, account=None, before_id=None, limit=1000, only=Selection(text=text)
            )
            return {entry.payment_id for entry in page}

        for text in (payment, payment[4:20].upper(), tx_id[:40], invoice):
            assert found(text) == {payment}, text
        paid = found(origin) - {None}  # a prepaid use has no payment
        assert payment in paid
        assert found("POST /chat ") == found("post /CHAT ") == paid
        assert found("prepaid:") - {None} < paid
        assert None in found("deposit")
        for text in ("%", "_______", "chat\nhttp", "nothing is named so"):
            assert found(text) == set(), text
        of_payment = conn.execute(
            "SELECT q.account, q.asset, SUM(q.units) FROM postings q JOIN entries j ON j.id = q.entry_id "
            "WHERE j.payment_id = ? GROUP BY 1, 2 HAVING SUM(q.units) ORDER BY 1, 2",
            (payment,),
        ).fetchall()
        assert journal.balances(conn, Selection(text=payment)) == of_payment


CHANGES = [
    (
        "UPDATE balances SET units_low = units_low + 1 WHERE account = 'wallet' AND asset = 'lovelace'",
        "wallet lovelace",
    ),
    ("UPDATE balances SET units_high = units_high - 1 WHERE account = 'fees'", "fees lovelace"),
    (f"DELETE FROM balances WHERE account = 'external' AND asset = '{TOKEN}'", f"external {TOKEN}"),
    ("INSERT INTO balances VALUES ('somewhere', 'lovelace', 0, 0)", "somewhere lovelace"),
]


@pytest.mark.parametrize(("statement", "account"), CHANGES)
def test_verify_names_a_balance_that_differs_from_its_postings(
    lived: Past, tmp_path: Path, statement: str, account: str
) -> None:
    path = fresh(lived.path, tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        assert conn.execute(statement).rowcount == 1
    assert account in {finding.row for finding in findings(path, lived.owner) if finding.table == "balances"}
