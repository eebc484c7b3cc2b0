"""Who waits for a change of a payment: all are woken, in the order in which they came."""

import asyncio

from payagent.agent.changes import Changes


async def test_that_waiters_are_woken_in_the_order_in_which_they_came() -> None:
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
