"""An app that is refused again and again gets an error each time, but cannot fill the disk with records."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from kit.agent import ADA, APP, DEVNET, Run, World, daily, with_terms, world_with_clock
from kit.payments import lose, pass_time_of

from payagent.agent.base.requests import MerchantRequest
from payagent.agent.operator.pause import pause
from payagent.agent.payments import intake
from payagent.agent.payments.intake import REFUSAL_EVERY_S, REFUSALS_AT_ONCE, RefusalThrottle
from payagent.audit.finding import AuditFinding
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.core.payment.machine import Delivery
from payagent.core.problems import Refused
from payagent.dialects import make_response
from payagent.store.rows import apps, events, payments

OTHER = "app_other"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_with_clock(tmp_path) as world, patch.object(intake, "REFUSALS_AT_ONCE", 3):
        world.fund(*[50 * ADA] * 4)
        yield world


async def code_of(run: Run, ask: object) -> str:
    try:
        await run.agent.pay(ask)  # type: ignore[arg-type]
    except Refused as refused:
        return refused.name
    return "paid"


def on_record(run: Run) -> int:
    (count,) = run.context.conn.execute("SELECT COUNT(*) FROM events WHERE event = 'refused'").fetchone()
    return int(count)


async def test_recording_of_unreadable_402s_is_rate_limited_per_app(world: World) -> None:
    answer = world.call("hello")
    async with world.run() as run:
        await run.run_pass()
        asks = [world.ask_of(answer, key=str(n), body='{"detail": "x"}') for n in range(6)]
        assert [await code_of(run, ask) for ask in asks[:3]] == ["not_an_invoice"] * 3
        before = on_record(run)
        assert [await code_of(run, ask) for ask in asks[3:]] == ["not_an_invoice"] * 3
        assert on_record(run) == before
        await run.context.write(
            "app", lambda unit: apps.add_with_token(unit, OTHER, "other", "1" * 64, ["pay"], 1)
        )
        assert await code_of(run, replace(asks[0], app_id=OTHER)) == "not_an_invoice"
        assert on_record(run) == before + 1, "each app has its own rate limit"


async def test_recording_of_payments_refused_by_a_limit_is_rate_limited(world: World) -> None:
    async with world.run(terms=with_terms(limits=daily(1000 * ADA, 50 * ADA))) as run:
        await run.run_pass()
        asks = [world.ask(f"call {n}", key=str(n)) for n in range(8)]
        codes = [await code_of(run, ask) for ask in asks]
        paid = codes.count("paid")
        assert codes == ["paid"] * paid + ["limit_exceeded"] * (8 - paid)
        assert 0 < paid < 4
        count, _ = payments.payment_counts(run.context.conn)
        assert count == paid + 3, "three of the refused payments"
        assert await code_of(run, asks[0]) == "paid", "the app still gets a payment it already has"


async def test_paid_and_unrecorded_requests_do_not_use_up_the_refusal_rate_limit(world: World) -> None:
    async with world.run(terms=with_terms(limits=daily(1000 * ADA, 1000 * ADA))) as run:
        unseen = [await code_of(run, world.ask(f"early {n}", key=f"early {n}")) for n in range(5)]
        assert unseen == ["chain_not_ready"] * 5
        await run.run_pass()
        known = world.ask("known", key="known")
        assert [await code_of(run, known) for _ in range(6)] == ["paid"] * 6
        before = on_record(run)
        bad = world.ask_of(world.call("hello"), key="bad", body='{"detail": "x"}')
        assert [await code_of(run, bad) for _ in range(3)] == ["not_an_invoice"] * 3
        assert on_record(run) == before + 3


@pytest.mark.parametrize("code", ["limit_exceeded", "paused"])
async def test_recording_of_prices_of_refused_requests_is_rate_limited(world: World, code: str) -> None:
    """Each request has another path, which the app chooses. The price of a paid request is always recorded."""
    async with world.run(terms=with_terms(limits=daily(1000 * ADA, 1000 * ADA))) as run:
        await run.run_pass()
        heard = replace(world.ask(), max_total_units=1, heard_at_ms=world.clock.now_ms())
        if code == "paused":
            await pause(run.context, APP, "")
        for n in range(6):
            request = MerchantRequest("POST", f"/chat/{n}", "0" * 64)
            assert await code_of(run, replace(heard, request=request, idempotency_key=str(n))) == code
        (count,) = run.context.conn.execute("SELECT COUNT(*) FROM request_prices").fetchone()
        assert count == 3


async def test_recording_of_delivery_reports_is_rate_limited_unless_they_change_the_state(world: World) -> None:
    answers = make_response(500, {}, {}), make_response(200, {}, {})
    async with world.run() as run:
        await run.run_pass()
        row = await run.pay()
        deliveries, before = run.agent.deliveries, len(run.events(row.id))
        with patch.object(events, "KEPT_AT_ONCE", before + 3):
            reports = [await deliveries.take_answer(row.id, answers[0]) for _ in range(9)]
            assert len(run.events(row.id)) == before + 3
            assert {advice.verdict for _, advice in reports} == {"unclear"}, (
                "an unrecorded report is still evaluated"
            )
            assert [advice.again_after_s for _, advice in reports[2:]] == [2.0, *[4.0] * 6]
            assert (await deliveries.record_delivery(row.id, 200)).delivery is Delivery.ACCEPTED
            assert len(run.events(row.id)) == before + 4
            for answer in answers * 3:
                await deliveries.take_answer(row.id, answer)
                await deliveries.record_delivery(row.id, answer.status)
            assert run.events(row.id)[before + 4 :] == ["delivery_present", "merchant_answered"]
            for _ in range(3):
                world.clock.ahead_ms += events.KEPT_EVERY_MS
                await deliveries.take_answer(row.id, answers[0])
                await deliveries.take_answer(row.id, answers[0])
            assert run.events(row.id)[before + 6 :] == ["merchant_answered"] * 3
        assert run.context.payment(row.id).delivery is Delivery.ACCEPTED
        owner = Owner(run.context.config.own, DEVNET)
        assert not [one for one in verify(run.context.conn, owner) if isinstance(one, AuditFinding)]


async def test_a_flood_of_reports_does_not_hide_that_the_merchant_served(world: World) -> None:
    """A client may hang up without a report. The merchant served and must not be blamed."""
    async with world.run() as run:
        row = await run.pay_in_block("hello")
        with patch.object(events, "KEPT_AT_ONCE", 1):
            for status in (402, 402, 200, 402):
                await run.agent.deliveries.take_answer(row.id, make_response(status, {}, {}))
        assert "served" in events.answers_to_retries(run.context.conn, row.id)
        assert not payments.unserved(run.context.conn, 2**62, row.id)


async def test_repeated_answers_do_not_hide_the_next_invoice_of_a_lost_payment(
    world: World,
) -> None:
    async with world.run() as run:
        first = await lose(world, run)
        await pass_time_of(world, run, 310)
        with patch.object(events, "KEPT_AT_ONCE", 1):
            for _ in range(3):
                world.clock.ahead_ms += events.KEPT_EVERY_MS // 2
                await run.agent.deliveries.take_answer(first.id, make_response(402, {}, {}))
                row, _ = await run.agent.pay(world.ask())
        assert (row.id, row.nonce_utxo) == (first.id, first.nonce_utxo)
        assert row.invoice.id != first.invoice.id, "the payment takes the new invoice"


async def test_recording_of_further_invoices_of_an_intent_is_rate_limited(world: World) -> None:
    def count(run: Run) -> int:
        return int(run.context.conn.execute("SELECT COUNT(*) FROM invoices").fetchone()[0])

    async with world.run() as run:
        await run.run_pass()
        first = world.ask(key="one")
        row, _ = await run.agent.pay(first)
        await run.agent.submitter.drain(60)
        body, (id_,) = json.dumps(first.response.body), [row.invoice.id]
        others = [
            replace(first, response=make_response(402, {}, json.loads(body.replace(str(id_), f"{id_}-{n}"))))
            for n in range(6)
        ]
        with patch.object(events, "KEPT_AT_ONCE", len(run.events(row.id)) + 3):
            assert {(await run.agent.pay(other))[0].id for other in others} == {row.id}
            assert (count(run), run.events(row.id).count("invoiced_again")) == (4, 3)
            world.clock.ahead_ms += events.KEPT_EVERY_MS
            for other in others:
                await run.agent.pay(other)
            assert (count(run), run.events(row.id).count("invoiced_again")) == (5, 4)


def test_the_refusal_rate_limit_refills_with_time_up_to_the_burst() -> None:
    kept = RefusalThrottle()
    for _ in range(REFUSALS_AT_ONCE):
        assert kept.has_room(APP, 0.0)
        kept.note(APP)
    assert not kept.has_room(APP, REFUSAL_EVERY_S - 1)
    assert kept.has_room(APP, REFUSAL_EVERY_S)
    kept.note(APP)
    assert not kept.has_room(APP, REFUSAL_EVERY_S)
    assert kept.has_room("app_another", REFUSAL_EVERY_S)
    much_later_s = 10 * REFUSALS_AT_ONCE * REFUSAL_EVERY_S
    for _ in range(REFUSALS_AT_ONCE):
        assert kept.has_room(APP, much_later_s)
        kept.note(APP)
    assert not kept.has_room(APP, much_later_s)
