"""Top-ups on the devnet: every ordered batch is bought once, whatever crashes in between."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from kit.agent import ADA, APP, Run, World, daily, with_terms, world_apart, world_with_clock
from kit.effort import pick
from kit.external_spends import spend_elsewhere
from kit.prepaid import balance, call, require_whole
from kit.proxy import Binding, Heard, Paywall, Peer, saying

from payagent.agent.base.config import AutoTopup, TopupSource
from payagent.agent.base.free_utxos import utxo_of
from payagent.agent.base.prepaid import Buyer, ServedRequest
from payagent.agent.base.requests import Approver, PrepaidQuote
from payagent.agent.chain_sync.external_spends import unfreeze
from payagent.agent.operator.apps import renew_token, revoke
from payagent.agent.operator.limits import set_limits
from payagent.agent.topups.orders import TopupGoal
from payagent.agent.topups.runner import EXPIRED_MAX, PATIENCE_MS, TopupPlan
from payagent.core.invoice import Proof
from payagent.core.payment.machine import Delivery, State
from payagent.core.policy import Limit, Window
from payagent.core.problems import Refused
from payagent.store.db.unit import Unit
from payagent.store.rows import alerts, apps, payments, prepaid, topups
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows.apps import AppRow
from payagent.store.rows.topups import TopupRow
from payagent.wallet.keys import Signer

BATCH = 4
COST = 13 * ADA
REQUEST = TopupSource("POST", "/payments/topup", "{}")
CHAT = TopupSource("POST", "/chat", '{"message": "for a batch"}')
ROUNDS = 40


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A devnet whose clock the test moves, and a merchant that sells batches by a separate request."""
    with world_with_clock(tmp_path) as world:
        yield sells_batches(world)


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[World]:
    """The same, but a test moves only the agent's clock."""
    with world_apart(tmp_path) as world:
        yield sells_batches(world)


def sells_batches(world: World) -> World:
    world.terms = with_topup(world, topup_request=REQUEST)
    world.fund(*[100 * ADA] * 6)
    world.settings(batch=BATCH)
    return world


def with_topup(world: World, **terms: object):  # type: ignore[no-untyped-def]
    """The world's config with changes for its merchant."""
    merchants = {origin: replace(one, **terms) for origin, one in world.terms.merchants.items()}  # type: ignore[arg-type]
    return replace(world.terms, merchants=merchants)


def goal(world: World, units: int, request: TopupSource | None = None, unit: str = "lovelace") -> TopupGoal:
    return TopupGoal(world.origin, unit, units, request)


async def order(run: Run, units: int, request: TopupSource | None = None, key: str = "k") -> TopupRow:
    row, _ = await run.topups.order(APP, key, goal(run.world, units, request))
    return row


async def go_round(run: Run) -> None:
    """One run of the top-ups, its submissions, and a block."""
    await run.topups.run_once()
    await run.agent.submitter.drain(60)
    await run.settle_down()


async def carry_out(run: Run, topup_id: str, seconds: int = 0) -> TopupRow:
    for _ in range(ROUNDS):
        if (row := run.topups.find(topup_id)).ended_at_ms is not None:
            return row
        await go_round(run)
        run.world.clock.ahead_ms += seconds * 1000
    raise AssertionError(f"it does not end: {run.topups.find(topup_id)}")


def state(world: World) -> dict[str, object]:
    return dict(world.http.get(f"{world.origin}/merchant/state").json())


def wallet_balance(world: World) -> dict[str, object]:
    (told,) = state(world)["balances"]  # type: ignore[misc]
    return dict(told)


class TestTopup:
    async def test_batches_are_bought_until_the_amount_is_reached(self, world: World) -> None:
        async with world.run() as run:
            await run.run_pass()
            row = await carry_out(run, (await order(run, 50 * ADA)).id)
            assert (row.state, row.problem) == ("done", None)
            made = payments.payments_of_topup(run.context.conn, row.id)
            assert [one.delivery for one in made] == [Delivery.ACCEPTED] * 4
            assert len(world.transactions()) == 4
            assert balance(run).left == wallet_balance(world)["remaining"] == 4 * BATCH
            assert run.owned() == {
                "lovelace": 600 * ADA - 4 * COST - sum(one.attempt.fee_lovelace or 0 for one in made)
            }
            require_whole(run)

    async def test_a_repeated_key_returns_the_same_top_up_and_a_changed_one_is_refused(self, world: World) -> None:
        async with world.run() as run:
            await run.run_pass()
            first = await order(run, COST)
            assert await order(run, COST) == first
            with pytest.raises(Refused, match="idempotency_key_reused"):
                await order(run, COST + 1)
            with pytest.raises(Refused, match="idempotency_key_reused"):
                await order(run, COST, CHAT)
            with pytest.raises(Refused, match="topup_in_progress"):
                await order(run, COST, key="another")
            await carry_out(run, first.id)
            assert (await order(run, COST)).state == "done"
            assert len(world.transactions()) == 1
            second = await carry_out(run, (await order(run, COST, key="another")).id)
            assert second.state == "done"
            assert len(world.transactions()) == 2
            assert await order(run, COST, REQUEST) == await order(run, COST), "it names the configured request"
            called = await order(run, COST, CHAT, key="a call")
            with pytest.raises(Refused, match="idempotency_key_reused"):
                await order(run, COST, key="a call")
            assert (await carry_out(run, called.id)).problem == "topup_stopped/nothing_sold"

    @pytest.mark.parametrize("only_sells", [False, True])
    async def test_a_key_is_of_one_request_and_of_whether_it_only_sells(
        self, world: World, *, only_sells: bool
    ) -> None:
        async with world.run() as run:
            await run.run_pass()
            first = replace(goal(world, COST, CHAT), only_sells=only_sells)
            (opened, _), (again, is_new) = [await run.topups.order(APP, "k", first) for _ in range(2)]
            assert (again, is_new) == (opened, False)
            for other in (
                replace(first, only_sells=not only_sells),
                goal(world, COST),
                goal(world, COST, REQUEST),
            ):
                with pytest.raises(Refused, match="idempotency_key_reused"):
                    await run.topups.order(APP, "k", other)

    async def test_naming_the_configured_request_uses_nothing_of_the_batch(self, world: World) -> None:
        async with world.run() as run:
            await run.run_pass()
            assert (await carry_out(run, (await order(run, COST, REQUEST)).id)).state == "done"
            assert (balance(run).bought, balance(run).used) == (BATCH, 0)

    async def test_an_ordinary_request_uses_one_of_the_batch_that_it_buys(self, world: World) -> None:
        world.terms = with_topup(world, topup_request=None)
        async with world.run() as run:
            await run.run_pass()
            row = await carry_out(run, (await order(run, 2 * COST, CHAT)).id)
            assert (row.state, row.problem) == ("done", "topup_stopped/nothing_sold")
            assert len(world.transactions()) == 1
            assert (balance(run).bought, balance(run).used) == (BATCH, 2)
            assert wallet_balance(world)["remaining"] == balance(run).left
            require_whole(run)

    async def test_a_merchant_that_sells_single_requests_gets_no_top_up(self, world: World) -> None:
        world.settings(batch=1)
        async with world.run() as run:
            await run.run_pass()
            row = await carry_out(run, (await order(run, COST, CHAT)).id)
            assert (row.state, row.problem) == ("done", "topup_stopped/nothing_sold")
            assert not payments.payments_in(run.context.conn, list(State))
            refused = await carry_out(run, (await order(run, COST, key="2")).id)
            assert (refused.state, refused.problem) == ("stopped", "topup_stopped/request_refused")
            assert "409" in (refused.detail or "")

    async def test_a_top_up_without_a_configured_request_is_refused(self, world: World) -> None:
        world.terms = with_topup(world, topup_request=None)
        async with world.run() as run:
            with pytest.raises(Refused, match="topup_not_configured"):
                await order(run, COST)
            with pytest.raises(Refused, match="topup_not_configured"):
                await run.topups.plan(APP, goal(world, COST))

    async def test_a_price_in_another_asset_than_ordered_is_not_paid(self, world: World) -> None:
        token = "5c" * 28 + "636c69"
        world.settings(asset=token, price="100", splits=[])
        async with world.run() as run:
            await run.run_pass()
            row = await carry_out(run, (await order(run, COST)).id)
            assert (row.state, row.problem) == ("stopped", "topup_stopped/wrong_asset")
            assert world.transactions() == []

    async def test_apps_are_refused_with_batch_in_progress_while_a_top_up_buys(self, world: World) -> None:
        async with world.run() as run:
            await run.run_pass()
            row = await order(run, COST)
            await run.topups.run_once()
            with pytest.raises(Refused, match="batch_in_progress"):
                await run.pay()
            assert (await carry_out(run, row.id)).state == "done"
            assert world.call("hello").status_code == 200


