"""One run of the daemon process: from its start on the current disk to its stop, or its death between two steps.

Everything in the daemon's memory is here and dies with it. The world owns what outlives it (disk, net, merchants,
clients). Commits run on the event loop, sometimes several in one, as in the writer thread.

Never: cleans up after a death.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, Protocol, TypeVar

from payagent.agent.agent import Agent
from payagent.agent.base.config import AgentConfig
from payagent.agent.base.ports import Ports
from payagent.agent.chain_sync.recovery import Recovery
from payagent.agent.chain_sync.sync import ChainSync
from payagent.agent.fleet.fleet import Fleet, HeldAccount
from payagent.agent.topups.runner import TopupRunner
from payagent.chain.provider import ChainProvider
from payagent.core.problems import Refused
from payagent.outbound.merchant_client import MerchantClient
from payagent.proxy.payer import ProxyPayer
from payagent.signer.channels import Channels
from payagent.store.db.ceiling_file import CeilingFile, ceiling_file
from payagent.store.db.committer import Committer, Job, Ownership
from payagent.store.db.lease import lease
from payagent.store.db.readers import Readers
from payagent.store.db.signer_record import LastSigned
from payagent.store.db.unit import Connection, Unit
from payagent.wallet.keys import Signer
from sim.disk import Disk
from sim.fault_rates import FaultRates
from sim.in_process_signer import InProcessSigner
from sim.trace import Trace
from sim.virtual_loop import VirtualLoop

T = TypeVar("T")

MERCHANTS_EVERY_BEATS = 3
LEAVES_S_MAX = 20.0
WEAK, WEAK_DISK = 0.5, 0.4
"""How often commits of the seed's chosen kind die, and how often they get a disk error."""

WEAK_AT_VOID, WEAK_DISK_AT_VOID = 0.6, 0.6
"""Voids are rare, so a seed that chose them has more failures there."""


class DeadError(Exception):
    """The daemon died or stopped before it answered."""


class Host(Protocol):
    """What the world provides to a daemon."""

    loop: VirtualLoop
    rng: Random
    story: Trace
    disk: Disk
    terms: AgentConfig
    signer: Signer
    weak_job: str
    is_calm: bool

    @property
    def beat_s(self) -> float:
        """The current time from one pass to the next."""

    def mix(self) -> FaultRates: ...

    def daemon_now_ms(self) -> int: ...

    def providers(self) -> list[ChainProvider]: ...

    def merchants(self) -> MerchantClient: ...

    def channel_signer(self) -> Channels | None:
        """The signer's part of channels, with the memory of a new process; None where channels are off."""

    def committed(self, conn: Connection, *, synced: bool) -> None:
        """A commit succeeded; the judge checks what it added."""

    def failed_inside(self, where: str, error: str) -> None:
        """An exception ended in the daemon's log only."""

    def died(self, why: str) -> None:
        """The process is gone; the world decides when it restarts."""


class _Clock:
    def __init__(self, host: Host) -> None:
        self._host = host

    def now_ms(self) -> int:
        return self._host.daemon_now_ms()


class _Draws:
    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def token_hex(self, count: int) -> str:
        return self._rng.randbytes(count).hex()


class Record:
    """The signer's record, in its own file on the same disk."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def read(self) -> LastSigned | None:
        return self._host.disk.signed

    def write(self, signed: LastSigned) -> None:
        if self._host.rng.random() < self._host.mix().disk_error:
            self._host.story.reach("no disk for the signer's record")
            raise OSError("input/output error")
        self._host.disk.signed = signed


class InlineReaders(Readers):
    """Reads on the writer's own connection between its commits, so every reader sees the committed state."""

    def __init__(self, path: Path, writing: Connection) -> None:
        super().__init__(path)
        self._writing = writing

    @property
    def conn(self) -> Connection:
        if self._writing.in_transaction:
            raise RuntimeError("a job reads by another connection than its own, which does not see what it wrote")
        return self._writing


