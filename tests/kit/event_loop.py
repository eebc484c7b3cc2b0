"""Measures how long other tasks of the event loop wait."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


@asynccontextmanager
async def turns() -> AsyncIterator[Callable[[], float]]:
    """Measure the longest share of processor time between two turns of another task.

    In processor time, so that a busy machine changes nothing; nor does garbage left by other tests.
    """
    began_s = last_s = time.process_time()
    longest_s = 0.0

    async def take_turns() -> None:
        nonlocal last_s, longest_s
        while True:
            now_s = time.process_time()
            last_s, longest_s = now_s, max(longest_s, now_s - last_s)
            await asyncio.sleep(0)

    gc.disable()
    task = asyncio.create_task(take_turns())
    try:
        yield lambda: longest_s / (last_s - began_s)
    finally:
        task.cancel()
        gc.enable()
