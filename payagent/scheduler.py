"""Run the agent's jobs with APScheduler. Jobs are idempotent and hold no state; a missed run costs only time.

The scheduler follows the wall clock, which may be set. After a clock jump the next run still starts on schedule. A
stop takes three steps: no new runs, running ones end, then the scheduler shuts down, because APScheduler cancels
the coroutines it runs.
Never: makes a decision; lets a failed run prevent the next.
"""

import asyncio
import logging
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from payagent.agent.agent import Agent
from payagent.agent.chain_sync.recovery import Recovery
from payagent.agent.chain_sync.sync import ChainSync
from payagent.agent.operator.alerts import AlertMonitor
from payagent.agent.operator.notifier import Notifier
from payagent.agent.topups.runner import TopupRunner
from payagent.core.problems import Refused

DRAIN_S = 20.0
MISSED_RUNS_MAX = 10
CLOCK_CHECK_S = 1.0
"""How often to check whether the clock was set back."""

log = structlog.get_logger("payagent.scheduler")


@dataclass(frozen=True, slots=True)
class JobIntervals:
    """Seconds between runs of the jobs: chain passes, merchants, alerts (upkeep and news too), prepaid balances.

    `idle_s` is the time between chain passes while nothing is open. A pass over a new block takes three calls, and
    an idle daemon must call a provider at most six times a minute.
    """

    watch_s: float
    idle_s: float
    merchants_s: float
    alerts_s: float
    prepaid_s: float


DEVNET_INTERVALS = JobIntervals(watch_s=0.25, idle_s=0.25, merchants_s=2, alerts_s=1, prepaid_s=0.5)
NETWORK_INTERVALS = JobIntervals(watch_s=5, idle_s=40, merchants_s=15, alerts_s=10, prepaid_s=5)


class _Every(BaseTrigger):  # type: ignore[misc]
    """Fires once per interval, and not once for each run missed in a clock jump."""

    def __init__(self, seconds: float) -> None:
        self.interval = timedelta(seconds=seconds)

    def get_next_fire_time(self, _previous: datetime | None, now: datetime) -> datetime:
        return now + self.interval


