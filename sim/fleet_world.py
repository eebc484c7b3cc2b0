"""The world of several daemons over one ledger: they stand still, die and lose the database's last commits.

After a failover that loses them, the old primary may come back, and the new one be silent to some hosts.
Its seeds are its own (`scripts/sim --fleet`). Each daemon is on a host with its clock and its signer's records.
All have the words of all accounts. Leases go by the database's clock.
Start at `FleetWorld.run`.

Never: takes more from the ledger than a failover that loses the last commits could.
"""

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random

from payagent.agent.chain_sync.external_spends import unfreeze
from payagent.audit.signed_bytes import Owner
from payagent.core.payment.machine import CANCELLABLE
from payagent.core.problems import Refused
from payagent.devnet.ledger import DevnetBlock
from payagent.store.db.opening import open_read_only
from payagent.store.db.unit import Connection
from payagent.store.rows import fleet, payments
from sim.fixtures import ADA, NETWORK, account
from sim.fleet_process import FleetFaults, FleetProcess, FleetRecord
from sim.fleet_servers import FleetServers
from sim.judge import Judge
from sim.process import DeadError
from sim.seed_plan import SeedPlan
from sim.trace import Trace
from sim.world import AWAKE_S, AWAY_S, ROUNDS, SENT_TO, SENT_UNITS, World, _is_open

RESTARTS_S = 90
TAILS_S = (1.0, 10.0, 60.0, 300.0)
"""How old the copy may be that takes the ledger's place."""


class FleetJudge(Judge):
    """As the judge of one daemon. An answer may come from before the database lost the payment."""

    is_failed_over = False
    _last_row_aside = 0

    def answered(self, purchase: str, payment_id: str, conn: Connection | None) -> None:
        if self.is_failed_over and conn is not None and payments.payment(conn, payment_id) is None:
            return
        super().answered(purchase, payment_id, conn)

    def put_back(self, conn: Connection) -> None:
        self._last_row_aside = self._last_row
        super().put_back(conn)

    def committed_aside(self, conn: Connection) -> None:
        """A commit to the old primary. Its rows since the failover have the numbers of others in the new one."""
        self._last_row, row = self._last_row_aside, self._last_row
        super().committed(conn, synced=True)
        self._last_row, self._last_row_aside = row, self._last_row


