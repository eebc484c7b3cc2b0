"""How much one app may ask at once: so many calls in a second, and so many that are not answered yet.

An app that goes wild is held back, so that the others are served. Nothing of it is about money: that is `policy`.

May import: core. Never: I/O; knows a call.
"""

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from payagent.core.problems import Refused

BURST_S = 10
"""An app that was quiet may make the calls of so many seconds at once."""

BODY_BYTES = 4096
"""A body counts as one call more for each so many bytes, since to read it takes as long: of 256 KiB, as 64."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What each app may do: calls in a second, over some time, and calls that are not answered yet."""

    calls_per_s: int = 200
    calls_at_once: int = 128


@dataclass(slots=True)
class _Tally:
    """One app: the calls that it may make now, as of when, and those that are inside."""

    left: float
    at_s: float
    inside: int = 0


class RateLimiter:
    """One for each door, so that who fills the proxy can still ask the API what it does. `now_s` only moves on."""

    def __init__(self, rates: Rates, now_s: Callable[[], float]) -> None:
        self._rates = rates
        self._now_s = now_s
        self._tallies: dict[str, _Tally] = {}

    @contextmanager
    def admit(self, app_id: str) -> Generator[None]:
        """Count one call, from its token to its answer; `rate_limited` when it is one too many."""
        tally = self._tally(app_id)
        if tally.inside >= self._rates.calls_at_once:
            raise Refused(
                "rate_limited", f"{tally.inside} calls of this app are not answered yet, as many as may be"
            )
        if tally.left < 1:
            raise Refused(
                "rate_limited",
                f"this app makes more than {self._rates.calls_per_s} calls in a second",
                retry_after_s=math.ceil((1 - tally.left) / self._rates.calls_per_s),
            )
        tally.left -= 1
        tally.inside += 1
        try:
            yield
        finally:
            tally.inside -= 1

    def weigh(self, app_id: str, body_bytes: int) -> None:
        """Count what a call's body weighs, before it is read; `rate_limited` when that is too much now.

        One that weighs more than a whole burst is taken once that is there, and those after it wait for longer.
        """
        tally, weight = self._tally(app_id), body_bytes // BODY_BYTES
        missing = min(weight, self._most - 1) - tally.left  # the call itself was the one
        if weight and missing > 0:
            raise Refused(
                "rate_limited",
                f"the call's body counts as {weight} calls, and this app may make {self._rates.calls_per_s} in a"
                " second",
                retry_after_s=math.ceil((missing + 1) / self._rates.calls_per_s),  # the next call is one more
            )
        tally.left -= weight

    @property
    def _most(self) -> float:
        return float(self._rates.calls_per_s * BURST_S)

    def _tally(self, app_id: str) -> _Tally:
        """As of now. There are as many as apps, which only the operator adds."""
        most, now_s = self._most, self._now_s()
        tally = self._tallies.setdefault(app_id, _Tally(most, now_s))
        tally.left = min(most, tally.left + (now_s - tally.at_s) * self._rates.calls_per_s)
        tally.at_s = now_s
        return tally