class TestLimits:
    async def test_payment_limits_apply_to_top_ups(self, world: World) -> None:
        limits = daily(20 * ADA, 30 * ADA)
        async with world.run(terms=with_terms(limits=limits)) as run:
            await run.run_pass()
            row = await carry_out(run, (await order(run, 50 * ADA)).id)
            assert (row.state, row.problem) == ("stopped", "limit_exceeded")
            assert "daily limit" in (row.detail or "")
            assert len(world.transactions()) == 2

    async def test_top_ups_also_have_their_own_daily_limit(self, world: World) -> None:
        world.terms = with_topup(world, topup_per_day_lovelace=2 * COST)
        async with world.run() as run:
            await run.run_pass()
            row = await carry_out(run, (await order(run, 50 * ADA)).id)
            assert (row.state, row.problem) == ("stopped", "limit_exceeded")
            assert "topup_per_day" in (row.detail or "")
            assert len(world.transactions()) == 1
            for _ in range(BATCH):
                assert world.call("from the batch").status_code == 200
            world.settings(batch=1)
            await run.pay("its own limit is not the others'")
            world.settings(batch=BATCH)
            world.clock.ahead_ms += 86_400_000 + 1
            await run.settle_down()
            again = await carry_out(run, (await order(run, COST, key="tomorrow")).id)
            assert again.state == "done"

    async def test_an_unconfirmed_top_up_counts_against_the_daily_top_up_limit(self, world: World) -> None:
        async with ada_prepaid(world, 10 * ADA, topup_per_day_lovelace=15 * ADA) as (run, theirs):
            row, _ = await run.topups.order(APP, "next", TopupGoal(theirs.origin, "lovelace", 10 * ADA))
            await run.topups.run_once()
            row = run.topups.find(row.id)
            assert row.problem == "limit_exceeded"
            assert "topup_per_day" in (row.detail or "")

    async def test_a_plan_shows_the_cost_and_reserves_nothing(self, world: World) -> None:
        async with world.run() as run:
            await run.run_pass()
            plan = await run.topups.plan(APP, goal(world, 50 * ADA))
            assert (plan.count, plan.quote.refusal, plan.quote.invoice.total_units) == (4, None, COST)
            assert not topups.all_open(run.context.conn)
            assert not payments.payments_in(run.context.conn, list(State))

    async def test_a_plan_by_a_request_that_the_balance_serves_uses_nothing_of_it(self, world: World) -> None:
        async with world.run() as run:
            await run.run_pass()
            await carry_out(run, (await order(run, COST)).id)
            plan = await run.topups.plan(APP, goal(world, COST, CHAT))
            assert isinstance(plan, PrepaidQuote)
            assert (plan.unit, plan.units, plan.refusal) == ("calls", None, None), "its price is not known yet"
            await know_price(run)
            plan = await run.topups.plan(APP, goal(world, COST, CHAT))
            assert isinstance(plan, PrepaidQuote)
            assert (plan.unit, plan.units) == ("calls", 1)
            assert balance(run).left == wallet_balance(world)["remaining"] == BATCH

    @pytest.mark.parametrize("utxos", [1, 6])
    async def test_a_plan_can_be_made_while_an_automatic_top_up_runs(self, tmp_path: Path, utxos: int) -> None:
        """The merchant repeats the invoice that is being paid, and its change is all the money there is."""
        with world_with_clock(tmp_path) as world:
            world.terms = with_topup(world, topup_request=REQUEST)
            world.fund(*[200 * ADA] * utxos)
            world.settings(batch=BATCH)
            auto(world)
            async with world.run() as run:
                await run.run_pass()
                for _ in range(2):
                    await run.topups.run_once()
                await run.agent.submitter.drain(60)
                (running,) = topups.all_open(run.context.conn)
                assert len(world.waiting()) == 1, "it is submitted, and in no block yet"
                plan = await run.topups.plan(APP, goal(world, 50 * ADA))
                assert isinstance(plan, TopupPlan)
                assert (plan.count, plan.quote.refusal, plan.quote.invoice.total_units) == (4, None, COST)
                assert plan.under_way == running.id
                assert (await autos(run, 12))[0].state == "done"
                require_whole(run)

    @pytest.mark.parametrize(
        ("limits", "terms", "units", "told"),
        [
            (daily(5 * ADA, 100 * ADA), {}, COST, "limit per payment"),
            (daily(20 * ADA, 40 * ADA), {}, 50 * ADA, "daily limit"),
            (daily(20 * ADA, 400 * ADA), {"topup_per_day_lovelace": 3 * COST}, 50 * ADA, "topup_per_day"),
            (daily(20 * ADA, 4000 * ADA), {}, 700 * ADA, "are available"),
        ],
    )
    async def test_a_plan_names_the_limit_or_shortage_that_would_stop_it(
        self, world: World, limits: tuple[Limit, ...], terms: dict[str, object], units: int, told: str
    ) -> None:
        world.terms = with_topup(world, **terms)
        async with world.run(terms=with_terms(limits=limits)) as run:
            await run.run_pass()
            plan = await run.topups.plan(APP, goal(world, units))
            assert plan.quote.refusal is not None
            assert told in plan.quote.refusal.detail


