"""Verify recomputes pins, prices and unserved streaks from the events and finds every direct change to them."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kit.agent import ADA, APP, DEVNET, World, world_with_clock
from kit.audit import Past, copy_of, findings, fresh, tamper
from kit.merchants import approve, guarded, leave_unserved, pay_to

from payagent.agent.base import merchant_trust as trust
from payagent.agent.operator import merchants
from payagent.audit.signed_bytes import Owner
from payagent.core.merchant_rules import MerchantRules
from payagent.store.db.unit import Unit

RULES = MerchantRules(first_use=True, price_rise_percent_max=25, stop_after_unserved=2)


async def live(world: World) -> None:
    """A merchant with pinned, approved and unpinned addresses and changed prices, which was stopped twice."""
    world.settings(price=str(2 * ADA))
    terms = guarded(world, RULES)
    async with world.run(terms=terms) as run:
        await run.agent.deliveries.record_delivery((await run.pay_in_block("first")).id, 200)
        world.settings(price=str(20 * ADA), batch=4, pay_to=pay_to("new"), splits=[])
        row = await approve(run, "dearer, for more calls, to somebody new")
        await run.settle_down()
        await run.agent.deliveries.record_delivery(row.id, 200)
        world.settings(price=str(2 * ADA), batch=1)
        await merchants.pin(run.context, APP, "t", "split", pay_to("another"))
        await merchants.unpin(run.context, APP, "t", "pay_to", pay_to("pay_to"))
        for n in range(2):
            last = await leave_unserved(world, run, f"not served {n}")

        async def learn(depth: int) -> None:
            def job(unit: Unit) -> None:
                trust.learn_accepted(unit, last, depth, 1)
                trust.learn_refused_early(unit, last, depth, "status 404", 1)

            await run.context.write("learn", job)

        await learn(0)
        await merchants.resume(run.context, APP, "t")
        await learn(1)
        for n in range(2):
            last = await leave_unserved(world, run, f"not served, again {n}")
        await run.agent.deliveries.record_delivery(last.id, 200)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    with world_with_clock(tmp_path_factory.mktemp("known")) as world:
        world.fund(*[50 * ADA] * 10)
        asyncio.run(live(world))
        made = copy_of(world.folder / "ledger.db", tmp_path_factory.mktemp("copy"))
        yield Past(made, made, Owner(world.account.address, DEVNET), world.origin)


def test_verify_finds_nothing_in_an_intact_merchant_history(known: Past) -> None:
    with closing(sqlite3.connect(known.path)) as conn:
        [(count, stopped_at_ms)] = conn.execute("SELECT count, stopped_at_ms FROM unserved_streaks").fetchall()
        prices = conn.execute("SELECT calls, units FROM agreed_prices ORDER BY calls").fetchall()
        events = {event for (event,) in conn.execute("SELECT event FROM events WHERE payment_id IS NULL")}
        (pins,) = conn.execute("SELECT COUNT(*) FROM address_pins").fetchone()
    assert (count, stopped_at_ms is not None, prices, pins) == (0, True, [(1, 5 * ADA), (4, 20 * ADA)], 4)
    assert events >= {"address_unpinned", "unserved_counted", "merchant_stopped", "merchant_resumed"}
    assert findings(known.path, known.owner) == []


THIEF = pay_to("thief")
A_PRICE = "(origin, method, path, asset, calls, units)"
CASES = [
    (
        "address_pins",
        f"INSERT INTO address_pins SELECT origin, 'pay_to', '{THIEF}' FROM address_pins LIMIT 1",
        f"pay_to {THIEF}",
    ),
    ("address_pins", f"UPDATE address_pins SET address = '{THIEF}' WHERE role = 'pay_to'", f"pay_to {THIEF}"),
    (
        "address_pins",
        "UPDATE address_pins SET role = 'pay_to' WHERE role = 'split'",
        f"pay_to {pay_to('another')}",
    ),
    (
        "address_pins",
        "UPDATE address_pins SET origin = 'https://other' WHERE role = 'pay_to'",
        f"pay_to {pay_to('new')}",
    ),
    ("address_pins", "DELETE FROM address_pins WHERE role = 'pay_to'", f"pay_to {pay_to('new')}"),
    ("agreed_prices", "UPDATE agreed_prices SET units = 999999999 WHERE calls = 1", "POST /chat lovelace 1"),
    ("agreed_prices", "UPDATE agreed_prices SET calls = 5 WHERE calls = 4", "POST /chat lovelace 4"),
    ("agreed_prices", "UPDATE agreed_prices SET asset = 'x' WHERE calls = 4", "POST /chat x 4"),
    ("agreed_prices", "UPDATE agreed_prices SET path = '/x' WHERE calls = 4", "POST /x lovelace 4"),
    ("agreed_prices", "UPDATE agreed_prices SET method = 'GET' WHERE calls = 4", "GET /chat lovelace 4"),
    ("agreed_prices", "DELETE FROM agreed_prices WHERE calls = 1", "POST /chat lovelace 1"),
    (
        "agreed_prices",
        f"INSERT INTO agreed_prices{A_PRICE} SELECT origin, 'GET', '/x', 'y', 1, 5 FROM address_pins LIMIT 1",
        "GET /x y 1",
    ),
    ("unserved_streaks", "UPDATE unserved_streaks SET count = 1", ""),
    ("unserved_streaks", "UPDATE unserved_streaks SET stopped_at_ms = NULL", ""),
    ("unserved_streaks", "UPDATE unserved_streaks SET stopped_at_ms = stopped_at_ms + 1", ""),
    ("unserved_streaks", "DELETE FROM unserved_streaks", ""),
    ("unserved_streaks", "INSERT INTO unserved_streaks VALUES ('https://other', 9, 1)", "https://other"),
    ("readiness", "UPDATE readiness SET accepted_depth = 9", ""),
    ("readiness", "UPDATE readiness SET refused_early = 0", ""),
    ("readiness", "DELETE FROM readiness", ""),
]


@pytest.mark.parametrize(("table", "statement", "row"), CASES, ids=[case[1][:70] for case in CASES])
def test_verify_names_the_changed_row_of_each_merchant_table(
    known: Past, tmp_path: Path, table: str, statement: str, row: str
) -> None:
    path = fresh(known.path, tmp_path)
    tamper(path, statement)
    found = findings(path, known.owner)
    assert {finding.table for finding in found} == {table}
    assert any(finding.row.endswith(row or known.origin) for finding in found), found


@pytest.mark.parametrize(("name", "value"), [("call", "5"), ("units", "1e999")])
def test_a_malformed_price_event_is_reported_and_hides_no_other_finding(
    known: Past, tmp_path: Path, name: str, value: str
) -> None:
    path = fresh(known.path, tmp_path)
    tamper(
        path,
        f"UPDATE events SET detail = json_set(detail, '$.{name}', json('{value}')) WHERE event = 'price_agreed'",
        "UPDATE unserved_streaks SET count = 1",
    )
    assert {finding.table for finding in findings(path, known.owner)} == {
        "events",
        "agreed_prices",
        "unserved_streaks",
    }
