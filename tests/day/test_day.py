"""The day's work, with its audit."""

from day import run_day


def test_a_day_adds_up_to_the_unit() -> None:
    told: list[str] = []
    run_day(told.append)
    assert "reconcile: clean" in told
