"""`ready = "auto"`: a proof is shown at the first block and after each new one; an early refusal costs nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from kit.agent import ADA, APP, Run, World, with_terms, world_with_clock

from payagent.agent.base.payment_view import retry_headers
from payagent.agent.operator import merchants
from payagent.core.aggregate import PaymentRow
from payagent.core.pay_and_retry import Answered
from payagent.core.payment.machine import Delivery, State
from payagent.core.retry_schedule import MerchantReadiness
from payagent.dialects import RetryVerdict, make_response

NOT_FOUND = make_response(404, {"content-type": "application/json"}, '{"detail": "Transaction not found"}')


@asynccontextmanager
async def by_auto(world: World, *, ready: str = "auto", **settings: object) -> AsyncIterator[Run]:
    """An agent with `confirm_depth` 3, and a merchant with these settings."""
    world.settings(**settings)
    world.fund(*[50 * ADA] * 3)
    merchant = replace(world.terms.merchants[world.origin], ready=ready)  # type: ignore[arg-type]
    async with world.run(terms=with_terms(confirm_depth=3, merchants={world.origin: merchant})) as run:
        await run.run_pass()
        yield run


async def show(run: Run, row: PaymentRow, message: str = "hello") -> tuple[PaymentRow, Answered]:
    """Show the proof to the devnet's merchant and report its answer to the agent."""
    depth = run.context.depth(row)
    merchant = run.context.config.merchants[run.world.origin]
    answer = run.world.call(message, retry_headers(row, merchant, run.world.address))
    told = make_response(answer.status_code, dict(answer.headers), answer.text)
    return await run.agent.deliveries.take_answer(row.id, told, shown_depth=depth, is_delivered=True)


def known(run: Run) -> MerchantReadiness:
    return merchants.standing(run.context, "t").readiness


def told(run: Run, event: str) -> list[dict[str, object]]:
    rows = run.context.conn.execute("SELECT detail FROM events WHERE event = ? ORDER BY seq", (event,))
    return [json.loads(detail) for (detail,) in rows]


async def test_a_proof_is_ready_in_the_first_block_and_the_accepted_depth_is_remembered(world: World) -> None:
    async with by_auto(world, confirmations=1) as run:
        row = await run.pay_in_block()
        row = run.context.payment(row.id)
        assert (row.state, run.context.is_ready(row)) == (State.IN_BLOCK, True)
        row, advice = await show(run, row)
        assert (advice.verdict, row.delivery) == (RetryVerdict.SERVED, Delivery.ACCEPTED)
        assert known(run) == MerchantReadiness(accepted_depth=1)


async def test_with_ready_confirmed_a_proof_waits_for_confirm_depth(world: World) -> None:
    async with by_auto(world, ready="confirmed", confirmations=1) as run:
        row = await run.pay_in_block()
        ready = []
        for _ in range(3):
            ready.append(run.context.is_ready(run.context.payment(row.id)))
            await run.settle_down()
        assert ready == [False, False, True]
        assert told(run, "accepted_depth_learned") == []


async def test_a_pending_proof_is_ready_again_at_each_new_block(world: World) -> None:
    async with by_auto(world, confirmations=3) as run:
        row = await run.pay_in_block()
        for depth in (1, 2):
            row, advice = await show(run, run.context.payment(row.id))
            assert (advice.verdict, advice.again_after_s, run.context.depth(row)) == (
                RetryVerdict.PENDING,
                0,
                depth,
            )
            assert not run.context.is_ready(row), "no block has come since"
            waiting = asyncio.create_task(run.context.wait(row.id, 60))
            await run.settle_down()
            row = await waiting
            assert run.context.is_ready(row), "the block wakes the waiter"
        row, _ = await show(run, row)
        assert row.delivery is Delivery.ACCEPTED
        assert known(run) == MerchantReadiness(accepted_depth=3)

        second = await run.pay_in_block("again")
        ready = []
        for _ in range(3):
            ready.append(run.context.is_ready(run.context.payment(second.id)))
            await run.settle_down()
        assert ready == [False, False, True], "the next proof is first shown where the last was accepted"


async def test_a_block_that_arrives_while_the_merchant_answers_makes_the_proof_ready_again(world: World) -> None:
    async with by_auto(world, confirmations=2) as run:
        row = await run.pay_in_block()
        answer = world.call("hello", retry_headers(run.context.payment(row.id), None, world.address))
        await run.settle_down()
        pending = make_response(answer.status_code, dict(answer.headers), answer.text)
        row, advice = await run.agent.deliveries.take_answer(row.id, pending, shown_depth=1)
        assert (advice.verdict, run.context.is_ready(row)) == (RetryVerdict.PENDING, True)