class InlineWriter:
    """Makes jobs durable on the loop itself. A death at a commit point takes effect here."""

    def __init__(self, life: "SimDaemon", committer: Committer) -> None:
        self._life = life
        self.committer = committer
        self._waiting: list[tuple[Job, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def run(self, name: str, job: Callable[[Unit], T], account: int | None = None) -> T:
        """Run a job as `store.db.writer.Writer.run` does."""
        entry = self.committer.job(name, job, account)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, done))
        if self._task is None:
            self._task = self._life.spawn(self._flush())
        await asyncio.shield(done)
        result: T = entry.outcome()
        return result

    def is_noted(self, attempt: int | None, account: int = 0) -> bool:
        return self.committer.is_noted(attempt, account)

    async def _flush(self) -> None:
        """Jobs that wait at the time of the commit share it."""
        await asyncio.sleep(0)
        batch, self._waiting, self._task = self._waiting, [], None
        self._life.commit([job for job, _ in batch])
        for _, done in batch:
            if not done.done():
                done.set_result(None)


class SimDaemon:
    """A running daemon: its tasks, and the faults of its commits."""

    fleet: Fleet
    payer: ProxyPayer

    def __init__(self, host: Host) -> None:
        self._host = host
        self.is_over = False
        self._dies_in: str | None = None
        is_seldom = host.weak_job == "void"
        self._weak, self._weak_disk = (WEAK_AT_VOID, WEAK_DISK_AT_VOID) if is_seldom else (WEAK, WEAK_DISK)

    @property
    def conn(self) -> Connection:
        """A connection that shows the committed state, as the process sees it."""
        raise NotImplementedError

    def commit(self, jobs: list[Job]) -> None:
        """Commit jobs once, with faults drawn for each commit."""
        raise NotImplementedError

    def die(self, why: str) -> None:
        """Die at once, with everything in progress. The files stay as they are."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Shut down in order."""
        raise NotImplementedError

    def _draw_death(self, names: list[str]) -> None:
        host = self._host
        is_weak = host.weak_job in names and not host.is_calm
        if host.rng.random() < (self._weak if is_weak else host.mix().crash_in_commit):
            self._dies_in = f"{host.rng.choice(('before', 'after'))} {host.rng.choice(names)}"

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that dies with the process."""
        with self._host.loop.owned_by(self):
            task = self._host.loop.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """Report a task that a bug ended, because otherwise no one would notice."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.is_over and not isinstance(error, Refused):
            self._host.failed_inside("a task of the daemon", repr(error))

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a client's request in the daemon. Raises `DeadError` if the daemon ends first."""
        if self.is_over:
            work.close()
            raise DeadError
        task = self.spawn(work)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.cancelled() or self.is_over:  # results of a dead process reach no one
            raise DeadError
        return task.result()

    def _checkpoint(self, name: str) -> None:
        if name.startswith("before ") and name == self._dies_in:
            raise OSError("the process dies")
        host = self._host
        is_weak = name == f"before {host.weak_job}" and not host.is_calm
        if name.startswith("before ") and host.rng.random() < (
            self._weak_disk if is_weak else host.mix().disk_error
        ):
            raise OSError("input/output error")

    async def _every(self, intervals: int, act: Callable[[], Coroutine[Any, Any, object]]) -> None:
        while True:
            try:
                await act()
            except Exception as error:  # noqa: BLE001  the daemon logs it and goes on
                self._host.failed_inside("a beat", repr(error))
            await asyncio.sleep(self._host.beat_s * intervals)


