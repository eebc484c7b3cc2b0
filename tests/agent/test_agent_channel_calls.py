"""Calls by channel against the devnet's merchant: each is charged once, and gets no other request's answer."""

import asyncio
import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from kit.agent import ADA, copied, daily, put
from kit.channel_calls import PRICE, TAG, ChannelRun, Shop, channel_shop
from kit.effort import pick

from payagent.agent.base.requests import PaymentRequest
from payagent.agent.channels.moves import move
from payagent.core.channel import CallState, ChannelPhase, Close, Ended, Moved, Position
from payagent.core.payment.machine import Delivery, State
from payagent.core.policy import Scope
from payagent.core.problems import Refused
from payagent.devnet.channel_shop import ChannelShop, SoldChannel
from payagent.dialects import HttpResponse, parse_response
from payagent.store.db.ceiling_file import CeilingFile
from payagent.store.rows import channels, limit_counters, pauses


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with channel_shop(tmp_path) as shop:
        yield shop


async def test_twenty_calls_one_after_another_cost_twenty_prices(shop: Shop) -> None:
    async with shop.run() as at:
        for number in range(20):
            answer, row = await at.call(f"/channel/{number}")
            assert answer.json()["path"] == f"/channel/{number}"
            assert (row.state, row.delivery) == (State.CONFIRMED, Delivery.ACCEPTED)
        assert (at.channel.signed, at.channel.count, shop.count) == (20 * PRICE,) * 3
        assert at.spent() == 20 * PRICE
        total = limit_counters.totals(at.run.context.conn, Scope("app_test", at.shop.world.origin))
        assert total == {"lovelace": 20 * PRICE}


async def test_twenty_calls_at_once_are_charged_once_each(shop: Shop) -> None:
    async with shop.run() as at:
        answers = await asyncio.gather(*(at.call(f"/channel/{number}") for number in range(20)))
        assert [answer.json()["path"] for answer, _ in answers] == [f"/channel/{n}" for n in range(20)]
        assert (at.channel.signed, at.channel.count, shop.count) == (20 * PRICE,) * 3


async def test_the_voucher_is_signed_only_once_the_ledger_has_its_promise(shop: Shop) -> None:
    async with shop.run() as at:

        def look(amount: int) -> None:
            assert channels.channel(at.run.context.conn, TAG).signed >= amount
            assert channels.unanswered_call(at.run.context.conn, TAG) is not None

        at.signer.before_voucher = look
        await at.call()
        assert at.signer.vouchers == [PRICE]


async def test_the_same_key_gets_the_same_bytes_and_another_request_is_refused(shop: Shop) -> None:
    async with shop.run() as at:
        first, again = [await at.pay(idempotency_key="k1") for _ in range(2)]
        assert first.id == again.id
        assert at.headers(first) == at.headers(again) != {}
        await at.show("/channel/a", first)
        assert (await at.pay(idempotency_key="k1")).id == first.id
        with pytest.raises(Refused) as refused:
            await at.pay("/channel/b", idempotency_key="k1")
        assert refused.value.code == "idempotency_key_reused"
        assert shop.count == PRICE


async def test_a_request_without_a_key_may_be_bought_again_once_it_is_delivered(shop: Shop) -> None:
    async with shop.run() as at:
        (_, first), (_, second) = [await at.call("/channel/a") for _ in range(2)]
        assert first.id != second.id
        assert shop.count == 2 * PRICE


