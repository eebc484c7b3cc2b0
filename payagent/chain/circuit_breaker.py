"""When a provider may be called: a circuit breaker for failures, and its rate limit.

Only values and pure functions. As in electricity, a breaker that is open stops calls; a closed one lets them pass.
Never: I/O, a clock (`now_ms` is given).
"""

from dataclasses import dataclass, replace

from payagent.chain.provider import Why
from payagent.core.retry_schedule import backoff

FAILURES_MAX = 5
"""Failures in a row that open the breaker."""

PAUSE_FIRST_MS = 5_000
PAUSE_MAX_MS = 60_000
"""How long the breaker stays open: it doubles after each failed trial, up to the maximum."""

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

RESERVED_CALLS = 20
"""Calls that reads leave to submissions, out of those that may be made at once."""


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
    """The breaker's state: failures in a row, how often it opened, and until when and why it is open."""

    failures: int = 0
    openings: int = 0
    opened_at_ms: int = 0
    open_until_ms: int = 0
    why: str = ""

    def is_open(self, now_ms: int) -> bool:
        """Whether calls are stopped.

        Before `opened_at_ms` they are not. So a clock that was ahead and is corrected does not keep it open.
        """
        return self.opened_at_ms <= now_ms < self.open_until_ms

    @property
    def is_on_trial(self) -> bool:
        """Whether the next call decides if the breaker closes for good. Calls are made one at a time then."""
        return self.openings > 0

    def failed(self, reason: str, now_ms: int) -> "CircuitBreaker":
        """Record a call without an answer or with a server error.

        Enough of them in a row open the breaker. On trial, a single failure opens it.
        """
        failures = self.failures + 1
        if failures < FAILURES_MAX and not self.is_on_trial:
            return replace(self, failures=failures)
        openings = self.openings + 1
        until_ms = now_ms + backoff(PAUSE_FIRST_MS, PAUSE_MAX_MS, openings)
        return CircuitBreaker(failures, openings, now_ms, until_ms, reason)

    def refused(self, why: Why, retry_after_s: int | None, reason: str, now_ms: int) -> "CircuitBreaker":
        """Record that the provider wants a pause (429, 402, 418), for as long as it says or for the default."""
        pause_ms = QUOTA_PAUSE_MS if why is Why.QUOTA else RATE_PAUSE_MS
        if retry_after_s is not None:
            pause_ms = min(retry_after_s * 1000, ASKED_PAUSE_MAX_MS)
        until_ms = now_ms + pause_ms
        if self.is_open(now_ms):
            until_ms = max(until_ms, self.open_until_ms)
        return replace(self, opened_at_ms=now_ms, open_until_ms=until_ms, why=reason)


CLOSED = CircuitBreaker()
"""The state after any answer, whatever happened before."""
