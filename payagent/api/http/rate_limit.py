"""Per-app rate limit: requests per second, and requests in progress.

It keeps one runaway app from starving the others. Spending limits are in `core.policy`.

May import: core.
Never: does I/O; knows a route.
"""

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from payagent.core.problems import Refused

BURST_S = 10
"""An idle app may make this many seconds' worth of requests at once."""

BODY_BYTES = 4096
"""Each full 4096 bytes of body count as one more request, since they take as long. 256 KiB count as 64."""


@dataclass(frozen=True, slots=True)
class Rates:
    """The limits of each app: requests per second on average, and requests in progress."""

    calls_per_s: int = 200
    calls_at_once: int = 128


@dataclass(slots=True)
class _Tally:
    """One app: the requests it had left at `at_s`, and those in progress."""

    left: float
    at_s: float
    inside: int = 0


class RateLimiter:
    """A token bucket per app.

    The API and the proxy have separate limiters, so an app that saturates the proxy can still query the API.
    `now_s` must be monotonic.
    """

    def __init__(self, rates: Rates, now_s: Callable[[], float]) -> None:
        self._rates = rates
        self._now_s = now_s
        self._tallies: dict[str, _Tally] = {}

    @contextmanager
    def admit(self, app_id: str) -> Generator[None]:
        """Count one request from its token check to its answer. Raises `rate_limited` over either limit."""
        tally = self._tally(app_id)
        if tally.inside >= self._rates.calls_at_once:
            raise Refused("rate_limited", f"{tally.inside} requests of this app are open, which is the limit")
        if tally.left < 1:
            raise Refused(
                "rate_limited",
                f"this app made more than {self._rates.calls_per_s} requests in a second",
                retry_after_s=math.ceil((1 - tally.left) / self._rates.calls_per_s),
            )
        tally.left -= 1
        tally.inside += 1
        try:
            yield
        finally:
            tally.inside -= 1

    def weigh(self, app_id: str, body_bytes: int) -> None:
        """Count a request's body before it is read. Raises `rate_limited` when too few requests are left.

        A body that counts as more than a full burst is accepted at a full burst, and later requests wait longer.
        """
        tally, weight = self._tally(app_id), body_bytes // BODY_BYTES
        missing = min(weight, self._most - 1) - tally.left  # `admit` has already counted the request itself
        if weight and missing > 0:
            raise Refused(
                "rate_limited",
                f"the request's body counts as {weight} requests, the limit is {self._rates.calls_per_s} in a"
                " second",
                retry_after_s=math.ceil((missing + 1) / self._rates.calls_per_s),  # the next request counts too
            )
        tally.left -= weight

    @property
    def _most(self) -> float:
        return float(self._rates.calls_per_s * BURST_S)

    def _tally(self, app_id: str) -> _Tally:
        """The app's tally as of now. The table stays small, because only the operator adds apps."""
        most, now_s = self._most, self._now_s()
        tally = self._tallies.setdefault(app_id, _Tally(most, now_s))
        tally.left = min(most, tally.left + (now_s - tally.at_s) * self._rates.calls_per_s)
        tally.at_s = now_s
        return tally