async def add_orderer(run: Run, expires_at_ms: int | None = None) -> None:
    """Add another operator app, which a test can revoke."""

    def job(unit: Unit) -> None:
        apps.add(unit, AppRow("app_ops", "ops", frozenset({"operate"}), None, None), APP, 1)
        apps.give_token(unit, "app_ops", "2" * 64, expires_at_ms, APP, 1)

    await run.context.write("app", job)


async def order_as_ops(run: Run, units: int) -> TopupRow:
    row, _ = await run.topups.order("app_ops", "ops", goal(run.world, units))
    return row


async def revoke_ops(run: Run) -> None:
    await revoke(run.context, apps.require(run.context.conn, APP), "ops")


class TestStopping:
    """A top-up that is cancelled, or whose app lost its token, buys nothing more; paid batches are delivered."""

    async def test_a_cancelled_top_up_with_nothing_in_flight_stops_at_once(self, world: World) -> None:
        async with world.run() as run:
            await run.run_pass()
            row = await run.topups.cancel((await order(run, 50 * ADA)).id, APP)
            assert (row.state, row.problem) == ("stopped", "topup_stopped/cancelled")
            for _ in range(3):
                await go_round(run)
            assert not world.transactions()
            with pytest.raises(Refused, match="wrong_state"):
                await run.topups.cancel(row.id, APP)
            assert (await carry_out(run, (await order(run, COST, key="next")).id)).state == "done"
            require_whole(run)

    async def test_a_cancelled_top_up_delivers_its_paid_batch_before_it_stops(self, world: World) -> None:
        async with world.run() as run:
            await run.run_pass()
            row = await order(run, 50 * ADA)
            await run.topups.run_once()
            row = await run.topups.cancel(row.id, APP)
            assert (row.state, row.problem) == ("stopping", None)
            assert await run.topups.cancel(row.id, APP) == row
        async with world.run() as run:
            await run.run_pass()
            row = await carry_out(run, row.id)
            assert (row.state, row.problem) == ("stopped", "topup_stopped/cancelled")
            (payment,) = payments.payments_of_topup(run.context.conn, row.id)
            assert payment.delivery is Delivery.ACCEPTED
            assert balance(run).left == wallet_balance(world)["remaining"] == BATCH
            require_whole(run)

    async def test_a_paid_batch_is_delivered_once_its_removed_merchant_is_added_again(self, world: World) -> None:
        async with world.run() as run:
            await run.run_pass()
            row = await order(run, COST)
            await go_round(run)
            (paid,) = payments.payments_of_topup(run.context.conn, row.id)
            assert (run.state(paid.id), paid.delivery) == (State.CONFIRMED, Delivery.NOT_PRESENTED)
            await run.context.take_config(replace(run.context.from_file, merchants={}), lambda _unit: None)
            await go_round(run)
            assert run.topups.find(row.id).state == "open"
            await run.context.take_config(
                replace(run.context.from_file, merchants=world.terms.merchants), lambda _unit: None
            )
            world.clock.ahead_ms += 60_000
            assert (await carry_out(run, row.id)).state == "done"
            assert run.context.payment(paid.id).delivery is Delivery.ACCEPTED
            assert len(world.transactions()) == 1

    async def test_a_top_up_buys_every_batch_for_the_partner_it_was_ordered_for(self, world: World) -> None:
        """The config may name another partner since; its balance gets nothing."""
        async with world.run() as run:
            await run.run_pass()
            row = await order(run, 2 * COST)
            await go_round(run)
            other = with_topup(world, partner="other").merchants
            await run.context.take_config(replace(run.context.from_file, merchants=other), lambda _unit: None)
            assert (await order(run, 2 * COST)).id == row.id, "the key still names the same top-up"
            assert (await carry_out(run, row.id)).state == "done"
            assert len(world.transactions()) == 2
            assert wallet_balance(world)["partner"] == "demo"
            assert balance(run).left == wallet_balance(world)["remaining"] == 2 * BATCH
            require_whole(run)

    @pytest.mark.parametrize("why", ["topup_stopped/cancelled", "topup_stopped/app_revoked"])
    async def test_stopping_a_top_up_denies_its_pending_approval(self, world: World, why: str) -> None:
        """Nobody can approve it by mistake, it counts against no limit, and nothing is paid."""
        async with world.run(terms=with_terms(approval_required_above={"lovelace": 5 * ADA})) as run:
            await run.run_pass()
            await add_orderer(run)
            row = await order_as_ops(run, COST)
            await run.topups.run_once()
            (asked,) = payments.payments_in(run.context.conn, [State.AWAITING_APPROVAL])
            await (run.topups.cancel(row.id, APP) if why == "topup_stopped/cancelled" else revoke_ops(run))
            row = run.topups.find(row.id)
            assert (row.state, row.problem) == ("stopped", why)
            ended = run.context.payment(asked.id)
            assert (ended.state, ended.problem.name) == (State.DENIED, why)
            with pytest.raises(Refused, match="already_decided"):
                await run.agent.decisions.approve(asked.id, Approver("token", APP))
            await go_round(run)
            assert world.transactions() == []
            require_whole(run)

    async def test_a_pending_approval_ends_when_its_top_up_times_out(self, world: World) -> None:
        """A later approval would pay for a batch that nobody delivers."""
        world.settings(timeout=86_400)
        asking = with_terms(approval_required_above={"lovelace": 5 * ADA}, approval_timeout_s=7 * 86_400)
        async with world.run(terms=asking) as run:
            await run.run_pass()
            row = await order(run, COST)
            await run.topups.run_once()
            (asked,) = payments.payments_in(run.context.conn, [State.AWAITING_APPROVAL])
            world.clock.ahead_ms += PATIENCE_MS + 5_000
            await run.topups.run_once()
            assert run.topups.find(row.id).state == "open", "by chain time it has not timed out"
            await run.settle_down()
            await run.topups.run_once()
            assert run.topups.find(row.id).problem == "topup_stopped/timed_out"
            assert run.context.payment(asked.id).problem.name == "topup_stopped/timed_out"
            require_whole(run)

    async def test_an_approval_after_the_apps_token_expired_buys_nothing(self, world: World) -> None:
        async with world.run(terms=with_terms(approval_required_above={"lovelace": 5 * ADA})) as run:
            await run.run_pass()
            await add_orderer(run, world.clock.now_ms() + 60_000)
            await order_as_ops(run, COST)
            await run.topups.run_once()
            (asked,) = payments.payments_in(run.context.conn, [State.AWAITING_APPROVAL])
            world.clock.ahead_ms += 60_000
            await run.settle_down()
            with pytest.raises(Refused, match="topup_stopped/app_revoked"):
                await run.agent.decisions.approve(asked.id, Approver("token", APP))
            assert run.state(asked.id) is State.AWAITING_APPROVAL
            assert world.transactions() == []

    async def test_revoking_an_app_stops_its_top_ups(self, world: World) -> None:
        async with world.run() as run:
            await run.run_pass()
            await add_orderer(run)
            row = await order_as_ops(run, 50 * ADA)
            await run.topups.run_once()
            await revoke_ops(run)
            assert run.topups.find(row.id).state == "stopping"
            row = await carry_out(run, row.id)
            assert (row.state, row.problem, len(world.transactions())) == (
                "stopped",
                "topup_stopped/app_revoked",
                1,
            )
            await go_round(run)
            assert len(world.transactions()) == 1

    async def test_an_expired_token_stops_the_apps_top_ups(self, world: World) -> None:
        async with world.run() as run:
            await run.run_pass()
            await add_orderer(run, world.clock.now_ms() + 60_000)
            row = await order_as_ops(run, 50 * ADA)
            await run.topups.run_once()
            world.clock.ahead_ms += 60_000
            row = await carry_out(run, row.id)
            assert (row.state, row.problem, len(world.transactions())) == (
                "stopped",
                "topup_stopped/app_revoked",
                1,
            )

    async def test_top_ups_go_on_after_their_app_gets_a_new_token(self, world: World) -> None:
        async with world.run() as run:
            await run.run_pass()
            await add_orderer(run)
            row = await order_as_ops(run, 2 * COST)
            await renew_token(run.context, apps.require(run.context.conn, APP), "ops", "3" * 64, None)
            assert (await carry_out(run, row.id)).state == "done"

    @pytest.mark.parametrize("end", ["cancel", "revoke"])
    async def test_a_top_up_stopped_while_the_merchant_sends_its_402_buys_nothing(
        self, world: World, end: str
    ) -> None:
        """The top-up is stopped while the merchant answers with its 402."""
        async with Peer().running() as peer:
            wall, ended = Paywall(price=10 * ADA), asyncio.Event()

            async def answer(heard: Heard) -> None:
                if end == "cancel":
                    await run.topups.cancel(row.id, APP)
                else:
                    await revoke_ops(run)
                ended.set()
                await wall(heard)

            peer.answers["/topup"] = answer
            known = next(iter(world.terms.merchants.values()))
            merchant = replace(known, origin=peer.url, topup_request=TopupSource("POST", "/topup", ""))
            async with world.run(terms=with_terms(merchants={peer.url: merchant})) as run:
                await run.run_pass()
                await add_orderer(run)
                row, _ = await run.topups.order("app_ops", "k", TopupGoal(peer.url, "lovelace", 50 * ADA))
                await run.topups.run_once()
                assert ended.is_set()
                for _ in range(3):
                    await go_round(run)
                assert not world.transactions()
                assert run.topups.find(row.id).state == "stopped"
                require_whole(run)


