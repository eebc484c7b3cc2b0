"""A token bucket: a rate limit that allows a burst after a pause.

Never: reads a clock (`now_ms` is given).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate limit: sustained calls per second, and the most calls at once."""

    calls_per_s: int
    burst: int


class TokenBucket:
    """The calls that may be made now, counted in thousandths. A new bucket is full."""

    __slots__ = ("_at_ms", "_millicalls", "_rate")

    def __init__(self, rate: Rate, now_ms: int) -> None:
        self._rate = rate
        self._millicalls = rate.burst * 1000
        self._at_ms = now_ms

    def wait_ms(self, count: int, now_ms: int) -> int:
        """Return how long until the bucket holds `count` calls, or its burst if that is less; 0 if it does.

        A clock that went back adds nothing.
        """
        rate = self._rate
        gained = max(now_ms - self._at_ms, 0) * rate.calls_per_s
        self._millicalls = min(self._millicalls + gained, rate.burst * 1000)
        self._at_ms = now_ms
        return max(-((self._millicalls - min(count, rate.burst) * 1000) // rate.calls_per_s), 0)

    def take(self, count: int) -> None:
        """Count calls. The bucket may go below zero; then later calls wait longer."""
        self._millicalls -= count * 1000
