"""A short soak: the long one is run by hand (`scripts/evidence soak`, docs/evidence/soak.md)."""

import pytest
from sim.soak import Size, Window, run_soak


def test_a_fork_of_hours_takes_nothing_from_the_books() -> None:
    told = run_soak(Size(days=2, payments=150, beat_s=120, fork_hours=3))
    assert told["violations"] == []
    undone, lost, landed = told["fork"]
    assert undone > 200
    assert lost > landed > 0
    assert told["served"] > 0.8 * told["wanted"]
    assert told["calls_per_payment"] > 0


def test_a_window_forgets_its_beginning() -> None:
    window = Window([0, 1, 2, 3])
    assert window.drop_below(2) == [(0, 0), (1, 1)]
    assert (len(window), window[2], window[-1], window[3:]) == (4, 2, 3, [3])
    with pytest.raises(KeyError):
        window[1]