class Killed:
    """A checkpoint that fails from the `nth` commit of this name on."""

    def __init__(self, name: str, nth: int) -> None:
        self.name, self.left, self.dead = name, nth, False

    def __call__(self, name: str) -> None:
        if self.dead:
            raise sqlite3.OperationalError("the process is gone")
        if name == self.name:
            self.left -= 1
            if self.left == 0:
                self.dead = True
                raise sqlite3.OperationalError("the process is gone")


COMMITS = ("topup_end", "admit", "sign", "submit", "answer", "observe", "confirm", "delivery")


CRASHES = list(product(COMMITS, ("before", "after"), (1, 2, 3)))


@pytest.mark.parametrize(("name", "when", "nth"), pick(CRASHES[::5], CRASHES))
async def test_a_top_up_goes_on_after_a_crash_at_a_commit_and_pays_nothing_twice(
    world: World, name: str, when: str, nth: int
) -> None:
    async with world.run() as run:
        await run.run_pass()
        topup_id = (await order(run, 2 * COST)).id
    killed = Killed(f"{when} {name}", nth)
    async with world.run(checkpoint=killed) as run:
        await run.run_pass()
        for _ in range(ROUNDS):
            if killed.dead or run.topups.find(topup_id).ended_at_ms is not None:
                break
            with contextlib.suppress(Refused):  # a dead process writes nothing more
                await go_round(run)
    async with world.run() as run:
        await run.run_pass()
        row = await carry_out(run, topup_id, seconds=12)
        assert row.state == "done", row
        assert len(world.transactions()) == 2
        assert balance(run).left == wallet_balance(world)["remaining"] == 2 * BATCH
        require_whole(run)


class LostSigner:
    """A signer whose process is gone when it is called."""

    def __init__(self, signer: Signer, code: str) -> None:
        self.public_key, self.payment_key_hash = signer.public_key, signer.payment_key_hash
        self._code = code

    def sign(self, body: bytes, paid: int) -> bytes:
        raise Refused(self._code, "it is gone")


@pytest.mark.parametrize(
    ("code", "proof"),
    [("signer_lost", "tx_hash"), ("wrong_state", "tx_hash"), ("signer_lost", "signed_cbor")],
)
async def test_a_top_up_goes_on_after_a_restart_when_the_signer_was_lost(
    world: World, code: str, proof: Proof
) -> None:
    """The admitted payment is signed then and its proof is shown; otherwise the batch would be paid and lost."""
    world.settings(proof=proof)
    world.terms = with_topup(world, proof=proof)
    async with world.run(signer=LostSigner(world.account.signer, code)) as run:
        await run.run_pass()
        topup_id = (await order(run, COST)).id
        await run.topups.run_once()
        (payment,) = payments.payments_of_topup(run.context.conn, topup_id)
        assert (payment.state, run.topups.find(topup_id).state) == (State.RESERVED, "open")
    async with world.run() as run:
        await run.run_pass()
        assert (await carry_out(run, topup_id, seconds=12)).state == "done"
        (payment,) = payments.payments_of_topup(run.context.conn, topup_id)
        assert payment.delivery is Delivery.ACCEPTED
        assert balance(run).left == wallet_balance(world)["remaining"] == BATCH
        require_whole(run)


