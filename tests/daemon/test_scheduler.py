"""The scheduler: it goes on after a failure, passes never overlap, and a stop lets the running one end."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, tzinfo

import pytest
import structlog

from payagent.agent.base.chain_view import ChainView
from payagent.agent.base.ports import Ports, SystemClock, SystemRandomness
from payagent.chain.provider import BlockSeen
from payagent.core.network import NETWORKS, SlotClock
from payagent.log import Redactor, configure_logging
from payagent.scheduler import DRAIN_S, JobIntervals, Scheduler

FAST = JobIntervals(watch_s=0.01, idle_s=0, merchants_s=60, alerts_s=60, prepaid_s=60)


@dataclass
class Agent:
    """The parts of an agent that the scheduler uses, in one object."""

    chain: ChainView = field(default_factory=lambda: ChainView(NETWORKS["devnet"], problem=None, is_compared=True))
    ports: Ports = field(default_factory=lambda: Ports(SystemClock(), SystemRandomness()))
    drained_s: float | None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.context = self.decisions = self.submitter = self.utxo_pool = self.deliveries = self

    async def give_up_unserved(self) -> None:
        return

    async def deny_what_is_over(self) -> None:
        self.asked.set()

    async def keep_ready(self) -> None:
        return

    async def drain(self, timeout_s: float) -> None:
        self.drained_s = timeout_s


@dataclass
class Watch:
    """The parts of chain_sync that the scheduler uses, in one object; passes take as long as a test wants."""

    fail_first: int = 0
    whole: bool = True
    trouble: str | None = None
    view: object = None
    is_idle: bool = False
    looks: int = 0
    polls: int = 0
    at_once: int = 0
    at_once_max: int = 0
    ended: int = 0
    started: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    several: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.provider_selection = self.merchant_polling = self

    async def run_once(self) -> bool:
        self.looks += 1
        self.at_once += 1
        self.at_once_max = max(self.at_once_max, self.at_once)
        self.started.set()
        await self.go_on.wait()
        self.at_once -= 1
        self.ended += 1
        if self.looks >= 5:
            self.several.set()
        if self.looks <= self.fail_first:
            raise RuntimeError("the provider burnt down")
        return self.whole

    async def poll_merchants(self) -> None:
        self.polls += 1

    async def observe_prepaid(self) -> None:
        return


class Quiet:
    """Alerts, top-ups or the recovery: nothing runs low, and nothing is behind."""

    async def run_once(self, view: object = None) -> None:
        return


async def test_a_failed_pass_does_not_stop_the_scheduler() -> None:
    chain_sync = Watch(fail_first=3)
    chain_sync.go_on.set()
    sweeps = Scheduler(Agent(), chain_sync, Quiet(), Quiet(), Quiet(), FAST)  # type: ignore[arg-type]
    sweeps.start()
    assert sweeps.stale() is not None
    await asyncio.wait_for(chain_sync.several.wait(), 60)
    assert sweeps.stale() is None
    await sweeps.stop()


@dataclass
class WallClock:
    """The clock that the scheduler reads and a test sets."""

    off: timedelta = timedelta()

    def now(self, zone: tzinfo) -> datetime:
        return datetime.now(zone) + self.off


@pytest.mark.parametrize("off", [timedelta(days=-1), timedelta(days=365 * 56)])
async def test_the_scheduler_runs_on_after_a_clock_jump(monkeypatch: pytest.MonkeyPatch, off: timedelta) -> None:
    clock, chain_sync = WallClock(), Watch()
    for module in ("payagent.scheduler", "apscheduler.schedulers.base"):
        monkeypatch.setattr(f"{module}.datetime", clock)
    monkeypatch.setattr("payagent.scheduler.CLOCK_CHECK_S", 0.01)
    chain_sync.go_on.set()
    sweeps = Scheduler(Agent(), chain_sync, Quiet(), Quiet(), Quiet(), FAST)  # type: ignore[arg-type]
    sweeps.start()
    await looks(chain_sync, 3)
    clock.off = off
    await looks(chain_sync, 3)
    await sweeps.stop()


async def test_the_scheduler_checks_for_expired_approvals() -> None:
    agent, chain_sync = Agent(), Watch()
    chain_sync.go_on.set()
    sweeps = Scheduler(agent, chain_sync, Quiet(), Quiet(), Quiet(), FAST)  # type: ignore[arg-type]
    sweeps.start()
    await asyncio.wait_for(agent.asked.wait(), 60)
    await sweeps.stop()


async def test_passes_do_not_overlap() -> None:
    chain_sync = Watch()
    sweeps = Scheduler(Agent(), chain_sync, Quiet(), Quiet(), Quiet(), FAST)  # type: ignore[arg-type]
    sweeps.start()
    await asyncio.wait_for(chain_sync.started.wait(), 60)
    for _ in range(20):
        await asyncio.sleep(0.01)
    assert chain_sync.looks == 1
    chain_sync.go_on.set()
    await asyncio.wait_for(chain_sync.several.wait(), 60)
    assert chain_sync.at_once_max == 1
    await sweeps.stop()


async def test_an_idle_wallet_has_rare_passes_and_a_busy_one_frequent_passes() -> None:
    chain_sync = Watch(is_idle=True)
    chain_sync.go_on.set()
    intervals = replace(FAST, idle_s=3600, merchants_s=0.01)
    sweeps = Scheduler(Agent(), chain_sync, Quiet(), Quiet(), Quiet(), intervals)  # type: ignore[arg-type]
    sweeps.start()
    await asyncio.wait_for(chain_sync.started.wait(), 60)
    async with asyncio.timeout(60):
        while chain_sync.polls < 20:
            await asyncio.sleep(0.001)
    assert chain_sync.looks == 1
    chain_sync.is_idle = False
    await looks(chain_sync, 3)
    await sweeps.stop()


async def test_a_stop_lets_the_running_pass_end_and_starts_no_other() -> None:
    agent, chain_sync = Agent(), Watch()
    sweeps = Scheduler(agent, chain_sync, Quiet(), Quiet(), Quiet(), FAST)  # type: ignore[arg-type]
    sweeps.start()
    await asyncio.wait_for(chain_sync.started.wait(), 60)
    stopping = asyncio.create_task(sweeps.stop())
    await asyncio.sleep(0)
    assert not stopping.done()
    chain_sync.go_on.set()
    await asyncio.wait_for(stopping, 60)
    assert (chain_sync.looks, chain_sync.ended) == (1, 1)
    assert agent.drained_s is not None
    assert agent.drained_s < DRAIN_S, "the running pass used up part of the time that a stop has"


async def test_readiness_reports_the_trouble_of_the_last_pass() -> None:
    agent, chain_sync = Agent(), Watch(whole=False, trouble="blockfrost-1: its newest block could not be read")
    chain_sync.go_on.set()
    sweeps = Scheduler(agent, chain_sync, Quiet(), Quiet(), Quiet(), FAST)  # type: ignore[arg-type]
    sweeps.start()
    await asyncio.wait_for(chain_sync.several.wait(), 60)
    assert sweeps.stale() == "blockfrost-1: its newest block could not be read"
    assert not sweeps.is_watching()
    await sweeps.stop()


async def test_incomplete_passes_that_see_the_chain_still_watch_it() -> None:
    agent, chain_sync = Agent(), Watch(whole=False, trouble="the providers disagree", view="what one shows")
    chain_sync.go_on.set()
    sweeps = Scheduler(agent, chain_sync, Quiet(), Quiet(), Quiet(), FAST)  # type: ignore[arg-type]
    assert not sweeps.is_watching()
    sweeps.start()
    await asyncio.wait_for(chain_sync.several.wait(), 60)
    assert sweeps.stale() == "the providers disagree"
    assert sweeps.is_watching()
    await sweeps.stop()


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What goes to the log, as the daemon writes it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    out = io.StringIO()
    configure_logging(out, Redactor())
    yield out
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


async def looks(chain_sync: Watch, count: int) -> None:
    """Wait until so many more passes have ended."""
    wanted = chain_sync.ended + count
    async with asyncio.timeout(60):
        while chain_sync.ended < wanted:
            await asyncio.sleep(0.001)


async def test_the_log_reports_trouble_with_the_chain_once_per_change(
    written: io.StringIO,
) -> None:
    agent, chain_sync = Agent(), Watch(whole=False, trouble="first: timeout after 5.1 s")
    now_s = agent.ports.clock.now_ms() // 1000
    agent.chain.slots = SlotClock(0, now_s)
    agent.chain.tip = BlockSeen(1, 0, "ab" * 32, now_s)
    chain_sync.go_on.set()
    sweeps = Scheduler(agent, chain_sync, Quiet(), Quiet(), Quiet(), FAST)  # type: ignore[arg-type]
    sweeps.start()
    await looks(chain_sync, 5)
    chain_sync.trouble = "first: timeout after 5.2 s"
    await looks(chain_sync, 5)
    chain_sync.trouble = "first: http 500"
    await looks(chain_sync, 5)
    chain_sync.whole, chain_sync.trouble = True, None
    await looks(chain_sync, 5)
    agent.chain.tip = BlockSeen(1, -1_000, "ab" * 32, now_s - 1_000)
    await looks(chain_sync, 5)
    await sweeps.stop()
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    told = [(line["event"], line.get("problem"), line["level"]) for line in lines]
    assert told[:-1] == [
        ("chain.problem", "first: timeout after 5.1 s", "warning"),
        ("chain.problem", "first: http 500", "warning"),
        ("chain.problem_over", None, "warning"),
    ]
    assert told[-1][0] == "chain.problem"
    assert str(told[-1][1]).startswith("the newest block that is known is 1")


async def test_a_pass_that_keeps_failing_the_same_way_is_logged_once(written: io.StringIO) -> None:
    chain_sync = Watch(fail_first=1_000_000)
    chain_sync.go_on.set()
    sweeps = Scheduler(Agent(), chain_sync, Quiet(), Quiet(), Quiet(), FAST)  # type: ignore[arg-type]
    sweeps.start()
    await looks(chain_sync, 5)
    await sweeps.stop()
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["job.failed"]
    assert "the provider burnt down" in lines[0]["exception"]