class FleetWorld(World):
    """One run of a fleet. Use it once."""

    judge: FleetJudge

    def __init__(self, seed: int, folder: Path, template: Path, *, keep_story: bool = False) -> None:
        own = Random(f"{seed} fleet")  # noqa: S311  a seed gives the same run again
        self.accounts, self._count = own.choice((2, 2, 3)), own.choice((2, 2, 3))
        self._fleet_faults = FleetFaults(own.choice((0.0, 0.02, 0.05)), own.choice((0.0, 0.01, 0.03)))
        self._fails_over_s = own.uniform(60, 900) if own.random() < 0.35 else None
        self._tail_s = own.choice(TAILS_S)
        self._dies_with_it = own.randrange(self._count) if own.random() < 0.5 else None
        """The host that is lost together with the primary, and its signer's records with it."""
        self._lost: int | None = None
        self._records: dict[tuple[int, int], FleetRecord] = {}
        self._daemons: dict[int, FleetProcess] = {}
        self._ready: list[FleetProcess] = []
        self._deposits = 0
        self._is_ordering = False
        super().__init__(seed, folder, template, keep_story=keep_story)
        self._view = open_read_only(self.disk.path)
        self.servers = FleetServers(seed, self.disk.path, self.story, self.loop.time)

    def _draw_plan(self, seed: int) -> SeedPlan:
        """As for one daemon, without providers that lie and without a ledger that an operator puts back."""
        plan = super()._draw_plan(seed)
        honest = tuple(replace(habits, lie=None) for habits in plan.providers)
        return replace(plan, providers=honest, copied_s=None, upkeep_fees_per_day_lovelace=0, wants=plan.wants + 2)

    def _make_judge(self, rng: Random) -> Judge:
        owner = Owner(account().address, NETWORK, {one: account(one).address for one in range(self.accounts)})
        return FleetJudge(self.net, self.story, owner, self, self.plan.per_day_units, rng)

    def run(self) -> Trace:
        try:
            return super().run()
        finally:
            for one in self._daemons.values():
                one.end()
            self._view.close()

    async def _run(self) -> None:
        self._do(self._fail_over())
        await super()._run()

    def _fund(self) -> None:
        super()._fund()
        for _ in range(self.accounts):
            self._deposit(self.rng.randint(8, 40) * ADA)
            self.net.chain.make_block()

    def _deposited_to(self) -> bytes:
        self._deposits += 1
        return account(self._deposits % self.accounts).address.raw

    # --- the daemons

    def _start(self) -> None:
        self._reborn()
        for number in range(self._count):
            self._start_one(number)

    def _reborn(self) -> None:
        self.judge.reborn(self._view)
        self.coverage.reborn(self._view)
        self.judge.committed(self._view, synced=True)

    def _start_one(self, number: int) -> None:
        if self.is_away or number == self._lost:
            return
        try:
            one = self._daemons[number] = FleetProcess(self, number)
        except Refused as refused:
            self.story.tell(f"host{number} cannot start: {refused.detail[:80]}")
            self._start_later(number)
            return
        self.story.tell(f"{one.id} starts on host{number}")
        begun = one.spawn(one.begin())
        begun.add_done_callback(lambda done: self._one_begun(one, done))

    def _one_begun(self, one: FleetProcess, done: asyncio.Task[None]) -> None:
        if one.is_over:
            return
        if not done.cancelled() and done.exception() is not None:
            one.die("it could not begin")
            return
        self._ready.append(one)
        self._started.set()

    async def life(self) -> FleetProcess:  # type: ignore[override]
        while True:
            await self._started.wait()
            if self._ready:
                return self.rng.choice(self._ready)

    def ended(self, daemon: FleetProcess) -> None:
        if daemon in self._ready:
            self._ready.remove(daemon)
        if not self._ready:
            self._started.clear()
        self._start_later(daemon.number)

    def _start_later(self, number: int) -> None:
        self.loop.call_later(self.rng.random() * RESTARTS_S, self._start_one, number)

    def _maybe_die(self) -> None:
        chance = self.plan.mix.crash_at_await
        if chance and not self.is_calm and self._ready and self.rng.random() * ROUNDS * 20 < chance:
            self.story.reach("a death between two steps")
            self.rng.choice(self._ready).die("between two steps")

    async def _stop(self, life: object) -> None:
        for one in list(self._ready):
            await one.call(one.fleet.leave())
            one.end()

    async def _be_away(self, life: object) -> None:
        self.story.reach("the daemon is off until time limits are over")
        self.is_away = True
        self._started.clear()
        await self._stop(life)
        for one in self._daemons.values():
            one.end()
        self._ready.clear()
        await asyncio.sleep(AWAY_S)
        self.is_away = False
        self._start()
        await asyncio.sleep(AWAKE_S)

    def _is_anything_open(self, life: object) -> bool:
        chains = [held.agent.context.chain for one in self._ready for held in one.fleet.held.values()]
        is_held_up = any(chain.behind is not None or bool(chain.external_spends) for chain in chains)
        rows = fleet.all_accounts(self._view)
        is_unproven = any(row.holder is None or row.proven_timeline != self.servers.timeline for row in rows)
        is_asked = self._is_ordering or bool(fleet.open_requests(self._view, range(self.accounts)))
        return is_held_up or is_unproven or is_asked or _is_open(self._view)

    # --- faults

    async def _fail_over(self) -> None:
        """The primary dies, and a standby that lacks the last commits takes its place, with another timeline."""
        if self._fails_over_s is None:
            return
        await asyncio.sleep(self._fails_over_s)
        with closing(sqlite3.connect(self.disk.folder / "standby.db")) as standby:
            self._view.backup(standby)
            await asyncio.sleep(self._tail_s * self.rng.random())
            if self.is_calm:
                return
            with closing(sqlite3.connect(self.servers.old)) as old:
                self._view.backup(old)
            with closing(sqlite3.connect(self.disk.path, isolation_level=None)) as primary:
                standby.backup(primary)
        self.servers.fail_over(self._count)
        self.story.reach("the database fails over")
        self.story.tell(f"the database fails over to timeline {self.servers.timeline}")
        self.operator.forgets()
        if self._dies_with_it is not None:
            self._lost = self._dies_with_it
            self.story.reach("a host is lost with the primary")
            self._daemons[self._lost].die("its host is lost")
        self.judge.is_failed_over = True
        self.judge.put_back(self._view)
        self._reborn()
        await asyncio.sleep(self.servers.returns_s)
        self.servers.end_outage(is_calm=self.is_calm)

    async def _jump_clock(self) -> None:
        """One host's clock is set wrong, and corrected some time later."""
        while not self.is_calm:
            await asyncio.sleep(60)
            for one in self._daemons.values():
                if self.rng.random() < self.mix().clock_jump:
                    one.clock_off_ms = self.rng.choice((-1, 1)) * self.rng.choice((30_000, 200_000, 86_400_000))
                    self.story.reach("the clock jumps")
                elif self.rng.random() < 0.5:
                    one.clock_off_ms = 0

    def _calm_down(self) -> None:
        super()._calm_down()
        for one in self._daemons.values():
            one.clock_off_ms = 0
        self.servers.end_outage(is_calm=True)

    async def _operate(self) -> None:
        """An operator moves UTxOs, and cancels payments, at any daemon."""
        while not self.is_calm:
            await asyncio.sleep(60)
            if self.rng.random() >= self.mix().operator_acts:
                continue
            life = await self.life()
            rows = payments.payments_in(life.conn, CANCELLABLE)
            act = self.rng.choice(("split", "send", "resolve", "resolve"))
            self._is_ordering = True
            try:
                if act == "split":
                    await life.call(life.fleet.split("app_test", 2, 4 * ADA))
                elif act == "send":
                    await life.call(life.fleet.send("app_test", SENT_TO, self.plan.asset, SENT_UNITS))
                elif rows:
                    await life.call(life.fleet.resolve(self.rng.choice(rows).id, "app_test"))
            except (DeadError, Refused):
                continue
            finally:
                self._is_ordering = False
            self.story.reach(f"an operator orders: {act}")

    async def _unfreeze(self) -> None:
        while True:
            await asyncio.sleep(120)
            life = await self.life()
            if life.fleet.context.chain.external_spends:
                try:
                    await life.call(unfreeze(life.fleet.context, "app_test"))
                except (DeadError, Refused):
                    continue

    async def _put_back(self) -> None:
        """Not here: the database fails over instead."""

    async def _second_daemon(self) -> None:
        """Not here: all of them are."""

    # --- callbacks of the parts

    def fleet_faults(self) -> FleetFaults:
        return FleetFaults() if self.is_calm else self._fleet_faults

    def true_now_ms(self) -> int:
        return self._now_ms()

    def record(self, number: int, account: int) -> FleetRecord:
        return self._records.setdefault((number, account), FleetRecord(self))

    def committed_aside(self, conn: Connection) -> None:
        self.story.reach("a commit to the old primary")
        self.judge.committed_aside(conn)

    def committed(self, conn: Connection, *, synced: bool) -> None:
        self.judge.committed(conn, synced=synced)
        self.operator.committed(self, conn)
        self.coverage.committed(conn)
        self.pools.committed(conn)

    def _blocks_made(self, blocks: list[DevnetBlock]) -> None:
        self.judge.blocks_made(blocks)
        self.judge.outflow_is_booked(self._view)
