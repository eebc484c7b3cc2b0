"""Daemons of a fleet without their processes: each has its seat, its writer and a `SharedFleet`, on one ledger.

They read the chain when a test says so. Leases go by the world's clock in a file.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from kit.agent import APP, DEVNET, PATIENT, World, own_account
from kit.ledger import lay_ledger
from kit.postgresql import move_to_file
from payagent.agent.agent import Agent
from payagent.agent.base.ports import Ports, SystemRandomness
from payagent.agent.chain_sync.recovery import Recovery
from payagent.agent.chain_sync.sync import ChainSync
from payagent.agent.context import AgentContext
from payagent.agent.fleet.fleet import HeldAccount
from payagent.agent.fleet.leases import Parts
from payagent.agent.fleet.shared import NoSigner, SharedFleet
from payagent.agent.topups.runner import TopupRunner
from payagent.audit.finding import AuditFinding
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.chain.blockfrost import Blockfrost
from payagent.core.aggregate import PaymentRow
from payagent.outbound.merchant_client import MerchantClient
from payagent.signer.channels import Channels
from payagent.store.db.ceiling_file import CeilingFile, ceiling_file
from payagent.store.db.committer import Committer
from payagent.store.db.engine import open_fleet_store
from payagent.store.db.fence import Seat
from payagent.store.db.opening import open_read_only
from payagent.store.db.readers import Readers
from payagent.store.db.signer_record import SignerFile, signer_file
from payagent.store.db.writer import Writer
from payagent.store.rows import apps
from payagent.store.rows.fleet import DaemonRow
from sim.in_process_signer import InProcessSigner


@dataclass(frozen=True)
class SharedLedger:
    """The ledger of all daemons: a file, where leases go by the world's clock, or a database by its URL."""

    world: World
    url: str | None = None

    def open(self, seat: Seat) -> tuple[Writer, Readers]:
        if self.url is None:
            path = self.world.folder / "ledger.db"
            lay_ledger(path)
            return Writer(Committer(path, seat=seat)), Readers(path)
        return open_fleet_store(self.url, self.world.folder, checkpoint=lambda _name: None, seat=seat)

    def copy_file(self, target: Path) -> None:
        """Copy the file as it is, as a standby has it."""
        with (
            closing(sqlite3.connect(self.world.folder / "ledger.db")) as conn,
            closing(sqlite3.connect(target)) as to,
        ):
            conn.backup(to)

    def put_back(self, source: Path) -> None:
        """Put an earlier copy in the file's place, while daemons use it."""
        with (
            closing(sqlite3.connect(self.world.folder / "ledger.db")) as to,
            closing(sqlite3.connect(source)) as conn,
        ):
            conn.backup(to)

    def require_whole(self) -> None:
        """`ledger verify` finds nothing."""
        path = self.world.folder / "ledger.db"
        if self.url is not None:
            path = self.world.folder / "moved.db"
            path.unlink(missing_ok=True)
            move_to_file(self.url, path)
        with closing(open_read_only(path)) as conn:
            found = verify(conn, Owner(self.world.account.address, DEVNET))
            findings = [one for one in found if isinstance(one, AuditFinding)]
            assert not findings, findings


@dataclass
class FleetDaemon:
    """One daemon."""

    world: World
    fleet: SharedFleet
    writer: Writer
    seat: Seat
    syncs: dict[int, tuple[ChainSync, Recovery]] = field(default_factory=dict)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def context(self) -> AgentContext:
        return self.fleet.context

    @property
    def accounts(self) -> list[int]:
        return sorted(self.fleet.held)

    async def run_pass(self) -> None:
        """A pass of each account held here, until all that it started is submitted."""
        for account in self.accounts:
            sync, recovery = self.syncs[account]
            await sync.run_once()
            await recovery.run_once(sync.provider_selection.view)
            await self.fleet.held[account].agent.submitter.drain(60)
        await self.fleet.read_tip()
        await self.fleet.poll()

    async def pay(self, message: str, key: str | None = None) -> PaymentRow:
        row, _ = await self.fleet.pay(self.world.ask(message, key=key))
        return row

    def fail_over(self, timeline: int = 1) -> None:
        """As if the connection was lost, and the database had another timeline now."""
        committer = self.writer._committer
        committer._timeline = timeline
        self.seat.note_lost_connection()

    async def stand_still(self) -> None:
        """Keep no lease and poll for nothing any more, but when a test says so."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def die(self) -> None:
        """End at once, without giving anything back: nothing of it runs or commits any more."""
        await self.stand_still()
        for held in tuple(self.fleet.held.values()):
            await held.agent.submitter.drain(60)
        self.writer.close()


@asynccontextmanager
async def fleet_daemon(
    world: World,
    ledger: SharedLedger,
    name: str,
    count: int = 2,
    config_hash: str = '{"limits": "same"}',
    is_synchronous: bool = False,
    host: str | None = None,
    channels: Callable[[int], Channels] | None = None,
) -> AsyncIterator[FleetDaemon]:
    """A daemon of a fleet with `count` accounts, after it has joined. `channels`: what signs an account's."""
    host = f"host of {name}" if host is None else host
    folder = world.folder / name
    folder.mkdir(exist_ok=True)
    accounts = [own_account(number) for number in range(count)]
    records = {number: SignerFile(folder / signer_file(number)) for number in range(count)}
    seat = Seat(name, host, records, is_synchronous=is_synchronous)
    writer, readers = ledger.open(seat)
    if not readers.conn.execute("SELECT 1 FROM apps").fetchone():
        scopes = ["pay", "read", "operate", "approve"]
        await writer.run("app", lambda unit: apps.add_with_token(unit, APP, "test", "0" * 64, scopes, 1))
    provider, merchants = Blockfrost("devnet", world.devnet.chain_url, None, PATIENT), MerchantClient()
    ports = Ports(world.clock, SystemRandomness())
    front = Agent(world.terms, ports, writer, readers, [provider], NoSigner())
    syncs: dict[int, tuple[ChainSync, Recovery]] = {}

    def visit(number: int) -> HeldAccount:
        config = replace(front.context.from_file, own=accounts[number].address, account=number)
        signer = InProcessSigner(accounts[number].signer, None if channels is None else channels(number))
        agent = Agent(config, ports, writer, readers, [], signer, front.context)
        return HeldAccount(agent, TopupRunner(agent, merchants))

    async def start(number: int) -> HeldAccount:
        held = visit(number)
        recovery = Recovery(held.agent.context, records[number])
        await recovery.begin()
        if held.agent.channels is not None:
            ceilings = CeilingFile(folder / ceiling_file(number))
            await held.agent.channels.calls.start(merchants, ceilings)
        syncs[number] = ChainSync(held.agent, merchants), recovery
        return held

    async def stop(held: HeldAccount) -> None:
        await held.agent.submitter.drain(60)
        if held.agent.channels is not None:
            held.agent.channels.calls.stop()

    me = DaemonRow(name, host, f"http://{name}", config_hash, "1", 0)
    addresses = tuple(account.address.text for account in accounts)
    fleet = SharedFleet(
        HeldAccount(front, TopupRunner(front, merchants)),
        replace(me, seen_at_ms=world.clock.now_ms()),
        seat,
        addresses,
        Parts(visit, start, stop),
    )
    one = FleetDaemon(world, fleet, writer, seat, syncs)
    try:
        await fleet.leases.join()
        one.tasks.append(asyncio.create_task(fleet.run()))
        yield one
    finally:
        await one.die()
        await merchants.aclose()
        await provider.aclose()
        for record in records.values():
            record.close()
