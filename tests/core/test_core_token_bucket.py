"""The token bucket: the burst, how long the next call waits, and clocks that jump."""

import pytest

from payagent.core.token_bucket import Rate, TokenBucket

RATE = Rate(10, 500)


def emptied(rate: Rate = RATE, at_ms: int = 0) -> TokenBucket:
    bucket = TokenBucket(rate, at_ms)
    bucket.take(rate.burst)
    return bucket


@pytest.mark.parametrize(
    ("at_ms", "calls"), [(0, 0), (99, 0), (100, 1), (1000, 10), (50_000, 500), (999_999, 500)]
)
def test_the_bucket_fills_at_its_rate_up_to_the_burst(at_ms: int, calls: int) -> None:
    bucket = emptied()
    assert bucket.wait_ms(calls, at_ms) == 0
    bucket.take(calls)
    assert bucket.wait_ms(1, at_ms) > 0


def test_a_clock_set_back_adds_no_calls() -> None:
    bucket = emptied(at_ms=100_000)
    assert bucket.wait_ms(1, 0) == 100
    assert bucket.wait_ms(1, 100) == 0


@pytest.mark.parametrize(("calls", "needed", "wait_ms"), [(500, 21, 0), (21, 21, 0), (20, 21, 100), (0, 21, 2100)])
def test_the_wait_is_the_time_the_bucket_takes_to_fill(calls: int, needed: int, wait_ms: int) -> None:
    bucket = TokenBucket(RATE, 0)
    bucket.take(RATE.burst - calls)
    assert bucket.wait_ms(needed, 0) == wait_ms


def test_a_request_for_more_than_the_burst_does_not_wait() -> None:
    assert TokenBucket(RATE, 0).wait_ms(501, 0) == 0


def test_calls_taken_in_advance_are_waited_for() -> None:
    bucket = emptied(Rate(3, 1))
    bucket.take(2)
    assert [bucket.wait_ms(1, at_ms) for at_ms in (0, 1, 999, 1000)] == [1000, 999, 1, 0]
