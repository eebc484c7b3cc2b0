"""Limits how many refusals of one app are recorded, because a record stays for good.

A program that asks in a loop must not fill the disk. Every refusal is still returned and counted in the metrics,
and the app still gets whatever it is allowed. Only the records are thinned out.

May import: core. Never: refuses; does I/O; reads a clock of its own.
"""

from payagent.core.token_bucket import Rate, TokenBucket

AT_ONCE = 1_000
"""Refusals recorded in a row for an app that had none recently."""

EVERY_S = 60
"""After that, seconds per recorded refusal. With the longest 402 this is about 400 MB a day."""


class RefusalThrottle:
    """A token bucket per app that gains a token per second. A recorded refusal takes `EVERY_S` of them.

    `now_s` comes from a monotonic clock.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, TokenBucket] = {}

    def has_room(self, app_id: str, now_s: float) -> bool:
        """Whether another refusal of the app may be recorded."""
        now_ms = int(now_s * 1000)
        if app_id not in self._buckets:
            self._buckets[app_id] = TokenBucket(Rate(1, AT_ONCE * EVERY_S), now_ms)
        return self._buckets[app_id].wait_ms(EVERY_S, now_ms) == 0

    def note(self, app_id: str) -> None:
        """Count one recorded refusal of the app, for which there was room."""
        self._buckets[app_id].take(EVERY_S)
