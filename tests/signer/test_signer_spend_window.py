"""The 24-hour spend window, at each of its limits."""

import pytest

from payagent.core.problems import Refused
from payagent.signer import spend_window as outflow
from payagent.signer.spend_window import DAY_S, SpendWindow

ADA, TOKEN = "lovelace", "aa" * 28
A, B, C = (("ab" * 32, index) for index in range(3))


def day(**caps: int) -> SpendWindow:
    return SpendWindow({ADA: 10, TOKEN: 5, **caps}, "limits.signed_per_day")


def of(*inputs: tuple[str, int]) -> frozenset[tuple[str, int]]:
    return frozenset(inputs)


def sign(sums: SpendWindow, inputs: frozenset[tuple[str, int]], now_s: float = 0, **leaving: int) -> None:
    sums.require(inputs, leaving, now_s)
    sums.note(inputs, leaving, now_s)


def refused(
    sums: SpendWindow, inputs: frozenset[tuple[str, int]], now_s: float = 0, **leaving: int
) -> dict[str, object]:
    with pytest.raises(Refused) as caught:
        sums.require(inputs, leaving, now_s)
    assert caught.value.name == "limit_exceeded"
    return dict(caught.value.context)


def test_the_whole_daily_cap_may_leave_and_not_one_unit_more() -> None:
    sums = day()
    sign(sums, of(A), lovelace=4)
    sign(sums, of(B), lovelace=6)
    told = {"limit": "signed_per_day", "asset": ADA, "left": "0", "asked": "1"}
    assert refused(sums, of(C), lovelace=1) == told


def test_a_refusal_says_how_much_is_left() -> None:
    sums = day()
    sign(sums, of(A), lovelace=4)
    assert refused(sums, of(B), lovelace=7)["left"] == "6"


def test_an_asset_without_a_cap_cannot_leave() -> None:
    assert refused(day(), of(A), **{"bb" * 28: 1})["left"] == "0"


def test_each_asset_is_counted_separately() -> None:
    sums = day()
    sign(sums, of(A), **{ADA: 10, TOKEN: 4})
    assert refused(sums, of(B), **{TOKEN: 2})["left"] == "1"
    sign(sums, of(B), **{TOKEN: 1})


def test_only_the_largest_of_conflicting_attempts_counts() -> None:
    sums = day()
    sign(sums, of(A), lovelace=6)
    sign(sums, of(A, B), lovelace=3)
    sign(sums, of(A), lovelace=10)
    assert refused(sums, of(A), lovelace=11)["left"] == "0"


def test_an_attempt_that_conflicts_with_two_joins_the_larger_one() -> None:
    for first, second in ((A, B), (B, A)):
        sums = day()
        sign(sums, of(first), lovelace=2)
        sign(sums, of(second), lovelace=7)
        sign(sums, of(A, B), lovelace=8)
        assert refused(sums, of(C), lovelace=1)["left"] == "0"


def test_an_attempt_is_covered_up_to_the_amount_already_counted() -> None:
    sums = day()
    assert not sums.covers(of(A), {ADA: 0}, 0), "nothing was counted yet"
    sign(sums, of(A), lovelace=3)
    assert sums.covers(of(A), {ADA: 3}, 0)
    assert not sums.covers(of(A), {ADA: 4}, 0)
    assert not sums.covers(of(A), {ADA: 3, TOKEN: 1}, 0)


def test_a_covered_attempt_narrows_the_inputs_that_are_covered() -> None:
    """A transaction that spends only a UTxO left out can land as well."""
    sums = day()
    sign(sums, of(A, B), lovelace=3)
    assert sums.covers(of(A), {ADA: 1}, 0)
    assert not sums.covers(of(B), {ADA: 1}, 0)


def test_an_attempt_counts_for_24_hours_after_its_last_signature() -> None:
    sums = day()
    sign(sums, of(A), 0, lovelace=10)
    refused(sums, of(B), DAY_S - 1, lovelace=1)
    sign(sums, of(A), DAY_S - 1, lovelace=10)
    refused(sums, of(B), DAY_S, lovelace=1)
    sign(sums, of(B), 2 * DAY_S - 1, lovelace=10)


def test_an_attempt_of_more_than_24_hours_ago_covers_nothing() -> None:
    sums = day()
    sign(sums, of(A), 0, lovelace=10)
    assert sums.covers(of(A), {ADA: 1}, DAY_S - 1)
    assert not sums.covers(of(A), {ADA: 1}, DAY_S)


def test_an_expired_attempt_hides_no_later_spend_of_its_utxo() -> None:
    sums = day()
    sign(sums, of(A), 0, lovelace=10)
    sign(sums, of(A), DAY_S, lovelace=10)
    assert refused(sums, of(B), DAY_S, lovelace=1)["left"] == "0"


def test_the_number_of_remembered_transactions_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outflow, "GROUPS_MAX", 2)
    sums = day()
    sign(sums, of(A), lovelace=1)
    sign(sums, of(B), lovelace=1)
    with pytest.raises(Refused, match="2 transactions were signed in 24 hours") as caught:
        sums.require(of(C), {ADA: 1}, 0)
    assert caught.value.name == "signer_refused"
    sign(sums, of(A), lovelace=2)
    sign(sums, of(C), DAY_S, lovelace=1)
