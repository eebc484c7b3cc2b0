"""Agent steps that run to their end even if the client that started them disconnects.

Never: cancels a step.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

T = TypeVar("T")

log = structlog.get_logger("payagent.proxy")


class ShieldedTasks:
    """The running steps. The set holds a reference to each task whose client has disconnected."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def run_to_end(self, step: Coroutine[Any, Any, T]) -> T:
        """Return a step's result. If the caller is cancelled, the step goes on, and a failure is logged."""
        task = self.start(step)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(log_failure)
            raise

    def start(self, step: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(step)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # waiting callers get the exception


def log_failure(step: asyncio.Task[Any]) -> None:
    """Log the failure of a step that nobody waits for."""
    error = None if step.cancelled() else step.exception()
    if error is not None:
        log.warning("proxy.step_failed", error=repr(error))
