"""What the simulator finds: each seeded bug is killed within a few seeds, and the program without it is not."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from os import sched_getaffinity
from statistics import median

import pytest
from sim.mutants import MUTANTS, kill

MEDIAN_MAX, WORST_MAX = 50, 2000


@pytest.mark.timeout(1200)
def test_every_mutant_is_killed(capsys: pytest.CaptureFixture[str]) -> None:
    names = list(MUTANTS)
    with ProcessPoolExecutor(len(sched_getaffinity(0)), get_context("spawn")) as pool:
        kills = dict(zip(names, pool.map(kill, names, [range(WORST_MAX)] * len(names)), strict=True))
    with capsys.disabled():
        print()
        for name, found in kills.items():
            print(f"{name}: " + ("lives" if found is None else f"killed by seed {found[0]}: {found[2]}"))
    assert [name for name, found in kills.items() if found is None] == []
    assert median(found[0] for found in kills.values() if found is not None) <= MEDIAN_MAX