class SimProcess(SimDaemon):
    """A daemon alone on its ledger."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._full = False
        self._is_taken_over = self._is_leaving = False
        self._leased = ExitStack()
        self._leased.enter_context(lease(host.disk.folder, host.disk.leased))
        ports = Ports(_Clock(host), _Draws(host.rng))
        record = Record(host)
        own = Ownership(ports.new_id("boot"), {0: record}, self._leave)
        self._committer = Committer(host.disk.path, checkpoint=self._checkpoint, own=own)
        host.disk.attach(self._committer.conn)
        self._readers = InlineReaders(host.disk.path, self._committer.conn)
        writer = InlineWriter(self, self._committer)
        signer = InProcessSigner(host.signer, host.channel_signer())
        self.agent = Agent(host.terms, ports, writer, self._readers, host.providers(), signer)
        self._merchants = merchants = host.merchants()
        self.chain_sync = ChainSync(self.agent, merchants)
        self.topups = TopupRunner(self.agent, merchants)
        self.fleet = Fleet(HeldAccount(self.agent, self.topups))
        self.payer = ProxyPayer(self.fleet)
        self._recovery = Recovery(self.agent.context, record)

    async def begin(self) -> None:
        """Start as the daemon does: first recover what the ledger may lack, then start the jobs."""
        await self._recovery.begin()
        if self.agent.channels is not None:
            ceilings = CeilingFile(self._host.disk.folder / ceiling_file(0))
            await self.agent.channels.calls.start(self._merchants, ceilings)
        self.spawn(self._every(1, self.chain_sync.run_once))
        self.spawn(self._every(1, lambda: self._recovery.run_once(self.chain_sync.provider_selection.view)))
        self.spawn(self._every(MERCHANTS_EVERY_BEATS, self.chain_sync.merchant_polling.poll_merchants))
        self.spawn(self._every(MERCHANTS_EVERY_BEATS, self.chain_sync.merchant_polling.observe_prepaid))
        self.spawn(self._every(MERCHANTS_EVERY_BEATS, self.agent.deliveries.give_up_unserved))
        self.spawn(self._every(1, self.topups.run_once))
        if self.agent.context.config.upkeep_fees_per_day_lovelace:
            self.spawn(self._every(1, self._keep_ready))
        if self.agent.context.config.approval_required_above:
            self.spawn(self._every(1, self.agent.decisions.deny_what_is_over))

    async def _keep_ready(self) -> None:
        """Not after the faults stopped: a transfer ordered then could not settle before the end of the run."""
        if not self._host.is_calm:
            await self.agent.utxo_pool.keep_ready()

    def take_over(self) -> None:
        """Another daemon opens the ledger. From here on this one must commit nothing."""
        self._is_taken_over = True
        self._host.disk.take_over(self._committer.conn)

    def _leave(self) -> None:
        """The daemon noticed the other one and shuts down, which may take some seconds."""
        if self._is_leaving:
            return
        self._is_leaving = True
        self._host.story.reach("a daemon leaves its ledger to another")
        self._host.loop.call_later(
            self._host.rng.random() * LEAVES_S_MAX, self.die, "another daemon has its ledger"
        )

    @property
    def conn(self) -> Connection:
        """A connection that shows the committed state, as the process sees it."""
        return self._readers.conn

    def commit(self, jobs: list[Job]) -> None:
        """Commit jobs once, with faults drawn for each commit."""
        host = self._host
        self._draw_death([job.name for job in jobs])
        self._draw_full()
        before = self._committer.commits
        self._committer.commit(jobs)
        if self._committer.commits > before:
            if self._is_taken_over:
                host.story.violate("I6", "a daemon commits to a ledger that another one has taken over")
            host.committed(self._committer.conn, synced=host.disk.committed())
        for job in jobs:
            if self._dies_in is None and isinstance(job.raised, Refused) and job.raised.code == "store_failed":
                host.story.reach(f"no room or no disk at {job.name}")
        if self._dies_in is not None:
            host.story.reach(f"a death {self._dies_in}")
            self.die(self._dies_in)

    def _draw_full(self) -> None:
        host, mix = self._host, self._host.mix()
        if self._full:
            if host.rng.random() < 0.3 or not mix.disk_full:
                self._full = False
                host.disk.make_room(self._committer.conn)
        elif host.rng.random() < mix.disk_full:
            self._full = True
            host.disk.fill_up(self._committer.conn)

    def die(self, why: str) -> None:
        """Die at once, with everything in progress. The files stay as they are."""
        if self.is_over:
            return
        self.is_over = True
        host = self._host
        host.story.tell(f"the daemon dies: {why}")
        torn = host.rng.random() < host.mix().torn_tail
        host.disk.die(host.rng, torn=torn)
        self._end()
        host.died(why)

    async def stop(self) -> None:
        """Shut down in order: transactions being submitted finish first."""
        await self.agent.submitter.drain(20)
        if self.agent.channels is not None:
            self.agent.channels.calls.stop()
        self.is_over = True
        self._end()

    def _end(self) -> None:
        self._host.loop.end_tasks_of(self)
        self._committer.close()
        self._leased.close()
