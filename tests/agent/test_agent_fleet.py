"""Several daemons on one ledger answer as one wallet: each account is paid from by one of them at a time."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from kit.agent import ADA, APP, DEVNET, World, daily, world_with_clock
from kit.effort import pick
from kit.fleet_daemons import FleetDaemon, SharedLedger, fleet_daemon
from kit.postgresql import needs_postgresql

from payagent.agent.base.config import TopupSource
from payagent.agent.base.payment_view import retry_headers
from payagent.agent.base.requests import Approver
from payagent.agent.fleet import leases
from payagent.agent.fleet.fleet import HeldAccount
from payagent.agent.fleet.leases import BLIND_MS
from payagent.agent.fleet.shared import SharedFleet
from payagent.agent.operator.alerts import AlertMonitor
from payagent.agent.operator.limits import set_limits
from payagent.agent.operator.pause import pause, unpause
from payagent.agent.topups.orders import TopupGoal
from payagent.api.app import create_app
from payagent.core.money import LOVELACE
from payagent.core.payment.machine import State
from payagent.core.policy import Window
from payagent.core.problems import Refused
from payagent.dialects import make_response
from payagent.store.db.unit import Unit
from payagent.store.rows import alerts, apps, fleet, prepaid
from payagent.store.rows.fleet import DaemonRow
from payagent.wallet.keys import derive, seed_from_words

ELSEWHERE = derive(seed_from_words("zoo " * 23 + "vote"), DEVNET).address
TOPUP = TopupSource("POST", "/chat", '{"message": "more"}')
TOKEN = "ab" * 28 + "55534454"
Pair = tuple[FleetDaemon, FleetDaemon]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Accounts 0 and 1 of one wallet have a UTxO each."""
    with world_with_clock(tmp_path) as zero:
        zero.clock.stop()
        zero.terms = replace(zero.terms, limits=zero.terms.limits + daily(1000, 1000, TOKEN))
        zero.fund(60 * ADA, 50 * ADA)
        fund_account_one(zero, 40 * ADA, 30 * ADA)
        yield zero


def fund_account_one(world: World, *lovelace: int, assets: Mapping[str, int] | None = None) -> None:
    one = world.of_account(1)
    one.fund(*lovelace, assets=assets)
    one.http.close()


PLACES = ["file", pytest.param("postgresql", marks=needs_postgresql)]
on_each = pytest.mark.parametrize("ledger", PLACES, indirect=True)
"""Marks a test that the sample runs on PostgreSQL too."""


@pytest.fixture(params=pick(["file"], PLACES))
def ledger(world: World, request: pytest.FixtureRequest) -> SharedLedger:
    is_file = request.param == "file"
    return SharedLedger(world, None if is_file else request.getfixturevalue("postgresql").new_database())


@pytest.fixture
async def pair(world: World, ledger: SharedLedger) -> AsyncIterator[tuple[FleetDaemon, FleetDaemon]]:
    """Two daemons; each holds an account and has read the chain."""
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(fleet_daemon(world, ledger, name)) for name in "ab"]
        await one.fleet.leases.keep()
        await two.fleet.leases.keep()
        for daemon in (one, two):
            await daemon.run_pass()
        yield one, two


async def end_leases(daemon: FleetDaemon, of: str, *, is_dead: bool = True) -> None:
    """As if the time of a daemon's leases were over."""

    def job(unit: Unit) -> None:
        unit.conn.execute("UPDATE accounts SET until_ms = 0 WHERE holder = ?", (of,))
        if is_dead:
            unit.conn.execute("UPDATE daemons SET seen_at_ms = 0 WHERE id = ?", (of,))

    await daemon.writer.run("test", job)


async def test_a_second_daemon_takes_its_part_of_the_accounts(pair: Pair, ledger: SharedLedger) -> None:
    one, two = pair
    assert (one.accounts, two.accounts) == ([0], [1])
    ledger.require_whole()


