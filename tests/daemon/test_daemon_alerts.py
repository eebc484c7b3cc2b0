"""Alerts: raised once when something runs low, and cleared once when it is back."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import structlog
from kit.agent import ADA, APP, DEVNET, Run, World

from payagent.agent.base.config import AgentConfig
from payagent.agent.base.prepaid import Buyer, ServedRequest
from payagent.agent.operator.alerts import AlertMonitor, crossing
from payagent.audit.finding import AuditFinding
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.log import Redactor, configure_logging
from payagent.store.executor import raise_alert
from payagent.store.rows import attempts_and_utxos as queries
from payagent.wallet.keys import derive, seed_from_words

MARK = 20 * ADA
ELSEWHERE = derive(seed_from_words("zoo " * 23 + "vote"), DEVNET).address


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What goes to the log, as the daemon writes it, but with nothing cut out of it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    out = io.StringIO()
    configure_logging(out, Redactor())
    yield out
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(written: io.StringIO, *events: str) -> list[dict[str, object]]:
    return [said for line in written.getvalue().splitlines() if (said := json.loads(line))["event"] in events]


def marked(terms: AgentConfig) -> AgentConfig:
    merchants = {origin: replace(one, prepaid_alert_below=3) for origin, one in terms.merchants.items()}
    return replace(terms, wallet_below_lovelace=MARK, merchants=merchants)


@asynccontextmanager
async def life(world: World):  # type: ignore[no-untyped-def]
    """One life of the agent, with its alerts."""
    async with world.run(terms=marked) as run:
        yield run, AlertMonitor(run.context)


def require_whole(run: Run) -> None:
    with run.context.readers.snapshot() as conn:
        found = list(verify(conn, Owner(run.context.config.own, run.context.config.network)))
    assert not [one for one in found if isinstance(one, AuditFinding)], found


def told_in_the_ledger(run: Run) -> list[dict[str, str]]:
    rows = run.context.conn.execute("SELECT detail FROM events WHERE event = 'alert' ORDER BY seq")
    return [json.loads(detail) for (detail,) in rows]


def alerted(run: Run) -> list[tuple[str, str]]:
    """Kind and subject of each alert."""
    return [(one["kind"], one["subject"]) for one in told_in_the_ledger(run)]


def test_an_alert_is_raised_once_below_the_threshold_and_cleared_once_at_it() -> None:
    told, raised = [], False
    for left in (25, 20, 19, 18, 0, 19, 20, 30, 20, 19):
        if (is_low := crossing(left, 20, raised)) is not None:
            raised = is_low
            told.append((left, is_low))
    assert told == [(19, True), (20, False), (19, True)]


async def test_a_low_wallet_raises_one_alert_and_clears_it_once(world: World, written: io.StringIO) -> None:
    world.fund(30 * ADA)
    async with life(world) as (run, alerting):
        await alerting.run_once()
        assert alerted(run) == [], "the wallet was not read yet"
        await run.run_pass()
        await alerting.run_once()
        assert alerted(run) == []
        await run.agent.transfers.send(APP, ELSEWHERE, "lovelace", 15 * ADA, None)
        await run.settle_down()
        for _ in range(3):
            await alerting.run_once()
        assert alerted(run) == [("wallet_low", "wallet")]
        world.fund(5 * ADA, 10 * ADA)
        await run.run_pass()
        for _ in range(3):
            await alerting.run_once()
        assert alerted(run) == [("wallet_low", "wallet"), ("cleared", "wallet")]
        low, back = told_in_the_ledger(run)
        left = int(low["left"])
        assert 14 * ADA < left < 15 * ADA
        assert (low["unit"], low["below"]) == ("lovelace", str(MARK))
        assert int(back["left"]) == left + 15 * ADA
        require_whole(run)
    logged = lines(written, "alert.raised", "alert.cleared")
    assert [(one["event"], one["alert"], one["kind"], one["level"]) for one in logged] == [
        ("alert.raised", low["alert"], "wallet_low", "warning"),
        ("alert.cleared", back["alert"], "cleared", "warning"),
    ]


async def test_pending_change_does_not_count_as_missing(world: World) -> None:
    """The only UTxO is reserved, then spent, and its change is unconfirmed: that is not a low wallet."""
    world.fund(40 * ADA)
    async with life(world) as (run, alerting):
        await run.run_pass()
        await run.pay()
        assert run.selectable() == set()
        await alerting.run_once()
        await run.settle_down()
        await alerting.run_once()
        assert alerted(run) == []


async def test_held_funds_do_not_count_towards_the_wallet_threshold(world: World) -> None:
    world.fund(30 * ADA)
    world.settings(price="12000000")
    async with life(world) as (run, alerting):
        await run.run_pass()
        await run.pay()
        await alerting.run_once()
        assert alerted(run) == [("wallet_low", "wallet")]


async def test_a_utxo_missing_from_the_chain_does_not_count(world: World) -> None:
    world.fund(15 * ADA, 16 * ADA)
    async with life(world) as (run, alerting):
        await run.run_pass()
        utxo = next(one for one in queries.utxos(run.context.conn) if one.lovelace == 16 * ADA)
        await run.context.write(
            "test", lambda unit: unit.conn.execute("UPDATE utxos SET state = 'missing' WHERE ref = ?", (utxo.ref,))
        )
        await alerting.run_once()
        assert [one["left"] for one in told_in_the_ledger(run)] == [str(15 * ADA)]


async def test_a_low_prepaid_balance_raises_an_alert_and_a_batch_in_flight_counts(world: World) -> None:
    world.fund(*[100 * ADA] * 3)
    world.settings(batch=4)
    async with life(world) as (run, alerting):
        await run.run_pass()
        first = await run.pay("first")
        await alerting.run_once()
        assert alerted(run) == [], "four calls are in flight"
        await run.settle_down()
        await run.agent.deliveries.record_delivery(first.id, 200)
        await alerting.run_once()
        assert alerted(run) == [], "three are left"
        for number in range(2):
            buyer = Buyer("demo", world.address)
            await run.agent.prepaid_calls.record_call(
                ServedRequest(APP, world.origin, buyer, "POST", "/chat", f"k{number}")
            )
            await alerting.run_once()
        assert alerted(run) == [("prepaid_low", "prepaid:1")], "raised at two left, and not again at one"
        said = told_in_the_ledger(run)[0]
        assert (said["left"], said["below"], said["unit"]) == ("2", "3", "calls")
        assert (said["merchant"], said["partner"], said["wallet"]) == (world.origin, "demo", world.address)
        await run.pay("another")
        await alerting.run_once()
        assert alerted(run)[1:] == [("cleared", "prepaid:1")]
        require_whole(run)


async def test_an_alert_raised_by_another_part_is_logged_the_same_way(world: World, written: io.StringIO) -> None:
    async with life(world) as (run, alerting):
        for _ in range(2):
            now_ms = world.clock.now_ms()
            facts = {"detail": "no batch is sold"}
            await run.context.write(
                "test",
                lambda unit: raise_alert(unit, "topup_failed", "topup:1", facts, now_ms),  # noqa: B023
            )
            await alerting.run_once()
        assert alerted(run) == [("topup_failed", "topup:1")]
    (logged,) = lines(written, "alert.raised")
    assert (logged["kind"], logged["detail"]) == ("topup_failed", "no batch is sold")
