"""`funds_pending` (change is not in a block yet) and `not_enough_funds` are different refusals."""

import asyncio

import pytest
from kit.agent import ADA, World

from payagent.core.money import format_ada
from payagent.core.payment.machine import State
from payagent.core.problems import Refused


def paid(units: int, fee_lovelace: int | None) -> int:
    assert fee_lovelace is not None
    return units + fee_lovelace


async def test_a_second_payment_from_a_single_utxo_is_refused_until_the_change_arrives(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        first = await run.pay("first")
        change = 50 * ADA - paid(sum(o.units for o in first.outputs), first.attempt.fee_lovelace)
        ask = world.ask("second")
        with pytest.raises(Refused) as caught:
            await run.agent.pay(ask)
        told = caught.value
        assert told.code == "funds_pending"
        assert told.context == {"asset": "lovelace", "available": "0", "pending": str(change)}
        assert f"{format_ada(change)} are pending change" in told.detail
        assert told.problem.retryable
        assert (told.problem.status, told.problem.exit_code) == (503, 7)
        assert "payagent wallet split" in told.problem.fix
        await run.settle_down()
        again, is_new = await run.agent.pay(ask)
        assert (again.state, is_new) == (State.SIGNED, True)


async def test_concurrent_payments_from_a_single_utxo_are_refused_until_the_change_arrives(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        asks = [world.ask(f"call {n}", key=f"k{n}") for n in range(3)]
        answers = await asyncio.gather(*(run.agent.pay(ask) for ask in asks), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, Refused)]
        assert [refusal.code for refusal in refused] == ["funds_pending"] * 2
        for ask in asks:
            await run.settle_down()
            await run.agent.pay(ask)
            await run.agent.submitter.drain(60)
        await run.settle_down()
        assert len(world.transactions()) == 3


async def test_a_payment_that_pending_change_cannot_cover_is_refused_for_lack_of_funds(world: World) -> None:
    world.fund(20 * ADA)
    async with world.run() as run:
        await run.run_pass()
        await run.pay("first")
        with pytest.raises(Refused, match="not_enough_funds"):
            await run.pay("second")


async def test_change_of_an_expired_attempt_does_not_count_as_pending(world: World) -> None:
    world.fund(50 * ADA)
    world.settings(timeout=200)
    async with world.run() as run:
        await run.run_pass()
        world.fault("submit", "drop")
        first = await run.pay("first")
        with pytest.raises(Refused, match="funds_pending"):
            await run.pay("second")
        world.clock.ahead_ms += 200_000
        world.settings(timeout=900)
        with pytest.raises(Refused, match="not_enough_funds"):
            await run.pay("third")
        assert run.state(first.id) is State.IN_FLIGHT


async def test_quotes_and_transfers_are_also_refused_until_the_change_arrives(world: World) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.run_pass()
        await run.pay("first")
        agent, own = run.agent, world.account.address
        with pytest.raises(Refused, match="funds_pending"):
            await agent.quote(world.ask("second"))
        with pytest.raises(Refused, match="funds_pending"):
            await agent.transfers.send("app_test", own, "lovelace", 5 * ADA)
        with pytest.raises(Refused, match="funds_pending"):
            await agent.transfers.split("app_test", 4, 5 * ADA)
        with pytest.raises(Refused, match="funds_pending"):
            await agent.transfers.send_all("app_test", own)
        with pytest.raises(Refused, match="not_enough_funds"):
            await agent.transfers.split("app_test", 4, 50 * ADA)
        await run.settle_down()
        row, _ = await agent.transfers.split("app_test", 4, 5 * ADA)
        assert row.state is State.SIGNED
