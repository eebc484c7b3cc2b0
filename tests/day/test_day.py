"""A day of payments on a devnet, and its audit (see day.py)."""

import pytest
from day import run_day
from kit.effort import IS_LONG


@pytest.mark.timeout(1200)
def test_a_day_of_payments_reconciles_with_the_chain() -> None:
    told: list[str] = []
    run_day(told.append, is_sample=not IS_LONG)
    assert "reconcile: clean" in told
