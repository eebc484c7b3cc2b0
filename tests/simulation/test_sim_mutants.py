"""The simulator finds seeded bugs within a few seeds, and finds nothing in the program without them.

These are the bugs that are found soon; `./scripts/evidence mutants` tries all of them, for as long as it takes.
"""

import pytest
from kit.effort import pick
from simulation import effect_mutants
from simulation.mutants import MUTANTS, kill, require_fit, switched_on

SEEDS_MAX = 60
SOON = {
    "recorded after it was sent": 1,
    "answered before the commit": 2,
    "no fsync": 1,
    "built anew on BadInputs": 1,
    "not found is void": 1,
    "a hold is released when nobody answers": 1,
    "what a merchant refuses is over": 3,
    "the intent's key is ignored": 1,
    "no bound on the fee": 1,
    "a fee is booked as the merchant's": 1,
    "what rides along with a token is not booked": 1,
    "an api key is logged": 0,
    "a pause stops what is new alone": 16,
    "nobody's answer is a yes": 14,
    "no lock keeps a second daemon away": 16,
}
"""Each bug with a seed that finds it. In a changed program it may be one of the seeds after it."""


@pytest.mark.timeout(600)
def test_the_simulator_finds_seeded_bugs(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = list(SOON.items())[:: pick(2, 1)]
    kills = {name: kill(name, range(seed, seed + SEEDS_MAX)) for name, seed in chosen}
    with capsys.disabled():
        print()
        for name, found in kills.items():
            print(f"{name}: " + ("lives" if found is None else f"killed by seed {found[1]}: {found[2]}"))
    assert [name for name, found in kills.items() if found is None] == []


@pytest.mark.timeout(1800)
def test_every_seeded_bug_still_fits_the_program() -> None:
    """Each replaces a function that is there, by one that takes its parameters. Runs find other misfits too."""
    misfits = []
    for name in MUTANTS:
        try:
            with switched_on(name):
                pass
            kill(name, range(pick(0, 4)))
        except (AssertionError, AttributeError, KeyError) as misfit:
            misfits.append(f"{name}: {misfit}")
    assert misfits == []


def test_a_seeded_bug_that_no_longer_fits_is_noticed() -> None:
    def pay(self: object, asked: object, *, wait_s: float) -> None: ...

    require_fit("pay", pay, lambda _self, _asked, wait_s: None)
    require_fit("pay", pay, lambda *_, **_more: None)
    for other in (lambda _self, _asked: None, lambda *_: None, lambda _self, _asked, _more, wait_s: None):
        with pytest.raises(AssertionError, match="pay takes self, asked, wait_s"):
            require_fit("pay", pay, other)


OF_THE_TABLE = (
    (("settle from confirmed, void", "outputs", "dropped"), range(1, 4)),
    (("block_lost from in_block", "outputs", "dropped"), range(20, 22)),
    (("reserve from received", "journal", "doubled"), range(1, 4)),
)
"""Cells of the effects' table, and the seeds that find them; all of them: `tests/simulation/effect_mutants.py`."""


@pytest.mark.parametrize(
    ("mutation", "seeds"), OF_THE_TABLE, ids=lambda one: " ".join(one) if isinstance(one, tuple) else ""
)
def test_a_wrong_cell_of_the_effects_is_found(mutation: effect_mutants.Mutation, seeds: range) -> None:
    assert mutation in set(effect_mutants.mutations())
    assert effect_mutants.kill(mutation, seeds) is not None
