"""Ask several providers at once, and stop waiting for one that is much slower than the others.

If all are slow, all are waited for.
Never: interprets the answers.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def together(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Return the results in order. For one or none, the usual case, no task is made."""
    if len(works) < 2:
        return [await work for work in works]
    return await asyncio.gather(*works)


async def in_time(
    works: Sequence[Coroutine[Any, Any, T]], patience_s: float, late: T, is_answer: Callable[[T], bool]
) -> list[T]:
    """Return the results in order, with `late` for one that is much slower than the others.

    Each may take `patience_s`, or twice the time the others took if that is more. `is_answer` says whether a
    result is an answer. Of three or more, two must have answered: one fast liar could silence two slow ones.
    """
    if len(works) < 2:
        return await together(works)
    now_s, until_s = asyncio.get_running_loop().time, None
    answers_needed = min(2, len(works) - 1)
    begun_s = now_s()
    tasks = [asyncio.create_task(work) for work in works]
    try:
        missing = set(tasks)
        while missing:
            wait_s = None if until_s is None else max(until_s - now_s(), 0)
            done, missing = await asyncio.wait(missing, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            answers_needed -= sum(is_answer(task.result()) for task in done)
            if until_s is None and answers_needed <= 0:
                until_s = begun_s + max(patience_s, 2 * (now_s() - begun_s))
        return [late if task in missing else task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
