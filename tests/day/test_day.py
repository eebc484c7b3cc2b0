"""A day of payments on a devnet, and its audit (see day.py)."""

from day import run_day


def test_a_day_of_payments_reconciles_with_the_chain() -> None:
    told: list[str] = []
    run_day(told.append)
    assert "reconcile: clean" in told
