"""Floods: what an app is refused is in the books for good, so one that is refused all the time is held back.

A program that asks in a loop must not fill the disk. How many calls an app may make at all is the doors' matter
(api.turnstile), and nothing of this is about money.

May import: core.problem. Never: I/O; a clock of its own.
"""

from payagent.core.problem import Refused

AT_ONCE = 1_000
"""So many refusals an app that was calm before may have at once."""

EVERY_S = 1.0
"""After that it is heard again when one of them is so long ago."""


class Floods:
    """Of each app that was refused: how many count still, as of when. `now_s` is a time that only moves on."""

    def __init__(self) -> None:
        self._refused: dict[str, tuple[float, float]] = {}

    def require_calm(self, app_id: str, now_s: float) -> None:
        """Refused, `rate_limited`, with nothing on record, while it has no refusal left."""
        if self._count(app_id, now_s) > AT_ONCE - 1:
            raise Refused(
                "rate_limited",
                f"{AT_ONCE} calls of this app were refused, and each is on record: now it is heard once a second",
                retry_after_s=1,
            )

    def note(self, app_id: str, now_s: float) -> None:
        """A refusal of the app is on record."""
        self._refused[app_id] = (self._count(app_id, now_s) + 1, now_s)

    def _count(self, app_id: str, now_s: float) -> float:
        count, at_s = self._refused.get(app_id, (0.0, now_s))
        return max(0.0, count - (now_s - at_s) / EVERY_S)
