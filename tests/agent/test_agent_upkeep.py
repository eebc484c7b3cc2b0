"""Coins in flight: a burst is paid from one coin without a block, and coins are kept ready within bounds."""

import asyncio

import pytest
from agent_kit import ADA, APP, Run, World, with_terms

from payagent.core.payment import State
from payagent.core.problem import Refused
from payagent.store import queries
from payagent.store.queries import PaymentRow
from payagent.store.upkeep import UPKEEP_APP

DEPTH = 8
kept = with_terms(chain_depth=DEPTH, upkeep_lovelace=2 * ADA)


def own_orders(run: Run) -> list[PaymentRow]:
    """What upkeep ordered, oldest first."""
    rows = queries.payments_page(
        run.agent.conn, app_id=UPKEEP_APP, state=None, origin=None, since_ms=None, before_seq=None, limit=1000
    )
    return rows[::-1]


async def burst(world: World, run: Run, count: int, name: str = "call") -> list[PaymentRow]:
    """So many purchases at once, signed and sent."""
    asks = [world.ask(f"{name} {n}", key=f"{name} {n}") for n in range(count)]
    answers = await asyncio.gather(*(run.agent.pay(ask) for ask in asks))
    await run.agent.drain(30)
    return [row for row, _ in answers]


async def test_a_burst_is_paid_from_one_coin_before_a_block_comes(world: World) -> None:
    world.settings(price="2000000", splits=[])
    world.fund(10_000 * ADA)
    async with world.run(terms=kept) as run:
        await run.look()
        rows = await burst(world, run, 60)
        assert {row.state for row in rows} == {State.SIGNED}
        assert len({row.anchor for row in rows}) == 60
        (split,) = own_orders(run)
        assert (split.kind, split.app_id) == ("split", UPKEEP_APP)
        await run.settle_down(3)
        assert {run.state(row.id) for row in [*rows, split]} == {State.CONFIRMED}
        assert run.owned() == world.on_chain()
