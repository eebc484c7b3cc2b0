"""The simulator finds seeded bugs within a few seeds, and finds nothing in the program without them.

These are the bugs that are found soon; `./scripts/evidence mutants` tries all of them, for as long as it takes.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from os import sched_getaffinity

import pytest
from kit.effort import pick
from simulation import effect_mutants
from simulation.mutants import MUTANTS, kill

SEEDS_MAX = 60
SOON = (
    "recorded after it was sent",
    "answered before the commit",
    "no fsync",
    "built anew on BadInputs",
    "not found is void",
    "a hold is released when nobody answers",
    "what a merchant refuses is over",
    "the intent's key is ignored",
    "no bound on the fee",
    "a fee is booked as the merchant's",
    "what rides along with a token is not booked",
    "an api key is logged",
    "a pause stops what is new alone",
    "nobody's answer is a yes",
    "no lock keeps a second daemon away",
)
CHOSEN = SOON[:: pick(2, 1)]


@pytest.mark.timeout(600)
def test_the_simulator_finds_seeded_bugs(capsys: pytest.CaptureFixture[str]) -> None:
    with ProcessPoolExecutor(len(sched_getaffinity(0)), get_context("spawn")) as pool:
        kills = dict(zip(CHOSEN, pool.map(kill, CHOSEN, [range(SEEDS_MAX)] * len(CHOSEN)), strict=True))
    with capsys.disabled():
        print()
        for name, found in kills.items():
            print(f"{name}: " + ("lives" if found is None else f"killed by seed {found[0]}: {found[2]}"))
    assert [name for name, found in kills.items() if found is None] == []


@pytest.mark.parametrize("name", MUTANTS)
def test_every_seeded_bug_still_fits_the_program(name: str) -> None:
    """`kill` raises if the bug replaces what is gone, or a function that is called with other arguments now."""
    kill(name, range(4))


OF_THE_TABLE = (
    (("settle from confirmed, void", "outputs", "dropped"), range(1, 4)),
    (("block_lost from in_block", "outputs", "dropped"), range(41, 43)),
    (("reserve from received, awaiting_approval", "journal", "doubled"), range(1, 4)),
)
"""Cells of the effects' table, and the seeds that find them; all of them: `tests/simulation/effect_mutants.py`."""


@pytest.mark.parametrize(
    ("mutation", "seeds"), OF_THE_TABLE, ids=lambda one: " ".join(one) if isinstance(one, tuple) else ""
)
def test_a_wrong_cell_of_the_effects_is_found(mutation: effect_mutants.Mutation, seeds: range) -> None:
    assert mutation in set(effect_mutants.mutations())
    assert effect_mutants.kill(mutation, seeds) is not None
