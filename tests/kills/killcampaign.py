"""Campaigns of kills: when each daemon is killed, and what was found.

As a program: `killcampaign.py --kills N --seed S` runs one of N kills in the mix of the suite and prints a
summary; its exit status is 0 only without violations and with every commit point reached.
"""

import argparse
import asyncio
import json
import logging
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path

from killchecks import at_death, at_peace
from killforks import fork_server
from killworld import SHOPPERS, Lane, World, running_world

POINTS = ("admit", "sign", "submit", "answer", "observe", "confirm", "settle", "deposit", "delivery", "merchant")
"""The commit points that a running daemon passes repeatedly (agent/__init__, contract of daemon.serve)."""

RARE_POINTS = ("bind", "reject")
"""Passed at a daemon's very first start, and when an admitted payment can no longer be signed."""

SIDES = ("before", "after")
RUNNING = tuple(f"{side} {point}" for point in POINTS for side in SIDES)
EVERY_POINT = (*RUNNING, *(f"{side} {point}" for point in RARE_POINTS for side in SIDES))
REACHED_S = 120.0

Cycle = Callable[[Lane], Awaitable[None]]


def at_point(point: str, count: int = 1, *, strict: bool = False) -> Cycle:
    """A daemon that dies when it reaches a commit point for the count-th time."""

    async def cycle(lane: Lane) -> None:
        if point.endswith(" deposit"):
            await lane.world.deposit(lane)
        life = await lane.start((point, count), strict=strict)
        if not await lane.ended(life, REACHED_S):
            lane.world.violate("not reached", point)
        await buried(lane, life.killing_at or "unplanned")

    return cycle


def rejecting(point: str) -> Cycle:
    """A daemon that dies as it rejects a payment that an earlier one had admitted but not signed."""

    async def cycle(lane: Lane) -> None:
        await at_point("before sign")(lane)
        await at_point(point, strict=True)(lane)

    return cycle


def at_random() -> Cycle:
    """A daemon killed from outside at a random moment, counted from its start or from when clients can buy.

    On a slow machine few would otherwise live long enough to submit anything.
    """

    async def cycle(lane: Lane) -> None:
        life = await lane.start()
        await (life.opened() if lane.world.random.random() < 0.5 else life.pid)
        await asyncio.sleep(lane.world.random.uniform(0.0, 1.0))
        await buried(lane, "random", life.end(signal.SIGKILL))

    return cycle


def cold(*, served: bool) -> Cycle:
    """The command in a fresh interpreter, killed at a random moment after it began to serve, or before."""

    async def cycle(lane: Lane) -> None:
        life = await lane.start(cold=True)
        if served and not await life.is_ready():
            lane.world.violate("not reached", "a cold start that serves")
        await asyncio.sleep(lane.world.random.uniform(0.0, 1.0))
        await buried(lane, "cold start", life.end(signal.SIGKILL))

    return cycle


async def buried(lane: Lane, name: str, kill: Awaitable[int] | None = None) -> None:
    assert lane.life is not None
    status = await (kill or lane.life.end(signal.SIGKILL))
    if status != -signal.SIGKILL:
        lane.world.violate("ended by itself", f"{name}: status {status} {lane.life.failed}")
    lane.world.kills[name] += 1
    at_death(lane)


def at_points(names: Iterable[str], counts: Iterable[int]) -> list[Cycle]:
    """Each point at its first, second, ... pass. Waiting deposits are recorded together, once in a life."""
    return [at_point(name, 1 if name.endswith(" deposit") else count) for count in counts for name in names]


def mixed(kills: int, world: World) -> list[Cycle]:
    """The suite's mix: two fifths at points, as many rejections as fit, a twentieth cold, the rest at random."""
    rounds = max(1, kills * 2 // 5 // len(RUNNING))
    cycles = at_points(RUNNING, [1 + index % 3 for index in range(rounds)])
    cycles += [rejecting(f"{side} reject") for side in SIDES for _ in range(max(1, kills // 100))]
    cycles += [cold(served=index % 3 != 0) for index in range(max(1, kills // 20))]
    rejections = 2 * max(1, kills // 100)
    cycles += [at_random() for _ in range(kills - len(cycles) - rejections)]
    world.random.shuffle(cycles)
    return cycles


async def first_starts(lane: Lane) -> None:
    """A daemon that dies while its database is bound to the network and to the address."""
    for point in ("before bind", "after bind"):
        await at_point(point, strict=True)(lane)


async def run(world: World, cycles: Iterable[Cycle], *, shoppers: int = SHOPPERS) -> None:
    """Run the cycles on the lanes in turn while their shoppers buy; then let everything finish, and check."""
    todo = iter(cycles)
    for lane in world.lanes:
        for _ in range(shoppers):
            world.spawn(lane.shop())
    await asyncio.gather(*(live(lane, todo) for lane in world.lanes))
    await world.settle_down()
    for lane in world.lanes:
        assert lane.life is not None
        if (status := await lane.life.end(signal.SIGTERM)) != 0:
            world.violate("stop", f"{lane.dir.name} ended with {status}")
    await at_peace(world)


async def live(lane: Lane, todo: Iterator[Cycle]) -> None:
    for cycle in todo:
        if lane.world.violations:
            return
        await cycle(lane)


def summary(world: World, seconds: float) -> str:
    purchases = sum(len(lane.purchases) for lane in world.lanes)
    kills = sum(world.kills.values())
    trouble = ", ".join(f"{count} {name}" for name, count in sorted(world.trouble.items()))
    return (
        f"{kills} kills ({world.kills['cold start']} of cold starts, {world.kills['random']} at random) in "
        f"{seconds:.0f} s, {purchases} purchases, {trouble}, {len(world.violations)} violations"
    )


async def campaign(kills: int, seed: int, result: Path | None = None) -> int:
    began_s = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="kills"))
    async with fork_server() as forks, running_world(folder, forks, seed, lanes=3) as made:
        for lane in made.lanes:
            await first_starts(lane)
        await run(made, mixed(kills - sum(made.kills.values()), made))
    for point in EVERY_POINT:
        print(f"{made.kills[point]:5} {point}")
    unreached = [f"never reached: {point}" for point in EVERY_POINT if not made.kills[point]]
    findings = made.violations + unreached
    for finding in findings:
        print(finding, file=sys.stderr)
    print(f"seed {seed}: {summary(made, time.monotonic() - began_s)}")
    if result is not None:
        told = {
            "seed": seed,
            "kills": dict(made.kills),
            "purchases": sum(len(lane.purchases) for lane in made.lanes),
            "trouble": dict(made.trouble),
            "findings": findings,
            "seconds": round(time.monotonic() - began_s, 1),
        }
        result.write_text(json.dumps(told), encoding="utf-8")
    if findings:
        print(f"the files and logs are in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill payagent's daemon again and again, and check what is left.")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--result", type=Path, help="write what came of it there, as JSON")
    options = parser.parse_args()
    # a daemon that dies while it sends leaves half a request, which the devnet's server would tell at length
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    return asyncio.run(campaign(options.kills, options.seed, options.result))


if __name__ == "__main__":
    sys.exit(main())