async def test_a_call_waits_for_the_one_before_it_and_is_then_refused_as_busy(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payagent.agent.channels.calls.TURN_S", 0.2)
    async with shop.run() as at:
        await at.pay("/channel/a")
        with pytest.raises(Refused) as refused:
            await at.pay("/channel/b")
        assert (refused.value.code, at.channel.signed) == ("channel_busy", PRICE)


# --- silence


async def test_after_silence_another_request_never_gets_the_first_ones_answer(shop: Shop) -> None:
    """The replay trap: the shop answers the same voucher with the answer that it has stored."""
    async with shop.run() as at:
        await at.call("/channel/0")
        lost = await at.pay("/channel/a")
        at.get("/channel/a", at.headers(lost))  # charged, and the answer is lost
        await at.silence(lost)
        answer, row = await at.call("/channel/b")
        assert answer.json()["path"] == "/channel/b"
        assert (at.channel.count, shop.count, at.channel.signed) == (3 * PRICE,) * 3
        assert at.run.context.payment(lost.id).delivery is Delivery.PAID_NOT_SERVED
        assert row.delivery is Delivery.ACCEPTED


async def test_a_first_call_that_was_lost_costs_its_price_once(shop: Shop) -> None:
    async with shop.run() as at:
        lost = await at.pay("/channel/a")
        at.get("/channel/a", at.headers(lost))
        await at.silence(lost)
        answer, _ = await at.call("/channel/b")
        assert answer.json()["path"] == "/channel/b"
        assert (at.channel.count, shop.count) == (2 * PRICE,) * 2


async def test_a_call_that_never_arrived_is_void_and_its_promise_is_used_again(shop: Shop) -> None:
    async with shop.run() as at:
        await at.call("/channel/0")
        lost = await at.pay("/channel/a", idempotency_key="k")
        await at.silence(lost)
        await at.call("/channel/b")
        assert at.run.context.payment(lost.id).state is State.VOID
        assert (at.channel.count, shop.count, at.channel.signed) == (2 * PRICE,) * 3
        answer, again = await at.call("/channel/a", idempotency_key="k")
        assert answer.json()["path"] == "/channel/a"
        assert (again.id != lost.id, shop.count) == (True, 3 * PRICE)


async def test_a_clock_that_is_set_back_gives_no_waiting_call_up(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payagent.agent.channels.calls.TURN_S", 0.1)
    async with shop.run() as at:
        first = [await at.pay("/channel/0", idempotency_key="k") for _ in range(2)][1]
        await at.show("/channel/0", first)
        shop.world.clock.ahead_ms -= 90_000
        waiting = await at.pay("/channel/a")
        with pytest.raises(Refused, match="channel_busy"):
            await at.pay("/channel/b")
        answer, _, _ = await at.show("/channel/a", waiting)
        assert (answer.json()["path"], shop.count) == ("/channel/a", 2 * PRICE)


async def test_a_voucher_for_the_amount_of_an_answered_one_is_not_made(shop: Shop) -> None:
    """The shop would send the earlier call's answer again."""
    async with shop.run() as at:
        shop.mood("undercharge", price=2 * PRICE)
        await at.call("/channel/0")
        shop.mood(price=PRICE)
        with pytest.raises(Refused, match="channel_busy"):
            await at.pay("/channel/a")
        shop.mood(price=2 * PRICE)
        answer, _ = await at.call("/channel/a")
        assert (answer.json()["path"], at.channel.count) == ("/channel/a", 3 * PRICE)


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> dict[str, SoldChannel]:
    """What the shop has on record, from its first call on."""
    found: dict[str, SoldChannel] = {}
    ask = ChannelShop.ask

    def keep(shop: ChannelShop, path: str, payment: Any) -> Any:
        shop.records = found
        return ask(shop, path, payment)

    monkeypatch.setattr(ChannelShop, "ask", keep)
    return found


async def test_a_voucher_that_was_kept_and_not_charged_pays_the_next_call(
    shop: Shop, records: dict[str, SoldChannel]
) -> None:
    """The reference merchant keeps a call's voucher before it tries to serve the call."""
    async with shop.run() as at:
        row = await at.pay("/channel/fails")
        at.get("/channel/fails", at.headers(row))
        records[TAG] = replace(records[TAG], count=0, answer=None)
        await at.calls.take_answer(row.id, HttpResponse(404, {}, b""))
        answer, _ = await at.call("/channel/b")
        assert (answer.json()["path"], at.channel.count, shop.count) == ("/channel/b", PRICE, PRICE)


async def test_a_call_that_the_signer_refuses_blocks_no_other_one(shop: Shop) -> None:
    def refuse(_amount: int) -> None:
        raise Refused("limit_exceeded", "channels.signed_per_day")

    async with shop.run() as at:
        at.signer.before_voucher = refuse
        with pytest.raises(Refused, match="limit_exceeded"):
            await at.pay("/channel/a")
        at.signer.before_voucher = lambda _amount: None
        answer, _ = await at.call("/channel/b")
        assert (answer.json()["path"], at.channel.count, at.channel.signed) == ("/channel/b", PRICE, PRICE)


async def test_a_call_that_is_being_given_up_is_not_presented_again(shop: Shop) -> None:
    async with shop.run() as at:
        await at.call("/channel/0")
        late = await at.pay("/channel/a", idempotency_key="k")
        at.wait_out()
        merchants = at.calls._merchants
        assert merchants is not None
        ask, reports = merchants.call, []

        async def reported_meanwhile(*args: Any, **more: Any) -> Any:
            reply = await ask(*args, **more)
            reports.append(asyncio.create_task(at.calls.take_silence(late.id, "lost")))
            await asyncio.wait(reports, timeout=0.2)
            return reply

        merchants.call = reported_meanwhile  # type: ignore[method-assign]
        await at.pay("/channel/b")
        late, said = await reports[0]
        assert (late.state, said.again_after_s) == (State.VOID, None)


async def test_a_call_without_an_answer_gives_others_a_turn(shop: Shop) -> None:
    async with shop.run() as at:
        row = await at.pay("/channel/a")
        _, said = await at.calls.take_silence(row.id, "lost")
        assert said.again_after_s is not None
        at.wait_out()
        with pytest.raises(Refused, match="channel_unserved"):
            await at.calls.take_silence(row.id, "lost")
        answer, _ = await at.call("/channel/b")
        assert answer.json()["path"] == "/channel/b"


async def test_a_key_that_was_served_says_so_after_other_calls(shop: Shop) -> None:
    async with shop.run() as at:
        await at.call("/channel/a", idempotency_key="k")
        await at.call("/channel/b")
        with pytest.raises(Refused, match="invoice_already_paid"):
            await at.pay("/channel/a", idempotency_key="k")


async def test_a_corrected_call_gets_no_voucher_that_has_paid_another(shop: Shop) -> None:
    async with shop.run() as at:
        shop.mood("undercharge", price=2 * PRICE)
        await at.call("/channel/a")
        shop.mood(price=3 * PRICE)
        await at.call("/channel/b")
        shop.mood("old_record", price=PRICE)
        answer, _ = await at.call("/channel/c")
        assert (answer.status_code, shop.served()) == (402, 2)


async def test_a_merchant_that_lost_its_record_after_its_claim_is_paid_again(
    shop: Shop, records: dict[str, SoldChannel]
) -> None:
    async with shop.run() as at:
        for path in ("/channel/0", "/channel/1"):
            await at.call(path)
        shop.mood(claim="sub")
        shop.world.block()
        await at.run.run_pass()
        assert at.channel.claimed == at.channel.count == 2 * PRICE
    records.clear()
    async with shop.run() as at:
        answer, _ = await at.call("/channel/2")
        assert (answer.json()["path"], at.channel.count) == ("/channel/2", 3 * PRICE)


async def test_a_merchant_that_claimed_all_and_only_refuses_tells_no_count(shop: Shop) -> None:
    """It has charged the call without an answer: another one with that voucher would get its answer."""
    async with shop.run() as at:
        await at.call("/channel/0")
        shop.mood(claim="sub")
        shop.world.block()
        await at.run.run_pass()
        lost = await at.pay("/channel/a")
        at.get("/channel/a", at.headers(lost))
        await at.silence(lost)
        merchants, terms = at.calls._merchants, unb64(at.get("/channel/b").headers["payment-required"])
        assert merchants is not None
        ask, error = merchants.call, "invalid_batch_settlement_cardano_payload"

        async def refused(*args: Any, **more: Any) -> Any:
            reply = await ask(*args, **more)
            return replace(reply, status=402, headers=[("payment-required", b64({**terms, "error": error}))])

        merchants.call = refused  # type: ignore[method-assign]
        with pytest.raises(Refused, match="channel_busy"):
            await at.pay("/channel/b")
        assert at.run.context.payment(lost.id).state is not State.VOID


async def test_a_request_without_a_key_is_told_once_that_its_answer_is_lost(shop: Shop) -> None:
    async with shop.run() as at:
        lost = await at.pay("/channel/a")
        at.get("/channel/a", at.headers(lost))
        await at.silence(lost)
        await at.call("/channel/b")
        with pytest.raises(Refused, match="channel_unserved"):
            await at.pay("/channel/a")
        answer, _ = await at.call("/channel/a")
        assert (answer.json()["path"], shop.count) == ("/channel/a", 3 * PRICE)


async def test_a_request_with_a_key_is_never_paid_twice(shop: Shop) -> None:
    async with shop.run() as at:
        lost = await at.pay("/channel/a", idempotency_key="k")
        at.get("/channel/a", at.headers(lost))
        await at.silence(lost)
        await at.call("/channel/b")
        for _ in range(2):
            with pytest.raises(Refused, match="channel_unserved"):
                await at.pay("/channel/a", idempotency_key="k")
        assert shop.count == 2 * PRICE


async def test_a_call_of_a_channel_that_has_ended_gets_no_voucher(shop: Shop) -> None:
    async with shop.run() as at:
        await at.call("/channel/0")
        await at.silence(await at.pay("/channel/a", idempotency_key="k"))
        await at.run.context.write("close", lambda unit: move(unit, at.channel, Close(None), 1))
        await at.run.context.write("end", lambda unit: move(unit, at.channel, Ended(4 * ADA), 2))
        with pytest.raises(Refused, match="channel_unserved"):
            await at.pay("/channel/a", idempotency_key="k")


async def test_the_same_request_after_silence_presents_the_same_voucher_and_asks_nothing(shop: Shop) -> None:
    async with shop.run() as at:
        await at.call("/channel/0")
        lost = await at.pay("/channel/a")
        at.get("/channel/a", at.headers(lost))
        await at.silence(lost)
        answer, row = await at.call("/channel/a")
        assert (row.id, answer.json()["path"]) == (lost.id, "/channel/a")
        assert (shop.count, at.channel.count, shop.state["counts"].get("replayed")) == (2 * PRICE, 2 * PRICE, 1)


async def test_an_answer_to_the_question_for_the_count_is_dropped(shop: Shop) -> None:
    """A shop that lost a charge serves the question. Its answer must reach nobody."""
    async with shop.run() as at:
        await at.call("/channel/0")
        await at.call("/channel/1")
        lost = await at.pay("/channel/a")
        await at.silence(lost)
        shop.mood("old_record")
        row = await at.pay("/channel/b")
        shop.mood()
        answer, _, _ = await at.show("/channel/b", row)
        assert answer.json()["path"] == "/channel/b"
        assert shop.count == at.channel.count <= at.channel.signed


# --- crashes


class Killed(BaseException):
    """The process is gone: nothing after it runs."""


async def buy_until_killed(shop: Shop, point: str) -> None:
    """Buy /channel/a, and end at this point of the call."""

    def kill(*_given: object) -> None:
        raise Killed

    async with shop.run() as at:
        if point == "V1":
            at.signer.before_voucher = lambda amount: kill() if amount > PRICE else None
        row = await at.pay("/channel/a", idempotency_key="k")
        if point != "sign":
            at.get("/channel/a", at.headers(row))
        if point == "V2":
            at.run.context._writer.run = kill  # type: ignore[method-assign, assignment]
            await at.show("/channel/a", row)
        raise Killed


@pytest.mark.parametrize("point", ["V1", "sign", "send", "V2"])
async def test_a_crash_charges_once_and_gives_no_answer_to_another_request(shop: Shop, point: str) -> None:
    async with shop.run() as at:
        await at.call("/channel/0")
    with pytest.raises(Killed):
        await buy_until_killed(shop, point)
    async with shop.run() as at:
        at.wait_out()
        answer, _ = await at.call("/channel/b", idempotency_key="other")
        assert answer.json()["path"] == "/channel/b"
        if point in ("send", "V2"):
            with pytest.raises(Refused) as refused:  # it is charged, and its answer went to nobody
                await at.pay("/channel/a", idempotency_key="k")
            assert refused.value.code == "channel_unserved"
        else:
            answer, _ = await at.call("/channel/a", idempotency_key="k")
            assert answer.json()["path"] == "/channel/a"
        assert shop.count == at.channel.count <= at.channel.signed
        assert shop.served() == 3


@pytest.mark.parametrize("point", ["V1", "sign", "send", "V2"])
async def test_after_a_crash_the_same_key_is_charged_once(shop: Shop, point: str) -> None:
    async with shop.run() as at:
        await at.call("/channel/0")
        if point == "V1":
            at.signer.before_voucher = lambda _amount: (_ for _ in ()).throw(Refused("signer_lost", "killed"))
            with pytest.raises(Refused):
                await at.pay("/channel/a", idempotency_key="k")
        else:
            row = await at.pay("/channel/a", idempotency_key="k")
        if point in ("send", "V2"):
            at.get("/channel/a", at.headers(row))
    async with shop.run() as at:
        answer, row = await at.call("/channel/a", idempotency_key="k")
        assert answer.json()["path"] == "/channel/a"
        assert (row.delivery, shop.count, shop.served()) == (Delivery.ACCEPTED, 2 * PRICE, 2)


async def test_a_restart_asks_for_the_count_before_the_next_call(shop: Shop) -> None:
    async with shop.run() as at:
        await at.call("/channel/0")
    async with shop.run() as at:
        assert not at.channel.is_count_known
        await at.call("/channel/1")
        assert at.channel.is_count_known
        assert at.signer.vouchers == [PRICE, 2 * PRICE]
        assert (shop.count, at.channel.signed) == (2 * PRICE, 2 * PRICE)


async def test_an_older_ledger_promises_nothing_twice(shop: Shop) -> None:
    """The shop charged what the ledger has forgotten. The ceiling file knows how far promises went."""
    async with shop.run() as at:
        await at.call("/channel/0")
    old = copied(shop.world)
    async with shop.run() as at:
        for number in range(5):
            await at.call(f"/channel/{number}")
        highest = at.channel.signed
    put(shop.world, old)
    async with shop.run() as at:
        assert at.channel.signed >= highest
        answer, _ = await at.call("/channel/again")
        assert answer.json()["path"] == "/channel/again"
        assert shop.count == at.channel.count == 7 * PRICE
        assert at.spent() == at.channel.signed


async def test_the_ceiling_is_ahead_of_every_voucher_and_private(shop: Shop) -> None:
    file = shop.world.folder / "channels.json"
    async with shop.run() as at:

        def look(amount: int) -> None:
            assert amount <= at.calls._ceilings.known[TAG]  # type: ignore[union-attr]
            assert file.stat().st_mode & 0o777 == 0o600

        at.signer.before_voucher = look
        await at.call()
        at.calls.stop()
        assert file.read_text() == f'{{"{TAG}": {PRICE}}}\n'


@pytest.mark.parametrize("text", ['{"17', "[]", "null", '{"17": "1"}', '{"17": 1.5}', '{"17": Infinity}'])
def test_a_ceiling_file_of_another_form_stops_the_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "channels.json").write_text(text)
    with pytest.raises(Refused) as refused:
        CeilingFile(tmp_path / "channels.json")
    assert refused.value.code == "config_invalid"
    assert "channels.json is not what payagent wrote. Nothing was signed" in refused.value.message


# --- moods


async def test_a_charge_above_the_price_is_unserved_and_ends_the_channel(shop: Shop) -> None:
    async with shop.run() as at:
        await at.call("/channel/0")
        shop.mood("overcharge")
        _, row = await at.call("/channel/1")
        assert row.delivery is Delivery.PAID_NOT_SERVED
        assert (at.channel.count, at.channel.signed) == (PRICE, 2 * PRICE)
        shop.mood()
        with pytest.raises(Refused) as refused:
            await at.call("/channel/2")
        assert refused.value.code == "channel_disputed"
        assert (at.channel.phase, at.channel.signed) == (ChannelPhase.CLOSING, 2 * PRICE)


async def test_a_lower_charge_leaves_room_that_later_calls_use(shop: Shop) -> None:
    async with shop.run() as at:
        shop.mood("undercharge")
        _, row = await at.call("/channel/0")
        assert row.outputs[0].units == PRICE // 2
        shop.mood()
        await at.call("/channel/1")
        assert (at.channel.count, shop.count, at.channel.signed) == (1_500, 1_500, 1_500)


async def test_an_answer_without_a_charge_makes_the_next_call_ask(shop: Shop) -> None:
    async with shop.run() as at:
        await at.call("/channel/0")
        shop.mood("no_charge")
        _, row = await at.call("/channel/1")
        assert (row.delivery, at.channel.count, at.channel.is_count_known) == (Delivery.ACCEPTED, PRICE, False)
        shop.mood()
        answer, _ = await at.call("/channel/2")
        assert answer.json()["path"] == "/channel/2"
        assert (at.channel.count, shop.count) == (3 * PRICE,) * 2


async def test_a_status_alone_serves_and_leaves_the_count_to_be_asked_for(shop: Shop) -> None:
    async with shop.run() as at:
        await at.call("/channel/0")
        row = await at.pay("/channel/1")
        at.get("/channel/1", at.headers(row))
        row, _ = await at.calls.take_answer(row.id, HttpResponse(200, {}, b""), is_delivered=True)
        assert (row.delivery, at.channel.is_count_known) == (Delivery.ACCEPTED, False)
        answer, _ = await at.call("/channel/2")
        assert (answer.json()["path"], shop.count, at.channel.count) == ("/channel/2", 3 * PRICE, 3 * PRICE)


async def test_a_shop_that_forgets_replays_and_lost_its_answer_is_paid_once(shop: Shop) -> None:
    async with shop.run() as at:
        await at.call("/channel/0")
        shop.mood("forget_replays")
        row = await at.pay("/channel/a")
        at.get("/channel/a", at.headers(row))
        answer, row, said = await at.show("/channel/a", row)
        assert (answer.status_code, said.again_after_s, row.delivery) == (402, None, Delivery.PAID_NOT_SERVED)
        assert (at.channel.count, shop.count) == (2 * PRICE,) * 2
        answer, _ = await at.call("/channel/b")
        assert answer.json()["path"] == "/channel/b"


async def test_a_lower_count_with_our_own_voucher_is_adopted_and_costs_nothing(shop: Shop) -> None:
    async with shop.run() as at:
        await at.call("/channel/0")
        await at.call("/channel/1")
        shop.mood("old_record")
        answer, row = await at.call("/channel/2")
        assert answer.json()["path"] == "/channel/2"
        assert (at.channel.count, shop.count, at.channel.signed) == (2 * PRICE, 2 * PRICE, 3 * PRICE)
        assert row.attempt.tx_id == f"{TAG}:{2 * PRICE}"


async def test_a_lower_count_without_our_own_voucher_is_not_adopted(shop: Shop) -> None:
    async with shop.run() as at:
        await at.call("/channel/0")
        await at.call("/channel/1")
        row = await at.pay("/channel/2")
        shop.mood("foreign_iou")
        _, row, said = await at.show("/channel/2", row)
        assert (at.channel.count, said.again_after_s) == (2 * PRICE, None)
        assert channels.call(at.run.context.conn, row.id).state is CallState.PROMISED  # type: ignore[union-attr]
        with pytest.raises(Refused) as refused:
            await at.pay("/channel/3")
        assert refused.value.code == "channel_busy"
        shop.mood()
        answer, _ = await at.call("/channel/3")
        assert (answer.json()["path"], shop.count, at.channel.count) == ("/channel/3", 3 * PRICE, 3 * PRICE)


async def test_a_count_above_every_voucher_closes_the_channel(shop: Shop) -> None:
    async with shop.run() as at:
        await at.call("/channel/0")
        row = await at.pay("/channel/1")
        shop.mood("count_above")
        await at.show("/channel/1", row)
        assert (at.channel.phase, at.channel.count, at.channel.signed) == (ChannelPhase.CLOSING, PRICE, 2 * PRICE)
        assert "channel_disputed" in (at.channel.problem or "")


@pytest.mark.parametrize("mood", ["busy", "refuse_unknown"])
async def test_a_shop_that_is_busy_or_behind_gets_the_same_voucher_again(shop: Shop, mood: str) -> None:
    async with shop.run() as at:
        row = await at.pay("/channel/0")
        shop.mood(mood)
        _, _, said = await at.show("/channel/0", row)
        assert (said.again_after_s or 0) > 0
        shop.mood()
        answer, row, _ = await at.show("/channel/0", row)
        assert (answer.status_code, row.delivery, shop.count) == (200, Delivery.ACCEPTED, PRICE)


async def test_a_higher_price_is_promised_before_it_is_paid_and_the_limit_holds(shop: Shop) -> None:
    async with shop.run() as at:
        await at.call("/channel/0")
        shop.mood("raise_price")
        await at.call("/channel/1")
        assert (at.channel.count, shop.count, at.channel.signed) == (3 * PRICE,) * 3
        with pytest.raises(Refused) as refused:
            await at.pay("/channel/2", max_total_units=PRICE)
        assert refused.value.code == "limit_exceeded"
        assert at.channel.signed == 3 * PRICE


@pytest.mark.parametrize("mood", ["swap_provider", "swap_script"])
async def test_terms_that_are_not_trusted_get_no_voucher(shop: Shop, mood: str) -> None:
    async with shop.run() as at:
        shop.mood(mood)
        with pytest.raises(Refused) as refused:
            await at.pay()
        assert refused.value.code == "invoice_unsupported"
        assert at.signer.vouchers == []


async def test_a_full_channel_and_a_missing_one_say_so(shop: Shop) -> None:
    async with shop.run(is_open=False) as at:
        with pytest.raises(Refused) as refused:
            await at.pay()
        assert refused.value.code == "channel_missing"
        await at.open_channel()
        shop.mood(price=10_000_000)
        with pytest.raises(Refused) as refused:
            await at.pay()
        assert refused.value.code == "channel_full"
        with pytest.raises(Refused, match="channel_full"):
            await at.run.agent.quote(at.ask())


async def test_a_quote_names_the_price_without_a_fee_and_promises_nothing(shop: Shop) -> None:
    async with shop.run() as at:
        quote = await at.run.agent.quote(at.ask())
        assert (quote.plan.fee_lovelace, quote.plan.spend, quote.refusal) == (0, {"lovelace": PRICE}, None)
        assert at.channel.signed == 0


async def test_a_lower_count_with_a_forged_voucher_changes_nothing(shop: Shop) -> None:
    async with shop.run() as at:
        await at.call("/channel/0")
        await at.call("/channel/1")
        row = await at.pay("/channel/2")
        shop.mood("old_record")
        shown = at.get("/channel/2", at.headers(row))
        required = json.loads(base64.b64decode(shown.headers["payment-required"]))
        extra = required["accepts"][0]["extra"]
        assert int(extra["channelState"]["chargedCumulativeAmount"]) < at.channel.count
        extra["voucherState"]["signature"] = "5a" * 64
        headers = {"PAYMENT-REQUIRED": base64.b64encode(json.dumps(required).encode()).decode()}
        _, said = await at.calls.take_answer(row.id, parse_response(402, headers, b"{}"))
        assert (at.channel.count, said.again_after_s) == (2 * PRICE, None)


# --- the choice between `exact` and the channel


def with_exact(at: ChannelRun, path: str = "/channel/a", **more: object) -> PaymentRequest:
    """A 402 that offers both schemes."""
    ask = at.ask(path, **more)
    exact, required = (
        json.loads(base64.b64decode(at.get(one).headers["payment-required"])) for one in ("/x402/report", path)
    )
    required["accepts"] += [entry | {"amount": str(2 * ADA)} for entry in exact["accepts"]]
    headers = {"PAYMENT-REQUIRED": base64.b64encode(json.dumps(required).encode()).decode()}
    return replace(ask, response=parse_response(402, headers, b"{}"))


async def test_a_call_goes_by_the_open_channel_and_by_exact_without_one(shop: Shop) -> None:
    shop.world.fund(50 * ADA, 50 * ADA)
    async with shop.run(is_open=False) as at:
        await at.run.run_pass()
        exact, _ = await at.run.agent.pay(with_exact(at, idempotency_key="k"))
        assert exact.kind == "invoice"
        await at.open_channel()
        assert (await at.run.agent.pay(with_exact(at, idempotency_key="k")))[0].id == exact.id
        call, _ = await at.run.agent.pay(with_exact(at, "/channel/b"))
        assert call.kind == "channel_call"
        await at.show("/channel/b", call)
        shop.mood(price=10 * ADA)
        full, _ = await at.run.agent.pay(with_exact(at, "/channel/c"))
        assert full.kind == "invoice"


async def test_exact_waits_for_no_count_that_the_merchant_does_not_tell(shop: Shop) -> None:
    shop.world.fund(50 * ADA)
    async with shop.run() as at:
        await at.run.run_pass()
        await at.call("/channel/0")
        lost = await at.pay("/channel/a")
        await at.silence(lost)
        shop.mood("busy")
        row, _ = await at.run.agent.pay(with_exact(at, "/channel/b"))
        assert row.kind == "invoice"
        again, _ = await at.run.agent.pay(with_exact(at, "/channel/a"))
        assert again.id == lost.id


async def test_a_call_that_would_need_an_approval_goes_by_exact_or_is_refused(shop: Shop) -> None:
    shop.world.fund(50 * ADA)
    shop.world.terms = replace(shop.world.terms, approval_required_above={"lovelace": PRICE - 1})
    async with shop.run() as at:
        await at.run.run_pass()
        with pytest.raises(Refused) as refused:
            await at.pay()
        assert refused.value.code == "approval_required"
        row, _ = await at.run.agent.pay(with_exact(at))
        assert (row.kind, row.state) == ("invoice", State.AWAITING_APPROVAL)
        assert at.channel.signed == 0


async def test_a_limit_counts_what_vouchers_add_and_refuses_the_call_above_it(shop: Shop) -> None:
    shop.world.terms = replace(shop.world.terms, limits=daily(10 * PRICE, 3 * PRICE))
    async with shop.run() as at:
        for number in range(3):
            await at.call(f"/channel/{number}")
        with pytest.raises(Refused) as refused:
            await at.pay("/channel/3")
        assert (refused.value.code, at.channel.signed) == ("limit_exceeded", 3 * PRICE)


async def test_a_paused_wallet_promises_nothing(shop: Shop) -> None:
    async with shop.run() as at:
        await at.run.context.write("pause", lambda unit: pauses.begin(unit, "app_test", "test", 1))
        with pytest.raises(Refused) as refused:
            await at.pay()
        assert (refused.value.code, at.channel.signed) == ("paused", 0)


async def test_a_channel_opens_by_itself_where_nothing_else_is_offered(shop: Shop) -> None:
    shop.world.fund(50 * ADA, 50 * ADA)
    async with shop.run(is_open=False, open="auto") as at:
        await at.run.run_pass()
        with pytest.raises(Refused) as refused:
            await at.pay()
        assert refused.value.code == "channel_opening"
        await at.run.agent.submitter.drain(60)
        await at.run.settle_down()
        answer, _ = await at.call("/channel/a")
        assert answer.json()["path"] == "/channel/a"


async def test_while_a_channel_closes_a_person_opens_the_next_one(shop: Shop) -> None:
    async with shop.run(open="auto") as at:
        await at.call("/channel/a")
        await at.run.context.write("close", lambda unit: move(unit, at.channel, Close("channel_disputed"), 1))
        with pytest.raises(Refused) as refused:
            await at.pay("/channel/b")
        assert (refused.value.code, refused.value.problem.retryable) == ("channel_missing", False)
        assert len(list(channels.locked_channels(at.run.context.conn))) == 1


async def test_a_late_answer_serves_its_call_and_hides_no_newer_one(shop: Shop) -> None:
    async with shop.run() as at:
        await at.call("/channel/0")
        late = await at.pay("/channel/a", idempotency_key="late")
        headers = at.headers(late)
        answer = at.get("/channel/a", headers)
        await at.silence(late)
        newer = await at.pay("/channel/b")
        held = at.headers(newer)
        response = parse_response(200, list(answer.headers.multi_items()), answer.content)
        late, _ = await at.calls.take_answer(late.id, response, is_delivered=True)
        assert late.delivery is Delivery.ACCEPTED
        newer = at.run.context.payment(newer.id)
        assert at.headers(newer) == held != {}
        await at.show("/channel/b", newer)
        assert at.channel.count <= at.channel.signed
        await at.call("/channel/c")
        assert at.channel.count == shop.count == at.channel.signed


async def test_a_claim_that_is_seen_before_the_answer_is_counted_once(shop: Shop) -> None:
    async with shop.run() as at:
        row = await at.pay("/channel/a")
        headers = at.headers(row)
        answer = at.get("/channel/a", headers)
        position = Position(at.channel.ref or "", at.channel.capacity, PRICE, None)
        await at.run.context.write("seen", lambda unit: move(unit, at.channel, Moved(position), 1))
        response = parse_response(200, list(answer.headers.multi_items()), answer.content)
        await at.calls.take_answer(row.id, response, is_delivered=True)
        assert (at.channel.count, at.channel.signed) == (PRICE, PRICE)
        await at.call("/channel/b")
        assert (at.channel.count, shop.count, at.channel.signed) == (2 * PRICE,) * 3


# --- an app invents the answer that it reports


def b64(record: object) -> str:
    return base64.b64encode(json.dumps(record).encode()).decode()


def unb64(text: str) -> Any:
    return json.loads(base64.b64decode(text))


async def test_an_app_that_reports_no_charge_gives_the_next_app_its_own_answer(shop: Shop) -> None:
    async with shop.run() as at:
        row = await at.pay("/channel/evil")
        answer = at.get("/channel/evil", at.headers(row))
        record = unb64(answer.headers["payment-response"])
        record["extra"]["chargedAmount"] = "0"
        record["extra"].get("channelState", {})["chargedCumulativeAmount"] = "0"
        forged = parse_response(200, [("payment-response", b64(record))], b"{}")
        await at.calls.take_answer(row.id, forged, is_delivered=True)
        answer, _ = await at.call("/channel/good")
        assert answer.json()["path"] == "/channel/good"
        assert shop.count == at.channel.count == 2 * PRICE


async def test_an_app_that_reports_a_lower_count_gets_no_voucher_of_another_call(shop: Shop) -> None:
    async with shop.run() as at:
        for number in range(3):
            await at.call(f"/channel/secret{number}")
        row = await at.pay("/channel/evil")
        held = at.headers(row)
        voucher = unb64(held["PAYMENT-SIGNATURE"])["payload"]["voucher"]
        state = {"channelId": TAG, "channelRef": "", "balance": "3000000", "totalClaimed": "0"}
        state |= {"withdrawRequestedAt": 0, "chargedCumulativeAmount": str(2 * PRICE)}
        terms = unb64(at.get("/channel/evil").headers["payment-required"])
        terms["error"] = "invalid_batch_settlement_cardano_cumulative_amount_mismatch"
        terms["accepts"][0]["extra"] |= {
            "channelState": state,
            "voucherState": {"signedMaxClaimable": str(4 * PRICE), "signature": voucher["signature"]},
        }
        forged = parse_response(402, [("payment-required", b64(terms))], b"")
        row, _ = await at.calls.take_answer(row.id, forged, is_delivered=True)
        assert at.headers(row) == held
        assert at.channel.count == 3 * PRICE
        answer, _, _ = await at.show("/channel/evil", row)
        assert answer.json()["path"] == "/channel/evil"


# --- anything, in any order

FATES = ("served", "unsent", "unanswered", "forgotten", "again", "cheap")


@pytest.mark.parametrize("seed", pick(range(3), range(40)))
async def test_whatever_is_lost_no_request_gets_anothers_answer(
    shop: Shop, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls are lost before or after the shop charged them, repeated, corrected, and cut off by kills."""
    monkeypatch.setattr("payagent.agent.channels.calls.TURN_S", 0.1)
    random, keys, shown = Random(seed), 0, set[str]()
    lost: list[str] = []
    for _ in range(4):
        kill = random.random() < 0.6
        async with shop.run(is_killed=kill) as at:
            for _ in range(random.randrange(1, 7)):
                keys += 1
                key, what = f"k{keys}", random.choice(FATES)
                if what == "again" and lost:
                    key = lost.pop(random.randrange(len(lost)))
                shop.mood({"forgotten": "old_record", "cheap": "undercharge"}.get(what))
                try:
                    if what in ("unsent", "unanswered"):
                        row = await at.pay(f"/channel/{key}", idempotency_key=key)
                        lost.append(key)
                        if what == "unanswered":
                            at.get(f"/channel/{key}", at.headers(row))
                        if random.random() < 0.7:
                            await at.silence(row)
                    else:
                        answer, _ = await at.call(f"/channel/{key}", idempotency_key=key)
                        if answer.status_code == 200:
                            assert answer.json()["path"] == f"/channel/{key}"
                            assert key not in shown
                            shown.add(key)
                except Refused as refused:
                    if refused.code not in ("channel_unserved", "channel_busy"):
                        raise
                    at.wait_out()
                assert at.channel.count <= at.channel.signed == at.spent()
                held = shop.state["channels"].get(TAG, {"signed": "0"})
                assert int(held["signed"]) <= at.channel.signed
    assert shown