async def test_a_daemon_that_was_taken_for_dead_belongs_to_the_fleet_again(
    world: World, pair: Pair, ledger: SharedLedger
) -> None:
    one, two = pair
    await end_leases(one, "b")
    async with fleet_daemon(world, ledger, "c"):
        assert [len(status.living) for daemon in pair if (status := daemon.fleet.status())] == [2, 2]
        await two.fleet.leases.keep()
        assert [len(status.living) for daemon in pair if (status := daemon.fleet.status())] == [3, 3]


def stand_still_for_a_minute(unit: Unit) -> None:
    """As if no daemon had renewed for so long."""
    unit.conn.execute("UPDATE daemons SET seen_at_ms = seen_at_ms - 60000")


async def test_daemons_that_knew_each_other_go_on_after_an_outage_whatever_their_settings(pair: Pair) -> None:
    """A reload or an upgrade had reached one of them when the database was away for longer than the leases."""
    one, two = pair
    for daemon in pair:
        await daemon.stand_still()
        await daemon.fleet.leases.keep()
    await one.writer.run("reload", lambda unit: one.fleet.leases.note_settings(unit, "others"))
    await one.writer.run("test", stand_still_for_a_minute)
    for daemon in (one, two, one):
        await daemon.fleet.leases.keep()
    assert [len(status.living) for daemon in pair if (status := daemon.fleet.status())] == [2, 2]


async def test_a_daemon_that_stood_still_while_another_joined_with_other_settings_stays_out(
    world: World, pair: Pair, ledger: SharedLedger
) -> None:
    one, two = pair
    for daemon in pair:
        await daemon.stand_still()
    await one.writer.run("test", stand_still_for_a_minute)
    async with fleet_daemon(world, ledger, "c", config_hash="{}"):
        with pytest.raises(Refused) as refused:
            await two.fleet.leases.keep()
        assert refused.value.code == "config_invalid"


async def test_a_daemon_that_lost_its_accounts_before_they_were_ready_can_quote(
    world: World, ledger: SharedLedger
) -> None:
    async with fleet_daemon(world, ledger, "a") as one, fleet_daemon(world, ledger, "b") as two:
        await one.fleet.read_tip()
        await one.fleet.poll()
        assert not one.context.chain.is_ready(world.clock.now_ms())
        await end_leases(two, "a")
        await two.fleet.leases.keep()
        await one.writer.run("test", lambda _unit: None)
        await one.run_pass()
        assert one.accounts == []
        assert one.context.chain.is_ready(world.clock.now_ms())


async def test_accounts_of_a_daemon_that_cannot_read_the_chain_go_to_one_that_can(
    world: World, pair: Pair, ledger: SharedLedger
) -> None:
    if ledger.url is not None:
        pytest.skip("the database's clock is its own")
    one, two = pair

    async def pass_time(ms: int, *faults: str) -> None:
        for _ in range(0, ms, 5_000):
            world.clock.ahead_ms += 5_000
            for kind in faults:
                world.fault("reads", kind)
            await two.run_pass()
            world.control("faults", clear=True)
            await one.run_pass()
            for daemon in (two, one):
                await daemon.fleet.leases.keep()

    await pass_time(BLIND_MS + 2 * fleet.LEASE_MS, "server")
    assert (one.accounts, two.accounts) == ([0, 1], [])
    assert (await one.pay("goes on")).state is State.SIGNED
    await pass_time(120_000)
    assert (one.accounts, two.accounts) == ([0], [1])


async def test_a_daemon_stays_ready_while_it_reads_the_chain_for_an_account_that_it_took(
    world: World, pair: Pair, ledger: SharedLedger
) -> None:
    one, two = pair
    stop_renewing(one, two)
    await end_leases(two, "a")
    await two.fleet.leases.keep()
    await two.fleet.poll()
    assert two.accounts == [0, 1]
    app = create_app(two.fleet, heartbeat=lambda: (None, True), signer=lambda: None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8402") as http:
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()["code"], ready.json()["accounts"]) == (200, None, [0, 1])
        assert ready.json()["checks"]["chain"] == "no provider has answered yet"
        assert (await two.pay("goes on")).account == 1
        await two.run_pass()
        assert (await http.get("/readyz")).json()["checks"]["chain"] == "ok"


