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
from sim.run import Result, run_seeds, run_share

SEEDS = pick(3, 500)


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
    for seed in regressions("fleet_regressions.txt")[: pick(1, 100)]:
        for share in run_seeds(range(seed, seed + 1), processes=1, world=FleetWorld):
            total.add(share)
    require_clean(total)


FOUND_BY = {
    "fence off": 0,
    "until trusted by its holder": 0,
    "fence and trigger off": 0,
    "until trusted by its holder, trigger off": 0,
    "gate off": 2,
    "timelines off": 83,
}
"""Each bug with a seed that finds it. In a changed program it may be one of the seeds after it."""
SEEDS_MAX = 60
SOME = ["gate off"]


def seeds_of(name: str) -> range:
    return range(FOUND_BY[name], FOUND_BY[name] + SEEDS_MAX)


@pytest.mark.parametrize("name", pick(SOME, list(MUTANTS)))
@pytest.mark.timeout(600)
def test_the_simulator_finds_a_seeded_bug_of_a_fleet(name: str) -> None:
    assert kill(name, seeds_of(name)) is not None


@pytest.mark.parametrize("name", pick(["until trusted by its holder"], list(BEHIND_THE_TRIGGER)))
@pytest.mark.timeout(600)
def test_the_trigger_refuses_what_a_daemon_writes_for_an_account_of_another(name: str) -> None:
    tried = trespasses(name, seeds_of(name), least=pick(1, 30))
    assert tried
    assert all(what.endswith("the trigger refused it") for what in tried)


def test_the_command_runs_the_same_fleet_again() -> None:
    command = [sys.executable, "-m", "sim.cli", "--fleet", "--seeds", "0..1", "--processes", "1", "--json"]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["reached"] == run_share(range(1), FleetWorld).as_json(seconds=1)["reached"]
    assert told["violations"] == 0
