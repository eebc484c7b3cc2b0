"""Prepaid balances through real payments: credited at confirmation, used per request, reversed by a rollback."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kit.agent import ADA, Run, World, with_terms, world_apart, world_with_clock
from kit.payments import BadSigner
from kit.prepaid import balance, call, require_whole

from payagent.agent.base.prepaid import ServedRequest
from payagent.agent.base.requests import Approver, MerchantRequest
from payagent.agent.operator.limits import set_limits
from payagent.core.changes import MovePrepaid
from payagent.core.ledger import merchant_account, prepaid_account
from payagent.core.payment.machine import Delivery, State
from payagent.core.policy import Scope, Window
from payagent.core.prepaid_balance import CALLS, PrepaidBalance
from payagent.core.problems import Refused
from payagent.dialects import make_response
from payagent.store.db.unit import Unit
from payagent.store.rows import apps, limit_counters, payments, prepaid

PRICE = 10 * ADA
SHARES = 3 * ADA
SOMEBODY = Approver("token", "app_test")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A devnet whose clock the test moves."""
    with world_with_clock(tmp_path) as world:
        yield world


@pytest.fixture
async def run(world: World):  # type: ignore[no-untyped-def]
    world.fund(*[100 * ADA] * 4)
    world.settings(batch=4)
    async with world.run() as run:
        await run.run_pass()
        yield run


async def test_a_batch_is_credited_at_confirmation_and_used_request_by_request(run: Run) -> None:
    row = await run.pay("first")
    (coming,) = prepaid.holdings(run.context.conn)
    assert (coming.coming, coming.balance) == (4, PrepaidBalance())
    await run.settle_down()
    assert (balance(run).bought, balance(run).left) == (4, 4)
    assert run.books()[prepaid_account(run.world.origin)] == {"lovelace": PRICE + SHARES}
    await run.agent.deliveries.record_delivery(row.id, 200)
    await run.agent.deliveries.record_delivery(row.id, 200)
    assert balance(run).used == 1, "a proof shown again is the same request"
    for _ in range(3):
        await run.agent.prepaid_calls.record_call(call(run))
    assert (balance(run).left, balance(run).unexplained) == (0, 0)
    assert run.books().get(prepaid_account(run.world.origin)) is None
    assert run.books()[merchant_account(run.world.origin)] == {"lovelace": PRICE + SHARES}
    await run.agent.prepaid_calls.record_call(call(run))
    assert (balance(run).used, balance(run).unexplained) == (4, 1)
    require_whole(run)


async def test_only_requests_with_a_known_price_use_the_balance_and_each_key_counts_once(run: Run) -> None:
    await run.pay_in_block("first")
    await run.agent.prepaid_calls.record_call(call(run, path="/health"))
    await run.agent.prepaid_calls.record_call(call(run, partner="another"))
    assert balance(run).used == 0
    await run.agent.prepaid_calls.record_call(call(run, key="k1"))
    await run.agent.prepaid_calls.record_call(call(run, key="k1"))
    assert balance(run).used == 1
    require_whole(run)


async def test_a_rollback_removes_a_batch_from_the_balance_until_it_is_confirmed_again(run: Run) -> None:
    row = await run.pay_in_block("first")
    await run.agent.deliveries.record_delivery(row.id, 200)
    await run.agent.prepaid_calls.record_call(call(run))
    had = balance(run)
    assert (had.bought, had.used) == (4, 2)
    run.world.control("rollback", depth=1)
    run.world.block(2)
    run.world.fault("submit", "drop")
    await run.run_pass()
    assert run.state(row.id) is State.IN_FLIGHT
    assert (balance(run).bought, balance(run).used, balance(run).unexplained) == (0, 0, 2)
    assert not {prepaid_account(run.world.origin), merchant_account(run.world.origin)} & run.books().keys()
    require_whole(run, in_flight=True)
    run.world.control("faults", clear=True)
    run.world.clock.ahead_ms += 100_000
    await run.pass_time(4)
    assert run.state(row.id) is State.CONFIRMED
    assert balance(run) == had
    require_whole(run)


