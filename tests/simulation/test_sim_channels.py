"""The simulator with channels: no seed violates an invariant, and seeded bugs of channels are found."""

import pytest
from kit.effort import pick
from kit.simulation import require_clean
from simulation.channel_mutants import MUTANTS, kill
from simulation.sources import base_seed, regressions

from sim.channel_world import ChannelWorld
from sim.run import Result, run_seeds

SEEDS = pick(10, 50)
SEEDS_MAX = 40


@pytest.mark.timeout(3600)
def test_no_seed_with_channels_violates_an_invariant() -> None:
    base, total = base_seed(), Result()
    for share in run_seeds(range(base, base + SEEDS), world=ChannelWorld):
        total.add(share)
    require_clean(total)
    assert total.seeds == SEEDS


@pytest.mark.timeout(600)
def test_no_formerly_failing_seed_with_channels_fails_again() -> None:
    total = Result()
    for seed in regressions("channel_regressions.txt")[: pick(3, 100)]:
        for share in run_seeds(range(seed, seed + 1), processes=1, world=ChannelWorld):
            total.add(share)
    require_clean(total)


@pytest.mark.parametrize("name", list(MUTANTS))
@pytest.mark.timeout(600)
def test_the_simulator_finds_a_seeded_bug_of_channels(name: str) -> None:
    assert kill(name, range(SEEDS_MAX)) is not None
