"""The writer: the only thread that commits. Jobs that wait at the same time share a commit (`committer`).

The thread survives any error of a job or a commit.
Never: runs a job twice; answers before the commit is durable.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from payagent.core.problems import Refused
from payagent.store.db.committer import Checkpoint, Committer, Job, Ownership
from payagent.store.db.unit import Unit

T = TypeVar("T")
QUIET_S = 0.02
QUIET_COMMITS = 32
"""After this many commits, the first pause of QUIET_S without a job is used to move the log into the ledger."""

_Awaited = asyncio.Future[Any]
_Waiting = tuple[Job, Future[Any] | _Awaited]
"""A job and its caller's future, from a thread or an event loop."""


class Writer:
    """The committer's thread and the queue before it. Callable from any thread or task."""

    def __init__(
        self,
        place: Path | Committer,
        *,
        checkpoint: Checkpoint = lambda _name: None,
        own: Ownership | None = None,
    ) -> None:
        """`place`: a file, or what commits the jobs."""
        if isinstance(place, Path):
            place = Committer(place, checkpoint=checkpoint, own=own)
        self._committer = place
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._tidied_at = 0
        self._thread = threading.Thread(target=self._loop, name="ledger-writer", daemon=True)
        self._thread.start()

    @property
    def commits(self) -> int:
        return self._committer.commits

    def submit(self, name: str, job: Callable[[Unit], T], account: int | None = None) -> "Future[T]":
        """Queue a job. Its future completes after the commit and cannot be cancelled.

        `name` is the commit point, for checkpoints. `account`: the one that the job spends for, or whose payment's
        state it moves; in a fleet it runs only while this daemon holds that account (`lease_lost`).
        """
        waiting: Future[T] = Future()
        waiting.set_running_or_notify_cancel()
        self._put(name, job, account, waiting)
        return waiting

    async def run(self, name: str, job: Callable[[Unit], T], account: int | None = None) -> T:
        """Like `submit`, but awaited. Cancelling the caller does not cancel the job."""
        waiting: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put(name, job, account, waiting)
        return await waiting

    def _put(
        self, name: str, job: Callable[[Unit], T], account: int | None, waiting: "Future[T] | asyncio.Future[T]"
    ) -> None:
        with self._lock:  # a job queued after the end marker would wait for ever
            if self._closed:
                raise Refused("store_failed", "the ledger is closed")
            self._queue.put((self._committer.job(name, job, account), waiting))

    def is_noted(self, attempt: int | None, account: int = 0) -> bool:
        """Whether the account's attempt of this number may leave: the signer's own record has it."""
        return self._committer.is_noted(attempt, account)

    def close(self) -> None:
        """Run the queued jobs, then close. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        self._committer.close()

    def _loop(self) -> None:
        while True:
            batch, is_last = self._next_batch()
            if batch:
                self._committer.commit([job for job, _ in batch])
                _complete(batch)
            if is_last:
                return

    def _next_batch(self) -> tuple[list[_Waiting], bool]:
        batch: list[_Waiting] = []
        entry = self._next()
        while entry is not None:
            batch.append(entry)
            if len(batch) == self._committer.jobs_max:
                return batch, False
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _next(self) -> _Waiting | None:
        """Wait for a job. The log is checkpointed in a quiet moment, so hardly any job waits for it."""
        if self.commits - self._tidied_at >= QUIET_COMMITS:
            with suppress(queue.Empty):
                return self._queue.get(timeout=QUIET_S)
            self._committer.tidy()
            self._tidied_at = self.commits
        return self._queue.get()


def _complete(batch: list[_Waiting]) -> None:
    """Give each caller its job's result. Futures of one loop are completed together: waking a loop costs time."""
    on_loops: dict[asyncio.AbstractEventLoop, list[tuple[Job, _Awaited]]] = {}
    for job, waiting in batch:
        if isinstance(waiting, Future):
            _complete_one(job, waiting)
        else:
            on_loops.setdefault(waiting.get_loop(), []).append((job, waiting))
    for loop, batch_of_loop in on_loops.items():
        with suppress(RuntimeError):  # the loop is closed and has no waiters
            loop.call_soon_threadsafe(_complete_each, batch_of_loop)


def _complete_each(batch: list[tuple[Job, _Awaited]]) -> None:
    for job, waiting in batch:
        if not waiting.done():
            _complete_one(job, waiting)


def _complete_one(job: Job, waiting: Future[Any] | _Awaited) -> None:
    if job.raised is None:
        waiting.set_result(job.result)
    else:
        waiting.set_exception(job.raised)
