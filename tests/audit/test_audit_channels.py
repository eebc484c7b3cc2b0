"""Channels as an auditor sees them: verify, reconcile, spend, exports and metrics, over the life of a channel."""

import csv
import io
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from kit.agent import ADA, APP, DEVNET, Run, put
from kit.audit import copy_of, findings, tamper
from kit.channel_agent import DEPOSIT, PRICE, ChannelWorld, channel_world, open_channel, parts

from payagent.agent.base.ports import SystemRandomness
from payagent.agent.chain_sync.external_spends import unfreeze
from payagent.agent.channels.moves import move
from payagent.api.app import create_app
from payagent.api.http.tokens import hash_token, new_token
from payagent.audit.export import export
from payagent.audit.finding import AuditFinding
from payagent.audit.month import MonthRecords
from payagent.audit.signed_bytes import Owner
from payagent.audit.statement import statement
from payagent.audit.verify import verify
from payagent.core.channel import CallState, Channel, ChannelCall, Corrected, Promise, Served
from payagent.core.ledger import channel_account, merchant_account
from payagent.core.policy import Limit, Scope, Window
from payagent.core.problems import Refused
from payagent.core.timestamps import iso_time
from payagent.dashboard.month import month_values
from payagent.store.db.unit import Unit
from payagent.store.executor import open_intent
from payagent.store.rows import apps, journal, limit_counters
from payagent.store.rows import channels as rows
from payagent.store.rows.journal import EVERYTHING, Selection

CHARGED = 900
COUNTED_AT_MS = 1_700_000_000_000


@dataclass
class Life:
    """A ledger with a channel that ended, and one that is open and has paid a call."""

    path: Path
    owner: Owner
    ended: str
    live: str
    origin: str


def now(run: Run, channel: Channel) -> Channel:
    return rows.channel(run.context.conn, channel.id)


async def pay_call(run: Run, channel: Channel, intent_id: str | None = None) -> None:
    """A call is promised and answered, in one commit. `intent_id`: of an intent that the ledger has."""
    ids = run.context.new_ids()
    intent = intent_id or ids.intent

    def job(unit: Unit, now_ms: int) -> None:
        before = rows.channel(unit.conn, channel.id)
        if intent_id is None:
            open_intent(
                unit,
                intent_id=ids.intent,
                app_id=APP,
                idempotency_key=ids.intent,
                is_key_derived=True,
                fingerprint="f",
                origin=channel.origin,
                request="GET /channel/one",
                request_id="r",
                now_ms=now_ms,
            )
        amount = before.count + PRICE
        promised = max(amount - before.signed, 0)
        call = ChannelCall(
            *(0, ids.payment, channel.id, APP, intent, before.ref or "", amount, PRICE, promised, "{}"),
            *(CallState.PROMISED, None, now_ms, now_ms),
        )
        rows.add_call(unit, call, COUNTED_AT_MS)
        limit_counters.count(unit, APP, channel.origin, {"lovelace": promised}, COUNTED_AT_MS)
        after = move(unit, before, Promise(amount), now_ms)
        rows.set_call(unit, call, CallState.SERVED, CHARGED, now_ms)
        move(unit, after, Served(CHARGED, "5a", amount), now_ms)
        unit.conn.execute("UPDATE intents SET ended_at_ms = ? WHERE id = ?", (now_ms, intent))

    await run.context.write_at("call", job)


def found(run: Run) -> list[AuditFinding]:
    told = verify(run.context.conn, Owner(run.context.config.own, DEVNET))
    return [one for one in told if isinstance(one, AuditFinding)]


