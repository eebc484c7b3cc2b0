"""Which findings refuse a payment and which need an approval, with their reasons."""

import pytest

from payagent.core.findings import Finding, above, judge
from payagent.core.problems import Refused

PRICE = Finding("approval_required", "it is dear", asks=True)
PIN = Finding("merchant_not_allowed", "it pays somebody else", asks=False)


def test_a_payment_without_findings_needs_no_approval() -> None:
    assert judge(()) == ()


def test_an_approval_lists_every_reason() -> None:
    other = PRICE._replace(detail="it is dearer than ever")
    assert judge([PRICE, other]) == (PRICE, other)


def test_a_finding_that_refuses_wins_over_one_that_asks() -> None:
    with pytest.raises(Refused) as refused:
        judge([PRICE, PIN])
    assert (refused.value.name, refused.value.detail) == (PIN.code, PIN.detail)


@pytest.mark.parametrize(("units", "asks"), [(10, False), (11, True)])
def test_approval_is_required_above_the_threshold_and_not_at_it(units: int, asks: bool) -> None:
    reasons = above({"lovelace": 10}, {"lovelace": units, "token": 1000})
    assert bool(reasons) is asks
    assert all(reason.code == "approval_required" for reason in reasons)


def test_a_reason_shows_ada_for_lovelace_and_units_for_a_token() -> None:
    reasons = above({"lovelace": 5_000_000, "token": 3}, {"lovelace": 9_770_000, "token": 4})
    assert [reason.detail for reason in reasons] == [
        "it takes 9.77 ADA, more than 5 ADA",
        "it takes 4 units of token, more than 3 units of token",
    ]
