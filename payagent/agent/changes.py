"""Who waits for a change of a payment, or of any, is woken when one is durable.

May import: asyncio. Never: holds state; a waiter reads the ledger anew.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Changes:
    """Wake-ups by payment id, on one event loop, in the order in which they began to wait."""

    def __init__(self) -> None:
        self._waiters: defaultdict[str, dict[asyncio.Event, None]] = defaultdict(dict)
        self._followers: dict[asyncio.Event, None] = {}

    def notify(self, payment_id: str) -> None:
        for event in (*self._waiters.get(payment_id, ()), *self._followers):
            event.set()

    @contextmanager
    def following(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever something is noted for any payment; who follows clears it."""
        event = asyncio.Event()
        self._followers[event] = None
        try:
            yield event
        finally:
            del self._followers[event]

    async def wait(self, payment_id: str, timeout_s: float) -> bool:
        """True when something was noted for the payment, False when the time ran out."""
        event = asyncio.Event()
        self._waiters[payment_id][event] = None
        try:
            async with asyncio.timeout(timeout_s):  # `wait_for` of Python 3.11 may swallow a cancellation
                await event.wait()
        except TimeoutError:
            return False
        finally:
            del self._waiters[payment_id][event]
            if not self._waiters[payment_id]:
                del self._waiters[payment_id]
        return True