async def test_the_same_key_at_both_daemons_at_once_is_one_payment(
    world: World, pair: Pair, ledger: SharedLedger
) -> None:
    ask = world.ask("once", key="k")
    found = await asyncio.gather(*(daemon.fleet.pay(ask) for daemon in pair * 3))
    assert len({row.id for row, _ in found}) == 1
    assert sum(is_new for _, is_new in found) == 1
    for _ in range(2):
        for daemon in pair:
            await daemon.run_pass()
        world.block()
    assert len(world.transactions()) == 1
    ledger.require_whole()


def stop_renewing(*daemons: FleetDaemon) -> None:
    """From now on a daemon renews, takes and notices only what the test says."""
    for daemon in daemons:
        daemon.tasks.pop().cancel()


async def lose_connection(daemon: FleetDaemon) -> None:
    """As the writer does when the connection is lost in a commit."""
    daemon.seat.is_in_doubt = True
    daemon.seat.note_lost_connection()
    await asyncio.sleep(0)


async def test_an_account_lost_with_the_connection_is_left_to_the_others(pair: Pair, ledger: SharedLedger) -> None:
    one, two = pair
    stop_renewing(one, two)
    await end_leases(one, "b")
    await one.fleet.leases.keep()
    assert one.accounts == [0, 1]
    await lose_connection(one)
    await two.fleet.leases.keep()  # there are two of them again
    await one.fleet.leases.keep()
    assert one.accounts == [0]
    await end_leases(one, "a", is_dead=False)
    await one.fleet.leases.keep()
    await two.fleet.leases.keep()
    assert (one.accounts, two.accounts) == ([0], [1])
    ledger.require_whole()


async def test_accounts_that_are_lost_while_they_start_are_not_kept(pair: Pair) -> None:
    one, two = pair
    stop_renewing(one, two)
    parts = one.fleet.leases.parts

    async def start(account: int) -> HeldAccount:
        await end_leases(two, "a")
        await two.fleet.leases.keep()
        await one.context.write("test", lambda _unit: None)
        return await parts.start(account)

    one.fleet.leases.parts = replace(parts, start=start)
    await lose_connection(one)
    await end_leases(one, "b")
    await one.fleet.leases.keep()
    assert (one.accounts, two.accounts) == ([], [0, 1])


