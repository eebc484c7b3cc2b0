"""The alert of a payment that was paid and not served: what ends it, and who."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.agent import ADA, APP, Run, World, world_with_clock
from kit.merchants import guarded, leave_unserved
from kit.payments import fork_with, wait_for_void

from payagent.core.aggregate import PaymentRow
from payagent.core.merchant_rules import MerchantRules
from payagent.core.payment.machine import Delivery, State
from payagent.core.problems import Refused
from payagent.store.rows import alerts, events


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A devnet whose clock the test moves."""
    with world_with_clock(tmp_path) as world:
        world.fund(50 * ADA)
        yield world


def needs_a_person(run: Run, row: PaymentRow) -> bool:
    return alerts.is_raised(run.context.conn, f"unserved:{row.id}")


async def lose_block(world: World, run: Run, row: PaymentRow) -> None:
    """Another fork, without the payment, becomes the longest."""
    fork_with(world, (run.context.payment(row.id).block.height or 0) - 1)
    for _ in range(4):
        await run.run_pass()
    assert run.state(row.id) is State.IN_FLIGHT


async def test_to_acknowledge_moves_no_money_whatever_became_of_the_block(world: World) -> None:
    async with world.run(terms=guarded(world, MerchantRules())) as run:
        row = await leave_unserved(world, run, "lost")
        with pytest.raises(Refused, match="wrong_state"):
            await run.agent.lifecycle.resolve(row.id, APP)
        assert needs_a_person(run, row)
        await lose_block(world, run, row)
        for _ in range(2):
            after = await run.agent.deliveries.acknowledge_unserved(row.id, APP)
            assert (after.state, after.delivery) == (State.IN_FLIGHT, Delivery.PAID_NOT_SERVED)
            assert after.attempt.tx_id == row.attempt.tx_id
        assert not needs_a_person(run, row)
        told = [one for one in events.events(run.context.conn, row.id) if one.event == "unserved_acknowledged"]
        assert [f'"by":"{APP}"' in one.detail for one in told] == [True]


async def test_a_payment_that_was_not_marked_as_unserved_is_not_acknowledged(world: World) -> None:
    async with world.run() as run:
        row = await run.pay_in_block("served")
        with pytest.raises(Refused, match="wrong_state"):
            await run.agent.deliveries.acknowledge_unserved(row.id, APP)


async def test_of_a_void_payment_nothing_is_owed(world: World) -> None:
    async with world.run(terms=guarded(world, MerchantRules())) as run:
        row = await leave_unserved(world, run, "lost")
        await lose_block(world, run, row)
        world.devnet.run(lambda devnet: devnet.chain.mempool.clear())
        await run.agent.lifecycle.resolve(row.id, APP)
        assert needs_a_person(run, row), "its first transaction may still land"
        await wait_for_void(world, run)
        assert run.state(row.id) is State.VOID
        assert not needs_a_person(run, row)
