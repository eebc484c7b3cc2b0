"""Who is asked about a payment, and for which reasons."""

import pytest

from payagent.core.findings import Finding, above, judge
from payagent.core.problems import Refused

PRICE = Finding("approval_required", "it is dear", asks=True)
PIN = Finding("merchant_not_allowed", "it pays somebody else", asks=False)


def test_a_payment_that_nothing_speaks_against_asks_nobody() -> None:
    assert judge(()) == ()


def test_a_person_is_told_every_reason() -> None:
    other = PRICE._replace(detail="it is dearer than ever")
    assert judge([PRICE, other]) == (PRICE, other)


def test_what_asks_nobody_refuses_whatever_else_asks() -> None:
    with pytest.raises(Refused) as refused:
        judge([PRICE, PIN])
    assert (refused.value.name, refused.value.detail) == (PIN.code, PIN.detail)


@pytest.mark.parametrize(("units", "asks"), [(10, False), (11, True)])
def test_a_person_is_asked_above_the_threshold_and_not_at_it(units: int, asks: bool) -> None:
    reasons = above({"lovelace": 10}, {"lovelace": units, "token": 1000})
    assert bool(reasons) is asks
    assert all(reason.code == "approval_required" for reason in reasons)


def test_a_person_reads_ada_and_the_units_of_a_token() -> None:
    reasons = above({"lovelace": 5_000_000, "token": 3}, {"lovelace": 9_770_000, "token": 4})
    assert [reason.detail for reason in reasons] == [
        "it takes 9.77 ADA, more than 5 ADA",
        "it takes 4 units of token, more than 3 units of token",
    ]
