"""When a proof is first sent, and when it is sent again."""

import pytest

from payagent.core.payment.machine import State
from payagent.core.retry_schedule import MerchantReadiness, Ready, again_after_s, may_be_shown


def test_retries_back_off_from_half_a_second_to_10_seconds() -> None:
    assert [again_after_s(count) for count in (1, 2, 3, 4, 5, 6, 10_000)] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


SEEN = [(State.IN_FLIGHT, 0, False), (State.IN_FLIGHT, 0, True), *[(State.IN_BLOCK, n, True) for n in (1, 2)]]
SEEN += [(State.CONFIRMED, 3, True), (State.SETTLED, 2160, True)]
"""(state, depth, whether a provider accepted the transaction) of a payment as time goes by; confirm_depth is 3."""


@pytest.mark.parametrize(
    ("ready", "readiness", "first"),
    [
        ("signed", MerchantReadiness(), 0),
        ("submitted", MerchantReadiness(), 1),
        ("confirmed", MerchantReadiness(), 4),
        ("auto", MerchantReadiness(), 2),
        ("auto", MerchantReadiness(0), 1),
        ("auto", MerchantReadiness(1), 2),
        ("auto", MerchantReadiness(3), 4),
        ("auto", MerchantReadiness(4), 5),
        ("auto", MerchantReadiness(0, refused_early=True), 4),
        ("submitted", MerchantReadiness(4, refused_early=True), 1),
    ],
)
def test_the_first_proof_waits_as_set_and_as_learned_about_the_merchant(
    ready: Ready, readiness: MerchantReadiness, first: int
) -> None:
    shown = [
        may_be_shown(ready, readiness, *row, was_sent=sent, status_confirmed=False, was_pending=False)
        for *row, sent in SEEN
    ]
    assert shown == [number >= first for number in range(len(SEEN))]


@pytest.mark.parametrize("depth", [None, 0, 1, 3])
def test_a_confirmed_status_allows_the_proof_at_once_and_a_pending_answer_delays_it(depth: int | None) -> None:
    def shown(**more: bool) -> bool:
        return may_be_shown("auto", MerchantReadiness(depth), State.IN_FLIGHT, 0, was_sent=True, **more)

    assert shown(status_confirmed=True, was_pending=False)
    assert not shown(status_confirmed=True, was_pending=True)


@pytest.mark.parametrize(
    ("known", "depth", "pending", "learned"),
    [
        (None, 1, None, 1),
        (None, 4, None, None),  # it was first shown late
        (None, 0, None, 0),
        (None, 3, 2, 3),
        (None, 9, 2, 3),  # the client was away for a while
        (3, 1, None, 1),
        (3, 5, None, 3),
        (1, 2, 1, 2),
        (2, 1, 5, 1),  # the block was lost in between
    ],
)
def test_the_depth_at_which_a_merchant_accepts_is_learned(
    known: int | None, depth: int, pending: int | None, learned: int | None
) -> None:
    assert MerchantReadiness(known).after_accepted(depth, pending).accepted_depth == learned
