"""Tasks that wait for a payment to change: all of them wake, in order of arrival."""

import asyncio

import pytest

from payagent.agent.base.change_notifier import Changes


async def test_waiters_for_a_payment_wake_in_order_of_arrival() -> None:
    changes, woken = Changes(), []

    async def wait(number: int) -> None:
        assert await changes.wait(f"pay_{number % 2}", 60)
        woken.append(number)

    for first in range(0, 400, 40):  # the next tasks reuse the memory of finished ones
        numbers = list(range(first, first + 40))
        waiting = [asyncio.create_task(wait(number)) for number in numbers]
        for _ in range(2):  # until each task waits
            await asyncio.sleep(0)
        woken.clear()
        changes.notify("pay_1")
        changes.notify("pay_0")
        await asyncio.gather(*waiting)
        assert woken == [*numbers[1::2], *numbers[::2]]


@pytest.mark.parametrize("turns", range(4))
async def test_a_waiter_cancelled_while_it_wakes_stays_cancelled(turns: int) -> None:
    """Otherwise a call would go on after its client hung up, and its answer would count as delivered."""
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
