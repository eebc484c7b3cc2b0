"""Five payments in a fixed order, the disk as it was when the process died, and what must hold afterwards.

`Script.drive` can run again after a crash at any point: it acts as a client and an operator would.
"""

import mmap
import shutil
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import httpx

from kit.agent import ADA, APP, Relay, Run, World
from kit.x402 import ask as ask_x402
from kit.x402 import show
from payagent.agent.base.ports import SystemClock
from payagent.audit.finding import AuditFinding
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.core.aggregate import PaymentRow
from payagent.core.payment.machine import Delivery, State
from payagent.devnet.ledger import decode_tx
from payagent.devnet.server import DevnetThread
from payagent.store.db.seals import last_seal
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows import payments
from payagent.wallet.keys import Signer

PAID = (State.CONFIRMED,)
ROUNDS = 30
UTXOS = 8


class FileClock:
    """The system's clock with an offset in a file, so that two processes share it."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8)

    @property
    def ahead_ms(self) -> int:
        return int(struct.unpack("<q", self._map[:])[0])

    @ahead_ms.setter
    def ahead_ms(self, value: int) -> None:
        self._map[:] = struct.pack("<q", value)

    def now_ms(self) -> int:
        return SystemClock().now_ms() + self.ahead_ms


class Dead(Exception):  # noqa: N818  a killed process would not even raise
    """The process is gone."""


class Disk:
    """A checkpoint that counts the sites. At the `crash_at`th it copies the files and stops everything.

    `sites` are their names in order. `after` is called at each "after", once the commit is durable.
    """

    def __init__(
        self,
        folder: Path,
        crash_at: int | None = None,
        *,
        kept: Path | None = None,
        die: Callable[[], object] = lambda: None,
        after: Callable[[str], object] = lambda _name: None,
    ) -> None:
        self.sites: list[str] = []
        self.dead = False
        self._folder, self._crash_at, self._kept, self._die, self._after = folder, crash_at, kept, die, after

    def __call__(self, name: str) -> None:
        if self.dead:
            raise sqlite3.OperationalError("the process is gone")
        if name.endswith(" app"):  # the kit's own, before there is an agent
            return
        self.sites.append(name)
        if len(self.sites) == self._crash_at:
            self.dead = True
            self._die()
            if self._kept is not None:
                copy_files(self._folder, self._kept)
            raise sqlite3.OperationalError("the process is gone")
        if name.startswith("after "):
            self._after(name)


def copy_files(folder: Path, to: Path) -> None:
    """Copy the database and its log as they are, without the shared memory, which a crash loses."""
    to.mkdir()
    for name in ("ledger.db", "ledger.db-wal"):
        with suppress(FileNotFoundError):
            shutil.copy(folder / name, to / name)


@dataclass
class CountingSigner:
    """A signer that counts what it signs; `then` is called once, after the first signature."""

    good: Signer
    then: Callable[[], object] | None = None
    signed: int = 0

    @property
    def public_key(self) -> bytes:
        return self.good.public_key

    @property
    def payment_key_hash(self) -> bytes:
        return self.good.payment_key_hash

    def sign(self, body: bytes, paid: int) -> bytes:
        self.signed += 1
        signature = self.good.sign(body, paid)
        then, self.then = self.then, None
        if then is not None:
            then()
        return signature


class Guard(Relay):
    """The provider. Every transaction that reaches it must already be durable in the ledger.

    `gone`: the asking process is dead, so its requests no longer count.
    """

    def __init__(self, devnet: DevnetThread, path: Path) -> None:
        super().__init__(devnet)
        self.path = path
        self.gone = False
        self.received: list[str] = []
        self.undurable: list[str] = []

    def _serve(self, call: object) -> None:
        call.protocol_version, call.close_connection = "HTTP/1.0", True  # type: ignore[attr-defined]
        if not self.gone:
            with suppress(httpx.TransportError):  # a reply that was lost is lost here too
                super()._serve(call)  # type: ignore[arg-type]

    def heard(self, path: str, content: bytes) -> None:
        if path != "/tx/submit":
            return
        tx_id = decode_tx(content).tx_id
        self.received.append(tx_id)
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as conn:
            found = conn.execute("SELECT cbor FROM attempts WHERE tx_id = ?", (tx_id,)).fetchone()
        if found is None or found[0] != content:
            self.undurable.append(tx_id)


class CrashWorld(World):
    """A world whose clock is in a file and whose agents talk to the chain through a checking provider."""

    guard: Guard

    def attach(self, clock: FileClock) -> None:
        self.clock = clock  # type: ignore[assignment]

    def block(self, count: int = 1) -> None:
        """By HTTP: the devnet may run in another process."""
        self.control("blocks", count=count)

    def in_folder(self, folder: Path) -> "CrashWorld":
        """The same world, with another disk."""
        self.folder = folder
        self.guard.path = folder / "ledger.db"
        return self


@contextmanager
def crash_world(folder: Path) -> Iterator[CrashWorld]:
    clock = FileClock(folder / "clock")
    with DevnetThread(now_ms=clock.now_ms) as devnet:
        world = CrashWorld(devnet, folder)
        world.attach(clock)
        with closing(world.http), Guard(devnet, folder / "ledger.db").serving() as guard:
            world.guard = guard
            yield world


def outer_world(folder: Path, urls: dict[str, str]) -> CrashWorld:
    """The world as another process sees it: only the devnet's URLs."""
    world = CrashWorld(SimpleNamespace(**urls), folder)  # type: ignore[arg-type]
    world.attach(FileClock(folder / "clock"))
    return world