class TestFaults:
    async def test_an_unreachable_merchant_is_retried_until_the_top_up_times_out(self, world: World) -> None:
        gone = replace(world.terms, merchants={})
        terms = world.terms
        dead = "http://127.0.0.1:9"
        merchant = replace(terms.merchants[world.origin], origin=dead)
        async with world.run(terms=lambda _terms: replace(gone, merchants={dead: merchant})) as run:
            await run.run_pass()
            row, _ = await run.topups.order(APP, "k", TopupGoal(dead, "lovelace", COST))
            for _ in range(5):
                world.clock.ahead_ms += 400_000
                await run.settle_down()
                await run.topups.run_once()
            assert run.topups.find(row.id).state == "open"
            world.clock.ahead_ms += PATIENCE_MS
            await run.settle_down()
            ended = await carry_out(run, row.id)
            assert (ended.state, ended.problem) == ("stopped", "topup_stopped/timed_out")
            assert "merchant_unreachable" in (ended.detail or "")

    async def test_an_unavailable_merchant_is_retried_less_and_less_often(self, world: World) -> None:
        async with Peer().running() as peer:
            wall, away = Paywall(price=10 * ADA), saying(b"HTTP/1.1 503 Away\r\nContent-Length: 0\r\n\r\n")
            asked = 0

            async def answer(heard: Heard) -> None:
                nonlocal asked
                asked += 1
                await (away if asked < 8 else wall)(heard)

            peer.answers["/topup"] = answer
            request = TopupSource("POST", "/topup", "")
            known = next(iter(world.terms.merchants.values()))
            merchant = replace(known, origin=peer.url, topup_request=request)
            async with world.run(terms=with_terms(merchants={peer.url: merchant})) as run:
                await run.run_pass()
                world.clock.stop()
                row, _ = await run.topups.order(APP, "k", TopupGoal(peer.url, "lovelace", 10 * ADA))
                counts = []
                for _ in range(12):
                    await go_round(run)
                    counts.append(asked)
                    world.clock.ahead_ms += 10_000
                assert counts == [1, 2, 3, 4, 5, 5, 6, 6, 6, 6, 7, 7]
                assert (await carry_out(run, row.id, seconds=10)).state == "done"

    async def test_repeated_expired_invoices_stop_a_top_up(self, world: World) -> None:
        world.settings(timeout=60)
        async with world.run() as run:
            await run.run_pass()
            row = await carry_out(run, (await order(run, COST)).id, seconds=300)
            assert (row.state, row.problem) == ("stopped", "topup_stopped/request_refused")
            made = payments.payments_of_topup(run.context.conn, row.id)
            assert {one.problem.name for one in made} == {"invoice_expired"}
            assert len(made) == EXPIRED_MAX
            assert world.transactions() == []

    async def test_the_count_of_expired_invoices_starts_again_after_each_served_batch(self, world: World) -> None:
        async with world.run() as run:
            await run.run_pass()
            row = await order(run, 2 * COST)
            for served in (1, 2):
                world.settings(timeout=60)
                for _ in range(EXPIRED_MAX - 2):
                    await go_round(run)
                    world.clock.ahead_ms += 300_000
                world.settings(timeout=900)
                for _ in range(ROUNDS):
                    await go_round(run)
                    made = payments.payments_of_topup(run.context.conn, row.id)
                    if sum(one.delivery is Delivery.ACCEPTED for one in made) == served:
                        break
                    world.clock.ahead_ms += 10_000
            assert (await carry_out(run, row.id)).state == "done"
            assert sum(one.problem.name == "invoice_expired" for one in made) >= EXPIRED_MAX

    async def test_a_top_up_delayed_by_a_wrong_clock_goes_on_once_the_clock_is_right(self, apart: World) -> None:
        async with apart.run() as run:
            await run.run_pass()
            row = await order(run, COST)
            apart.clock.ahead_ms = 86_400_000
            await run.run_pass()
            await run.topups.run_once()
            assert not payments.payments_of_topup(run.context.conn, row.id), (
                "by the wrong clock the tip is too old"
            )
            apart.clock.ahead_ms = 0
            await run.run_pass()
            assert (await carry_out(run, row.id)).state == "done"

    async def test_a_clock_set_forward_does_not_expire_the_token_of_a_top_up(self, apart: World) -> None:
        async with apart.run() as run:
            await run.run_pass()
            await add_orderer(run, apart.clock.now_ms() + 3_600_000)
            row = await order_as_ops(run, COST)
            apart.clock.ahead_ms = 86_400_000
            await run.run_pass()
            await run.topups.run_once()
            assert run.topups.find(row.id).state == "open"
            apart.clock.ahead_ms = 0
            await run.run_pass()
            assert (await carry_out(run, row.id)).state == "done"

    async def test_a_batch_is_credited_even_if_the_merchants_answer_was_lost(self, world: World) -> None:
        """The merchant credited the batch and accepts no proof twice."""
        world.settings(replays="refuse")
        async with world.run() as run:
            await run.run_pass()
            row = await order(run, COST)
            await go_round(run)
            (payment,) = payments.payments_of_topup(run.context.conn, row.id)
            headers = {"X-Invoice-Id": payment.invoice.id or "", "X-Payment": payment.attempt.tx_id or ""}
            headers |= {"X-Partner": "demo", "X-Wallet-Address": world.address, "Content-Type": "application/json"}
            assert (
                world.http.post(f"{world.origin}/payments/topup", content="{}", headers=headers).status_code == 200
            )
            assert (await carry_out(run, row.id)).state == "done"
            assert balance(run).left == wallet_balance(world)["remaining"] == BATCH
            assert len(world.transactions()) == 1
            require_whole(run)

    async def test_a_batch_whose_payment_the_merchant_submits_is_bought_too(self, world: World) -> None:
        world.settings(proof="signed_cbor")
        world.terms = with_topup(world, proof="signed_cbor")
        async with world.run() as run:
            await run.run_pass()
            row = await carry_out(run, (await order(run, 2 * COST)).id, seconds=12)
            assert (row.state, row.problem) == ("done", None)
            assert balance(run).left == wallet_balance(world)["remaining"] == 2 * BATCH
            require_whole(run)

    async def test_a_batch_bought_just_before_the_top_up_times_out_is_still_delivered(self, world: World) -> None:
        """Otherwise a top-up that takes a day would pay its last batch for nothing."""
        async with world.run() as run:
            await run.run_pass()
            row = await order(run, 2 * COST)
            world.clock.ahead_ms += PATIENCE_MS - 60_000
            await run.settle_down()
            await run.topups.run_once()
            await run.agent.submitter.drain(60)
            world.clock.ahead_ms += 120_000
            await run.topups.run_once()
            ended = await carry_out(run, row.id)
            assert (ended.state, ended.problem) == ("stopped", "topup_stopped/timed_out")
            assert balance(run).left == wallet_balance(world)["remaining"] == BATCH
            assert len(world.transactions()) == 1
            require_whole(run)

    async def test_a_top_up_stops_when_an_external_spend_voids_its_payment(self, world: World) -> None:
        """The wallet is frozen until an operator unfreezes it, and the void payment cannot land any more."""
        async with world.run() as run:
            await run.run_pass()
            row = await order(run, COST)
            world.fault("submit", "drop", count=1)
            await run.topups.run_once()
            await run.agent.submitter.drain(60)
            (paid,) = payments.payments_of_topup(run.context.conn, row.id)
            nonce_utxo = next(one for one in queries.utxos(run.context.conn) if one.ref == paid.nonce_utxo)
            spend_elsewhere(run, 3 * ADA, utxo_of(nonce_utxo))
            await run.run_pass()
            await run.pass_time(5, 61)
            assert run.state(paid.id) is State.VOID
            await run.topups.run_once()
            ended = run.topups.find(row.id)
            assert (ended.state, ended.problem) == ("stopped", "external_spend")
            await unfreeze(run.context, APP)
            assert (await carry_out(run, (await order(run, COST, key="next")).id)).state == "done"
            require_whole(run)

    async def test_a_top_up_stops_when_funds_are_not_enough(self, world: World) -> None:
        world.settings(price=str(900 * ADA))
        async with world.run() as run:
            await run.run_pass()
            row = await carry_out(run, (await order(run, 903 * ADA)).id)
            assert (row.state, row.problem) == ("stopped", "not_enough_funds")
            assert alerts.last_kind(run.context.conn, f"topup:{row.pool_id}") is None, "no alert for a manual one"


def auto(world: World, **changes: object) -> None:
    level = replace(AutoTopup("calls", below=3, to=8, per_day_max=3), **changes)  # type: ignore[arg-type]
    world.terms = with_topup(world, auto_topup=level)


