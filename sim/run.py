"""Runs many seeds in shares on several processes, and adds up their results.

Never: hides a failed seed; lets the sharing change a seed's result.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from multiprocessing import get_context
from typing import Any

from sim.coverage import LISTED
from sim.stage import SimStage
from sim.world import World

SHARE = 25


def _nothing() -> None:
    return


Prepare = Callable[[], None]
"""Called by a process before its first seed. Tests use it to inject a bug."""


@dataclass(slots=True)
class Result:
    """The result of some seeds. `violations` has each failed seed with its first violation."""

    seeds: int = 0
    reached: Counter[str] = field(default_factory=Counter)
    violations: dict[int, str] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)

    def add(self, other: "Result") -> None:
        self.seeds += other.seeds
        self.reached += other.reached
        self.violations |= other.violations
        self.digests |= other.digests

    def as_json(self, seconds: float) -> dict[str, Any]:
        """The last line of `scripts/sim --json`."""
        return {
            "seeds": self.seeds,
            "violations": len(self.violations),
            "seeds_per_s": round(self.seeds / seconds, 2) if seconds > 0 else 0.0,
            "failed": {str(seed): self.violations[seed] for seed in sorted(self.violations)},
            "reached": dict(sorted((dict.fromkeys(LISTED, 0) | self.reached).items())),
        }


def run_share(seeds: range, world: type[World] = World) -> Result:
    """Run these seeds in this process, one after the other."""
    result = Result()
    stage = SimStage(world)
    try:
        for seed in seeds:
            story = stage.run(seed)
            result.seeds += 1
            result.reached += story.reached
            result.digests[seed] = story.digest
            if story.violations:
                result.violations[seed] = story.violations[0]
    finally:
        stage.close()
    return result


def run_seeds(
    seeds: range,
    processes: int | None = None,
    prepare: Prepare = _nothing,
    world: type[World] = World,
) -> Iterator[Result]:
    """Yield the results of the shares in order, using one process per processor by default."""
    shares = [seeds[at : at + SHARE] for at in range(0, len(seeds), SHARE)]
    count = processes or len(os.sched_getaffinity(0))
    if count == 1 or len(shares) == 1:
        prepare()
        yield from map(run_share, shares, repeat(world))
        return
    with ProcessPoolExecutor(min(count, len(shares)), get_context("spawn"), prepare) as pool:
        yield from pool.map(run_share, shares, repeat(world))


def tell_story(seed: int, world: type[World] = World) -> list[str]:
    """Run one seed again, and return its trace line by line."""
    stage = SimStage(world)
    try:
        return stage.run(seed, keep_story=True).lines
    finally:
        stage.close()


class Stopwatch:
    """Measures the elapsed real time. It is for people only; no run uses it."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began_s