@dataclass
class Script:
    """Five payments: plain, with a lost reply, rolled back, refused, and a split.

    `marks` is a folder of things the world does only once, which a crash does not undo.
    """

    world: CrashWorld
    marks: Path
    ids: dict[str, str] = field(default_factory=dict)
    alive: Callable[[], bool] = lambda: True

    async def drive(self, run: Run, alive: Callable[[], bool] = lambda: True) -> None:
        """Run every step from wherever it is. Raises `Dead` if the process died meanwhile."""
        self.alive = alive
        try:
            await self._look(run)
            for step in (self._plain, self._lost, self._rolled_back, self._refused, self._split):
                await step(run)
        except Exception:
            self._require_alive()
            raise

    def _require_alive(self) -> None:
        """Stop the world's waiting for a dead process."""
        if not self.alive():
            raise Dead from None

    async def _look(self, run: Run) -> None:
        await run.run_pass()
        self._require_alive()

    def _once(self, name: str) -> bool:
        """True the first time over all processes."""
        try:
            (self.marks / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    async def _buy(self, run: Run, name: str) -> PaymentRow:
        row, _ = await run.agent.pay(self.world.ask(name, key=name))
        await run.agent.submitter.drain(10)
        self._require_alive()
        self.ids[name] = row.id
        return run.context.payment(row.id)

    async def _reach(self, run: Run, row: PaymentRow, *ends: State) -> None:
        for _ in range(ROUNDS):
            state = run.state(row.id)
            if state in ends:
                return
            await run.pass_time(1, seconds=61 if state is State.CANCELLING else 12)
            self._require_alive()
        raise AssertionError(f"{row.id} is {run.state(row.id)}: {run.events(row.id)}")

    async def _serve(self, run: Run, row: PaymentRow) -> None:
        if run.context.payment(row.id).delivery is not Delivery.ACCEPTED:
            await run.agent.deliveries.record_delivery(row.id, 200)
            self._require_alive()

    async def _plain(self, run: Run) -> None:
        row = await self._buy(run, "plain")
        await self._reach(run, row, *PAID)
        await self._serve(run, row)

    async def _lost(self, run: Run) -> None:
        if self._once("lost"):
            self.world.fault("submit", "lost_reply", count=1)
        row = await self._buy(run, "lost")
        await self._reach(run, row, *PAID)
        await self._serve(run, row)

    async def _rolled_back(self, run: Run) -> None:
        row = await self._buy(run, "rolled back")
        await self._reach(run, row, *PAID)
        if self._once("rolled back"):
            self.world.control("rollback", depth=1, readd=False)
            await run.pass_time(2)
            self._require_alive()
        await self._reach(run, row, *PAID)
        await self._serve(run, row)

    async def _refused(self, run: Run) -> None:
        """The merchant refuses the signed transaction, and it is cancelled. A client told so does not retry."""
        if void := payments.payments_in(run.context.conn, (State.VOID,)):
            self.ids["refused"] = void[0].id
            return
        self.world.settings(x402={"fault": "refuse_verify", "max_timeout_s": 1500})
        row, _ = await run.agent.pay(ask_x402(self.world, idempotency_key="refused"))
        self.ids["refused"] = row.id
        row = run.context.payment(row.id)
        if row.state is State.IN_FLIGHT:
            await show(self.world, run, row)
            await run.agent.submitter.drain(10)
            self._require_alive()
        await self._reach(run, row, State.VOID)

    async def _split(self, run: Run) -> None:
        row, _ = await run.agent.transfers.split(APP, 3, 5 * ADA, key="split")
        await run.agent.submitter.drain(10)
        self._require_alive()
        self.ids["split"] = row.id
        await self._reach(run, row, *PAID)


def findings(world: World) -> list[str]:
    """What `verify` finds in the file."""
    with closing(sqlite3.connect(world.folder / "ledger.db")) as conn:
        conn.execute("BEGIN")
        told = verify(conn, Owner(world.account.address, world.terms.network))
        return [f"{one.table} {one.row}: {one.what}" for one in told if isinstance(one, AuditFinding)]


def head_of(path: Path) -> tuple[int, str]:
    """The newest seal."""
    with closing(sqlite3.connect(path)) as conn:
        seq, sealed = last_seal(conn)
        return seq, sealed


def assert_done(world: CrashWorld, run: Run, script: Script) -> None:
    """Assert that all five ended as without a crash, with one transaction each, and the books equal the chain."""
    rows = {name: run.context.payment(payment_id) for name, payment_id in script.ids.items()}
    assert {name: row.state for name, row in rows.items()} == {
        "plain": State.CONFIRMED,
        "lost": State.CONFIRMED,
        "rolled back": State.CONFIRMED,
        "refused": State.VOID,
        "split": State.CONFIRMED,
    }
    bought = ("plain", "lost", "rolled back")
    assert all(rows[name].delivery is Delivery.ACCEPTED for name in bought)
    assert run.events(rows["rolled back"].id).count("block_lost") == 1
    everything = payments.payments_in(run.context.conn, list(State))
    ended = [row for row in everything if row.state is not State.REJECTED]
    assert sorted(row.id for row in ended) == sorted(script.ids.values())
    assert sorted(world.transactions()) == sorted(row.attempt.tx_id or "" for row in ended)
    assert run.owned() == world.on_chain()
    assert "held" not in run.books()
    assert run.selectable() == {utxo.ref for utxo in queries.free_utxos(run.context.conn)} == world.unspent()
    assert world.guard.undurable == []
    assert findings(world) == []
