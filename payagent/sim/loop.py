"""An event loop whose time is virtual: when nothing is ready, it is later at once.

May import: asyncio. Never: waits; does I/O.

Handles run in the order in which they were scheduled, so that a run depends on nothing but its seed. Tasks belong
to the owner that was current when they were made, so that a process can die with all its tasks.
"""

import asyncio
import heapq
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import Any

OWNER: ContextVar[object | None] = ContextVar("payagent.sim.owner", default=None)


class StuckError(Exception):
    """Nothing is ready, and nothing ever will be."""


class _Selector:
    """Where a loop would wait for sockets: here time passes."""

    def __init__(self, loop: "VirtualLoop") -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        self._loop.pass_time(timeout)
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """`before_round` is called before each round of what is ready: where a process may die between two awaits."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._selector = _Selector(self)
        self._owned: dict[object, dict[asyncio.Task[Any], None]] = {}
        self.rounds = 0
        self.before_round: Callable[[], None] = lambda: None
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]  # its context may be left out

    def time(self) -> float:
        """Seconds since the run began."""
        return self._now_s

    def pass_time(self, timeout_s: float | None) -> None:
        """To the next thing that is due."""
        if timeout_s is None:
            raise StuckError("every task waits for another")
        if timeout_s > 0:
            # by the handle itself and not by the difference, which rounding could leave a little too small
            scheduled = self._scheduled  # type: ignore[attr-defined]
            self._now_s = max(self._now_s, scheduled[0]._when if scheduled else self._now_s + timeout_s)
        self.rounds += 1
        self.before_round()

    @contextmanager
    def owned_by(self, owner: object) -> Iterator[None]:
        """Tasks that are made meanwhile, and those that they make, are the owner's."""
        token = OWNER.set(owner)
        try:
            yield
        finally:
            OWNER.reset(token)

    def end_tasks_of(self, owner: object) -> None:
        """Cancel what an owner has under way, in the order in which it began."""
        for task in self._owned.pop(owner, {}):
            task.cancel()

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], context: Context | None = None
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=loop, context=context)
        owner = OWNER.get() if context is None else context.get(OWNER)
        if owner is not None:
            mine = self._owned.setdefault(owner, {})
            mine[task] = None
            task.add_done_callback(lambda done: mine.pop(done, None))
        return task

    def _process_events(self, event_list: list[Any]) -> None:
        return

    def _write_to_self(self) -> None:
        return

    def close(self) -> None:
        """What is still scheduled never happens."""
        heapq.heapify(self._scheduled)  # type: ignore[attr-defined]
        super().close()