class Scheduler:
    """Runs all jobs of an agent. In a fleet, `alerts` and `notifiers` run beside one account alone."""

    def __init__(
        self,
        agent: Agent,
        chain_sync: ChainSync,
        alerts: AlertMonitor | None,
        topups: TopupRunner,
        recovery: Recovery,
        intervals: JobIntervals,
        notifiers: Sequence[Notifier] = (),
    ) -> None:
        self._agent = agent
        self._context = agent.context
        self._chain_sync = chain_sync
        self._alerts = alerts
        self._topups = topups
        self._recovery = recovery
        self._notifiers = notifiers
        self._intervals = intervals
        self._tasks: set[asyncio.Task[None]] = set()
        self._age_max_s = max(intervals.watch_s * MISSED_RUNS_MAX, 30) + intervals.idle_s
        self._last_success_s: float | None = None
        self._last_view_s = -math.inf
        self._last_error = "the first chain pass is not done"
        self._failures: dict[str, str] = {}
        self._logged_problem: str | None = None
        self._clock_timer: asyncio.TimerHandle | None = None
        self._scheduler = AsyncIOScheduler(
            timezone="UTC", job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        )

    def start(self) -> None:
        """Start all jobs, with a first run at once."""
        logging.getLogger("apscheduler").setLevel(logging.ERROR)  # logs every run
        for name, run_once, seconds in (
            ("watch", self._sync_chain, self._intervals.watch_s),
            ("scan", self._recover, self._intervals.watch_s),
            ("merchants", self._chain_sync.merchant_polling.poll_merchants, self._intervals.merchants_s),
            ("unserved", self._agent.deliveries.give_up_unserved, self._intervals.merchants_s),
            ("prepaid", self._chain_sync.merchant_polling.observe_prepaid, self._intervals.prepaid_s),
            ("topups", self._topups.run_once, self._intervals.prepaid_s),
            ("utxos", self._agent.utxo_pool.keep_ready, self._intervals.alerts_s),
            ("approvals", self._agent.decisions.deny_what_is_over, self._intervals.alerts_s),
            *(("alerts", one.run_once, self._intervals.alerts_s) for one in (self._alerts,) if one is not None),
            *((f"notify {one.name}", one.run_once, self._intervals.alerts_s) for one in self._notifiers),
        ):
            self._scheduler.add_job(
                self._start_run, _Every(seconds), [name, run_once], id=name, next_run_time=datetime.now(UTC)
            )
        self._scheduler.start()
        self._check_clock()

    def stale(self) -> str | None:
        """Say why the last chain pass failed if none succeeded for too long; None otherwise."""
        now_s = asyncio.get_running_loop().time()
        if self._last_success_s is None:
            return self._last_error
        age_s = now_s - self._last_success_s
        if age_s > self._age_max_s:
            return f"the last successful chain pass was {age_s:.0f} s ago: {self._last_error}"
        return None

    def is_watching(self) -> bool:
        """Whether a pass lately saw the newest block, complete or not: providers may disagree or be silent."""
        return asyncio.get_running_loop().time() - self._last_view_s <= self._age_max_s

    async def stop(self) -> None:
        """Stop. Running jobs and submissions have `DRAIN_S` seconds in total to end."""
        clock = asyncio.get_running_loop().time
        until_s = clock() + DRAIN_S
        if self._clock_timer is not None:
            self._clock_timer.cancel()
        self._scheduler.pause()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN_S)
        await self._agent.submitter.drain(until_s - clock())
        self._scheduler.shutdown(wait=False)

    def _check_clock(self) -> None:
        """Reschedule jobs after the clock was set back; otherwise none runs until it catches up.

        This check uses the event loop's clock.
        """
        self._clock_timer = asyncio.get_running_loop().call_later(CLOCK_CHECK_S, self._check_clock)
        now = datetime.now(UTC)
        for job in self._scheduler.get_jobs():
            if job.next_run_time > now + job.trigger.interval:
                job.modify(next_run_time=now)

    async def _start_run(self, name: str, run_once: Callable[[], Awaitable[None]]) -> None:
        """Start a run of a job as a task of its own, one per name at a time. Only `stop` waits for it."""
        if any(task.get_name() == name for task in self._tasks):
            return
        task = asyncio.get_running_loop().create_task(self._run(name, run_once), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, name: str, run_once: Callable[[], Awaitable[None]]) -> None:
        try:
            await run_once()
        except Exception as error:
            self._last_error = str(error)
            if self._failures.get(name) != repr(error):
                self._failures[name] = repr(error)
                log.warning("job.failed", job=name, error=repr(error), exc_info=not isinstance(error, Refused))
        else:
            self._failures.pop(name, None)

    async def _recover(self) -> None:
        await self._recovery.run_once(self._chain_sync.provider_selection.view)

    async def _sync_chain(self) -> None:
        if self._can_wait():
            return
        is_complete, now_s = await self._chain_sync.run_once(), asyncio.get_running_loop().time()
        if self._chain_sync.provider_selection.view is not None:
            self._last_view_s = now_s
        if is_complete:
            self._last_success_s = now_s
            self._log_problem(self._why_not_ready())
        else:
            self._last_error = self._chain_sync.trouble or "the chain was not read in full"
            self._log_problem(self._last_error)

    def _can_wait(self) -> bool:
        """Whether the next pass can wait. A payment admitted meanwhile is seen by the next run."""
        if self._last_success_s is None or self._context.chain.behind is not None or not self._chain_sync.is_idle:
            return False
        return asyncio.get_running_loop().time() < self._last_success_s + self._intervals.idle_s

    def _why_not_ready(self) -> str | None:
        try:
            self._context.chain.require_ready(self._context.ports.clock.now_ms())
        except Refused as refused:
            return refused.detail
        return None

    def _log_problem(self, problem: str | None) -> None:
        """Log the reason why payagent cannot pay, when it changes. A different number is no change."""
        kind = None if problem is None else re.sub(r"[0-9]+", "0", problem)
        if kind != self._logged_problem:
            self._logged_problem = kind
            if problem is None:
                log.warning("chain.problem_over")
            else:
                log.warning("chain.problem", problem=problem)
