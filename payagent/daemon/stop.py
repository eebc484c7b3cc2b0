"""Ends a daemon that serves, always as SIGTERM does: `serve` then answers what is open, and the jobs end.

Never: ends a process that has not begun to handle signals.
"""

import asyncio
import os
import signal
import threading


class StoppedError(Exception):
    """A signal ended the daemon while it waited for its database."""


def stop() -> None:
    """Stop as by SIGTERM."""
    os.kill(os.getpid(), signal.SIGTERM)


def stop_without_lease(is_lost: threading.Event) -> None:
    """Stop after the lease is lost: nothing can be written, so nothing is signed or newly submitted."""
    if not is_lost.is_set():
        is_lost.set()
        stop()


async def end(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
