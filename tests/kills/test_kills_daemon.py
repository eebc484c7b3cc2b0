"""kill -9 on a real daemon with a real file: no payment lost, none twice, and the ledger equals the chain.

200 kills and a few more: each commit point on both sides, random moments under load, cold starts. Clients go on
buying through all of it, blocks come and are rolled back, replies are lost. The last tests kill daemons with a
seeded bug, to show that the checks would see it.
"""

import asyncio
from dataclasses import replace
from pathlib import Path

import killcampaign
import pytest
from killcampaign import POINTS, SIDES, at_point, at_random, rejecting, run
from killchecks import at_death, check_paid_once
from killworld import World, world


def kinds(world: World) -> set[str]:
    return {violation.split(":")[0] for violation in world.violations}


@pytest.mark.parametrize("points", [POINTS[:5], POINTS[5:]], ids=["admit to observe", "confirm to merchant"])
async def test_a_kill_at_each_commit_point_loses_and_doubles_nothing(
    tmp_path: Path, points: tuple[str, ...]
) -> None:
    async with world(tmp_path, seed=1, lanes=3) as made:
        names = [f"{side} {point}" for point in points for side in SIDES]
        await run(made, [at_point(name, count) for count in (1, 2, 1, 3) for name in names])
        assert made.violations == []
        assert {name: made.kills[name] for name in names} == dict.fromkeys(names, 4)


async def test_a_kill_at_the_first_start_or_at_a_rejection_loses_and_doubles_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, seed=2, lanes=2) as made:
        for lane in made.lanes:
            await killcampaign.first_starts(lane)
        await run(made, [rejecting(f"{side} reject") for side in SIDES * 2])
        assert made.violations == []
        rare = [f"{side} {point}" for point in ("bind", "reject") for side in SIDES]
        assert {name: made.kills[name] for name in rare} == dict.fromkeys(rare, 2)
        assert made.rejected >= 4


async def test_kills_at_random_moments_lose_and_double_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, seed=3, lanes=3) as made:
        await run(made, [at_random() for _ in range(100)])
        assert made.violations == []
        assert made.kills["random"] == 100


async def test_kills_of_cold_starts_lose_and_double_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, seed=4, lanes=2) as made:
        await run(made, [at_random(cold=True) for _ in range(10)])
        assert made.violations == []
        assert made.kills["cold start"] == 10


async def test_a_daemon_that_sends_before_its_attempt_is_durable_is_caught(tmp_path: Path) -> None:
    async with world(tmp_path, seed=5, lanes=1) as made:
        (lane,) = made.lanes
        made.spawn(lane.shop())
        life = await lane.start(("before sign", 1), variant="leave_then_persist")
        assert await lane.ended(life, 10)
        at_death(lane)
        assert kinds(made) == {"left before durable"}


async def test_a_daemon_that_gives_up_what_a_crash_interrupted_is_caught(tmp_path: Path) -> None:
    async with world(tmp_path, seed=6, lanes=1) as made:
        made.calm = True
        (lane,) = made.lanes
        purchase = await lane.want()
        life = await lane.start(("after answer", 1))
        await asyncio.gather(lane.pay(purchase), lane.ended(life, 10))
        await made.control("blocks", count=1)
        assert made.violations == []
        await lane.start(variant="give_up_at_restart")
        await lane.pay(again := replace(purchase, payment_id=None, tx_hash=None))
        await lane.confirmed(again)
        await lane.pay(purchase)
        check_paid_once(made)
        assert kinds(made) == {"answer changed", "paid twice"}
