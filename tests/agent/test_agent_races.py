"""What happens beside each other: a sweep while a payment is admitted, a caller that goes away."""

import asyncio
import contextlib

import pytest
from agent_kit import ADA, World

from payagent.core.payment import State
from payagent.store import queries


async def test_a_sweep_between_admission_and_signature_leaves_the_payment_to_its_task(world: World) -> None:
    world.fund(*[20 * ADA] * 40)
    async with world.run() as run:
        await run.look()
        stop = asyncio.Event()

        async def sweep() -> None:
            while not stop.is_set():
                for row in queries.payments_in(run.agent.conn, [State.RESERVED]):
                    await run.agent.resume(row)
                await asyncio.sleep(0)

        sweeping = asyncio.create_task(sweep())
        asks = [world.ask(f"call {n}", key=f"k{n}") for n in range(30)]
        for ask in asks:
            await run.agent.pay(ask)
        stop.set()
        await sweeping
        await run.agent.drain(10)
        await run.settle_down()
        assert len(world.transactions()) == 30


@pytest.mark.parametrize("yields", range(0, 12, 2))
async def test_a_caller_that_goes_away_leaves_a_payment_that_lives_on(world: World, yields: int) -> None:
    world.fund(50 * ADA)
    async with world.run() as run:
        await run.look()
        ask = world.ask(key="k")
        task = asyncio.create_task(run.agent.pay(ask))
        for _ in range(yields):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await run.agent.write("flush", lambda _unit: None)  # what the caller left in the queue is done
        await run.settle_down(2)
        row, _ = await run.agent.pay(ask)
        await run.agent.drain(10)
        await run.settle_down(2)
        assert world.transactions() == [row.tx_id]
        assert run.owned() == world.on_chain()
