"""When a provider may be called: a token bucket for its rate limit, and a circuit breaker for failures.

Only values and pure functions. In this module a breaker that is open lets calls pass; a closed one stops them.
May import: chain.provider.
Never: I/O, a clock (`now_ms` is given).
"""

from dataclasses import dataclass, replace

from payagent.chain.provider import Why

FAILURES_MAX = 5
"""Failures in a row that close the breaker."""

PAUSE_FIRST_MS = 5_000
PAUSE_MAX_MS = 60_000
"""How long the breaker stays closed: it doubles after each failed trial, up to the maximum."""

RATE_PAUSE_MS = 10_000
QUOTA_PAUSE_MS = 60_000
"""The pause after a rate limit or a used-up quota, when the provider names no duration."""

FULL_PAUSE_MS = 5_000
FULL_PAUSE_MAX_MS = 60_000
"""How long a provider with a full mempool gets no submission, and the longest pause it can ask for.

Blocks empty a mempool soon.
"""

ASKED_PAUSE_MAX_MS = 86_400_000
"""The longest pause that a provider can ask for: quotas are per day."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A provider's rate limit: sustained calls per second, and a burst."""

    calls_per_s: int
    burst: int


BLOCKFROST_RATE = Rate(10, 500)

RESERVED_CALLS = 20
"""Calls that reads leave in the bucket for submissions."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """The calls that may be made at a time, in thousandths."""

    millicalls: int
    at_ms: int


def full(rate: Rate, now_ms: int) -> Bucket:
    return Bucket(rate.burst * 1000, now_ms)


def refill(bucket: Bucket, rate: Rate, now_ms: int) -> Bucket:
    """Add the calls gained since. A clock that went back changes nothing."""
    gained = max(now_ms - bucket.at_ms, 0) * rate.calls_per_s
    return Bucket(min(bucket.millicalls + gained, rate.burst * 1000), now_ms)


def take(bucket: Bucket, count: int) -> Bucket:
    """Return the bucket after `count` calls. It may go below zero, because a submission is sent in any case."""
    return Bucket(bucket.millicalls - count * 1000, bucket.at_ms)


def wait_ms(bucket: Bucket, rate: Rate, reserved: int) -> int:
    """How long until one call may be made that leaves `reserved` calls in the bucket; 0 for now."""
    lacking = (min(reserved, rate.burst - 1) + 1) * 1000 - bucket.millicalls
    return max(-(-lacking // rate.calls_per_s), 0)


@dataclass(frozen=True, slots=True)
class Span:
    """A time span. After a clock that was ahead is corrected, now is before the span, and it does not hold."""

    from_ms: int = 0
    until_ms: int = 0

    def holds(self, now_ms: int) -> bool:
        return self.from_ms <= now_ms < self.until_ms


def full_pause(asked_s: int | None, now_ms: int) -> Span:
    pause_ms = FULL_PAUSE_MS if asked_s is None else min(asked_s * 1000, FULL_PAUSE_MAX_MS)
    return Span(now_ms, now_ms + pause_ms)


@dataclass(frozen=True, slots=True)
class CircuitBreaker:
    """The breaker's state: failures in a row, how often it closed, and until when and why it is closed."""

    failures: int = 0
    closings: int = 0
    closed_at_ms: int = 0
    closed_until_ms: int = 0
    why: str = ""

    def is_open(self, now_ms: int) -> bool:
        """Whether calls may pass.

        It is also open before `closed_at_ms`. So a clock that was ahead and is corrected does not keep it closed.
        """
        return not self.closed_at_ms <= now_ms < self.closed_until_ms

    @property
    def is_on_trial(self) -> bool:
        """Whether the next call decides if the breaker stays open. Calls are made one at a time then."""
        return self.closings > 0


OPEN = CircuitBreaker()
"""The state after any answer, whatever happened before."""


def failed(door: CircuitBreaker, reason: str, now_ms: int) -> CircuitBreaker:
    """Record a call without an answer or with a server error.

    Enough of them in a row close the breaker. On trial, a single failure closes it.
    """
    failures = door.failures + 1
    if failures < FAILURES_MAX and not door.is_on_trial:
        return replace(door, failures=failures)
    pause_ms = min(PAUSE_FIRST_MS << min(door.closings, 10), PAUSE_MAX_MS)
    return CircuitBreaker(failures, door.closings + 1, now_ms, now_ms + pause_ms, reason)


def refused(door: CircuitBreaker, why: Why, retry_after_s: int | None, reason: str, now_ms: int) -> CircuitBreaker:
    """Record that the provider wants a pause (429, 402, 418), for as long as it says or for the default."""
    pause_ms = QUOTA_PAUSE_MS if why is Why.QUOTA else RATE_PAUSE_MS
    if retry_after_s is not None:
        pause_ms = min(retry_after_s * 1000, ASKED_PAUSE_MAX_MS)
    until_ms = now_ms + pause_ms
    if not door.is_open(now_ms):
        until_ms = max(until_ms, door.closed_until_ms)
    return replace(door, closed_at_ms=now_ms, closed_until_ms=until_ms, why=reason)
