"""The simulator over many seeds: the real agent meets every kind of fault and violates no invariant.

The first seed follows from a hash of the package's sources: each change gets new seeds, and the same tree gets the
same ones. `PAYAGENT_SIM_SEEDS` says how many.
"""

import json
import os
import subprocess
import sys

import pytest
from kit.effort import pick
from kit.simulation import require_clean
from simulation.sources import ROOT, base_seed, regressions

from sim.run import Result, run_seeds

SEEDS = int(os.environ.get("PAYAGENT_SIM_SEEDS", pick(60, 2000)))
REPEATED = min(SEEDS, pick(4, 12))

REACHED_OFTEN = (
    "a death before sign", "a death after leave", "a death between two steps", "a fork of 16 blocks or more",
    "a mempool drops a transaction", "a reply was lost of what was taken", "a submission taken late",
    "a transaction lands on a fork after its time limit", "all inputs are spent, and it is ours",
    "all inputs are spent, and it is not ours", "a merchant was handed a transaction and never sent it",
    "a want is served", "the proxy serves a client", "a client hangs up on the proxy",
    "no room or no disk at sign", "the clock jumps",
)  # fmt: skip
"""Events that 2000 seeds reach dozens of times; a simulator that misses one tests less than it claims."""

SOME_REGRESSIONS = [8742, 477145797, 86817985, 130123, 137734769]
"""One of each kind: a fork, two attempts, `ledger verify`, two providers, a void payment that settles."""

DIGESTS = """
from sim.run import run_share
print(*run_share(range({first}, {last})).digests.values())
"""


@pytest.fixture(scope="module")
def total() -> Result:
    """The result of the seeds of this run."""
    base, total = base_seed(), Result()
    for share in run_seeds(range(base, base + SEEDS), processes=1 if SEEDS < 200 else None):
        total.add(share)
    return total


@pytest.mark.timeout(7200)
def test_no_seed_violates_an_invariant(total: Result, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nseeds {base_seed()}..{base_seed() + SEEDS}")
    require_clean(total)
    assert total.seeds == SEEDS
    if SEEDS >= 2000:
        assert [event for event in REACHED_OFTEN if not total.reached[event]] == []


@pytest.mark.timeout(600)
def test_no_formerly_failing_seed_fails_again() -> None:
    total = Result()
    for seed in pick(SOME_REGRESSIONS, regressions()):
        for share in run_seeds(range(seed, seed + 1), processes=1):
            total.add(share)
    require_clean(total)


def digests(first: int, last: int, hash_seed: str) -> list[str]:
    """The digests of these seeds from another process with another string hash seed."""
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS.format(first=first, last=last)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.timeout(7200)
def test_a_seed_repeats_exactly_the_same_run(total: Result) -> None:
    """Another process with other string hashes, and other seeds before it, does the same."""
    base = base_seed()
    once = [total.digests[seed] for seed in range(base, base + REPEATED)]
    assert once == digests(base, base + REPEATED, "1")
    assert len(set(once)) == REPEATED


def run_command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "sim.cli", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_command_prints_its_seeds_step_by_step_and_reports_the_result_as_json() -> None:
    done = run_command("--seeds", "3..5", "--processes", "1", "--story", "--json")
    assert "seed 3:" in done.stderr
    assert "seed 4:" in done.stderr
    assert "the daemon starts" in done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["seeds"] == 2
    assert told["violations"] == len(told["failed"])
    assert done.returncode == (1 if told["failed"] else 0)
    assert told["reached"]["a want is served"] > 0
    assert told["seeds_per_s"] > 0


@pytest.mark.parametrize("seeds", ["6..6", "7..6", "6", "-1..6", "a..b"])
def test_the_command_refuses_an_invalid_seed_range(seeds: str) -> None:
    assert run_command("--seeds", seeds).returncode == 2
