"""Limits how many refusals of one app are recorded, because a record stays for good.

A program that asks in a loop must not fill the disk. Every refusal is still returned and counted in the metrics,
and the app still gets whatever it is allowed. Only the records are thinned out.

May import: nothing. Never: refuses; does I/O; reads a clock of its own.
"""

AT_ONCE = 1_000
"""Refusals recorded in a row for an app that had none recently."""

EVERY_S = 60.0
"""After that, seconds per recorded refusal. With the longest 402 this is about 400 MB a day."""


class RefusalThrottle:
    """Counts recorded refusals per app; the count falls by one every `EVERY_S`.

    `now_s` comes from a monotonic clock.
    """

    def __init__(self) -> None:
        self._refused: dict[str, tuple[float, float]] = {}

    def has_room(self, app_id: str, now_s: float) -> bool:
        """Whether another refusal of the app may be recorded."""
        return self._count(app_id, now_s) <= AT_ONCE - 1

    def note(self, app_id: str, now_s: float) -> None:
        """Count one recorded refusal of the app."""
        self._refused[app_id] = (self._count(app_id, now_s) + 1, now_s)

    def _count(self, app_id: str, now_s: float) -> float:
        count, at_s = self._refused.get(app_id, (0.0, now_s))
        return max(0.0, count - (now_s - at_s) / EVERY_S)
