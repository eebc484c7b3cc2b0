"""The agent enforces limits for every app, merchant and asset, whatever the clocks say."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kit.agent import ADA, APP, World, daily, with_terms, world_with_clock

from payagent.agent.base.config import MerchantConfig
from payagent.agent.base.prepaid import Buyer, ServedRequest
from payagent.agent.operator.limits import LimitStatus, set_limits, standing
from payagent.core.payment.machine import State
from payagent.core.policy import WALLET, Scope, Window, limits_of
from payagent.core.problems import Refused
from payagent.daemon.compose import make_config
from payagent.devnet.decode import decode_tx
from payagent.devnet.server import DevnetThread
from payagent.log import Redactor
from payagent.settings.loading import load_settings
from payagent.store.db.unit import Unit
from payagent.store.rows import apps, limit_counters, payments
from payagent.store.rows.apps import AppRow

COST = 13 * ADA
DAY_MS = 86_400_000
TOKEN = "ab" * 28 + b"RIDE".hex()


def left(stands: list[LimitStatus], window: Window) -> int | None:
    (found,) = [one.left_units for one in stands if one.limit.window is window]
    return found


async def refusal(run: object, message: str, **more: object) -> Refused:
    with pytest.raises(Refused) as refused:
        await run.pay(message, **more)  # type: ignore[attr-defined]
    return refused.value


@pytest.mark.parametrize("window", [Window.HOUR, Window.DAY, Window.WEEK, Window.MONTH, Window.TOTAL])
async def test_a_refusal_by_any_window_says_what_is_left_and_when_room_frees_up(
    world: World, window: Window
) -> None:
    world.fund(*[50 * ADA] * 3)
    limits = (*world.terms.limits, *limits_of("lovelace", {window: 20 * ADA}))
    async with world.run(terms=with_terms(limits=limits)) as run:
        paid = await run.pay_in_block("first")
        spent = COST + (paid.attempt.fee_lovelace or 0)
        refused = await refusal(run, "second")
        assert (refused.code, refused.context["limit"]) == ("limit_exceeded", window)
        assert refused.context["left"] == str(20 * ADA - spent)
        assert (refused.context["frees_at"] is None) == (window is Window.TOTAL)


async def test_a_limit_refusal_says_whether_the_stated_amount_includes_the_fee(world: World) -> None:
    world.fund(50 * ADA)
    for most, takes in ((COST - 1, "takes 13 ADA and its fee"), (COST, r"takes 13\.\d+ ADA with its fee")):
        limits = limits_of("lovelace", {Window.PAYMENT: most, Window.DAY: 100 * ADA})
        async with world.run(terms=with_terms(limits=limits)) as run:
            await run.run_pass()
            assert re.search(takes, (await refusal(run, "dear")).detail)


async def test_a_payment_over_the_hard_cap_only_by_its_fee_is_refused_before_anything_is_held(
    world: World,
) -> None:
    world.fund(50 * ADA)
    async with world.run(terms=with_terms(caps={"lovelace": COST})) as run:
        await run.run_pass()
        detail = (await refusal(run, "dear")).detail
        assert re.search(r"one transaction may take 13 ADA .*, this one takes 13\.\d+ ADA with its fee", detail)
        assert not payments.payments_in(run.context.conn, [State.RESERVED])


async def test_limits_and_amounts_spent_survive_a_restart(world: World) -> None:
    world.fund(*[50 * ADA] * 3)
    async with world.run() as run:
        await run.pay_in_block("first")
        await set_limits(run.context, APP, None, None, "lovelace", {Window.DAY: 20 * ADA})
        before = standing(run.context)
    async with world.run() as run:
        assert standing(run.context) == before  # before any block was seen
        await run.run_pass()
        assert left(standing(run.context), Window.DAY) == left(before, Window.DAY)
        assert (await refusal(run, "second")).context["limit"] == "per_day"


@pytest.mark.parametrize("jump_ms", [-2 * DAY_MS, 2 * DAY_MS, 400 * DAY_MS])
async def test_a_clock_jump_frees_no_room_in_a_limit(world: World, jump_ms: int) -> None:
    world.fund(*[50 * ADA] * 3)
    async with world.run(terms=with_terms(limits=daily(1000 * ADA, 20 * ADA))) as run:
        await run.pay_in_block("first")
        before = left(standing(run.context), Window.DAY)
        world.clock.ahead_ms += jump_ms
        await run.settle_down()
        assert (await refusal(run, "while the clock is wrong")).code in (
            "chain_not_ready",
            "clock_skew",
            "invoice_expired",
        )
        assert left(standing(run.context), Window.DAY) == before
        world.clock.ahead_ms -= jump_ms
        await run.settle_down()
        assert (await refusal(run, "when the clock is right again")).code == "limit_exceeded"
        assert left(standing(run.context), Window.DAY) == before


async def test_an_expired_token_stays_expired_when_the_clock_is_set_back(tmp_path: Path) -> None:
    with world_with_clock(tmp_path) as world:
        world.fund(*[50 * ADA] * 2)
        async with world.run() as run:
            conn, end_ms = run.context.conn, world.clock.now_ms() + 60_000
            bot = AppRow("app_bot", "bot", frozenset({"pay"}), None, None)

            def job(unit: Unit) -> None:
                apps.add(unit, bot, APP, 1)
                apps.give_token(unit, bot.id, "b" * 64, end_ms, APP, 1)

            await run.context.write("app", job)
            assert apps.by_token(conn, "b" * 64, world.clock.now_ms()) == bot
            world.clock.ahead_ms += 120_000
            await run.settle_down()
            await run.pay("by another")
            world.clock.ahead_ms -= 3_600_000
            assert apps.by_token(conn, "b" * 64, world.clock.now_ms()) is None
            assert apps.has_ended(conn, bot.id, world.clock.now_ms())


async def test_a_block_from_the_future_frees_no_room_in_a_limit(world: World) -> None:
    """A provider alone cannot move the time of limits: a tip in the future of the local clock is refused."""
    world.fund(*[50 * ADA] * 3)
    async with world.run(terms=with_terms(limits=daily(1000 * ADA, 20 * ADA))) as run:
        await run.pay_in_block("first")
        before = left(standing(run.context), Window.DAY)
        tip = run.context.chain.tip
        assert tip is not None
        run.context.chain.tip = replace(tip, slot=tip.slot + 3 * 86_400)
        assert (await refusal(run, "second")).code == "clock_skew"
        assert left(standing(run.context), Window.DAY) == before


async def test_the_min_ada_of_a_token_payment_counts_against_the_ada_limit(world: World) -> None:
    world.settings(asset=TOKEN, price="250", splits=[])
    world.fund(*[20 * ADA] * 3, assets={TOKEN: 1000})
    limits = daily(1000 * ADA, 3 * ADA) + daily(300, 1000, TOKEN)
    async with world.run(terms=with_terms(limits=limits)) as run:
        paid = await run.pay_in_block("first")
        totals = limit_counters.totals(run.context.conn, WALLET)
        assert totals[TOKEN] == 250
        assert totals["lovelace"] > ADA + (paid.attempt.fee_lovelace or 0)
        await run.pay("second")
        refused = await refusal(run, "third")
        assert (refused.context["limit"], refused.context["asset"]) == ("per_day", "lovelace")
        assert limit_counters.totals(run.context.conn, WALLET)[TOKEN] == 500


@pytest.mark.parametrize("has_own", [False, True])
async def test_min_ada_is_limited_for_an_app_that_may_pay_only_in_a_token(world: World, has_own: bool) -> None:
    """The app's own ADA limit applies, or else the wallet's. The output carries exactly the min-ADA."""
    world.settings(asset=TOKEN, price="2", splits=[])
    world.fund(*[20 * ADA] * 4, assets={TOKEN: 1000})
    limits = daily(1000 * ADA, 5 * ADA) + daily(300, 1000, TOKEN)
    async with world.run(terms=with_terms(limits=limits)) as run:
        await run.run_pass()

        def job(unit: Unit) -> None:
            apps.add(unit, AppRow("app_two", "two", frozenset({"pay"}), None, frozenset({TOKEN})), APP, 1)

        await run.context.write("app", job)
        await set_limits(run.context, APP, "two", None, TOKEN, {Window.TOTAL: 1000})
        if has_own:
            await set_limits(run.context, APP, "two", None, "lovelace", {Window.TOTAL: 3 * ADA})
        asks = [replace(world.ask(f"call {n}", key=f"k{n}"), app_id="app_two") for n in range(4)]
        row, _ = await run.agent.pay(asks[0])
        least = 160 + decode_tx(row.attempt.cbor or b"").output_sizes_bytes[0]
        held = payments.hold(run.context.conn, row.id)
        assert held == {TOKEN: 2, "lovelace": least * 4310 + (row.attempt.fee_lovelace or 0)}
        answers = [await asyncio.gather(run.agent.pay(ask), return_exceptions=True) for ask in asks[1:]]
        context = next(one for (one,) in answers if isinstance(one, Refused)).context
        assert (context["asset"], context["limit"], context.get("app")) == (
            ("lovelace", "total", "two") if has_own else ("lovelace", "per_day", None)
        )


@pytest.mark.parametrize("door", ["pay", "use"])
async def test_the_commit_refuses_an_app_whose_token_was_revoked_meanwhile(world: World, door: str) -> None:
    """The token is checked again in the commit, however long ago the request was authorized."""
    world.fund(50 * ADA, 50 * ADA)
    world.settings(batch=4)
    async with world.run() as run:
        await run.pay_in_block("a batch")

        def job(unit: Unit) -> None:
            apps.add(unit, AppRow("app_two", "two", frozenset({"pay"}), None, None), APP, 1)
            apps.give_token(unit, "app_two", "2" * 64, None, APP, 1)

        await run.context.write("app", job)
        await set_limits(run.context, APP, "two", None, "lovelace", {Window.TOTAL: 40 * ADA})
        await run.context.write("app", lambda unit: apps.revoke(unit, "app_two", APP, 2))
        theirs = replace(world.ask("theirs", key="k"), app_id="app_two")
        call = ServedRequest("app_two", world.origin, Buyer("demo", world.address), "POST", "/chat", None)
        with pytest.raises(Refused, match="unauthorized"):
            await (run.agent.pay(theirs) if door == "pay" else run.agent.prepaid_calls.let_through(call))
        assert limit_counters.totals(run.context.conn, Scope("app_two")) == {}


@pytest.fixture
def mall(tmp_path: Path) -> Iterator[World]:
    """A world with five merchants."""
    with DevnetThread(merchants=5) as devnet:
        world = World(devnet, tmp_path)
        origins = list(devnet.devnet.merchants)
        terms = (MerchantConfig(f"m{n}", origin, "demo", None, "confirmed", 5) for n, origin in enumerate(origins))
        world.terms = replace(world.terms, merchants={one.origin: one for one in terms})
        yield world
        world.http.close()


async def test_many_small_payments_to_many_merchants_stay_within_the_wallets_limit(mall: World) -> None:
    mall.fund(*[20 * ADA] * 20)
    origins = list(mall.terms.merchants)
    at_each = limits_of("lovelace", {"per_day": 5 * ADA}, Scope(merchant=origins[0]))
    limits = (*daily(2 * ADA, 9 * ADA), *at_each)
    async with mall.run(terms=with_terms(limits=limits)) as run:
        await run.run_pass()
        asks = [_small(mall, origin, n) for n in range(4) for origin in origins]
        answers = await asyncio.gather(*(run.agent.pay(ask) for ask in asks), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, Refused)]
        assert {one.code for one in refused} == {"limit_exceeded"}
        await run.agent.submitter.drain(60)
        spent = limit_counters.totals(run.context.conn, WALLET)["lovelace"]
        assert 9 * ADA - 2 * ADA < spent <= 9 * ADA
        by_merchant = [limit_counters.totals(run.context.conn, Scope(merchant=origin)) for origin in origins]
        assert sum(one.get("lovelace", 0) for one in by_merchant) == spent


def _small(world: World, origin: str, number: int) -> object:
    world.http.post(f"{origin}/merchant/settings", json={"price": "1000000", "splits": []}).raise_for_status()
    sent = {"X-Partner": "demo", "X-Wallet-Address": world.address}
    answer = world.http.post(f"{origin}/chat", json={"message": f"call {number}"}, headers=sent)
    return replace(world.ask_of(answer, key=f"{origin} {number}"), origin=origin)


async def test_a_merchants_limit_applies_only_to_that_merchant(mall: World) -> None:
    mall.fund(*[20 * ADA] * 10)
    first, second, *_ = mall.terms.merchants
    limits = (*mall.terms.limits, *limits_of("lovelace", {"per_day": 2 * ADA}, Scope(merchant=first)))
    async with mall.run(terms=with_terms(limits=limits)) as run:
        await run.run_pass()
        await run.agent.pay(_small(mall, first, 1))  # type: ignore[arg-type]
        with pytest.raises(Refused) as refused:
            await run.agent.pay(_small(mall, first, 2))  # type: ignore[arg-type]
        assert (refused.value.context["merchant"], refused.value.context["limit"]) == (first, "per_day")
        await run.agent.pay(_small(mall, second, 1))  # type: ignore[arg-type]


async def test_a_merchants_limit_from_the_config_file_is_enforced(world: World) -> None:
    world.fund(*[20 * ADA] * 4)
    path = world.folder / "config.toml"
    path.write_text(
        f'network = "devnet"\n[[chain.providers]]\nkind = "blockfrost"\nbase_url = "{world.devnet.chain_url}"\n'
        f'[merchants.shop]\norigin = "{world.origin}"\npartner = "demo"\n'
        '[merchants.shop.limits]\nper_day = "20 ADA"\n'
    )
    settings = load_settings(path, {"HOME": str(world.folder)})
    world.terms = make_config(settings, world.terms.own, Redactor())
    async with world.run() as run:
        await run.run_pass()
        await run.pay("a")
        refused = await refusal(run, "b")
    assert (refused.code, refused.context["limit"]) == ("limit_exceeded", "per_day")
    assert refused.context["merchant"] == world.origin


async def test_apps_share_the_wallets_limit_but_not_each_others_limits(world: World) -> None:
    world.fund(*[50 * ADA] * 5)
    async with world.run(terms=with_terms(limits=daily(1000 * ADA, 45 * ADA))) as run:
        await run.run_pass()
        await run.context.write(
            "app", lambda unit: apps.add_with_token(unit, "app_two", "two", "1" * 64, ["pay"], 1)
        )
        await set_limits(run.context, APP, "two", None, "lovelace", {Window.DAY: 20 * ADA})
        ours = [world.ask(f"ours {n}", key=f"k{n}") for n in range(3)]
        theirs = [replace(world.ask(f"theirs {n}", key=f"k{n}"), app_id="app_two") for n in range(2)]
        await run.agent.pay(theirs[0])
        with pytest.raises(Refused) as refused:
            await run.agent.pay(theirs[1])
        assert (refused.value.context["app"], refused.value.context["limit"]) == ("two", "per_day")
        await run.agent.pay(ours[0])
        await run.agent.pay(ours[1])
        with pytest.raises(Refused) as refused:
            await run.agent.pay(ours[2])
        assert "app" not in refused.value.context
        assert refused.value.context["limit"] == "per_day"


async def test_a_payment_in_flight_counts_against_limits_however_long_it_takes(tmp_path: Path) -> None:
    """Two payments that land in the same minute count in the same hour, whenever they were requested."""
    with world_with_clock(tmp_path) as world:
        world.settings(timeout=7200)
        world.fund(*[50 * ADA] * 3)
        limits = (*daily(1000 * ADA, 1000 * ADA), *limits_of("lovelace", {Window.HOUR: 20 * ADA}))
        async with world.run(terms=with_terms(limits=limits)) as run:
            await run.run_pass()
            world.fault("submit", "drop")
            await run.pay("first")
            for _ in range(9):
                world.clock.ahead_ms += 450_000
                await run.settle_down()
            refused = await refusal(run, "an hour later, and the first is in no block yet")
            assert (refused.code, refused.context["limit"]) == ("limit_exceeded", "per_hour")
            world.control("faults", clear=True)
            await run.pass_time(4, seconds=300)
            assert len(world.transactions()) == 1
            assert (await refusal(run, "soon after it landed")).context["limit"] == "per_hour"
            world.clock.ahead_ms += 4_000_000
            await run.settle_down()
            await run.pay("an hour after it landed")
