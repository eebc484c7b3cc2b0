"""kill -9 around the calls of a channel: one charge for each key, and no answer goes to another request.

A real daemon is killed at every point of a call, in both ways of presenting a voucher. The last tests run daemons
with a seeded bug, to show that the checks would notice it. `scripts/kills --channels` kills 2,000 times.
"""

from pathlib import Path

import pytest
from killchannel import AT_THE_SHOP, POINTS, WAYS, channel_world
from killforks import ForkServer
from kit.effort import pick

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

ROUNDS = pick(1, 10)


@pytest.mark.parametrize("way", WAYS)
async def test_a_kill_at_each_point_of_a_call_charges_it_once(tmp_path: Path, forks: ForkServer, way: str) -> None:
    async with channel_world(tmp_path, forks) as made:
        for point in POINTS * ROUNDS:
            await made.kill(point, way)
            assert made.violations == []
        await made.settle()
        assert made.violations == []
        assert made.kills == dict.fromkeys((*POINTS, "idle"), ROUNDS)


async def test_another_call_after_a_kill_gets_no_answer_of_the_one_before(
    tmp_path: Path, forks: ForkServer
) -> None:
    async with channel_world(tmp_path, forks) as made:
        for point in ("after promise", "sent", "charged", "before delivery", "after delivery") * ROUNDS:
            for way in WAYS:
                await made.kill(point, way, is_other_first=True)
                assert made.violations == []
        await made.settle()
        assert made.violations == []


async def test_the_checks_catch_a_daemon_that_takes_silence_for_no_charge(
    tmp_path: Path, forks: ForkServer
) -> None:
    async with channel_world(tmp_path, forks, "void_after_silence") as made:
        await made.kill(AT_THE_SHOP[2], "proxy", is_other_first=True)
        assert "answer of another" in {violation.split(":")[0] for violation in made.violations}


async def test_the_checks_catch_a_voucher_that_left_before_its_promise(tmp_path: Path, forks: ForkServer) -> None:
    async with channel_world(tmp_path, forks, "promise_nothing") as made:
        assert "left before durable" in {violation.split(":")[0] for violation in made.violations}