def kinds(run: Run) -> list[str]:
    """All alerts, oldest first."""
    return [told.kind for told in alerts.after(run.context.conn, 0)]


def noted(run: Run) -> list[tuple[str, str]]:
    """The events of the wallet itself, each with its alert id."""
    return run.context.conn.execute(
        "SELECT event, json_extract(detail, '$.alert') FROM events WHERE payment_id IS NULL ORDER BY seq"
    ).fetchall()


async def announce(run: Run) -> None:
    """The first run only announces the top-up that the next one orders."""
    await run.topups.run_once()
    assert kinds(run)[-1] == "topup_announced"


async def autos(run: Run, rounds: int = 6) -> list[TopupRow]:
    """The automatic top-ups after some rounds, oldest first."""
    for _ in range(rounds):
        await go_round(run)
    (pool,) = prepaid.all_pools(run.context.conn)
    return topups.autos_of(run.context.conn, pool.id)[::-1]


class TestAutomaticTopups:
    async def test_automatic_top_ups_are_off_unless_configured(self, world: World) -> None:
        async with world.run() as run:
            await run.run_pass()
            for _ in range(3):
                await go_round(run)
            assert not topups.page(run.context.conn, None, 10)

    async def test_the_first_automatic_top_up_is_announced_before_it_is_paid(
        self, world: World, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """In the log, as an alert and as an event: once, and again after its settings have changed."""
        auto(world)
        async with world.run() as run:
            await run.run_pass()
            await run.topups.run_once()
            (told,) = alerts.after(run.context.conn, 0)
            assert (told.kind, told.facts["left"], told.facts["below"], told.facts["to"]) == (
                *("topup_announced", "0", "3", "8"),
            )
            assert told.facts["merchant"] == world.origin
            assert noted(run)[-1] == ("alert", told.id)
            assert "topup.announced" in capsys.readouterr().out
            assert not topups.page(run.context.conn, None, 10)
        async with world.run() as run:
            await run.run_pass()
            assert (await autos(run, 12))[0].state == "done", "it was announced before the restart"
            assert kinds(run) == ["topup_announced", "cleared"]
            await know_price(run)
            for n in range(8):
                await run.agent.prepaid_calls.record_call(call(run, f"{n}"))
            await run.topups.run_once()
            assert len(topups.all_open(run.context.conn)) == 1, "the second is ordered at once"
            await autos(run, 12)
        auto(world, below=20, to=24)
        async with world.run() as run:
            await run.run_pass()
            await run.topups.run_once()
            assert not topups.all_open(run.context.conn)
            assert kinds(run) == ["topup_announced", "cleared", "topup_announced"]
            await run.topups.run_once()
            assert len(topups.all_open(run.context.conn)) == 1

    async def test_a_low_balance_is_raised_to_its_level_and_no_further(self, world: World) -> None:
        auto(world)
        async with world.run() as run:
            await run.run_pass()
            await know_price(run)
            (row,) = await autos(run, 12)
            assert (row.trigger, row.unit, row.units, row.state) == ("auto", "calls", 8, "done")
            assert balance(run).left == 8
            for n in range(5):
                await run.agent.prepaid_calls.record_call(call(run, f"{n}"))
            assert balance(run).left == 3
            assert await autos(run) == [row], "3 are not below 3"
            await run.agent.prepaid_calls.record_call(call(run, "last"))
            _, second = await autos(run, 12)
            assert (second.units, second.state) == (6, "done")
            assert balance(run).left == 10
            require_whole(run)

    async def test_a_lower_balance_reported_by_the_merchant_triggers_a_top_up(self, world: World) -> None:
        auto(world)
        async with world.run() as run:
            await run.run_pass()
            await autos(run, 12)
            for n in range(6):
                assert world.call(f"past payagent {n}").status_code == 200
            assert len(await autos(run)) == 1, "the merchant has not been polled"
            world.clock.ahead_ms += 700_000
            await run.settle_down()
            await run.chain_sync.merchant_polling.observe_prepaid()
            _, second = await autos(run, 12)
            assert (second.units, second.state) == (6, "done")
            assert wallet_balance(world)["remaining"] == 10

    async def test_automatic_top_ups_per_day_are_limited(self, world: World) -> None:
        auto(world, per_day_max=2, to=4)
        async with world.run() as run:
            await run.run_pass()
            await know_price(run)
            for day in range(2):
                await autos(run, 8)
                for n in range(4):
                    await run.agent.prepaid_calls.record_call(call(run, f"{day} {n}"))
            assert len(await autos(run)) == 2
            world.clock.ahead_ms += 86_400_000
            await run.settle_down()
            assert len(await autos(run)) == 3

    @pytest.mark.parametrize("fails", [False, True])
    async def test_a_clock_set_forward_triggers_no_automatic_top_up(self, world: World, fails: bool) -> None:
        """The day, and the wait after a failure, are measured by chain time."""
        auto(world, per_day_max=1, to=4)
        limits = daily(5 * ADA, 5 * ADA) if fails else world.terms.limits
        async with world.run(terms=with_terms(limits=limits)) as run:
            await run.run_pass()
            await know_price(run)
            await autos(run, 8)
            for n in range(0 if fails else 4):
                await run.agent.prepaid_calls.record_call(call(run, f"{n}"))
            world.clock.ahead_ms += 3 * 86_400_000
            for _ in range(3):
                await run.topups.run_once()
            (row,) = topups.page(run.context.conn, None, 10)
            assert row.state == ("stopped" if fails else "done")
            await run.settle_down()
            await run.topups.run_once()
            assert len(topups.page(run.context.conn, None, 10)) == 2

    async def test_a_merchant_report_made_while_the_clock_was_ahead_triggers_no_top_up(self, apart: World) -> None:
        apart.terms = with_topup(apart, auto_topup=AutoTopup("calls", 2, BATCH, 5))
        async with apart.run() as run:
            await run.run_pass()
            for _ in range(8):
                await go_round(run)
            assert balance(run).left == BATCH
            (pool,) = prepaid.all_pools(run.context.conn)
            apart.clock.ahead_ms = 86_400_000
            said = prepaid.Observation(
                *("balance", 200, "{}", 1, None, None, "calls", None, None, apart.clock.now_ms())
            )
            await run.context.write("observe_prepaid", lambda unit: prepaid.add_observation(unit, pool.id, said))
            apart.clock.ahead_ms = 0
            for _ in range(8):
                await go_round(run)
            assert len(topups.autos_of(run.context.conn, pool.id)) == 1

    async def test_a_merchant_report_in_another_unit_triggers_no_top_up(self, world: World) -> None:
        auto(world, below=2, to=BATCH)
        async with world.run() as run:
            await run.run_pass()
            (row,) = await autos(run, 8)
            world.clock.ahead_ms += 1000
            said = prepaid.Observation(
                *("balance", 200, "{}", 1, None, None, "lovelace", None, None, world.clock.now_ms())
            )
            await run.context.write("observe", lambda unit: prepaid.add_observation(unit, row.pool_id, said))
            assert await autos(run) == [row]

    async def test_a_merchant_report_from_before_the_proof_was_shown_triggers_no_top_up(
        self, world: World
    ) -> None:
        """The merchant credits a payment when its proof is shown, but is polled as soon as it is confirmed."""
        auto(world, below=2, to=BATCH)
        async with world.run() as run:
            await run.run_pass()
            await announce(run)
            await go_round(run)
            world.clock.ahead_ms += 1000
            await run.chain_sync.merchant_polling.observe_prepaid()
            (pool,) = prepaid.all_pools(run.context.conn)
            told = prepaid.last_observation(run.context.conn, pool.id)
            assert told is not None
            assert (told.remaining, balance(run).left) == (0, BATCH)
            world.clock.ahead_ms += 1000
            (row,) = await autos(run, 8)
            assert row.state == "done"

    async def test_a_merchant_report_from_before_an_apps_own_purchase_triggers_no_top_up(
        self, world: World
    ) -> None:
        auto(world, below=2, to=BATCH)
        async with world.run() as run:
            await run.run_pass()
            paid = await run.pay()
            (pool,) = prepaid.all_pools(run.context.conn)
            await run.chain_sync.merchant_polling.observe_prepaid()
            told = prepaid.last_observation(run.context.conn, pool.id)
            assert told is not None
            assert told.remaining == 0
            world.clock.ahead_ms += 1000
            await run.settle_down()
            await run.agent.deliveries.record_delivery(paid.id, 200)
            assert await autos(run) == []

    async def test_cancelling_an_automatic_top_up_raises_no_alert(self, world: World) -> None:
        auto(world)
        async with world.run() as run:
            await run.run_pass()
            await announce(run)
            await run.topups.run_once()
            (row,) = topups.all_open(run.context.conn)
            await run.topups.cancel(row.id, APP)
            (row,) = await autos(run)
            assert (row.state, row.problem) == ("stopped", "topup_stopped/cancelled")
            assert alerts.last_kind(run.context.conn, f"topup:{row.pool_id}") is None

    async def test_the_wait_after_failed_automatic_top_ups_is_a_day_at_most(self, world: World) -> None:
        auto(world, per_day_max=99)
        async with world.run(terms=with_terms(limits=daily(5 * ADA, 5 * ADA))) as run:
            await run.run_pass()
            await announce(run)
            assert len(await autos(run, 2)) == 1
            for count, hours in enumerate((1, 2, 4, 8, 16, 24, 24), 2):
                world.clock.ahead_ms += hours * 3_600_000 + 60_000
                await run.settle_down()
                assert len(await autos(run, 2)) == count

    async def test_a_failed_automatic_top_up_raises_an_alert_and_each_next_wait_is_longer(
        self, world: World
    ) -> None:
        auto(world, per_day_max=9)
        limits = daily(5 * ADA, 5 * ADA)
        hour_ms = 3_600_000
        async with world.run(terms=with_terms(limits=limits)) as run:
            await run.run_pass()
            (row,) = await autos(run)
            assert (row.state, row.problem) == ("stopped", "limit_exceeded")
            subject = f"topup:{row.pool_id}"
            assert alerts.last_kind(run.context.conn, subject) == "topup_failed"
        async with world.run(terms=with_terms(limits=limits)) as run:
            await run.run_pass()
            for pause_ms, count in ((hour_ms - 60_000, 1), (120_000, 2), (hour_ms, 2), (hour_ms, 3)):
                world.clock.ahead_ms += pause_ms
                await run.settle_down()
                assert len(await autos(run, 3)) == count
        async with world.run() as run:
            await run.run_pass()
            world.clock.ahead_ms += 24 * hour_ms
            await run.settle_down()
            assert (await autos(run, 12))[-1].state == "done"
            assert alerts.last_kind(run.context.conn, subject) == "cleared"


async def know_price(run: Run) -> None:
    """Record a price, as if the merchant had asked for one before."""
    await run.context.write(
        "price", lambda unit: prepaid.note_price(unit, run.world.origin, "POST", "/chat", "lovelace", COST)
    )


@contextlib.asynccontextmanager
async def ada_prepaid(world: World, units: int, **terms: object) -> AsyncIterator[tuple[Run, ServedRequest]]:
    """A merchant that sold a still unconfirmed balance in ADA, and a request of another app for 2 ADA."""
    async with Peer().running() as peer:
        peer.answers["/topup"] = Paywall(price=units)
        request = TopupSource("POST", "/topup", "")
        known = next(iter(world.terms.merchants.values()))
        merchant = replace(known, origin=peer.url, topup_request=request, ready="submitted", **terms)  # type: ignore[arg-type]
        async with world.run(terms=with_terms(merchants={peer.url: merchant})) as run:
            await run.run_pass()
            row, _ = await run.topups.order(APP, "k", TopupGoal(peer.url, "lovelace", units))
            for _ in range(3):
                await run.topups.run_once()
                await run.agent.submitter.drain(60)
            assert run.topups.find(row.id).state == "done"
            price = (peer.url, "GET", "/call", "lovelace", 2 * ADA)
            await run.context.write("price", lambda unit: prepaid.note_price(unit, *price))
            scopes = ["pay"]
            await run.context.write(
                "app", lambda unit: apps.add_with_token(unit, "app_two", "two", "1" * 64, scopes, 1)
            )
            yield run, ServedRequest("app_two", peer.url, Buyer("demo", world.address), "GET", "/call", None)


async def limit_of_two(run: Run, units: int) -> None:
    await set_limits(run.context, APP, "two", None, "lovelace", {Window.TOTAL: units})


async def serve(run: Run, theirs: ServedRequest, count: int) -> None:
    """Serve that many requests of the app from the balance."""
    for _ in range(count):
        use = await run.agent.prepaid_calls.let_through(theirs)
        await run.agent.prepaid_calls.record_call(theirs, use)


class TestUnusualMerchants:
    async def test_a_price_above_what_is_left_of_the_top_up_is_not_paid(self, world: World) -> None:
        async with world.run() as run:
            await run.run_pass()
            row = await order(run, 20 * ADA)
            await go_round(run)
            world.settings(price=str(60 * ADA))
            ended = await carry_out(run, row.id)
            assert (ended.state, ended.problem) == ("stopped", "topup_stopped/too_small")
            assert len(world.transactions()) == 1

    async def test_an_ada_balance_is_not_topped_up_with_batches_of_requests(self, world: World) -> None:
        """A batch of requests would not raise a balance in ADA, however many are bought."""
        auto(world, unit="lovelace", below=20 * ADA, to=26 * ADA)
        async with world.run() as run:
            await run.run_pass()
            (row,) = await autos(run, 12)
            assert (row.state, row.problem) == ("stopped", "topup_stopped/wrong_asset")
            assert not world.transactions()

    async def test_a_proof_that_the_merchant_refuses_is_shown_again_later(self, world: World) -> None:
        async with Peer().running() as peer:
            wall = Paywall(price=10 * ADA)
            refusals = 3

            async def answer(heard: Heard) -> None:
                nonlocal refusals
                if heard.header("x-payment") is not None and refusals:
                    refusals -= 1
                    await heard.read_body()
                    await heard.say(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                else:
                    await wall(heard)

            peer.answers["/topup"] = answer
            request = TopupSource("POST", "/topup", "")
            known = next(iter(world.terms.merchants.values()))
            merchant = replace(known, origin=peer.url, topup_request=request)
            async with world.run(terms=with_terms(merchants={peer.url: merchant})) as run:
                await run.run_pass()
                world.clock.stop()
                row, _ = await run.topups.order(APP, "k", TopupGoal(peer.url, "lovelace", 10 * ADA))
                for _ in range(4):
                    await go_round(run)
                assert refusals == 2, "not at every run"
                ended = await carry_out(run, row.id, seconds=30)
                assert (ended.state, ended.problem, refusals) == ("done", None, 0)
                assert len(world.transactions()) == 1

    async def test_a_merchant_can_bind_a_top_up_payment_to_the_request_headers(self, world: World) -> None:
        async with Peer().running() as peer:
            peer.answers["/topup"] = Binding(("content-type", "x-account", "x-wallet-address"))
            request = TopupSource("POST", "/topup", '{"calls": 1}')
            known = next(iter(world.terms.merchants.values()))
            merchant = replace(known, origin=peer.url, topup_request=request, request_commitment=True)
            async with world.run(terms=with_terms(merchants={peer.url: merchant})) as run:
                await run.run_pass()
                row, _ = await run.topups.order(APP, "k", TopupGoal(peer.url, "lovelace", 2 * ADA))
                await carry_out(run, row.id)
                ended = run.topups.find(row.id)
                (payment,) = payments.payments_of_topup(run.context.conn, row.id)
                assert (ended.problem, payment.invoice.commitment is not None) == (None, True)

    async def test_a_proof_that_the_merchant_keeps_refusing_is_shown_for_a_day(self, world: World) -> None:
        async with Peer().running() as peer:
            peer.answers["/topup"] = Paywall(
                price=10 * ADA, serve=saying(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            )
            request = TopupSource("POST", "/topup", "")
            known = next(iter(world.terms.merchants.values()))
            merchant = replace(known, origin=peer.url, topup_request=request)
            async with world.run(terms=with_terms(merchants={peer.url: merchant})) as run:
                await run.run_pass()
                row, _ = await run.topups.order(APP, "k", TopupGoal(peer.url, "lovelace", 10 * ADA))
                world.clock.ahead_ms += PATIENCE_MS - 60_000
                for hours in (0, 23, 1):
                    assert run.topups.find(row.id).state == "open"
                    world.clock.ahead_ms += hours * 3_600_000
                    await run.settle_down()
                    await go_round(run)
                ended = run.topups.find(row.id)
                assert (ended.state, ended.problem) == ("stopped", "topup_stopped/timed_out")
                assert "not_served_yet" in (ended.detail or "")
                assert len(world.transactions()) == 1

    @pytest.mark.parametrize("nth", [1, 2])
    async def test_a_top_up_is_done_after_a_crash_even_if_the_merchant_takes_no_proof_twice(
        self, world: World, nth: int
    ) -> None:
        """The merchant's acceptance is recorded before the daemon dies, so it need not be shown again."""
        async with Peer().running() as peer:
            wall = Paywall(price=10 * ADA)
            peer.answers["/topup"] = wall
            request = TopupSource("POST", "/topup", "")
            known = next(iter(world.terms.merchants.values()))
            terms = with_terms(merchants={peer.url: replace(known, origin=peer.url, topup_request=request)})
            killed = Killed("after delivery", nth)
            async with world.run(terms=terms, checkpoint=killed) as run:
                await run.run_pass()
                row, _ = await run.topups.order(APP, "k", TopupGoal(peer.url, "lovelace", 10 * ADA))
                for _ in range(3):
                    with contextlib.suppress(Refused):
                        await go_round(run)
            assert wall.served == 1
            wall.serve = saying(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            async with world.run(terms=terms) as run:
                await run.run_pass()
                assert (await carry_out(run, row.id)).state == "done"
                assert len(world.transactions()) == 1

    async def test_an_apps_limit_covers_an_ada_balance_before_confirmation_and_once_used_up(
        self, world: World
    ) -> None:
        """As with a balance in requests, the app's own limit applies then too."""
        async with ada_prepaid(world, 10 * ADA) as (run, theirs):
            await limit_of_two(run, 11 * ADA)
            for calls in (2, 3):
                await serve(run, theirs, calls)
                await run.settle_down()
            (held,) = prepaid.holdings(run.context.conn)
            assert (held.unit, held.balance.used, held.balance.left) == ("lovelace", 10 * ADA, 0)
            said = prepaid.Observation(
                *("balance", 200, "{}", 5 * ADA, None, None, "lovelace", None, None, world.clock.now_ms())
            )
            await run.context.write("observe", lambda unit: prepaid.add_observation(unit, held.pool.id, said))
            with pytest.raises(Refused, match=r"two's total limit leaves 1 ADA, this call takes 2 ADA"):
                await run.agent.prepaid_calls.let_through(theirs)

    async def test_a_false_price_uses_no_more_than_the_remaining_balance(self, world: World) -> None:
        """Otherwise a false price and one free request would use up everything bought from then on."""
        async with ada_prepaid(world, 10 * ADA) as (run, theirs):
            await run.settle_down()
            await limit_of_two(run, 15 * ADA)
            await serve(run, theirs, 1)
            price = (theirs.origin, theirs.method, theirs.path, "lovelace", 10**15)
            await run.context.write("price", lambda unit: prepaid.note_price(unit, *price))
            await serve(run, theirs, 1)
            (held,) = prepaid.holdings(run.context.conn)
            assert (held.balance.left, held.balance.unexplained) == (0, 0)

    async def test_a_request_for_more_than_is_left_also_draws_on_an_unconfirmed_top_up(self, world: World) -> None:
        """The merchant has already credited it; otherwise our count would exceed the merchant's."""
        async with ada_prepaid(world, 3 * ADA) as (run, theirs):
            await run.settle_down()
            await serve(run, theirs, 1)
            row, _ = await run.topups.order(APP, "more", TopupGoal(theirs.origin, "lovelace", 3 * ADA))
            for _ in range(3):
                await run.topups.run_once()
                await run.agent.submitter.drain(60)
            assert run.topups.find(row.id).state == "done"
            await serve(run, theirs, 1)
            await run.settle_down()
            (held,) = prepaid.holdings(run.context.conn)
            assert (held.balance.left, held.balance.unexplained) == (2 * ADA, 0)

    async def test_the_proof_of_a_paid_batch_is_shown_however_late_the_daemon_restarts(self, world: World) -> None:
        async with world.run() as run:
            await run.run_pass()
            row = await order(run, COST)
            await run.topups.run_once()
            await run.agent.submitter.drain(60)
            await run.settle_down()
        world.clock.ahead_ms += PATIENCE_MS
        world.block()
        async with world.run() as run:
            await run.run_pass()
            await run.topups.run_once()
            (payment,) = payments.payments_of_topup(run.context.conn, row.id)
            assert payment.delivery is not Delivery.NOT_PRESENTED
