"""One daemon of a fleet: its seat, the accounts that it holds, and the faults of a database that others use too.

Before and after each commit it may stand still while the others go on. A commit's outcome may stay unknown. When
the database failed over, the first commit notices another timeline, as on a new connection.

Never: cleans up after a death; lets a daemon know what only the database's clock says.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from payagent.agent.agent import Agent
from payagent.agent.base.ports import Ports
from payagent.agent.chain_sync.recovery import Recovery
from payagent.agent.chain_sync.sync import ChainSync
from payagent.agent.fleet.fleet import HeldAccount
from payagent.agent.fleet.leases import Parts
from payagent.agent.fleet.shared import TIP_EVERY_S, NoSigner, SharedFleet
from payagent.agent.topups.runner import TopupRunner
from payagent.core.problems import Refused
from payagent.proxy.payer import ProxyPayer
from payagent.store.db.committer import Committer, Job
from payagent.store.db.fence import Seat
from payagent.store.db.opening import migrate, open_database
from payagent.store.db.postgresql.hosts import HostAnswer
from payagent.store.db.seals import Sealer
from payagent.store.db.signer_record import LastSigned
from payagent.store.db.unit import Connection
from payagent.store.rows import fleet
from payagent.store.rows.fleet import DaemonRow
from sim.fixtures import account
from sim.fleet_fence import REFUSAL, install_fence
from sim.fleet_servers import FleetServers
from sim.in_process_signer import InProcessSigner
from sim.process import MERCHANTS_EVERY_BEATS, Host, InlineReaders, InlineWriter, SimDaemon

PAUSES_S = (2.0, 12.0, 12.0, 40.0, 200.0)
"""A lease is over after 10 s."""

CALM_RENEW_S, POLL_S, CALM_POLL_S = 8.0, 0.5, 5.0
LEASE_DEATHS = 0.05
"""Leases are renewed every three seconds, so a death there is drawn more seldom."""

DRAIN_S = 10

_PROVEN = "SELECT account FROM accounts WHERE proven_timeline = ?"
_LAST_ATTEMPT = "SELECT COALESCE(MAX(rowid), 0) FROM attempts"
_SIGNED_FOR = "SELECT DISTINCT account FROM attempts WHERE rowid > ?"


@dataclass(frozen=True, slots=True)
class FleetFaults:
    """Chances of a seed. `paused`: before and after a commit. `unknown`: that a commit is not confirmed."""

    paused: float = 0.0
    unknown: float = 0.0


class FleetHost(Host, Protocol):
    """What the world provides to a daemon of a fleet."""

    servers: FleetServers
    accounts: int

    def fleet_faults(self) -> FleetFaults: ...

    def true_now_ms(self) -> int: ...

    def record(self, number: int, account: int) -> "FleetRecord": ...

    def committed_aside(self, conn: Connection) -> None:
        """A commit to the old primary succeeded, as only a bug lets it."""

    def ended(self, daemon: "FleetProcess") -> None:
        """A daemon died; the world decides when it restarts."""


class FleetRecord:
    """The signer's record of one account at one host. It outlives the daemon."""

    def __init__(self, host: FleetHost) -> None:
        self._host = host
        self._signed: LastSigned | None = None

    def read(self) -> LastSigned | None:
        return self._signed

    def write(self, signed: LastSigned) -> None:
        if self._host.rng.random() < self._host.mix().disk_error:
            raise OSError("input/output error")
        self._signed = signed


class SharedConnection(sqlite3.Connection):
    """A connection to the ledger of all. Leases go by its clock."""

    clock_ms: Callable[[], int]


