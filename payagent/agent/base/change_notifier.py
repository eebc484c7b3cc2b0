"""Wakes callers that wait for a payment, for any payment, or for a block.

Never: holds state; a caller that wakes up reads the ledger again.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

_BLOCK = "new block"
"""Used like a payment id, by callers that wait for a block."""


class Changes:
    """Wakes waiters by payment id, on one event loop, in the order in which they began to wait."""

    def __init__(self) -> None:
        self._waiters: defaultdict[str, dict[asyncio.Event, None]] = defaultdict(dict)
        self._followers: dict[asyncio.Event, None] = {}

    def notify(self, payment_id: str) -> None:
        self._wake(payment_id)
        for event in self._followers:
            event.set()

    def notify_block(self) -> None:
        self._wake(_BLOCK)

    def _wake(self, name: str) -> None:
        for event in self._waiters.get(name, ()):
            event.set()

    @contextmanager
    def following(self) -> Iterator[asyncio.Event]:
        """An event that is set on every change of any payment. The caller clears it."""
        event = asyncio.Event()
        self._followers[event] = None
        try:
            yield event
        finally:
            del self._followers[event]

    async def wait(self, payment_id: str, timeout_s: float, *, or_block: bool = False) -> bool:
        """True if the payment changed (or a block came), False after `timeout_s`."""
        event = asyncio.Event()
        names = (payment_id, _BLOCK) if or_block else (payment_id,)
        for name in names:
            self._waiters[name][event] = None
        try:
            async with asyncio.timeout(timeout_s):  # `wait_for` of Python 3.11 may swallow a cancellation
                await event.wait()
        except TimeoutError:
            return False
        finally:
            for name in names:
                del self._waiters[name][event]
                if not self._waiters[name]:
                    del self._waiters[name]
        return True