async def test_only_one_batch_is_bought_at_a_time(run: Run) -> None:
    asks = [run.world.ask(f"call {n}") for n in range(5)]
    results = await asyncio.gather(*(run.agent.pay(ask) for ask in asks), return_exceptions=True)
    refused = [one for one in results if isinstance(one, Refused)]
    assert (len(refused), {one.code for one in refused}) == (4, {"batch_in_progress"})
    (row,) = [one[0] for one in results if isinstance(one, tuple)]
    assert all(one.context["payment"] == row.id for one in refused)
    assert not run.context.metrics.purchases_refused, "each may simply be tried again"
    await run.agent.submitter.drain(60)
    await run.settle_down()
    with pytest.raises(Refused, match="batch_in_progress"):
        await run.agent.pay(run.world.ask("too early: the merchant has not credited it"))
    served = run.world.call("call 0", headers=headers(run, row.id))
    assert served.status_code == 200, served.text
    await run.agent.deliveries.record_delivery(row.id, 200)
    assert run.world.call("call 1").status_code == 200, "it is served from the batch"
    assert len(run.world.transactions()) == 1


async def test_a_batch_served_while_the_clock_was_ahead_does_not_block_the_next(tmp_path: Path) -> None:
    with world_apart(tmp_path) as world:
        world.fund(*[100 * ADA] * 2)
        world.settings(batch=4)
        async with world.run() as run:
            await run.run_pass()
            row = await run.pay("first")
            await run.settle_down()
            world.clock.ahead_ms = 86_400_000
            await run.agent.deliveries.record_delivery(row.id, 200)
            world.clock.ahead_ms = 0
            assert (await run.pay("second")).id != row.id


async def test_a_batch_whose_proof_is_never_shown_blocks_the_next_only_for_a_while(run: Run) -> None:
    await run.pay_in_block("never shown")
    with pytest.raises(Refused, match="batch_in_progress"):
        await run.pay("second")
    await run.pass_time(30)
    with pytest.raises(Refused, match="batch_in_progress"):
        await run.pay("the invoice is over, and the merchant may still credit what is on the chain")
    await run.pass_time(30)
    second = await run.pay("second")
    assert second.state is State.IN_FLIGHT


async def test_a_batch_in_a_block_blocks_the_next_even_after_its_invoice_has_expired(world: World) -> None:
    """It is paid and the merchant may still credit it, so a second batch would be wasted."""
    world.fund(*[100 * ADA] * 4)
    world.settings(batch=4, timeout=150)
    async with world.run(terms=with_terms(confirm_depth=3)) as run:
        row = await run.pay_in_block("first")
        assert run.state(row.id) is State.IN_BLOCK
        world.clock.ahead_ms += 160_000
        await run.run_pass()
        with pytest.raises(Refused, match="batch_in_progress"):
            await run.pay("second")
        assert run.state(row.id) is State.IN_BLOCK


async def test_a_refusal_that_made_no_payment_is_recorded(run: Run) -> None:
    ask = run.world.ask("hello")
    elsewhere = type(ask)(**{**vars_of(ask), "origin": "https://elsewhere.example"})
    with pytest.raises(Refused, match="merchant_not_allowed"):
        await run.agent.pay(elsewhere)
    await run.agent.pay(ask)
    answer = run.world.call("hello")
    with pytest.raises(Refused, match="terms_changed"):
        await run.agent.pay(run.world.ask_of(answer, body=cheaper(answer.text)))
    rows = run.context.conn.execute("SELECT detail FROM events WHERE payment_id IS NULL AND event = 'refused'")
    told = [json.loads(detail) for (detail,) in rows]
    assert [one["code"] for one in told] == ["merchant_not_allowed", "terms_changed"]
    assert told[0]["origin"] == "https://elsewhere.example"
    assert "invoiceId" in told[1]["received"]
    await run.agent.submitter.drain(60)
    require_whole(run, in_flight=True)


def cheaper(text: str) -> str:
    return text.replace('"amountUnits":"10000000"', '"amountUnits":"9000000"')


