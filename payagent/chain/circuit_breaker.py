"""When a provider may be called: its bucket of calls, and the door that its failures close.

Values and functions from values to values. May import: chain.provider. Never: I/O, a clock (`now_ms` is given).
"""

from dataclasses import dataclass, replace

from payagent.chain.provider import Why

FAILURES_MAX = 5
"""How many failures in a row close the door."""

PAUSE_FIRST_MS = 5_000
PAUSE_MAX_MS = 60_000
"""How long it stays closed: twice as long after each try that failed, and no longer than this."""

RATE_PAUSE_MS = 10_000
QUOTA_PAUSE_MS = 60_000
"""How long a provider is left alone that said "too many" or "no more today" without saying for how long."""

FULL_PAUSE_MS = 5_000
FULL_PAUSE_MAX_MS = 60_000
"""How long a full mempool gets nothing, and how long at most when it asks for longer: blocks empty it."""

ASKED_PAUSE_MAX_MS = 86_400_000
"""The longest pause that a provider gets by asking for it: a quota is of a day."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What a provider lets us call: so many calls a second for ever, and so many at once."""

    calls_per_s: int
    burst: int


BLOCKFROST_RATE = Rate(10, 500)

RESERVED_CALLS = 20
"""What reads leave in a bucket: the last calls are for submissions."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Thousandths of calls that may be made, as of a time."""

    millicalls: int
    at_ms: int


def full(rate: Rate, now_ms: int) -> Bucket:
    return Bucket(rate.burst * 1000, now_ms)


def refill(bucket: Bucket, rate: Rate, now_ms: int) -> Bucket:
    """What has come in since; a clock that went back brings nothing and takes nothing."""
    gained = max(now_ms - bucket.at_ms, 0) * rate.calls_per_s
    return Bucket(min(bucket.millicalls + gained, rate.burst * 1000), now_ms)


def take(bucket: Bucket, count: int) -> Bucket:
    """The bucket after so many calls. It may go below zero: what is sent is sent."""
    return Bucket(bucket.millicalls - count * 1000, bucket.at_ms)


def wait_ms(bucket: Bucket, rate: Rate, reserved: int) -> int:
    """How long until one call may be made that leaves so many in the bucket; 0 when it may be made now."""
    lacking = (min(reserved, rate.burst - 1) + 1) * 1000 - bucket.millicalls
    return max(-(-lacking // rate.calls_per_s), 0)


@dataclass(frozen=True, slots=True)
class Span:
    """From a time until another. A clock that was ahead and is mended is before it, so it does not hold then."""

    from_ms: int = 0
    until_ms: int = 0

    def holds(self, now_ms: int) -> bool:
        return self.from_ms <= now_ms < self.until_ms


def full_pause(asked_s: int | None, now_ms: int) -> Span:
    pause_ms = FULL_PAUSE_MS if asked_s is None else min(asked_s * 1000, FULL_PAUSE_MAX_MS)
    return Span(now_ms, now_ms + pause_ms)


@dataclass(frozen=True, slots=True)
class CircuitBreaker:
    """Closed for a time, with the reason, after so many failures in a row, which closed it so often."""

    failures: int = 0
    closings: int = 0
    closed_at_ms: int = 0
    closed_until_ms: int = 0
    why: str = ""

    def is_open(self, now_ms: int) -> bool:
        """Also before it was closed: a clock that was ahead and is mended must not keep it closed for as long."""
        return not self.closed_at_ms <= now_ms < self.closed_until_ms

    @property
    def is_on_trial(self) -> bool:
        """Whether the next call decides: one at a time then."""
        return self.closings > 0


OPEN = CircuitBreaker()
"""The door of a provider that answered: it is open, whatever happened before."""


def failed(door: CircuitBreaker, reason: str, now_ms: int) -> CircuitBreaker:
    """No answer, or a server error. Enough of them in a row close the door, and each one after that at once."""
    failures = door.failures + 1
    if failures < FAILURES_MAX and not door.is_on_trial:
        return replace(door, failures=failures)
    pause_ms = min(PAUSE_FIRST_MS << min(door.closings, 10), PAUSE_MAX_MS)
    return CircuitBreaker(failures, door.closings + 1, now_ms, now_ms + pause_ms, reason)


def refused(door: CircuitBreaker, why: Why, retry_after_s: int | None, reason: str, now_ms: int) -> CircuitBreaker:
    """It wants a pause (429, 402, 418): for as long as it says, or as such a refusal commonly takes."""
    pause_ms = QUOTA_PAUSE_MS if why is Why.QUOTA else RATE_PAUSE_MS
    if retry_after_s is not None:
        pause_ms = min(retry_after_s * 1000, ASKED_PAUSE_MAX_MS)
    until_ms = now_ms + pause_ms
    if not door.is_open(now_ms):
        until_ms = max(until_ms, door.closed_until_ms)
    return replace(door, closed_at_ms=now_ms, closed_until_ms=until_ms, why=reason)