@pytest.mark.parametrize("way", ["given back", "started", "left"])
async def test_what_is_held_is_renewed_while_an_account_is_given_back_or_started(
    world: World, pair: Pair, ledger: SharedLedger, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(fleet, "RENEW_EVERY_S", 0.01)
    one, two = pair
    stop_renewing(one, two)
    parts, is_busy, may_go_on = one.fleet.leases.parts, asyncio.Event(), asyncio.Event()

    async def stop(account: HeldAccount) -> None:
        is_busy.set()
        await may_go_on.wait()
        await parts.stop(account)

    async def start(account: int) -> HeldAccount:
        is_busy.set()
        await may_go_on.wait()
        return await parts.start(account)

    await end_leases(one, "b")
    if way != "started":
        await one.fleet.leases.keep()
        assert one.accounts == [0, 1]
    one.fleet.leases.parts = replace(parts, stop=stop, start=start)
    if way == "given back":
        await two.fleet.leases.keep()  # there are two of them again
    if way != "left":
        one.tasks.append(asyncio.create_task(one.fleet.run()))
    left = asyncio.create_task(one.fleet.leave()) if way == "left" else None
    await is_busy.wait()
    await end_leases(two, "a", is_dead=False)
    async with asyncio.timeout(60):
        while any(row.until_ms == 0 for row in fleet.all_accounts(two.context.conn)):
            await two.context.changes.wait("a renewal", 0.01)
    status = two.fleet.status()
    assert status is not None
    assert {row.holder for row in status.accounts} == {"a"}, "until it gives one back"
    may_go_on.set()
    if left is not None:
        await left
        assert {row.holder for row in fleet.all_accounts(two.context.conn)} == {None}
        assert [row.id for row in fleet.all_daemons(two.context.conn)] == ["b"]


async def test_a_daemon_that_leaves_gives_its_accounts_back_and_is_forgotten(
    pair: Pair, ledger: SharedLedger
) -> None:
    one, two = pair
    await one.stand_still()
    killed = DaemonRow("a before it was killed", "host of a", "http://a", "same", "1", 0)
    await two.writer.run("test", lambda unit: fleet.register_daemon(unit, killed))
    await one.fleet.leave()
    status = two.fleet.status()
    assert status is not None
    assert [(row.account, row.holder) for row in status.accounts] == [(0, None), (1, "b")]
    assert [row.id for row in status.daemons] == ["b"]


async def test_a_daemon_that_leaves_without_the_database_stops_all_its_accounts(
    world: World, ledger: SharedLedger
) -> None:
    stopped = []
    async with fleet_daemon(world, ledger, "a") as one:
        await one.stand_still()
        parts, held = one.fleet.leases.parts, list(one.fleet.held.values())

        async def stop(account: HeldAccount) -> None:
            stopped.append(account)
            await parts.stop(account)

        one.fleet.leases.parts = replace(parts, stop=stop)
        one.writer.close()
        await one.fleet.leave()
    assert (len(held), stopped) == (2, held)


async def test_a_daemon_that_never_joined_leaves_without_a_commit(pair: Pair) -> None:
    one, two = pair
    joined = one.fleet.leases
    await one.stand_still()
    commits = one.writer.commits
    await SharedFleet(one.fleet.front, joined.me, joined.seat, joined.addresses, joined.parts).leave()
    assert one.writer.commits == commits
    status = two.fleet.status()
    assert status is not None
    assert sorted(status.living) == ["a", "b"]


@on_each
async def test_a_dead_daemons_account_is_taken_and_its_payment_goes_on(
    world: World, pair: Pair, ledger: SharedLedger
) -> None:
    one, two = pair
    row = await one.pay("before it dies", key="k")
    assert row.account == 0
    await one.die()
    await end_leases(two, "a")
    status = two.fleet.status()
    assert status is not None
    assert status.problem is None, "it pays meanwhile"
    await two.fleet.leases.keep()
    assert two.accounts == [0, 1]
    for _ in range(3):
        world.block()
        await two.run_pass()
    assert two.context.payment(row.id).state is State.CONFIRMED
    again, is_new = await two.fleet.pay(world.ask("before it dies", key="k"))
    assert (again.id, is_new) == (row.id, False)
    ledger.require_whole()


async def test_a_pause_at_one_daemon_holds_at_the_other_from_its_commit_on(world: World, pair: Pair) -> None:
    one, two = pair
    await pause(one.context, APP, "a look")
    with pytest.raises(Refused) as refused:
        await two.pay("paused")
    assert refused.value.code == "paused"
    await unpause(two.context, APP)
    assert (await one.pay("goes on")).state is State.SIGNED


async def test_a_daemon_without_accounts_has_its_purchases_made_by_the_holder(
    world: World, ledger: SharedLedger, pair: Pair
) -> None:
    async with fleet_daemon(world, ledger, "c") as third:
        await third.run_pass()
        assert third.accounts == []
        quote = await third.fleet.quote(world.ask("asked elsewhere"))
        assert quote.refusal is None
        row, is_new = await third.fleet.pay(world.ask("asked elsewhere", key="k"))
        assert is_new
        assert row.state not in (State.RECEIVED, State.RESERVED)
        again, is_new = await third.fleet.pay(world.ask("asked elsewhere", key="k"))
        assert (again.id, is_new) == (row.id, False)
    ledger.require_whole()


async def test_a_request_to_a_dead_holder_is_carried_out_by_the_next_one(
    world: World, pair: Pair, ledger: SharedLedger
) -> None:
    one, two = pair
    row = await one.pay("before it dies", key="k")
    await one.die()
    asked = asyncio.create_task(two.fleet.resolve(row.id, APP))
    while not fleet.open_requests(two.context.conn, [0]):
        await two.context.changes.wait("a commit", 0.05)
    await end_leases(two, "a")
    await two.fleet.leases.keep()
    await two.run_pass()
    assert (await asked).state is State.CANCELLING
    ledger.require_whole()


async def test_a_transfer_without_a_key_that_is_carried_out_twice_is_one(
    world: World, pair: Pair, ledger: SharedLedger
) -> None:
    one, two = pair
    world.fund(200 * ADA, 200 * ADA)
    await one.run_pass()
    row, _ = await two.fleet.send(APP, ELSEWHERE, "lovelace", 100 * ADA)
    (asked,) = two.context.conn.execute("SELECT id FROM admission_requests").fetchone()
    request = fleet.request_of(two.context.conn, asked)
    assert request is not None
    await one.fleet.holder.serve(request, is_late=False)  # as after a COMMIT whose outcome was lost
    rows = two.context.conn.execute("SELECT id FROM payments").fetchall()
    assert rows == [(row.id,)]
    ledger.require_whole()


async def test_each_daemon_decides_cancels_and_sends_for_every_account(
    world: World, pair: Pair, ledger: SharedLedger
) -> None:
    one, two = pair
    for daemon in pair:
        config = replace(daemon.context.from_file, approval_required_above={"lovelace": 0})
        await daemon.context.take_config(config, lambda _unit: None)
        for held in daemon.fleet.held.values():
            held.agent.context.adopt(daemon.context)
    asked = [await one.pay(text) for text in ("approved", "denied")]
    assert {row.state for row in asked} == {State.AWAITING_APPROVAL}
    by = Approver("token", APP)
    approved, denied = await two.fleet.approve(asked[0].id, by), await two.fleet.deny(asked[1].id, by)
    assert approved.state in (State.SIGNED, State.IN_FLIGHT)
    assert denied.state is State.DENIED
    assert (await two.fleet.resolve(approved.id, APP)).state is State.CANCELLING
    with pytest.raises(Refused) as refused:
        await two.fleet.deny(denied.id, by)
    assert refused.value.code == "already_decided"
    sent, is_new = await two.fleet.send(APP, world.account.address, "lovelace", 2 * ADA, "s")
    again, _ = await one.fleet.send(APP, world.account.address, "lovelace", 2 * ADA, "s")
    assert (sent.account, is_new, again.id) == (1, True, sent.id)
    ledger.require_whole()


async def test_a_limit_set_at_one_daemon_is_shared_by_both(pair: Pair, ledger: SharedLedger) -> None:
    one, two = pair
    await set_limits(one.context, APP, None, None, "lovelace", {Window.TOTAL: 25 * ADA})
    found = await asyncio.gather(
        *(daemon.pay(f"{daemon.context.ports.new_id('m')}") for daemon in (one, two, one, two)),
        return_exceptions=True,
    )
    refused = [error.code for error in found if isinstance(error, Refused)]
    assert refused == ["limit_exceeded"] * 3
    ledger.require_whole()


async def test_a_token_revoked_at_one_daemon_pays_at_none(pair: Pair) -> None:
    await pair[0].context.write("app", lambda unit: apps.revoke(unit, APP, APP, 5))
    for daemon in pair:
        with pytest.raises(Refused) as refused:
            await daemon.pay("revoked")
        assert refused.value.code == "unauthorized"


async def test_a_proof_that_was_answered_pending_waits_for_a_block_whichever_context_is_asked(
    world: World, ledger: SharedLedger
) -> None:
    world.settings(confirmations=3)
    merchant = replace(world.terms.merchants[world.origin], ready="auto")
    world.terms = replace(world.terms, confirm_depth=3, merchants={world.origin: merchant})
    async with fleet_daemon(world, ledger, "a") as one:
        await one.run_pass()
        row = await one.pay("hello")
        await one.run_pass()
        world.block()
        await one.run_pass()
        row = one.context.payment(row.id)
        assert one.context.is_ready(row)
        answer = world.call("hello", retry_headers(row, None, world.address))
        pending = make_response(answer.status_code, dict(answer.headers), answer.text)
        row, _ = await one.fleet.deliveries(row.id).take_answer(row.id, pending)
        assert not one.context.is_ready(row)
        world.block()
        await one.run_pass()
        assert one.context.is_ready(one.context.payment(row.id))


async def test_an_alert_about_the_wallet_counts_the_funds_of_all_accounts(
    world: World, ledger: SharedLedger
) -> None:
    world.terms = replace(world.terms, wallet_below_lovelace=150 * ADA)
    async with fleet_daemon(world, ledger, "a") as one:
        await one.run_pass()
        monitor = AlertMonitor(one.fleet.held[0].agent.context)
        await monitor.run_once()
        assert alerts.after(one.context.conn, 0) == []  # 110 and 70 ADA
        await one.fleet.send(APP, ELSEWHERE, LOVELACE, 40 * ADA)
        await monitor.run_once()
        (alert,) = alerts.after(one.context.conn, 0)
        assert (alert.kind, int(alert.facts["left"]) // ADA) == ("wallet_low", 139)


async def test_both_daemons_buy_prepaid_balance_from_its_home_account(
    world: World, pair: Pair, ledger: SharedLedger
) -> None:
    one, two = pair
    world.settings(batch=3)
    bought = await two.pay("a batch")
    assert (bought.account, bought.prepaid.wallet) == (1, world.address)
    for _ in range(2):
        for daemon in pair:
            await daemon.run_pass()
        world.block()
    row, _ = await one.fleet.order_topup(APP, "t", TopupGoal(world.origin, "lovelace", 20 * ADA, TOPUP))
    assert prepaid.pool(one.context.conn, row.pool_id).account == 1
    assert (await one.fleet.cancel_topup(row.id, APP)).stop_code is not None
    ledger.require_whole()


async def test_a_token_is_paid_from_the_account_that_has_it(
    world: World, pair: Pair, ledger: SharedLedger
) -> None:
    one, two = pair
    fund_account_one(world, 5 * ADA, assets={TOKEN: 500})
    await two.run_pass()
    world.settings(asset=TOKEN, price="250", splits=[])
    assert (await one.fleet.quote(world.ask("its price"))).refusal is None
    assert (await one.pay("for a token")).account == 1
    ledger.require_whole()


async def test_the_next_account_pays_when_the_first_has_only_pending_change(
    world: World, pair: Pair, ledger: SharedLedger
) -> None:
    one, _ = pair
    paid = [await one.pay(f"call {number}") for number in range(3)]
    assert [row.account for row in paid] == [0, 0, 1]
    ledger.require_whole()


async def test_a_purchase_refused_for_lack_of_funds_is_paid_from_the_account_that_got_them(
    world: World, pair: Pair, ledger: SharedLedger
) -> None:
    one, two = pair
    world.settings(price=str(200 * ADA), splits=[])
    with pytest.raises(Refused) as refused:
        await one.pay("too much", key="k")
    assert refused.value.code == "not_enough_funds"
    assert "account 0 was to pay, and accounts are not paid from together" in refused.value.detail
    fund_account_one(world, 300 * ADA)
    await two.run_pass()
    assert (await one.pay("too much", key="k")).account == 1
    ledger.require_whole()


async def test_each_account_is_emptied_by_a_transfer_of_its_own(
    world: World, pair: Pair, ledger: SharedLedger
) -> None:
    one, _ = pair
    sent = [(await one.fleet.send_all(APP, world.account.address, f"s{n}", n))[0] for n in (0, 1)]
    assert [row.account for row in sent] == [0, 1]
    with pytest.raises(Refused) as refused:
        await one.fleet.send_all(APP, world.account.address, None, 2)
    assert refused.value.code == "bad_request"
    ledger.require_whole()


async def test_what_an_operator_orders_is_done_by_the_daemon_that_took_the_account_meanwhile(
    world: World, pair: Pair, ledger: SharedLedger
) -> None:
    one, two = pair
    for daemon in pair:
        config = replace(daemon.context.from_file, approval_required_above={"lovelace": 15 * ADA})
        await daemon.context.take_config(config, lambda _unit: None)
        for held in daemon.fleet.held.values():
            held.agent.context.adopt(daemon.context)
    paid = await one.pay("to cancel")
    world.settings(price=str(20 * ADA), splits=[])
    asked = await one.pay("to decide")
    topup, _ = await one.fleet.order_topup(APP, "t", TopupGoal(world.origin, "lovelace", 20 * ADA, TOPUP))
    assert asked.state is State.AWAITING_APPROVAL
    orders = (
        lambda: one.fleet.resolve(paid.id, APP),
        lambda: one.fleet.deny(asked.id, Approver("token", APP)),
        lambda: one.fleet.order_topup(APP, "t", TopupGoal(world.origin, "lovelace", 20 * ADA, TOPUP)),
        lambda: one.fleet.cancel_topup(topup.id, APP),
    )
    stop_renewing(one)
    await one.run_pass()
    for order in orders:
        await end_leases(two, "a")
        await two.fleet.leases.keep()
        await two.run_pass()
        assert one.accounts == [0]  # it has not noticed
        await order()
        assert two.accounts == [0, 1]
        await end_leases(one, "b", is_dead=False)
        await one.fleet.leases.keep()
        await one.run_pass()
    assert one.context.payment(paid.id).state is State.CANCELLING
    assert one.context.payment(asked.id).state is State.DENIED
    ledger.require_whole()


@pytest.mark.parametrize("other", [{"config_hash": "{}"}, {"count": 1}])
async def test_a_daemon_with_other_settings_does_not_join(
    world: World, ledger: SharedLedger, pair: Pair, other: dict[str, object]
) -> None:
    with pytest.raises(Refused) as refused:
        async with fleet_daemon(world, ledger, "c", **other):  # type: ignore[arg-type]
            pass
    assert refused.value.code == "config_invalid"


async def joining(world: World, ledger: SharedLedger, name: str, host: str) -> list[int]:
    """The accounts that a daemon gets."""
    async with fleet_daemon(world, ledger, name, host=host) as daemon:
        return daemon.accounts


async def test_the_later_of_two_living_daemons_with_one_id_is_refused(
    world: World, ledger: SharedLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "TAKE_S", 0)
    async with fleet_daemon(world, ledger, "a", host="a.example#id") as one:
        later = asyncio.create_task(joining(world, ledger, "b", "clone.example#id"))
        while not later.done():
            world.clock.ahead_ms += 1
            await one.fleet.leases.keep()
        with pytest.raises(Refused, match="has its id") as refused:
            await later
        assert (refused.value.code, one.accounts) == ("already_running", [0, 1])


async def test_a_daemon_that_was_killed_joins_again_once_its_lease_is_over(
    world: World, ledger: SharedLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "TAKE_S", 0)
    async with fleet_daemon(world, ledger, "a", host="a container#id") as one:
        await one.die()
        again = asyncio.create_task(joining(world, ledger, "b", "the next container#id"))
        while not again.done():
            world.clock.ahead_ms += fleet.LEASE_MS // 10
            await asyncio.sleep(0)
        assert await again == [0, 1]


async def test_a_daemon_that_was_away_while_its_copy_joined_stays_out(
    world: World, pair: Pair, ledger: SharedLedger
) -> None:
    one, _ = pair
    for daemon in pair:
        await daemon.stand_still()
    await one.writer.run("test", stand_still_for_a_minute)
    async with fleet_daemon(world, ledger, "c", host="host of a"):
        with pytest.raises(Refused) as refused:
            await one.fleet.leases.keep()
        assert refused.value.code == "already_running"


async def test_what_began_before_a_loss_writes_nothing_when_the_account_is_back(pair: Pair) -> None:
    one, two = pair
    before = one.fleet.held[0].agent.context
    await end_leases(two, "a")
    await two.fleet.leases.keep()
    await end_leases(one, "b")
    await one.fleet.leases.keep()
    assert 0 in one.accounts
    with pytest.raises(Refused) as refused:
        await before.write("test", lambda _unit: None)
    assert refused.value.code == "lease_lost"