async def test_a_402_refused_while_a_batch_is_in_progress_still_sets_the_price(run: Run) -> None:
    """The price of a request is known from its 402, even if the request then waits for another batch."""
    row = await run.pay("first")
    answer = run.world.http.post(
        f"{run.world.origin}/token-analysis",
        json={"token": "x"},
        headers={"X-Partner": "demo", "X-Wallet-Address": run.world.address},
    )
    ask = run.world.ask_of(answer)
    request = ask.request
    assert request is not None
    other = MerchantRequest("POST", "/token-analysis?full=1", request.body_sha256)
    heard = {"request": other, "heard_at_ms": run.world.clock.now_ms()}
    with pytest.raises(Refused, match="batch_in_progress"):
        await run.agent.pay(type(ask)(**{**vars_of(ask), **heard}))
    await run.settle_down()
    await run.agent.deliveries.record_delivery(row.id, 200)
    await run.agent.prepaid_calls.record_call(call(run, path="/token-analysis"))
    assert balance(run).used == 2


async def test_an_unpaid_402_sets_a_price_only_if_the_daemon_received_it_itself(run: Run) -> None:
    """Otherwise an app could make a free request count against the limits of others."""
    await run.pay_in_block("first")
    ask = run.world.ask("second")
    assert ask.request is not None
    made_up = replace(ask, request=MerchantRequest("GET", "/health", ask.request.body_sha256), max_total_units=1)
    for refused in (made_up, replace(made_up, idempotency_key="k")):
        with pytest.raises(Refused):
            await run.agent.pay(refused)
    assert prepaid.price(run.context.conn, run.world.origin, "GET", "/health") is None
    heard = replace(made_up, heard_at_ms=run.world.clock.now_ms())
    with pytest.raises(Refused):
        await run.agent.pay(heard)
    assert prepaid.price(run.context.conn, run.world.origin, "GET", "/health") == ("lovelace", PRICE + SHARES)


async def test_a_402_forwarded_by_an_app_never_lowers_a_price(run: Run) -> None:
    """Otherwise an app could evade its own limit when it uses a balance in ADA."""
    told = []
    for name, ada in (("first", 2), ("second", 1), ("third", 3)):
        run.world.settings(price=str(ada * ADA), splits=[], batch=1)
        await run.pay(name)
        told.append(prepaid.price(run.context.conn, run.world.origin, "POST", "/chat"))
    assert told == [("lovelace", 2 * ADA), ("lovelace", 2 * ADA), ("lovelace", 3 * ADA)]
    asking = with_terms(approval_required_above={"lovelace": 3 * ADA})
    await run.context.take_config(asking(run.context.from_file), lambda unit: None)
    run.world.settings(price=str(5 * ADA))
    asked = await run.pay("fourth")
    assert prepaid.price(run.context.conn, run.world.origin, "POST", "/chat") == ("lovelace", 3 * ADA)
    await run.agent.decisions.approve(asked.id, SOMEBODY)
    assert prepaid.price(run.context.conn, run.world.origin, "POST", "/chat") == ("lovelace", 5 * ADA)


async def test_each_partner_has_its_own_prepaid_pool(run: Run) -> None:
    await run.pay("first")
    said = {"X-Partner": "other", "X-Wallet-Address": run.world.address}
    answer = run.world.call("second", headers=said)
    ask = run.world.ask_of(answer)
    request = ask.request
    assert request is not None
    named = MerchantRequest(
        request.method, request.path, request.body_sha256, {k.lower(): v for k, v in said.items()}
    )
    row, _ = await run.agent.pay(type(ask)(**{**vars_of(ask), "request": named}))
    assert row.state is not State.REJECTED
    assert [pool.partner for pool in prepaid.all_pools(run.context.conn)] == ["demo", "other"]


async def test_an_address_in_capitals_names_the_same_buyer(run: Run) -> None:
    """Otherwise an app that spells it so would use what others bought, outside its own limit."""
    await run.pay("first")
    said = {"x-partner": "demo", "x-wallet-address": run.world.address.upper()}
    ask = run.world.ask_of(run.world.call("second", headers={"X-Wallet-Address": said["x-wallet-address"]}))
    assert ask.request is not None
    ask = replace(ask, request=replace(ask.request, headers=said))
    with pytest.raises(Refused, match="batch_in_progress"):
        await run.agent.pay(ask)
    assert [pool.wallet for pool in prepaid.all_pools(run.context.conn)] == [run.world.address]