async def asked(run: Run, path: str) -> httpx.Response:
    """The answer of the API to an auditor with a read-only token."""
    token = new_token(SystemRandomness())
    name, now_ms = hash_token(token)[:16], run.world.clock.now_ms()
    await run.context.write(
        "app", lambda unit: apps.add_with_token(unit, name, name, hash_token(token), ["read"], now_ms)
    )
    app = create_app(run.fleet, heartbeat=lambda: (None, True), signer=lambda: None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        answer = await http.get(path, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text
    return answer


async def compared(run: Run) -> tuple[list[Any], list[str]]:
    """What reconcile finds, and what it cannot tell."""
    answer = (await asked(run, "/v1/ledger/reconcile")).json()
    return answer["findings"], answer["could_not_tell"]


async def in_block(run: Run) -> None:
    await run.agent.submitter.drain(60)
    await run.settle_down()


async def close_and_end(run: Run, at: ChannelWorld, channel: Channel) -> None:
    """Close a channel, and get back what is left, with the books checked between all steps."""
    await parts(run).steps.close(APP, channel.id)
    assert (found(run), await compared(run)) == ([], ([], []))
    await in_block(run)
    elapse_at_ms = now(run, channel).elapse_at_ms
    assert elapse_at_ms is not None
    assert (found(run), await compared(run)) == ([], ([], []))
    at.world.clock.ahead_ms += elapse_at_ms - run.context.ports.clock.now_ms() + 30_000
    await run.settle_down()
    assert (found(run), await compared(run)) == ([], ([], [])), "Elapse is submitted"
    at.world.block()
    assert await compared(run) == ([], []), "Elapse is in a block, and not booked"
    await run.run_pass()
    assert now(run, channel).returned > 0
    assert (found(run), await compared(run)) == ([], ([], []))


@pytest.fixture
def at(tmp_path: Path) -> Iterator[ChannelWorld]:
    with channel_world(tmp_path) as at:
        at.world.fund(30 * ADA, 10 * ADA, 10 * ADA)
        yield at


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """See `Life`."""
    import asyncio

    async def live(at: ChannelWorld) -> Life:
        async with at.world.run() as run:
            await run.run_pass()
            ended = await open_channel(run, at)
            await pay_call(run, ended)
            await close_and_end(run, at, ended)
            channel = await open_channel(run, at)
            await pay_call(run, channel)
            own = Owner(run.context.config.own, DEVNET)
            return Life(at.world.folder / "ledger.db", own, ended.id, channel.id, at.world.origin)

    with channel_world(tmp_path_factory.mktemp("lived")) as at:
        at.world.fund(30 * ADA, 10 * ADA, 10 * ADA)
        yield asyncio.run(live(at))


async def test_each_step_of_a_channel_leaves_the_books_clean_and_equal_to_the_chain(at: ChannelWorld) -> None:
    async with at.world.run() as run:
        await run.run_pass()
        channel = await open_channel(run, at)
        assert (found(run), await compared(run)) == ([], ([], []))
        await pay_call(run, channel)
        await pay_call(run, channel)
        assert now(run, channel).signed == CHARGED + PRICE
        assert (found(run), await compared(run)) == ([], ([], []))
        await parts(run).steps.add(APP, channel.id, 2 * ADA)
        assert (found(run), await compared(run)) == ([], ([], []))
        await in_block(run)
        books = run.books()
        signed = CHARGED + PRICE
        assert books[channel_account(channel.origin)] == {"lovelace": DEPOSIT + 2 * ADA - signed}
        assert books[merchant_account(channel.origin)] == {"lovelace": signed}
        assert (found(run), await compared(run)) == ([], ([], []))
        await close_and_end(run, at, channel)
        books = run.books()
        assert books.get(channel_account(channel.origin), {}).get("lovelace", 0) == 0
        assert books.get(merchant_account(channel.origin), {}).get("lovelace", 0) == 0, "nothing was claimed"
        spent = (await asked(run, "/v1/ledger/spend?by=app")).json()["spend"]
        assert {one["app"]: one["paid"] for one in spent} == {"test": "1900", "channel exits": "0", None: "-1900"}


async def test_a_call_may_pay_for_an_intent_whose_payment_was_rejected(at: ChannelWorld) -> None:
    async with at.world.run() as run:
        await run.run_pass()
        channel = await open_channel(run, at)
        at.world.settings(dialect="x402", price=str(500 * ADA))
        with pytest.raises(Refused, match="not_enough_funds"):
            await run.agent.pay(at.world.ask("too much"))
        (intent,) = run.context.conn.execute("SELECT intent_id FROM payments WHERE state = 'rejected'").fetchone()
        await pay_call(run, channel, intent)
        assert found(run) == []


async def test_a_recovered_channel_has_books_that_agree_until_its_end(at: ChannelWorld) -> None:
    async with at.world.run() as run:
        await run.run_pass()
        channel = await open_channel(run, at)
    put(at.world, None)
    async with at.world.run() as run:
        await run.run_pass()
        await unfreeze(run.context, APP)
        await parts(run).steps.recover(APP)
        assert found(run) == []
        await run.settle_down(2)
        assert (found(run), await compared(run)) == ([], ([], []))
        at.world.clock.ahead_ms += 1_300_000
        await run.settle_down(3)
        assert now(run, channel).returned == DEPOSIT
        assert (found(run), await compared(run)) == ([], ([], []))


async def test_a_corrected_count_and_a_ceiling_are_no_findings(at: ChannelWorld) -> None:
    async with at.world.run() as run:
        await run.run_pass()
        channel = await open_channel(run, at)
        await pay_call(run, channel)
        for by in (Promise(100_000), Corrected(500, "5a", 100_000)):
            await run.context.write_at(
                "move", partial(lambda by, unit, now_ms: move(unit, now(run, channel), by, now_ms), by)
            )
        assert (now(run, channel).signed, now(run, channel).count) == (100_000, 500)
        assert found(run) == []


async def test_a_promise_counts_against_the_limits_from_its_call_on(at: ChannelWorld) -> None:
    async with at.world.run() as run:
        await run.run_pass()
        channel = await open_channel(run, at)
        await pay_call(run, channel)
        for scope in (Scope(APP, channel.origin), Scope(APP), Scope(merchant=channel.origin), Scope()):
            limit = Limit(scope, "lovelace", Window.DAY, ADA)
            assert limit_counters.counted(run.context.conn, limit, COUNTED_AT_MS) == PRICE, scope


async def test_reconcile_finds_a_channel_that_holds_less_than_the_ledger_says(at: ChannelWorld) -> None:
    async with at.world.run() as run:
        await run.run_pass()
        channel = await open_channel(run, at)
        await run.context.write(
            "tamper", lambda unit: unit.conn.execute("UPDATE channels SET deposited = deposited + 5")
        )
        (difference,), doubts = await compared(run)
        assert (difference["kind"], difference["table"], difference["row"]) == (
            "differing",
            "channels",
            channel.id,
        )
        assert str(DEPOSIT + 5) in difference["what"]
        assert doubts == []
        await run.context.write("tamper", lambda unit: unit.conn.execute("UPDATE channels SET ref = 'aa#0'"))
        differences, (doubt,) = await compared(run)
        assert differences == []
        assert channel.id in doubt


async def test_metrics_tell_what_is_locked_and_when_it_returns_where_channels_are_on(at: ChannelWorld) -> None:
    async with at.world.run() as run:
        await run.run_pass()
        channel = await open_channel(run, at)
        name = run.context.config.merchant(channel.origin).name
        text = (await asked(run, "/metrics")).text
        assert f'payagent_channel_locked_lovelace{{merchant="{name}"}} {DEPOSIT}' in text
        assert f'payagent_channel_unserved_calls{{merchant="{name}"}} 0' in text
        assert "payagent_channel_elapse_seconds{" not in text
        assert channel.id not in text
        await parts(run).steps.close(APP, channel.id)
        await in_block(run)
        text = (await asked(run, "/metrics")).text
        (line,) = (one for one in text.splitlines() if one.startswith("payagent_channel_elapse_seconds{"))
        assert 0 < int(line.split(" ")[1]) <= 900 + 300 + 60


def test_an_untouched_ledger_has_no_finding(lived: Life) -> None:
    assert findings(lived.path, lived.owner) == []


ENTRY = "(SELECT MAX(id) FROM entries WHERE kind = 'use')"


@pytest.mark.parametrize(
    ("statement", "table", "what"),
    [
        ("UPDATE channels SET signed = signed + 1 WHERE phase = 'open'", "channels", "by its events"),
        ("UPDATE channels SET count = count + 1 WHERE phase = 'open'", "channels", "by its events"),
        ("UPDATE channels SET phase = 'closing' WHERE phase = 'open'", "channels", "by its events"),
        ("UPDATE channels SET phase = 'closing' WHERE phase = 'ended'", "channels", "by its events"),
        ("UPDATE channels SET deposited = deposited + 1 WHERE phase = 'open'", "channels", "is booked as locked"),
        ("UPDATE channels SET returned = returned - 1 WHERE phase = 'ended'", "balances", "its channels hold"),
        (
            "UPDATE channels SET claimed = 1 WHERE phase = 'ended'",
            "channels",
            "of its promises spend 0, it spends 1",
        ),
        ("UPDATE channels SET origin = 'https://other'", "balances", "its channels hold"),
        ("DELETE FROM channels WHERE phase = 'ended'", "channels", "it has events, and no row"),
        ("UPDATE channel_calls SET promised = promised + 1", "channels", "its calls promise 1001"),
        ("UPDATE channel_calls SET promised = promised + 1", "limit_counters", "holds, promises and uses"),
        ("UPDATE channel_calls SET counted_at_ms = 1", "limit_counters", "holds, promises and uses"),
        ("UPDATE channel_calls SET charged = charged - 1", "channels", "its calls charge 899, it counts 900"),
        ("UPDATE channel_calls SET charged = NULL", "channels", "its calls charge 0"),
        ("DELETE FROM channel_calls", "intents", "it ended, and it has no payment"),
        ("UPDATE channel_calls SET app_id = 'nobody'", "channel_calls", "it refers to a row that apps lacks"),
        ("DELETE FROM channel_steps WHERE step = 'open'", "balances", "its channels hold"),
        (f"UPDATE entries SET ref = NULL WHERE id = {ENTRY}", "entries", "0 moves of a prepaid balance"),
        (
            f"UPDATE postings SET account = 'merchant:https://o' WHERE entry_id = {ENTRY} AND units > 0",
            "channels",
            "the entries of its promises spend 0",
        ),
        (
            'UPDATE events SET detail = replace(detail, \'"signed":"1000"\', \'"signed":"1"\') '
            "WHERE event = 'channel_promise'",
            "events",
            "",
        ),
    ],
)
def test_each_change_of_a_channel_is_found(
    lived: Life, tmp_path: Path, statement: str, table: str, what: str
) -> None:
    path = copy_of(lived.path, tmp_path)
    tamper(path, statement)
    told = findings(path, lived.owner)
    assert [one for one in told if one.table == table and what in one.what], told


def test_an_input_that_a_rollback_took_makes_no_finding_of_the_entry(lived: Life, tmp_path: Path) -> None:
    """The seed 6433: a fork took an Elapse, and later what the Elapse had spent beside the channel."""
    path = copy_of(lived.path, tmp_path)
    tamper(
        path,
        "DELETE FROM utxos WHERE ref IN (SELECT a.nonce_utxo FROM attempts a JOIN channel_steps s "
        "ON s.payment_id = a.payment_id WHERE s.step = 'elapse')",
    )
    assert [one for one in findings(path, lived.owner) if one.table == "entries"] == []


def test_a_voucher_below_an_earlier_promise_is_found(lived: Life, tmp_path: Path) -> None:
    """Of an event that is not the last: the end of the history agrees with the row."""
    path = copy_of(lived.path, tmp_path)
    tamper(
        path,
        'UPDATE events SET detail = replace(detail, \'"signed":"0"\', \'"signed":"2000"\') '
        f"WHERE event = 'channel_opened' AND detail LIKE '%{lived.live}%'",
    )
    told = findings(path, lived.owner)
    assert [one for one in told if one.table == "channels" and "channel_promise cannot follow" in one.what], told


def test_a_use_without_a_channel_still_needs_a_prepaid_move(lived: Life, tmp_path: Path) -> None:
    path = copy_of(lived.path, tmp_path)
    tamper(path, f"UPDATE entries SET ref = '{'0' * 64}' WHERE id = {ENTRY}")
    told = findings(path, lived.owner)
    assert [one for one in told if "0 moves of a prepaid balance" in one.what]


def test_exports_spend_and_the_month_name_the_merchant_and_the_app_of_a_channel(lived: Life) -> None:
    with closing(sqlite3.connect(lived.path)) as conn:
        told = list(csv.DictReader(io.StringIO("".join(export(statement(conn, EVERYTHING, "devnet"), "csv")))))
        uses = [row for row in told if row["kind"] == "use"]
        assert {(row["merchant"], row["app"], row["payment"]) for row in uses} == {(lived.origin, APP, "")}
        assert {row["ref"] for row in uses} == {lived.ended, lived.live}
        moved = [row for row in told if row["account"] == channel_account(lived.origin) and row["kind"] == "post"]
        assert [int(row["units"]) for row in moved] == [DEPOSIT, -DEPOSIT, DEPOSIT]
        assert {row["merchant"] for row in moved} == {lived.origin}
        (of_merchant,) = journal.spend(conn, ("merchant",), Selection(origin=lived.origin))
        fees = of_merchant.fees
        assert (of_merchant.paid, of_merchant.sent) == (PRICE, 0), (
            "the promise of the ended channel was never claimed"
        )
        assert fees > 0
        view = conn.execute("SELECT merchant, SUM(units) FROM v_spend GROUP BY merchant").fetchall()
        assert dict(view)[lived.origin] == of_merchant.total
        (by_app,) = (row for row in journal.spend(conn, ("app",), EVERYTHING) if row.group == ("test",))
        assert by_app.paid == 2 * PRICE
        for form in ("beancount", "hledger", "jsonl"):
            text = "".join(export(statement(conn, EVERYTHING, "devnet"), form))
            assert ("Assets:Channel:" if form != "jsonl" else channel_account(lived.origin)) in text


def test_the_month_shows_what_is_in_a_channel(lived: Life) -> None:
    with closing(sqlite3.connect(lived.path)) as conn:
        (at_ms,) = conn.execute("SELECT MAX(at_ms) FROM entries").fetchone()
        record = MonthRecords().read(conn, iso_time(at_ms)[:7])
    report = {
        "month": iso_time(at_ms)[:7],
        "opening": [],
        "closing": [dict(zip(("account", "asset", "units"), row, strict=True)) for row in record.closing],
        "changes": [],
        "spend": [],
        "refusals": [],
    }
    merchants = [{"origin": lived.origin, "name": "data"}]
    shown = {one["name"]: one["closing"] for one in month_values(report, merchants, {})["accounts"]}
    assert shown["In a channel at data"] == DEPOSIT - PRICE


def test_the_views_show_channels_and_calls(lived: Life) -> None:
    with closing(sqlite3.connect(lived.path)) as conn:
        conn.row_factory = sqlite3.Row
        channels = {row["channel"]: dict(row) for row in conn.execute("SELECT * FROM v_channels")}
        calls = [dict(row) for row in conn.execute("SELECT * FROM v_channel_calls")]
    live, ended = channels[lived.live], channels[lived.ended]
    assert (live["merchant"], live["state"], live["signed"], live["signed_ada"]) == (
        *(lived.origin, "open", PRICE),
        "0.001000",
    )
    assert (ended["state"], ended["returned"], ended["claimed"]) == ("ended", DEPOSIT, 0)
    assert ended["elapse_at"] is not None
    assert live["elapse_at"] is None
    assert [(one["channel"], one["app"], one["request"], one["charged"], one["charged_ada"]) for one in calls] == [
        (channel, "test", "GET /channel/one", CHARGED, "0.000900") for channel in (lived.ended, lived.live)
    ]
