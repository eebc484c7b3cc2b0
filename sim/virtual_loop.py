"""An event loop with virtual time: when nothing is ready, time jumps to the next timer.

Handles run in the order they were scheduled, so a run depends only on its seed. Tasks belong to the owner that was
current when they were made, so a simulated process can die with all its tasks. Runs consist mostly of handles, so
this loop does less per handle than asyncio's own.

Never: waits; does I/O.
"""

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any

OWNER: ContextVar[object | None] = ContextVar("sim.owner", default=None)


class StuckError(Exception):
    """Nothing is ready, and nothing is scheduled."""


class _Handle(asyncio.Handle):
    __slots__ = ()

    def __init__(
        self, callback: Callable[..., Any], args: tuple[Any, ...], loop: "VirtualLoop", context: Context | None
    ) -> None:
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = copy_context() if context is None else context
        self._cancelled = False
        self._repr = self._source_traceback = None


class _Timer(asyncio.TimerHandle):
    __slots__ = ()

    def __init__(
        self,
        when_s: float,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        loop: "VirtualLoop",
        context: Context | None,
    ) -> None:
        _Handle.__init__(self, callback, args, loop, context)  # type: ignore[arg-type]
        self._when = when_s
        self._scheduled = False  # asyncio counts scheduled timers; this loop does not

    def cancel(self) -> None:
        """As asyncio's own, but cheaper: every sleep ends with it."""
        self._cancelled = True
        self._callback = self._args = None  # type: ignore[assignment]


class VirtualLoop(asyncio.BaseEventLoop):
    """`before_round` is called before each round of ready handles. A process may die there, between two awaits."""

    _ready: deque[asyncio.Handle]

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self._owned: dict[object, dict[asyncio.Task[Any], None]] = {}
        self._timers: list[tuple[float, int, _Timer]] = []
        self._numbers = itertools.count()
        self.rounds = 0
        self._paused: dict[object, list[asyncio.Handle]] = {}
        self.before_round: Callable[[], None] = lambda: None

    def time(self) -> float:
        """Seconds since the run began."""
        return self.now_s

    def pass_time(self, until_s: float | None) -> None:
        """Advance to `until_s`, never back. None means that nothing is scheduled."""
        if until_s is None:
            raise StuckError("every task waits for another")
        self.now_s = max(self.now_s, until_s)
        self.rounds += 1
        self.before_round()

    @contextmanager
    def owned_by(self, owner: object) -> Iterator[None]:
        """Tasks that are made meanwhile, and tasks that those make, belong to the owner."""
        token = OWNER.set(owner)
        try:
            yield
        finally:
            OWNER.reset(token)

    def pause(self, owner: object, seconds: float) -> None:
        """Run nothing of an owner for some time, from the next round on. What becomes due meanwhile runs then."""
        self._paused.setdefault(owner, [])
        self.call_later(seconds, self.resume, owner, context=Context())

    def resume(self, owner: object) -> None:
        self._ready.extend(self._paused.pop(owner, ()))

    def _hold_back(self) -> None:
        ready, self._ready = self._ready, deque()
        for handle in ready:
            owner: Any = handle._context.get(OWNER)  # type: ignore[attr-defined]
            self._paused.get(owner, self._ready).append(handle)

    def end_tasks_of(self, owner: object) -> None:
        """Cancel an owner's tasks in the order in which they began."""
        for task in self._owned.pop(owner, {}):
            task.cancel()

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: object = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self, name=name, context=context)  # type: ignore[arg-type]
        owner = OWNER.get() if context is None else context.get(OWNER)
        if owner is not None:
            own_tasks = self._owned.setdefault(owner, {})
            own_tasks[task] = None
            task.add_done_callback(lambda done: own_tasks.pop(done, None))
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Call the function at once: there is no other thread."""
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  the caller's, as from a thread
            done.set_exception(error)
        return done

    # --- handles

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        self._check_closed()  # type: ignore[attr-defined]
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        self._check_closed()  # type: ignore[attr-defined]
        timer = _Timer(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def _run_once(self) -> None:
        """One round: time advances if nothing is ready; due timers become ready; all ready handles run."""
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        is_due_now = bool(self._ready) or self._stopping  # type: ignore[attr-defined]
        self.pass_time(self.now_s if is_due_now else timers[0][0] if timers else None)
        while timers and timers[0][0] <= self.now_s:
            self._ready.append(heapq.heappop(timers)[2])
        if self._paused:
            self._hold_back()
        ready = self._ready
        for _ in range(len(ready)):
            handle: Any = ready.popleft()
            if handle._cancelled:
                continue
            try:
                handle._context.run(handle._callback, *handle._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001  as asyncio's own: one handle's error ends no other
                self.call_exception_handler({"message": "an exception in a callback", "exception": error})

    def _write_to_self(self) -> None:
        return

    def close(self) -> None:
        """Drop everything that is still scheduled."""
        self._timers.clear()
        super().close()