class FleetCommitter(Committer):
    """Commits as on PostgreSQL: its outcome may be unknown, and a new timeline is noticed before the next one.

    Then, and at the start, it asks all servers. `is_cut_off`: it found none to use. `is_aside`: it uses the old
    primary.
    """

    def __init__(self, host: FleetHost, number: int, seat: Seat, checkpoint: Callable[[str], None]) -> None:
        self._host = host
        self._number = number
        self._is_lost = self.is_cut_off = False
        self.took_place = False
        """Whether the last commit took place, whatever its callers were told."""
        self.rows_of_others: list[str] = []
        """The tables of which it wrote rows for an account that the daemon does not hold."""
        super().__init__(host.servers.path, checkpoint=checkpoint, seat=seat)

    def _open(self, _path: Path, on_failure: ExitStack) -> tuple[sqlite3.Connection, Sealer]:
        found = self._host.servers.choose(self._number, is_starting=True)
        conn = open_database(Path(found.database.url), SharedConnection)
        on_failure.callback(conn.close)
        return conn, self._use(conn, found)

    def _use(self, conn: sqlite3.Connection, found: HostAnswer) -> Sealer:
        self._timeline, self.is_aside = found.timeline, found.database.url != str(self._host.servers.path)
        conn.clock_ms = self._host.true_now_ms  # type: ignore[attr-defined]
        migrate(conn)
        install_fence(conn, self._seat_of_ours.holder, self.rows_of_others.append)
        return Sealer(conn)

    @property
    def timeline(self) -> int:
        """Of the server that it is connected to."""
        return self._timeline

    @property
    def has_failed_over(self) -> bool:
        """Whether the database failed over, and no commit noticed it yet."""
        return not self.is_aside and self._timeline != self._host.servers.timeline

    def _make_ready(self) -> None:
        self.took_place = False
        self.rows_of_others.clear()
        if self._is_lost or self.has_failed_over or self._is_unanswered():
            self._is_lost = self.is_cut_off = True
            self._seat_of_ours.note_lost_connection()
            found = self._host.servers.choose(self._number, is_starting=False)
            conn = open_database(Path(found.database.url), self._connect_again)  # type: ignore[arg-type]
            self._sealer = self._use(conn, found)
            self._is_lost = self.is_cut_off = False

    def _is_unanswered(self) -> bool:
        return not self.is_aside and self._host.servers.is_silent(self._number)

    def _connect_again(self, *args: Any, **settings: Any) -> sqlite3.Connection:
        """The same object, which jobs that wait have, with another connection."""
        sqlite3.Connection.__init__(self.conn, *args, **settings)
        return self.conn

    def _end(self) -> None:
        is_unknown = self._host.rng.random() < self._host.fleet_faults().unknown
        self.took_place = not is_unknown or self._host.rng.random() < 0.5
        if self.took_place:
            super()._end()
        if is_unknown:
            self._is_lost = True
            self._host.story.reach(f"a commit's outcome is unknown: {self.took_place}")
            raise Refused("store_failed", "the database did not confirm a commit")

    def _fail(self, jobs: list[Job], error: BaseException) -> None:
        super()._fail(jobs, error)
        if self._is_lost:
            self._seat_of_ours.note_lost_connection()

    @property
    def _seat_of_ours(self) -> Seat:
        assert self._seat is not None  # noqa: S101  given at the start
        return self._seat


class FleetReaders(InlineReaders):
    """They read where the writer commits. They refuse while it finds no server."""

    def __init__(self, committer: FleetCommitter, path: Path) -> None:
        super().__init__(path, committer.conn)
        self._committer = committer

    @property
    def conn(self) -> Connection:
        if self._committer.is_cut_off:
            raise Refused("store_failed", "the writer uses no server")
        return super().conn


class FleetWriter(InlineWriter):
    """Its daemon may stand still before a commit and after it."""

    _life: "FleetProcess"

    async def _flush(self) -> None:
        await asyncio.sleep(0)
        await self._life.maybe_pause("before", [job.name for job, _ in self._waiting])
        batch, self._waiting, self._task = self._waiting, [], None
        self._life.commit([job for job, _ in batch])
        await self._life.maybe_pause("after", [job.name for job, _ in batch])
        for _, done in batch:
            if not done.done():
                done.set_result(None)


