"""Who waits for a change of a payment: all are woken, in the order in which they came."""

import asyncio

import pytest

from payagent.agent.base.change_notifier import Changes


async def test_waiters_wake_in_the_order_in_which_they_came() -> None:
    changes, woken = Changes(), []

    async def wait(number: int) -> None:
        assert await changes.wait(f"pay_{number % 2}", 60)
        woken.append(number)

    for first in range(0, 400, 40):  # what the one half of them leaves behind is where the next ones live
        numbers = list(range(first, first + 40))
        waiting = [asyncio.create_task(wait(number)) for number in numbers]
        for _ in range(2):  # until each waits, within its time limit
            await asyncio.sleep(0)
        woken.clear()
        changes.notify("pay_1")
        changes.notify("pay_0")
        await asyncio.gather(*waiting)
        assert woken == [*numbers[1::2], *numbers[::2]]


@pytest.mark.parametrize("turns", range(4))
async def test_a_waiter_cancelled_while_it_wakes_stays_cancelled(turns: int) -> None:
    """Else a call whose client hung up at that moment goes on, and its answer counts as delivered to nobody."""
    changes, went_on = Changes(), []

    async def wait() -> None:
        await changes.wait("pay_0", 60)
        await asyncio.sleep(0)
        went_on.append(True)

    waiting = asyncio.create_task(wait())
    for _ in range(3):
        await asyncio.sleep(0)
    changes.notify("pay_0")
    for _ in range(turns):
        await asyncio.sleep(0)
    is_in_time = waiting.cancel()
    await asyncio.wait((waiting,))
    assert waiting.cancelled() == is_in_time != bool(went_on)