@pytest.mark.parametrize("wallet", ["w\u00fcst", "two\nlines", "a" * 256, " own", "own ", " "])
async def test_a_buyer_that_does_not_fit_in_a_header_is_refused(run: Run, wallet: str) -> None:
    ask = run.world.ask("first")
    assert ask.request is not None
    named = replace(ask.request, headers={"x-partner": "demo", "x-wallet-address": wallet})
    with pytest.raises(Refused, match="X-Wallet-Address must be at most 255 ASCII characters"):
        await run.agent.pay(replace(ask, request=named))
    assert not prepaid.all_pools(run.context.conn)


async def test_the_merchant_is_not_polled_for_a_buyer_until_something_is_paid(run: Run) -> None:
    """Otherwise each refused payment would add one more balance to poll for ever."""
    said = {"x-partner": "demo", "x-wallet-address": "of nobody"}
    answer = run.world.call("first", headers=said)
    ask = run.world.ask_of(answer, max_total_units=1)
    assert ask.request is not None
    ask = replace(ask, request=replace(ask.request, headers=said))
    with pytest.raises(Refused, match="limit_exceeded"):
        await run.agent.pay(ask)
    (pool,) = prepaid.all_pools(run.context.conn)
    await run.chain_sync.merchant_polling.observe_prepaid()
    assert prepaid.last_observation(run.context.conn, pool.id) is None
    await run.agent.pay(replace(ask, max_total_units=None, idempotency_key="paid"))
    await run.agent.submitter.drain(60)
    await run.settle_down()
    await run.chain_sync.merchant_polling.observe_prepaid()
    assert prepaid.last_observation(run.context.conn, pool.id) is not None


async def test_a_pool_that_cannot_be_polled_does_not_stop_polling_of_the_others(run: Run) -> None:
    """Such a pool may come from an older version, which did not refuse the name."""

    def job(unit: Unit) -> None:
        pool = prepaid.ensure_pool(unit, run.world.origin, "demo", "w\u00fcst", 1)
        empty, bought = PrepaidBalance(), PrepaidBalance(1, 0, 0, {})
        prepaid.record_move(unit, MovePrepaid(pool.id, pool.origin, CALLS, "buy", empty, bought), None, 1)

    await run.context.write("pool", job)
    await run.pay_in_block("first")
    await run.chain_sync.merchant_polling.observe_prepaid()
    told = {
        pool.wallet: prepaid.last_observation(run.context.conn, pool.id)
        for pool in prepaid.all_pools(run.context.conn)
    }
    assert {wallet for wallet, seen in told.items() if seen is not None} == {run.world.address}


def vars_of(ask: object) -> dict[str, object]:
    return {name: getattr(ask, name) for name in ask.__dataclass_fields__}  # type: ignore[attr-defined]


def headers(run: Run, payment_id: str) -> dict[str, str]:
    from payagent.agent.base.payment_view import retry_headers

    row = run.context.payment(payment_id)
    return retry_headers(row, run.context.config.merchants[run.world.origin], run.world.address)


async def test_the_merchants_report_is_stored_and_does_not_change_our_balance(run: Run) -> None:
    row = await run.pay_in_block("first")
    assert run.world.call("first", headers=headers(run, row.id)).status_code == 200
    await run.agent.deliveries.record_delivery(row.id, 200)
    await run.chain_sync.merchant_polling.observe_prepaid()
    (one,) = prepaid.holdings(run.context.conn)
    told = prepaid.last_observation(run.context.conn, one.pool.id)
    assert told is not None
    assert (told.source, told.remaining, told.total, told.why_not_understood) == ("balance", 3, 4, None)
    assert json.loads(told.body)["remaining"] == 3
    run.world.settings(balance_shape="nonsense")
    assert run.world.call("beside payagent").status_code == 200
    await run.agent.prepaid_calls.record_call(call(run))
    run.world.clock.ahead_ms += 1000
    await run.chain_sync.merchant_polling.observe_prepaid()
    told = prepaid.last_observation(run.context.conn, one.pool.id)
    assert told is not None
    assert (told.source, told.remaining, balance(run).left) == ("credits", 2, 2), "one path failed, not the other"
    assert run.world.call("beside payagent again").status_code == 200
    run.world.clock.ahead_ms += 600_000
    run.world.block()
    await run.chain_sync.merchant_polling.observe_prepaid()
    told = prepaid.last_observation(run.context.conn, one.pool.id)
    assert told is not None
    assert (told.remaining, balance(run).left) == (1, 2), "the merchant's number is stored beside our count"
    require_whole(run)


