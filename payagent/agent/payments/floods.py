"""Floods: what an app is refused is in the books for good, so of one that is refused all the time only a part is.

A program that asks in a loop must not fill the disk. Each refusal is told and counted all the same, and what the
app may have it gets: only the record of refusals is thinned out.

May import: nothing. Never: refuses; I/O; a clock of its own.
"""

AT_ONCE = 1_000
"""How many refusals of an app that was calm before are recorded at once."""

EVERY_S = 60.0
"""After that, one is recorded in so long a time: with the longest 402 this is some 400 MB a day."""


class RefusalThrottle:
    """How many refusals still count against each app that was refused, and as of when.

    `now_s` is a time that only moves on.
    """

    def __init__(self) -> None:
        self._refused: dict[str, tuple[float, float]] = {}

    def has_room(self, app_id: str, now_s: float) -> bool:
        """Whether another refusal of the app goes on record."""
        return self._count(app_id, now_s) <= AT_ONCE - 1

    def note(self, app_id: str, now_s: float) -> None:
        """A refusal of the app is on record."""
        self._refused[app_id] = (self._count(app_id, now_s) + 1, now_s)

    def _count(self, app_id: str, now_s: float) -> float:
        count, at_s = self._refused.get(app_id, (0.0, now_s))
        return max(0.0, count - (now_s - at_s) / EVERY_S)
