"""kill -9 on a real daemon with a real file: no payment is lost or made twice, and the ledger equals the chain.

Daemons are killed before and after each commit point, at random moments under load, and at cold starts: about 30
kills, or 200 with `./scripts/test --long`. Meanwhile clients keep buying, blocks are made and rolled back, and
replies are lost. The last tests kill daemons with a seeded bug, to show that the checks would notice it.
"""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from killcampaign import REACHED_S, RUNNING, SIDES, Cycle, at_points, at_random, cold, first_starts, rejecting, run
from killchecks import at_death, at_peace, check_paid_once
from killforks import ForkServer
from killworld import SHOPPERS, World, running_world
from kit.effort import IS_LONG, pick

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1200)]

POINTS = (
    *("after admit", "before sign", "after sign", "before submit", "after submit", "before answer"),
    *("after answer", "after observe", "after confirm", "before deposit", "after delivery"),
)
"""The points of the sample: around what leaves the daemon, and one for each later commit but `settle`."""

LIFE = (1, 2, 1, 3)[: pick(1, 4)]
"""For each life of a daemon, at which pass of its commit point it is killed."""

RANDOM_KILLS = pick(10, 100)

COLD_STARTS = pick(2, 10)

BUYERS = pick(2, SHOPPERS)
"""How many buy from a wallet at once."""


def kinds(world: World) -> set[str]:
    return {violation.split(":")[0] for violation in world.violations}


@pytest.mark.parametrize(
    "points",
    [RUNNING[:10], RUNNING[10:]] if IS_LONG else [POINTS],
    ids=["admit to observe", "confirm to merchant"] if IS_LONG else ["of the sample"],
)
async def test_a_kill_at_each_commit_point_loses_and_repeats_no_payment(
    tmp_path: Path, forks: ForkServer, points: tuple[str, ...]
) -> None:
    async with running_world(tmp_path, forks, seed=1, lanes=pick(2, 3)) as made:
        await run(made, at_points(points, LIFE), shoppers=BUYERS)
        assert made.violations == []
        assert made.kills == dict.fromkeys(points, len(LIFE))


async def test_a_kill_at_the_first_start_or_at_a_rejection_loses_and_repeats_no_payment(
    tmp_path: Path, forks: ForkServer
) -> None:
    rounds = pick(1, 2)
    async with running_world(tmp_path, forks, seed=2, lanes=rounds) as made:
        for lane in made.lanes:
            await first_starts(lane)
        await run(made, [rejecting(f"{side} reject") for side in SIDES * rounds], shoppers=BUYERS)
        assert made.violations == []
        rare = [f"{side} {point}" for point in ("bind", "reject") for side in SIDES]
        assert {name: made.kills[name] for name in rare} == dict.fromkeys(rare, rounds)
        assert made.rejected >= rounds


def has_met_trouble(world: World) -> bool:
    """Whether payments met a lost reply, a late submission and a rollback."""
    met = world.devnet.run(lambda devnet: set(devnet.node.switches.triggered))
    return {"submit:lost_reply", "submit:late_accept"} <= met and world.trouble["rolled back transactions"] > 0


def kills_at_random(world: World) -> Iterator[Cycle]:
    """Go on until payments have met all trouble."""
    kills = 0
    while kills < RANDOM_KILLS or not (has_met_trouble(world) or world.violations):
        kills += 1
        yield at_random()


async def test_kills_at_random_moments_lose_and_repeat_no_payment(tmp_path: Path, forks: ForkServer) -> None:
    async with running_world(tmp_path, forks, seed=3, lanes=pick(1, 3)) as made:
        await run(made, kills_at_random(made), shoppers=BUYERS)
        assert made.violations == []
        assert made.kills.keys() == {"random"}
        assert made.kills["random"] >= RANDOM_KILLS


async def test_kills_of_cold_starts_lose_and_repeat_no_payment(tmp_path: Path, forks: ForkServer) -> None:
    async with running_world(tmp_path, forks, seed=4, lanes=pick(1, 2)) as made:
        await run(made, [cold(served=number % 3 != 0) for number in range(COLD_STARTS)], shoppers=BUYERS)
        assert made.violations == []
        assert made.kills == {"cold start": COLD_STARTS}


async def test_the_checks_catch_books_that_are_one_lovelace_off(tmp_path: Path, forks: ForkServer) -> None:
    async with running_world(tmp_path, forks, seed=7, lanes=1) as made:
        await run(made, at_points(["after submit"], [1]), shoppers=1)
        assert made.violations == []
        with closing(sqlite3.connect(made.lanes[0].dir / "ledger.db")) as conn, conn:
            for account, units in (("fees", 1), ("wallet", -1)):
                conn.execute(
                    "INSERT INTO postings(entry_id, account, asset, units) VALUES (1000000, ?, 'lovelace', ?)",
                    (account, units),
                )
            conn.execute("INSERT INTO entries(id, kind, at_ms) VALUES (1000000, 'post', 1)")
        await at_peace(made)
        assert kinds(made) == {"ledger differs"}


async def test_the_checks_catch_a_daemon_that_submits_before_its_attempt_is_durable(
    tmp_path: Path, forks: ForkServer
) -> None:
    async with running_world(tmp_path, forks, seed=5, lanes=1) as made:
        (lane,) = made.lanes
        made.spawn(lane.shop())
        life = await lane.start(("before sign", 1), variant="leave_then_persist")
        assert await lane.ended(life, REACHED_S)
        at_death(lane)
        assert kinds(made) == {"left before durable"}


async def test_the_checks_catch_a_daemon_that_gives_up_payments_after_a_crash(
    tmp_path: Path, forks: ForkServer
) -> None:
    async with running_world(tmp_path, forks, seed=6, lanes=1) as made:
        made.calm = True
        (lane,) = made.lanes
        purchase = await lane.want()
        life = await lane.start(("after answer", 1))
        await asyncio.gather(lane.pay(purchase), lane.ended(life, REACHED_S))
        await made.control("blocks", count=1)
        assert made.violations == []
        await lane.start(variant="give_up_at_restart")
        # a new invoice: the first one belongs to its payment for good
        await lane.pay(again := await made.price_again(purchase, lane.address))
        await lane.confirmed(again)
        await lane.pay(purchase)
        check_paid_once(made)
        assert kinds(made) == {"answer changed", "paid twice"}
