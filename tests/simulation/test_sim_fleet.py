"""The simulator with several daemons over one ledger: no seed violates an invariant, and seeded bugs are found."""

import json
import os
import subprocess
import sys

import pytest
from kit.effort import pick
from kit.simulation import require_clean
from simulation.fleet_mutants import BEHIND_THE_TRIGGER, MUTANTS, kill, trespasses
from simulation.sources import ROOT, base_seed, regressions

from sim.fleet_world import FleetWorld
from sim.run import Result, run_seeds

SEEDS = pick(5, 500)


def run_command(*arguments: str, hash_seed: str = "0") -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "sim.cli", "--fleet", *arguments, "--processes", "1", "--json"],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    told: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.timeout(3600)
def test_no_seed_of_a_fleet_violates_an_invariant() -> None:
    base, total = base_seed(), Result()
    for share in run_seeds(range(base, base + SEEDS), world=FleetWorld):
        total.add(share)
    require_clean(total)
    assert total.seeds == SEEDS


@pytest.mark.timeout(600)
def test_no_formerly_failing_seed_of_a_fleet_fails_again() -> None:
    total = Result()
    for seed in regressions("fleet_regressions.txt"):
        for share in run_seeds(range(seed, seed + 1), processes=1, world=FleetWorld):
            total.add(share)
    require_clean(total)


@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.timeout(600)
def test_the_simulator_finds_a_seeded_bug_of_a_fleet(name: str) -> None:
    assert kill(name, range(60)) is not None


@pytest.mark.parametrize("name", BEHIND_THE_TRIGGER)
@pytest.mark.timeout(600)
def test_the_trigger_refuses_what_a_daemon_writes_for_an_account_of_another(name: str) -> None:
    tried = trespasses(name, range(pick(3, 30)))
    assert tried
    assert all(what.endswith("the trigger refused it") for what in tried)


def test_the_command_runs_the_same_fleet_again() -> None:
    once, again = (run_command("--seeds", "0..1", hash_seed=one) for one in "12")
    assert once["reached"] == again["reached"]
    assert once["violations"] == 0
