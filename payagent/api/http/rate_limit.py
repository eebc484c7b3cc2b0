"""Per-app rate limit: requests per second, and requests in progress.

It keeps one runaway app from starving the others. Spending limits are in `core.policy`.

Never: does I/O; knows a route.
"""

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from payagent.core.problems import Refused
from payagent.core.token_bucket import Rate, TokenBucket

BURST_S = 10
"""An idle app may make this many seconds' worth of requests at once."""

BODY_BYTES = 4096
"""Each full 4096 bytes of body count as one more request, since they take as long. 256 KiB count as 64."""


@dataclass(frozen=True, slots=True)
class Rates:
    """The limits of each app: requests per second on average, and requests in progress."""

    rate_limit_per_s: int = 200
    concurrent_requests_max: int = 128


@dataclass(slots=True)
class _Tally:
    """One app: the requests it has left, and those in progress."""

    left: TokenBucket
    inside: int = 0


class RateLimiter:
    """A token bucket per app.

    The API and the proxy have separate limiters, so an app that saturates the proxy can still query the API.
    `now_s` must be monotonic.
    """

    def __init__(self, rates: Rates, now_s: Callable[[], float]) -> None:
        self._rates = rates
        self._rate = Rate(rates.rate_limit_per_s, rates.rate_limit_per_s * BURST_S)
        self._now_s = now_s
        self._tallies: dict[str, _Tally] = {}

    @contextmanager
    def admit(self, app_id: str) -> Generator[None]:
        """Count one request from its token check to its answer. Raises `rate_limited` over either limit."""
        tally, now_ms = self._tally(app_id)
        if tally.inside >= self._rates.concurrent_requests_max:
            raise Refused("rate_limited", f"{tally.inside} requests of this app are open, which is the limit")
        if wait_ms := tally.left.wait_ms(1, now_ms):
            raise Refused(
                "rate_limited",
                f"this app made more than {self._rates.rate_limit_per_s} requests in a second",
                retry_after_s=math.ceil(wait_ms / 1000),
            )
        tally.left.take(1)
        tally.inside += 1
        try:
            yield
        finally:
            tally.inside -= 1

    def weigh(self, app_id: str, body_bytes: int) -> None:
        """Count a request's body before it is read. Raises `rate_limited` when too few requests are left.

        A body that counts as more than a full burst is accepted at a full burst, and later requests wait longer.
        """
        (tally, now_ms), weight = self._tally(app_id), body_bytes // BODY_BYTES
        needed = min(weight, self._rate.burst - 1)  # `admit` has already counted the request itself
        if weight and tally.left.wait_ms(needed, now_ms):
            raise Refused(
                "rate_limited",
                f"the request's body counts as {weight} requests, the limit is"
                f" {self._rates.rate_limit_per_s} in a second",
                # the next request counts too
                retry_after_s=math.ceil(tally.left.wait_ms(needed + 1, now_ms) / 1000),
            )
        tally.left.take(weight)

    def _tally(self, app_id: str) -> tuple[_Tally, int]:
        """The app's tally, and the time. The table stays small, because only the operator adds apps."""
        now_ms = int(self._now_s() * 1000)
        tally = self._tallies.get(app_id)
        if tally is None:
            tally = self._tallies[app_id] = _Tally(TokenBucket(self._rate, now_ms))
        return tally, now_ms
