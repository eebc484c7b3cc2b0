"""The virtual event loop: time passes only when no task is ready, and every wait ends."""

import asyncio

import pytest

from sim.virtual_loop import StuckError, VirtualLoop


@pytest.fixture
def loop() -> VirtualLoop:
    return VirtualLoop()


def test_a_wait_ends_although_its_end_time_is_rounded(loop: VirtualLoop) -> None:
    """The proxy's payer waits like this: it waits again while any of its time is left."""
    rounds_max = 100

    async def wait() -> int:
        ends_s = loop.time() + 278.16616313462475
        await asyncio.sleep(ends_s - loop.time() - 1e-13)
        for waited in range(rounds_max):
            if (left_s := ends_s - loop.time()) <= 0:
                return waited
            try:
                await asyncio.wait_for(asyncio.Event().wait(), left_s)
            except TimeoutError:
                continue
        return rounds_max

    assert loop.run_until_complete(wait()) < rounds_max
    loop.close()


def test_callbacks_due_at_the_same_time_run_in_the_order_they_were_scheduled(loop: VirtualLoop) -> None:
    ran: list[int] = []

    async def schedule() -> None:
        for number in range(50):
            loop.call_at(10.0, ran.append, number)
        await asyncio.sleep(20)

    loop.run_until_complete(schedule())
    assert ran == list(range(50))
    loop.close()


def test_a_task_and_its_children_end_with_their_owner(loop: VirtualLoop) -> None:
    owner, ended = object(), []

    async def last(name: str) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            ended.append(name)

    async def first() -> None:
        asyncio.create_task(last("child"))  # noqa: RUF006  the loop keeps it
        await last("parent")

    async def run() -> None:
        with loop.owned_by(owner):
            loop.create_task(first())
        other = loop.create_task(last("other"))
        await asyncio.sleep(1)
        loop.end_tasks_of(owner)
        await asyncio.sleep(1)
        assert not other.done()
        await asyncio.wait([other])

    loop.run_until_complete(run())
    assert ended == ["parent", "child", "other"]
    loop.close()


def test_a_loop_whose_tasks_all_wait_forever_raises_an_error(loop: VirtualLoop) -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    with pytest.raises(StuckError):
        loop.run_until_complete(wait())
    loop.close()
