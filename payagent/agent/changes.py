"""Who waits for a change of a payment is woken when one is durable.

May import: asyncio. Never: holds state; a waiter reads the payment anew.
"""

import asyncio
from collections import defaultdict


class Changes:
    """Wake-ups by payment id, on one event loop."""

    def __init__(self) -> None:
        self._waiters: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def notify(self, payment_id: str) -> None:
        for event in self._waiters.get(payment_id, ()):
            event.set()

    async def wait(self, payment_id: str, timeout_s: float) -> bool:
        """True when something was noted for the payment, False when the time ran out."""
        event = asyncio.Event()
        self._waiters[payment_id].add(event)
        try:
            await asyncio.wait_for(event.wait(), timeout_s)
        except TimeoutError:
            return False
        finally:
            self._waiters[payment_id].discard(event)
            if not self._waiters[payment_id]:
                del self._waiters[payment_id]
        return True
