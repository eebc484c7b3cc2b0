"""Bursts of payments, and UTxOs kept ready for them."""

import asyncio

from kit.agent import ADA, Run, World, with_terms
from payagent.core.aggregate import PaymentRow
from payagent.core.payment.machine import State
from payagent.store.rows import payments
from payagent.store.rows.upkeep import UPKEEP_APP

DEPTH = 8
PER_DAY = 2 * ADA
DAY_S, HOUR_S = 86_400, 3_600
kept = with_terms(unconfirmed_ancestors_max=DEPTH, upkeep_fees_per_day_lovelace=PER_DAY)


def own_orders(run: Run) -> list[PaymentRow]:
    """The transfers upkeep made, oldest first."""
    rows = payments.payments_page(
        run.context.conn, app_id=UPKEEP_APP, state=None, origin=None, since_ms=None, before_seq=None, limit=1000
    )
    return rows[::-1]


async def burst(world: World, run: Run, count: int, name: str = "call") -> list[PaymentRow]:
    """Make `count` payments at once, signed and submitted."""
    asks = [world.ask(f"{name} {n}", key=f"{name} {n}") for n in range(count)]
    answers = await asyncio.gather(*(run.agent.pay(ask) for ask in asks))
    await run.agent.submitter.drain(30)
    return [row for row, _ in answers]


async def land(run: Run, *rows: PaymentRow) -> None:
    """Make blocks until all are confirmed; what a busy machine submitted too late is submitted again."""
    for _ in range(30):
        await run.pass_time(1)
        if all(run.state(row.id) is State.CONFIRMED for row in (*rows, *own_orders(run))):
            return


async def keep(run: Run) -> None:
    """Run upkeep as the scheduler does, until there is nothing more to do."""
    await run.agent.utxo_pool.keep_ready()
    await run.agent.submitter.drain(10)