class _Draws:
    def __init__(self, host: FleetHost) -> None:
        self._host = host

    def token_hex(self, count: int) -> str:
        return self._host.rng.randbytes(count).hex()


class FleetProcess(SimDaemon):
    """A daemon of a fleet on the host of this number."""

    _host: FleetHost

    def __init__(self, host: FleetHost, number: int) -> None:
        super().__init__(host)
        self.number = number
        self.clock_off_ms = 0
        self._ports = Ports(self, _Draws(host))
        self._records = {one: host.record(number, one) for one in range(host.accounts)}
        name = f"host{number}"
        row = DaemonRow(self._ports.new_id("daemon"), name, f"http://{name}", "{}", "1", host.true_now_ms())
        self.id = row.id
        self._seat = Seat(row.id, name, self._records)
        self._committer = FleetCommitter(host, number, self._seat, self._checkpoint)
        self._readers = FleetReaders(self._committer, host.disk.path)
        self._writer = FleetWriter(self, self._committer)
        self._merchants = host.merchants()
        providers = host.providers()
        self.front = Agent(host.terms, self._ports, self._writer, self._readers, providers, NoSigner())
        self._running: list[HeldAccount] = []
        first = HeldAccount(self.front, TopupRunner(self.front, self._merchants))
        addresses = tuple(account(one).address.text for one in range(host.accounts))
        parts = Parts(self._visit, self._start_account, self._stop_account)
        self.fleet: SharedFleet = SharedFleet(first, row, self._seat, addresses, parts)
        self.payer = ProxyPayer(self.fleet)

    def now_ms(self) -> int:
        """By its host's clock."""
        return self._host.true_now_ms() + self.clock_off_ms

    async def begin(self) -> None:
        await self.fleet.leases.join()
        host, shared = self._host, self.fleet
        for renew in (shared.leases.keep, shared.leases.renew_meanwhile):
            self._every_s(lambda: CALM_RENEW_S if host.is_calm else fleet.RENEW_EVERY_S, renew)
        self._every_s(lambda: CALM_POLL_S if host.is_calm else POLL_S, shared.poll)
        self._every_s(lambda: TIP_EVERY_S, shared.read_tip)
        self._every_s(lambda: CALM_POLL_S if host.is_calm else 1, shared.leases.take_what_is_free)

    def _every_s(self, seconds: Callable[[], float], act: Callable[[], Coroutine[Any, Any, object]]) -> None:
        async def repeat() -> None:
            while True:
                await asyncio.sleep(seconds())
                await self._try(act)

        self.spawn(repeat())

    async def _try(self, act: Callable[[], Coroutine[Any, Any, object]], held: HeldAccount | None = None) -> None:
        """Run a step. It may miss the rows that it began with, if its account or the last commits were lost."""
        try:
            await act()
        except Exception as error:  # noqa: BLE001  the daemon logs it and goes on
            is_its_own = held is None or (held in self._running and not held.agent.context.is_lost)
            if is_its_own and not self._committer.has_failed_over:
                self._host.failed_inside("a beat", repr(error))

    # --- accounts

    def _visit(self, number: int) -> HeldAccount:
        front = self.front.context
        config = replace(front.from_file, own=account(number).address, account=number)
        signer = InProcessSigner(account(number).signer)
        agent = Agent(config, self._ports, self._writer, self._readers, (), signer, front)
        return HeldAccount(agent, TopupRunner(agent, self._merchants))

    async def _start_account(self, number: int) -> HeldAccount:
        held = self._visit(number)
        agent, recovery = held.agent, Recovery(held.agent.context, self._records[number])
        await recovery.begin()
        sync = ChainSync(agent, self._merchants)
        self._running.append(held)
        polling = sync.merchant_polling
        self._beat(held, 1, sync.run_once)
        self._beat(held, 1, lambda: recovery.run_once(sync.provider_selection.view))
        self._beat(held, MERCHANTS_EVERY_BEATS, polling.poll_merchants)
        self._beat(held, MERCHANTS_EVERY_BEATS, polling.observe_prepaid)
        self._beat(held, MERCHANTS_EVERY_BEATS, agent.deliveries.give_up_unserved)
        self._beat(held, 1, held.topups.run_once)
        if agent.context.config.approval_required_above and number == 0:
            self._beat(held, 1, agent.decisions.deny_what_is_over)
        self._host.story.tell(f"{self.id} has account {number}")
        return held

    async def _stop_account(self, held: HeldAccount) -> None:
        """What runs now goes on to its end, as in the daemon."""
        if held in self._running:
            self._running.remove(held)
        await held.agent.submitter.drain(DRAIN_S)

    def _beat(self, held: HeldAccount, beats: int, act: Callable[[], Coroutine[Any, Any, object]]) -> None:
        async def repeat() -> None:
            while held in self._running:
                await self._try(act, held)
                await asyncio.sleep(self._host.beat_s * beats)

        self.spawn(repeat())

    # --- commits and faults

    @property
    def conn(self) -> Connection:
        """What it was connected to last."""
        return self._committer.conn

    async def maybe_pause(self, when: str, names: list[str]) -> None:
        """Perhaps stand still with all tasks, as under SIGSTOP."""
        host = self._host
        if host.rng.random() < host.fleet_faults().paused:
            seconds = host.rng.choice(PAUSES_S)
            host.story.reach("a daemon stands still")
            host.story.tell(f"{self.id} stands still {when} {names} for {seconds} s")
            host.loop.pause(self, seconds)
            await asyncio.sleep(0)

    def commit(self, jobs: list[Job]) -> None:
        """Commit jobs once. Check that they write for accounts of ours alone, and sign for proven ones."""
        host, names = self._host, [job.name for job in jobs]
        if names != ["lease"] or host.rng.random() < LEASE_DEATHS:
            self._draw_death(names)
        conn = self._committer.conn
        (last,) = conn.execute(_LAST_ATTEMPT).fetchone()
        self._committer.commit(jobs)
        if self._committer.took_place:
            if self._committer.rows_of_others and all(job.raised is None for job in jobs):
                tables = " ".join(sorted(set(self._committer.rows_of_others)))
                host.story.violate("I6", f"{names} write {tables} for an account of another daemon")
            proven = {account for (account,) in conn.execute(_PROVEN, (self._committer.timeline,))}
            for (signed_for,) in conn.execute(_SIGNED_FOR, (last,)):
                if signed_for not in proven:
                    host.story.violate("I1", f"something is signed for account {signed_for}, which is not proven")
            if self._committer.is_aside:
                host.committed_aside(conn)
            else:
                host.committed(conn, synced=True)
        for job in jobs:
            if isinstance(job.raised, Refused) and job.raised.code == "lease_lost":
                host.story.reach("a job comes after its account was taken")
                host.story.tell(f"{self.id}: {job.name} is refused, its account was taken")
            elif REFUSAL in str(job.raised):
                host.story.violate("I6", f"{job.name} came through the fence, and the trigger refused it")
        if self._dies_in is not None:
            host.story.reach(f"a death {self._dies_in}")
            self.die(self._dies_in)

    def die(self, why: str) -> None:
        if not self.is_over:
            self._host.story.tell(f"{self.id} dies: {why}")
            self.end()
            self._host.ended(self)

    async def stop(self) -> None:
        await self.fleet.leave()
        self.end()

    def end(self) -> None:
        """End at once. Idempotent."""
        if not self.is_over:
            self.is_over = True
            if not self._host.loop.is_closed():  # as after a run that failed
                self._host.loop.resume(self)
                self._host.loop.end_tasks_of(self)
            self._committer.close()
