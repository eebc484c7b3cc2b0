"""Identical requests at the same time share one payment and its proof.

Only the merchant knows whether a payment serves one request or many. So the proof is sent again for each waiting
request. Another payment is opened, one at a time, only after the merchant said that the proof is used up.
Never: I/O; pays.
"""

import asyncio
from collections.abc import Awaitable, Hashable, Iterator
from contextlib import ExitStack, contextmanager

from payagent.core.problems import Refused


class SharedPayment:
    """One payment that the requests of a flight share."""

    def __init__(self, payment_id: str) -> None:
        self.id = payment_id
        self.is_served = False
        """Whether the merchant has served a request with it."""
        self.is_over = False
        """Whether a whole answer was sent. A request that begins later is a new purchase."""
        self.is_delivered = False
        """Whether the delivery is recorded, which ends the intent."""
        self._answers_in_progress = 0
        self._quiet = asyncio.Event()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Count an answer as in progress while it is forwarded."""
        self.is_served = True
        self._answers_in_progress += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._answers_in_progress -= 1
            if not self._answers_in_progress:
                self._quiet.set()

    def delivered(self) -> None:
        self.is_delivered = True
        self._quiet.set()

    async def decided(self, timeout_s: float) -> None:
        """Wait until a delivery is recorded, or no answer is in progress."""
        if not self.is_delivered:
            await _within(timeout_s, self._quiet.wait(), self)


class Flight:
    """The requests of one intent in progress. `shared` is the current payment."""

    def __init__(self) -> None:
        self.shared: SharedPayment | None = None
        self.calls = 0
        self._turn = asyncio.Lock()

    async def take_turn(self, timeout_s: float) -> ExitStack:
        """Wait for the right to pay, or to send a proof that was not accepted yet. `close` gives it back."""
        await _within(timeout_s, self._turn.acquire(), self.shared)
        turn = ExitStack()
        turn.callback(self._turn.release)
        return turn


class SingleFlight:
    """Joins equal requests, by the key of their intent."""

    def __init__(self) -> None:
        self._by_key: dict[Hashable, Flight] = {}

    @contextmanager
    def join(self, key: Hashable) -> Iterator[Flight]:
        flight = self._by_key.setdefault(key, Flight())
        flight.calls += 1
        try:
            yield flight
        finally:
            flight.calls -= 1
            if not flight.calls:
                del self._by_key[key]


async def _within(timeout_s: float, waiting: Awaitable[object], shared: SharedPayment | None) -> None:
    try:
        async with asyncio.timeout(max(timeout_s, 0)):
            await waiting
    except TimeoutError:
        paid = {} if shared is None else {"payment": shared.id}
        raise Refused(
            "not_served_yet", "an identical request was not served in this request's time", **paid
        ) from None
