"""The heartbeat: it goes on after a failure, never runs beside itself, and a stop lets what runs end."""

import asyncio
from dataclasses import dataclass, field

from payagent.agent.chainview import ChainView
from payagent.core.network import NETWORKS
from payagent.sweeps import Beats, Sweeps

FAST = Beats(watch_s=0.01, merchants_s=60)


@dataclass
class Agent:
    """What the sweeps touch of an agent."""

    chain: ChainView = field(default_factory=lambda: ChainView(NETWORKS["devnet"], problem=None))
    drained: bool = False

    async def drain(self, _timeout_s: float) -> None:
        self.drained = True


@dataclass
class Watch:
    """A watch whose looks take as long as a test wants."""

    fail_first: int = 0
    whole: bool = True
    looks: int = 0
    at_once: int = 0
    at_once_max: int = 0
    ended: int = 0
    started: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    several: asyncio.Event = field(default_factory=asyncio.Event)

    async def tick(self) -> bool:
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
        return


async def test_a_look_that_fails_does_not_stop_the_heart() -> None:
    watch = Watch(fail_first=3)
    watch.go_on.set()
    sweeps = Sweeps(Agent(), watch, FAST)  # type: ignore[arg-type]
    sweeps.start()
    assert sweeps.stale() is not None
    await asyncio.wait_for(watch.several.wait(), 10)
    assert sweeps.stale() is None
    await sweeps.stop()


async def test_looks_do_not_run_beside_each_other() -> None:
    watch = Watch()
    sweeps = Sweeps(Agent(), watch, FAST)  # type: ignore[arg-type]
    sweeps.start()
    await asyncio.wait_for(watch.started.wait(), 10)
    for _ in range(20):
        await asyncio.sleep(0.01)
    assert watch.looks == 1
    watch.go_on.set()
    await asyncio.wait_for(watch.several.wait(), 10)
    assert watch.at_once_max == 1
    await sweeps.stop()


async def test_a_stop_lets_the_look_that_runs_end_and_begins_no_other() -> None:
    agent, watch = Agent(), Watch()
    sweeps = Sweeps(agent, watch, FAST)  # type: ignore[arg-type]
    sweeps.start()
    await asyncio.wait_for(watch.started.wait(), 10)
    stopping = asyncio.create_task(sweeps.stop())
    await asyncio.sleep(0)
    assert not stopping.done()
    watch.go_on.set()
    await asyncio.wait_for(stopping, 10)
    assert (watch.looks, watch.ended, agent.drained) == (1, 1, True)


async def test_readiness_says_what_the_last_look_said() -> None:
    agent, watch = Agent(), Watch(whole=False)
    watch.go_on.set()
    agent.chain.problem = "blockfrost-1: its tip is Unknown"
    sweeps = Sweeps(agent, watch, FAST)  # type: ignore[arg-type]
    sweeps.start()
    await asyncio.wait_for(watch.several.wait(), 10)
    assert sweeps.stale() == "blockfrost-1: its tip is Unknown"
    await sweeps.stop()