async def test_a_merchant_status_of_confirmed_makes_the_proof_ready_before_the_first_block(world: World) -> None:
    async with by_auto(world, confirmations=0) as run:
        row = await run.pay()
        assert not run.context.is_ready(row)
        await run.chain_sync.merchant_polling.poll_merchants()
        row = run.context.payment(row.id)
        assert (row.state, row.merchant_status, run.context.is_ready(row)) == (State.IN_FLIGHT, "confirmed", True)
        row, _ = await show(run, row)
        assert row.delivery is Delivery.ACCEPTED
        assert known(run) == MerchantReadiness(accepted_depth=0)
        assert run.context.is_ready(await run.pay("again")), "the next one is ready once it is submitted"


async def test_a_new_invoice_after_the_request_was_served_is_not_an_early_refusal(world: World) -> None:
    """A repeated request shows a used proof, and the merchant answers with a new invoice."""
    async with by_auto(world, confirmations=0) as run:
        row = await run.pay_in_block()
        row, _ = await show(run, run.context.payment(row.id))
        body = json.dumps({"invoiceId": "another", "amount": "1"})
        anew = make_response(402, {"content-type": "application/json"}, body)
        _, advice = await run.agent.deliveries.take_answer(row.id, anew, shown_depth=1)
        assert advice.verdict is not RetryVerdict.SERVED
        assert known(run) == MerchantReadiness(accepted_depth=1)


async def test_an_error_about_the_request_itself_is_not_an_early_refusal(world: World) -> None:
    """A merchant may accept the proof and then reject the request, which says nothing about the depth."""
    async with by_auto(world, confirmations=0) as run:
        row = await run.pay_in_block()
        wrong = make_response(422, {"content-type": "application/json"}, '{"detail": "the message is too long"}')
        _, advice = await run.agent.deliveries.take_answer(row.id, wrong, shown_depth=1)
        assert (advice.verdict, advice.again_after_s) == (RetryVerdict.OTHER, None)
        assert known(run) == MerchantReadiness()


async def test_after_an_early_refusal_proofs_for_that_merchant_wait_for_confirm_depth(world: World) -> None:
    async with by_auto(world, confirmations=0) as run:
        row = await run.pay_in_block()
        other = await run.pay("other")
        row, advice = await run.agent.deliveries.take_answer(row.id, NOT_FOUND, shown_depth=1)
        assert (advice.again_after_s, row.delivery) == (0, Delivery.PRESENTED)
        assert known(run) == MerchantReadiness(refused_early=True)
        assert told(run, "proof_refused_early") == [
            {"merchant": world.origin, "payment": row.id, "depth": 1, "why": "status 404"}
        ]
        ready = []
        for _ in range(3):
            ready.append([run.context.is_ready(run.context.payment(one.id)) for one in (row, other)])
            await run.settle_down()
        assert ready == [[False, False], [False, False], [True, False]]
        row, _ = await show(run, run.context.payment(row.id))
        assert (row.delivery, known(run).refused_early) == (Delivery.ACCEPTED, True)

        await merchants.resume(run.context, APP, "t")
        assert known(run) == MerchantReadiness()


async def test_a_refusal_of_an_early_proof_does_not_end_the_delivery(tmp_path: Path) -> None:
    """The answer arrives when the payment is already confirmed and the invoice has expired."""
    with world_with_clock(tmp_path) as world:
        async with by_auto(world, confirmations=0, timeout=300) as run:
            row = await run.pay_in_block()
            await run.pass_time(40)
            assert run.state(row.id) is State.CONFIRMED
            deliveries = run.agent.deliveries
            row, advice = await deliveries.take_answer(row.id, NOT_FOUND, shown_depth=1)
            assert (row.delivery, advice.again_after_s) == (Delivery.PRESENTED, 0.5)
            assert run.context.is_ready(row)
            row, advice = await deliveries.take_answer(row.id, NOT_FOUND, shown_depth=run.context.depth(row))
            assert (row.delivery, advice.again_after_s) == (Delivery.PAID_NOT_SERVED, None)


async def test_a_503_for_an_early_proof_is_not_an_early_refusal(world: World) -> None:
    async with by_auto(world) as run:
        row = await run.pay_in_block()
        row, advice = await run.agent.deliveries.take_answer(row.id, make_response(503, {}, ""), shown_depth=1)
        assert (advice.again_after_s, run.context.is_ready(row)) == (0.5, True)
        assert known(run) == MerchantReadiness()