async def test_a_merchant_polled_while_the_clock_was_ahead_is_polled_again_once_it_is_right(
    tmp_path: Path,
) -> None:
    with world_apart(tmp_path) as world:
        world.fund(*[100 * ADA] * 2)
        world.settings(batch=4)
        async with world.run() as run:
            row = await run.pay_in_block("first")
            world.clock.ahead_ms = 86_400_000
            await run.chain_sync.merchant_polling.observe_prepaid()
            pool = row.prepaid.pool_id or 0
            before = prepaid.last_observation(run.context.conn, pool)
            assert run.world.call("first", headers=headers(run, row.id)).status_code == 200
            world.clock.ahead_ms = 0
            await run.chain_sync.merchant_polling.observe_prepaid()
            told = prepaid.last_observation(run.context.conn, pool)
            assert before is not None
            assert told is not None
            assert (before.remaining, told.remaining) == (0, 3)


async def test_uses_of_a_batch_stop_counting_against_the_app_when_its_payment_is_void(run: Run) -> None:
    """A rollback alone releases nothing, since the block may return; a void payment does."""
    row = await run.pay_in_block("first")
    await run.agent.deliveries.record_delivery(row.id, 200)
    await run.context.write("app", lambda unit: apps.add_with_token(unit, "app_two", "two", "1" * 64, ["pay"], 1))
    await run.agent.prepaid_calls.record_call(replace(call(run), app_id="app_two"))
    cost = {"lovelace": (PRICE + SHARES) // 4}
    assert limit_counters.totals(run.context.conn, Scope("app_two")) == cost
    run.world.control("rollback", depth=1)
    run.world.block(2)
    run.world.fault("submit", "drop")
    await run.run_pass()
    assert run.state(row.id) is State.IN_FLIGHT
    assert limit_counters.totals(run.context.conn, Scope("app_two")) == cost
    run.world.control("faults", clear=True)
    await run.agent.lifecycle.resolve(row.id, "app_test")
    await run.agent.submitter.drain(60)
    for _ in range(6):
        run.world.clock.ahead_ms += 61_000
        await run.settle_down()
    assert run.state(row.id) is State.VOID
    assert limit_counters.totals(run.context.conn, Scope("app_two")) == {}
    assert limit_counters.totals(run.context.conn, Scope("app_test"))["lovelace"] < ADA, "the fee of the cancel"
    require_whole(run)


async def test_uses_of_a_paid_batch_keep_counting_however_many_later_payments_are_void(run: Run) -> None:
    """Uses beyond what was bought count for no app, and are released only once."""
    first = await run.pay_in_block("first")
    await run.agent.deliveries.record_delivery(first.id, 200)
    await run.context.write("app", lambda unit: apps.add_with_token(unit, "app_two", "two", "1" * 64, ["pay"], 1))
    for _ in range(5):
        await run.agent.prepaid_calls.record_call(replace(call(run), app_id="app_two"))
    assert (balance(run).left, balance(run).unexplained) == (0, 2)
    told = []
    for name in ("second", "third"):
        run.world.clock.ahead_ms += 1000
        run.world.fault("submit", "drop", count=1)
        row = await run.pay(name)
        await run.agent.lifecycle.resolve(row.id, "app_test")
        await run.agent.submitter.drain(60)
        for _ in range(6):
            run.world.clock.ahead_ms += 61_000
            await run.settle_down()
        told.append((run.state(row.id), limit_counters.totals(run.context.conn, Scope("app_two"))))
    assert told == [(State.VOID, {"lovelace": (PRICE + SHARES) * 3 // 4})] * 2
    require_whole(run)


async def test_uses_of_a_pending_batch_count_even_if_the_batch_before_it_failed(
    run: Run,
) -> None:
    run.world.fault("submit", "drop")
    first = await run.pay("first")
    run.world.control("faults", clear=True)
    await run.agent.lifecycle.resolve(first.id, "app_test")
    await run.agent.submitter.drain(60)
    for _ in range(2):
        run.world.clock.ahead_ms += 61_000
        await run.settle_down()
    run.world.fault("submit", "drop")
    second = await run.pay("second")
    await run.context.write("app", lambda unit: apps.add_with_token(unit, "app_two", "two", "1" * 64, ["pay"], 1))
    for _ in range(2):
        await run.agent.prepaid_calls.record_call(replace(call(run), app_id="app_two"))
    for _ in range(3):
        run.world.clock.ahead_ms += 61_000
        await run.settle_down()
    assert (run.state(first.id), run.state(second.id)) == (State.VOID, State.IN_FLIGHT)
    assert limit_counters.totals(run.context.conn, Scope("app_two")) == {"lovelace": (PRICE + SHARES) // 2}


async def test_a_402_older_than_the_last_batch_buys_no_batch_whatever_was_refused_since(run: Run) -> None:
    old = replace(run.world.ask("old"), heard_at_ms=run.world.clock.now_ms())
    run.world.clock.ahead_ms += 1000
    row = await run.pay("first")
    await run.settle_down()
    await run.agent.deliveries.record_delivery(row.id, 200)
    run.world.clock.ahead_ms += 1000
    with pytest.raises(Refused, match="limit_exceeded"):
        await run.pay("limited", max_total_units=1)
    with pytest.raises(Refused, match="batch_in_progress"):
        await run.agent.pay(old)
    assert len(run.world.transactions()) == 1


async def test_the_next_batch_can_be_bought_once_the_merchant_served_even_if_a_client_hung_up(run: Run) -> None:
    """A client may hang up before it has the whole answer; others use the batch and buy the next one."""
    old = replace(run.world.ask("old"), heard_at_ms=run.world.clock.now_ms())
    run.world.clock.ahead_ms += 1000
    row = await run.pay("first")
    await run.settle_down()
    await run.agent.deliveries.take_answer(row.id, make_response(200, {}, ""))
    assert run.context.payment(row.id).delivery is Delivery.PRESENTED
    with pytest.raises(Refused, match="a batch was bought since"):
        await run.agent.pay(old)
    run.world.clock.ahead_ms += 1000
    assert (await run.pay("next")).state is State.IN_FLIGHT


async def test_uses_of_an_unconfirmed_batch_count_against_the_app_that_uses_it(run: Run) -> None:
    row = await run.pay("first")
    await run.context.write("app", lambda unit: apps.add_with_token(unit, "app_two", "two", "1" * 64, ["pay"], 1))
    await set_limits(run.context, "app_test", "two", None, "lovelace", {Window.TOTAL: (PRICE + SHARES) // 2})
    theirs = replace(call(run), app_id="app_two")
    for _ in range(2):
        use = await run.agent.prepaid_calls.let_through(theirs)
        await run.agent.prepaid_calls.record_call(theirs, use)
    with pytest.raises(Refused, match=r"two's total limit leaves 0 ADA, this call takes 3\.25 ADA of what was"):
        await run.agent.prepaid_calls.let_through(theirs)
    await run.settle_down()
    assert run.state(row.id) is State.CONFIRMED
    assert limit_counters.totals(run.context.conn, Scope("app_two")) == {"lovelace": (PRICE + SHARES) // 2}
    require_whole(run)


async def another_app(run: Run, most: int) -> ServedRequest:
    """A request of an app with its own limit, served from a balance that others paid for."""
    row = await run.pay_in_block("first")
    await run.agent.deliveries.record_delivery(row.id, 200)
    await run.context.write("app", lambda unit: apps.add_with_token(unit, "app_two", "two", "1" * 64, ["pay"], 1))
    await set_limits(run.context, "app_test", "two", None, "lovelace", {Window.TOTAL: most})
    run.world.clock.ahead_ms += 1000
    return replace(call(run), app_id="app_two")


async def use_up(run: Run, theirs: ServedRequest, most: int) -> int:
    """How often the app is served from the balance before its own limit refuses."""
    for served in range(most):
        try:
            use = await run.agent.prepaid_calls.let_through(theirs)
        except Refused:
            return served
        await run.agent.prepaid_calls.record_call(theirs, use)
    return most


@pytest.mark.parametrize("is_denied_first", [True, False])
async def test_a_pending_approval_counts_against_the_apps_limit_and_covers_no_uses(
    world: World, is_denied_first: bool
) -> None:
    """The app's limit counts the pending approval and the uses; a denial releases only the approval."""
    world.fund(*[100 * ADA] * 4)
    world.settings(batch=8, price=str(4 * ADA), splits=[], timeout=7200)
    small = replace(world.ask("small"), app_id="app_two")
    world.settings(price=str(13 * ADA))
    async with world.run() as run:
        theirs = await another_app(run, 5 * ADA)
        asking = with_terms(approval_required_above={"lovelace": 3 * ADA})
        await run.context.take_config(asking(run.context.from_file), lambda unit: None)
        asked, _ = await run.agent.pay(small)
        assert asked.state is State.AWAITING_APPROVAL
        if not is_denied_first:
            assert await use_up(run, theirs, 7) == 0
        await run.agent.decisions.deny(asked.id, SOMEBODY)
        assert await use_up(run, theirs, 7) == 3
        require_whole(run)


async def test_uses_count_again_when_the_payment_that_covered_them_is_rejected(world: World) -> None:
    """An app's own payment covers its uses meanwhile; once rejected, it covers nothing."""
    world.fund(*[100 * ADA] * 4)
    world.settings(batch=4, timeout=7200)
    second = replace(world.ask("second"), app_id="app_two")
    signer = BadSigner(world.account.signer, trouble="mended")
    async with world.run(signer=signer) as run:
        theirs = await another_app(run, 20 * ADA)
        signer.trouble = "fails"
        with pytest.raises(OSError, match="the signer is gone"):
            await run.agent.pay(second)
        (held,) = payments.payments_in(run.context.conn, [State.RESERVED])
        assert await use_up(run, theirs, 2) == 2, "covered by the hold for its own batch"
        held_units = payments.hold(run.context.conn, held.id)
        assert limit_counters.totals(run.context.conn, Scope("app_two")) == held_units
        await run.agent.lifecycle.resolve(held.id, "app_test")
        assert limit_counters.totals(run.context.conn, Scope("app_two")) == {"lovelace": (PRICE + SHARES) // 2}
        require_whole(run)


async def test_a_use_without_an_answer_stays_counted_after_a_restart(world: World) -> None:
    world.fund(100 * ADA)
    world.settings(batch=4)
    async with world.run() as run:
        row = await run.pay_in_block("first")
        await run.agent.deliveries.record_delivery(row.id, 200)
        await run.context.write(
            "app", lambda unit: apps.add_with_token(unit, "app_two", "two", "1" * 64, ["pay"], 1)
        )
        await set_limits(run.context, "app_test", "two", None, "lovelace", {Window.TOTAL: 4 * ADA})
        assert await run.agent.prepaid_calls.let_through(replace(call(run), app_id="app_two")) is not None
    async with world.run() as run:
        await run.run_pass()
        with pytest.raises(Refused, match="limit_exceeded"):
            await run.agent.prepaid_calls.let_through(replace(call(run), app_id="app_two"))
        require_whole(run)


async def test_an_apps_limit_also_applies_to_a_balance_that_only_the_merchant_reports(run: Run) -> None:
    """By our count the balance is used up, so a request costs the average of earlier ones."""
    await run.pay_in_block("first")
    for _ in range(4):
        await run.agent.prepaid_calls.record_call(call(run))
    assert balance(run).left == 0
    await run.context.write("app", lambda unit: apps.add_with_token(unit, "app_two", "two", "1" * 64, ["pay"], 1))
    await set_limits(run.context, "app_test", "two", None, "lovelace", {Window.TOTAL: 1})
    theirs = replace(call(run), app_id="app_two")
    use = await run.agent.prepaid_calls.let_through(theirs)
    assert use is None, "no balance is known, so the 402 decides"
    (pool,) = prepaid.all_pools(run.context.conn)
    told = prepaid.Observation("balance", 200, "{}", 5, 9, 4, None, None, None, run.world.clock.now_ms())
    await run.context.write("observe", lambda unit: prepaid.add_observation(unit, pool.id, told))
    with pytest.raises(Refused, match=r"this call takes 3\.25 ADA of what was prepaid"):
        await run.agent.prepaid_calls.let_through(theirs)
