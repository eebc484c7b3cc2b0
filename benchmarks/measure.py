"""Times of one piece of work, repeated, and what their spread is."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Spread:
    """Milliseconds: at the median, and below which 10, 90 and 99 of 100 lie."""

    median: float
    p10: float
    p90: float
    p99: float
    count: int

    @classmethod
    def of(cls, taken_ms: Sequence[float]) -> Self:
        ordered = sorted(taken_ms)
        p10, p90, p99 = (ordered[min(len(ordered) * part // 100, len(ordered) - 1)] for part in (10, 90, 99))
        return cls(statistics.median(ordered), p10, p90, p99, len(ordered))


def times_ms(work: Callable[[], object], rounds: int, most_s: float = 10) -> list[float]:
    """What each call took, after one that is not counted; no further round after `most_s`."""
    work()
    taken: list[float] = []
    end = time.perf_counter() + most_s
    while len(taken) < rounds and (not taken or time.perf_counter() < end):
        start = time.perf_counter()
        work()
        taken.append((time.perf_counter() - start) * 1000)
    return taken


def cpu_s(pid: int) -> float:
    """Processor time of a process of this machine and of its children that run."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    stats = [Path(f"/proc/{one}/stat").read_text(encoding="ascii") for one in (pid, *children)]
    ticks = [int(field) for stat in stats for field in stat.rpartition(")")[2].split()[11:13]]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int, name: str = "VmRSS") -> float:
    """Of a process of this machine, as Linux tells it: `VmRSS` now, `VmHWM` at its peak."""
    status = dict(
        line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    )
    return int(status[name].split()[0]) / 1000
