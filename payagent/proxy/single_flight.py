"""Identical calls at once: one of them pays, and all of them go out with its proof.

A merchant may serve one call for a payment, or any number; only it knows. So the proof is shown again for each
call that waits, and another payment is opened only when the merchant has said that this one is used up, one at a
time.

May import: asyncio, core. Never: I/O; pays.
"""

import asyncio
from collections.abc import Awaitable, Hashable, Iterator
from contextlib import contextmanager

from payagent.core.problems import Refused


class SharedPayment:
    """One payment, as the calls of a flight see it."""

    def __init__(self, payment_id: str) -> None:
        self.id = payment_id
        self.is_served = False
        """The merchant has served at least one call with it."""
        self.is_over = False
        """The last of an answer went out: a call that begins now is a purchase of its own."""
        self.is_delivered = False
        """The answer is in the books, so the intent is over."""
        self._answers_under_way = 0
        self._quiet = asyncio.Event()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Around the handing on of an answer."""
        self.is_served = True
        self._answers_under_way += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._answers_under_way -= 1
            if not self._answers_under_way:
                self._quiet.set()

    def delivered(self) -> None:
        self.is_delivered = True
        self._quiet.set()

    async def decided(self, timeout_s: float) -> None:
        """Wait until an answer is in the books as delivered, or none is on its way any more."""
        if not self.is_delivered:
            await _within(timeout_s, self._quiet.wait(), self)


class Flight:
    """The calls of one intent that are under way. `purchase` is the one that counts now."""

    def __init__(self) -> None:
        self.purchase: SharedPayment | None = None
        self.calls = 0
        self._turn = asyncio.Lock()

    async def take_turn(self, timeout_s: float) -> "Turn":
        """Be the one that pays, or shows a proof that was never accepted yet."""
        await _within(timeout_s, self._turn.acquire(), self.purchase)
        return Turn(self._turn)


class Turn:
    """What one call of a flight has at a time."""

    def __init__(self, lock: asyncio.Lock) -> None:
        self._lock: asyncio.Lock | None = lock

    def release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()


class SingleFlight:
    """All flights, by what names the intent."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, Flight] = {}

    @contextmanager
    def join(self, key: Hashable) -> Iterator[Flight]:
        flight = self._flights.setdefault(key, Flight())
        flight.calls += 1
        try:
            yield flight
        finally:
            flight.calls -= 1
            if not flight.calls:
                del self._flights[key]


async def _within(timeout_s: float, waiting: Awaitable[object], purchase: SharedPayment | None) -> None:
    try:
        async with asyncio.timeout(max(timeout_s, 0)):
            await waiting
    except TimeoutError:
        paid = {} if purchase is None else {"payment": purchase.id}
        raise Refused(
            "not_served_yet", "an identical call has not been served in this call's time", **paid
        ) from None
