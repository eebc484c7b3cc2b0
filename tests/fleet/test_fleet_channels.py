"""In a fleet, the daemon that holds a channel's account is the only one that promises and signs its vouchers.

The daemons of these tests share PostgreSQL, and have no processes.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path

import pytest
from fleetchannels import ChannelDaemon, channel_pair, fleet_shop, open_channel, settle, take_over
from kit.agent import ADA, APP
from kit.channel_calls import PRICE, Shop
from kit.postgresql import Server, needs_postgresql

from payagent.agent.channels.calls import FRESH_MS
from payagent.core.channel import CallState, ChannelPhase
from payagent.core.problems import Refused
from payagent.store.rows import fleet

pytestmark = needs_postgresql

Pair = tuple[ChannelDaemon, ChannelDaemon]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with fleet_shop(tmp_path) as shop:
        yield shop


@pytest.fixture
async def strangers(shop: Shop, postgresql: Server) -> AsyncIterator[Pair]:
    """Two daemons that have no channel yet."""
    async with channel_pair(shop, postgresql.new_database()) as (one, two):
        yield one, two
        one.ledger.require_whole()


@pytest.fixture
async def pair(strangers: Pair) -> Pair:
    """Two daemons. The first holds the account that has the channel."""
    await open_channel(*strangers)
    return strangers


async def refusal(asked: Awaitable[object]) -> Refused:
    with pytest.raises(Refused) as refused:
        await asked
    return refused.value


# --- the steps


async def test_either_daemon_opens_raises_and_closes_the_channel_and_its_holder_signs(strangers: Pair) -> None:
    one, two = strangers
    origin = one.shop.world.origin
    assert (await refusal(two.order("open", origin=origin, units=None, key="k"))).code == "channel_unoffered"
    assert (await refusal(two.pay("/channel/a"))).code == "channel_missing"
    opened = await two.order("open", origin=origin, units=None, key="k")
    assert (opened.account, opened.phase) == (1, ChannelPhase.OPENING)
    await settle(two, one)
    assert (await one.order("open", origin=origin, units=None, key="k")).id == opened.id
    await one.order("add", channel_id=opened.id, units=2 * ADA, key=None)
    await settle(two, one)
    assert two.channel.deposited == opened.deposited + 2 * ADA
    closing = await one.order("close", channel_id=opened.id, key=None)
    assert closing.phase is ChannelPhase.CLOSING
    assert (await one.daemon.fleet.order_channel("recover", APP)) == []


async def test_two_daemons_that_open_at_once_open_one_channel(strangers: Pair) -> None:
    for one in strangers:
        assert (await refusal(one.pay("/channel/a"))).code == "channel_missing"
    origin = strangers[0].shop.world.origin
    orders = (one.order("open", origin=origin, units=None, key=None) for one in strangers)
    found = await asyncio.gather(*orders, return_exceptions=True)
    assert [one.code for one in found if isinstance(one, Refused)] == ["wrong_state"]
    await settle(*strangers)
    assert strangers[0].channel.phase is ChannelPhase.OPEN


# --- the calls


async def test_only_the_holder_promises_and_the_other_daemon_says_where_to_ask(pair: Pair) -> None:
    one, two = pair
    assert await one.call("/channel/a") == "/channel/a"
    told = await refusal(two.pay("/channel/b"))
    assert (told.code, told.problem.retryable) == ("channel_busy", True)
    assert "account 0 has the channel" in told.detail
    assert "Send the same request to that daemon" in told.message
    exact = await two.pay("/channel/c", with_exact=True)
    assert (exact.kind, exact.account) == ("invoice", 1)
    assert (len(one.calls), one.channel.signed, two.vouchers) == (1, PRICE, [])


async def test_a_call_of_one_daemon_is_not_paid_again_at_the_other(pair: Pair) -> None:
    one, two = pair
    row = await one.pay("/channel/a")
    for with_exact in (False, True):
        assert (await refusal(two.pay("/channel/a", with_exact))).code == "channel_busy"
    assert (await one.show("/channel/a", row)).status_code == 200
    assert (await refusal(two.pay("/channel/a", with_exact=True))).code == "channel_busy"
    assert (len(one.calls), one.channel.signed, two.vouchers) == (1, PRICE, [])


async def test_the_same_key_at_both_daemons_at_once_is_paid_once(pair: Pair) -> None:
    one, two = pair
    for number in range(3):
        path = f"/channel/{number}"
        asked = (daemon.pay(path, with_exact=True) for daemon in pair)
        found = await asyncio.gather(*asked, return_exceptions=True)
        refused = [told.code for told in found if isinstance(told, Refused)]
        paid = {told.id for told in found if not isinstance(told, BaseException)}
        assert len(paid) == 1, found
        assert set(refused) <= {"channel_busy"}
        for call in one.calls:
            if call.state is CallState.PROMISED:
                await one.show(path, one.daemon.context.payment(call.id))
    assert two.vouchers == []


async def test_an_answer_that_the_other_daemon_is_told_counts_only_at_the_holder(pair: Pair) -> None:
    one, two = pair
    row = await one.pay("/channel/a")
    answer = one.get("/channel/a", one.headers(row))
    assert (await refusal(two.report(row, answer))).code == "lease_lost"
    assert (await refusal(two.silence(row))).code == "lease_lost"
    assert (one.channel.count, one.channel.is_count_known) == (0, True)
    await one.report(row, answer)
    assert (two.channel.count, two.vouchers) == (PRICE, [])


# --- failover


async def test_the_next_holder_gives_out_the_same_bytes_for_the_same_key(pair: Pair, shop: Shop) -> None:
    one, two = pair
    await one.call("/channel/a")
    row = await one.pay("/channel/b")
    headers = one.headers(row)
    assert one.get("/channel/b", headers).status_code == 200  # and its answer is lost
    await one.daemon.die()
    await take_over(two, "a")
    assert two.ceilings == {}  # the file is the other machine's
    again = await two.pay("/channel/b")
    assert (again.id, two.headers(again)) == (row.id, headers)
    assert (await two.show("/channel/b", again)).json()["path"] == "/channel/b"
    assert await two.call("/channel/c") == "/channel/c"
    assert (two.channel.signed, two.channel.count, two.spent()) == (3 * PRICE,) * 3


async def test_the_next_holder_asks_for_the_count_before_another_call(pair: Pair) -> None:
    one, two = pair
    await one.call("/channel/a")
    row = await one.pay("/channel/b")
    assert one.get("/channel/b", one.headers(row)).status_code == 200  # and its answer is lost
    await one.daemon.die()
    await take_over(two, "a")
    await two.silence(row)
    assert await two.call("/channel/c") == "/channel/c"
    assert two.vouchers == [2 * PRICE, PRICE, 3 * PRICE]  # at its start, for the count, and for the call
    assert [call.state for call in two.calls] == [CallState.SERVED, CallState.PAID_NOT_SERVED, CallState.SERVED]
    assert (two.channel.signed, two.channel.count, two.spent()) == (3 * PRICE,) * 3


async def test_a_promise_that_the_merchant_never_saw_is_void_at_the_next_holder(pair: Pair) -> None:
    one, two = pair
    await one.call("/channel/a")
    row = await one.pay("/channel/b")
    await one.daemon.die()
    await take_over(two, "a")
    await two.silence(row)
    assert await two.call("/channel/c") == "/channel/c"
    assert [call.state for call in two.calls] == [CallState.SERVED, CallState.VOID, CallState.SERVED]
    assert (two.channel.signed, two.channel.count) == (2 * PRICE, 2 * PRICE)


# --- a daemon that lost the account and does not know it


async def test_a_stale_holder_promises_no_call_whether_it_knows_the_count_or_not(pair: Pair) -> None:
    one, two = pair
    await one.call("/channel/a")
    await one.daemon.stand_still()
    await take_over(two, "a")
    stale, before = one.daemon.fleet.held[0].agent, list(one.vouchers)
    assert not one.channel.is_count_known
    assert (await refusal(stale.pay(one.ask("/channel/b")))).code == "lease_lost"
    await two.call("/channel/c")
    assert one.channel.is_count_known
    assert (await refusal(stale.pay(one.ask("/channel/d")))).code == "lease_lost"
    assert (one.vouchers, len(two.calls), two.channel.signed) == (before, 2, 2 * PRICE)


@pytest.mark.parametrize("has_signed", [True, False])
async def test_a_stale_holder_gives_out_no_voucher_of_an_earlier_promise(pair: Pair, has_signed: bool) -> None:
    one, two = pair
    row = await one.pay("/channel/a")
    answer = one.get("/channel/a", one.headers(row))
    await one.daemon.stand_still()
    await take_over(two, "a")
    one.shop.world.clock.ahead_ms += FRESH_MS
    stale, before = one.daemon.fleet.held[0].agent, list(one.vouchers)
    if not has_signed:
        assert one.daemon.context.calls is not None
        one.daemon.context.calls.signed.clear()
    assert (await refusal(stale.pay(one.ask("/channel/a")))).code == "lease_lost"
    assert (await refusal(one.report(row, answer))).code == "lease_lost"
    assert (await refusal(one.pay("/channel/a"))).code == "channel_busy"  # it has no account any more
    assert (one.vouchers, two.channel.count) == (before, 0)
    await two.show("/channel/a", await two.pay("/channel/a"))
    assert (two.channel.signed, two.channel.count) == (PRICE, PRICE)


async def test_an_account_that_returns_keeps_what_the_other_daemon_promised(pair: Pair) -> None:
    one, two = pair
    await one.call("/channel/a")
    assert one.ceilings[one.channel.id] > PRICE
    await one.daemon.stand_still()
    await take_over(two, "a")
    for path in ("/channel/b", "/channel/c"):
        await two.call(path)
    await two.daemon.stand_still()
    await take_over(one, "b")
    assert await one.call("/channel/d") == "/channel/d"
    assert (one.channel.signed, one.channel.count) == (4 * PRICE, 4 * PRICE)


async def test_nothing_is_promised_until_the_ledger_is_known_to_have_what_was_signed(pair: Pair) -> None:
    one, _ = pair
    await one.call("/channel/a")
    await one.daemon.stand_still()
    await one.daemon.writer.run("test", fleet.unprove_all)
    told = await refusal(one.daemon.fleet.held[0].agent.pay(one.ask("/channel/b")))
    assert (told.code, len(one.calls), one.vouchers) == ("ledger_behind", 1, [PRICE])


# --- a daemon without an account


async def test_a_daemon_without_an_account_orders_steps_and_leaves_calls_to_the_holder(
    shop: Shop, postgresql: Server
) -> None:
    async with channel_pair(shop, postgresql.new_database(), accounts=1) as (one, two):
        assert two.daemon.accounts == []
        assert (await refusal(two.pay("/channel/a"))).code == "channel_missing"
        opened = await two.order("open", origin=shop.world.origin, units=None, key="k")
        await settle(one, two)
        assert await one.call("/channel/a") == "/channel/a"
        for path in ("/channel/a", "/channel/b"):
            assert (await refusal(two.pay(path))).code == "channel_busy"
        assert (await refusal(two.pay("/channel/a", with_exact=True))).code == "channel_busy"
        exact = await two.pay("/channel/b", with_exact=True)
        assert (exact.kind, exact.account) == ("invoice", 0)
        assert (one.calls[0].amount, len(one.calls), two.vouchers) == (PRICE, 1, [])
        assert (await two.order("close", channel_id=opened.id, key=None)).phase is ChannelPhase.CLOSING
        one.ledger.require_whole()
