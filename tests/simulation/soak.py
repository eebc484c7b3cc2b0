"""Ninety virtual days of one wallet: fifty thousand payments, a chain that splits for fourteen hours, one daemon.

Run by `scripts/evidence soak`. The daemon is the shipped one on the simulator's loop, net, provider and merchants.
On one day the chain splits into two branches of half the density. Provider and merchants follow the branch that
loses. After fourteen hours the other one wins, on which some of the transactions landed at old slots and some did
not. The judge checks the invariants, and the daemon's use of resources is measured each day.

The world drops old data, so its own memory does not hide the daemon's: blocks below three times the settle depth,
and all but the newest calls, invoices and transactions. What the judge still needs goes into a file.
"""

import argparse
import asyncio
import gc
import json
import os
import sqlite3
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from typing import Any

from simulation.report import machine
from simulation.sources import ROOT, commit, package_hash

from payagent.agent.base.config import AgentConfig, MerchantConfig
from payagent.audit.signed_bytes import Owner
from payagent.chain.provider import ChainProvider
from payagent.core.money import LOVELACE
from payagent.core.payment.machine import ENDED_WITHOUT_PAYING, State
from payagent.core.policy import limits_of
from payagent.devnet.ledger import DevnetBlock, Tx
from payagent.devnet.merchant import Terms as ShopTerms
from payagent.devnet.x402_terms import X402
from payagent.outbound.merchant_client import MerchantClient
from payagent.store.db.unit import Connection
from payagent.store.rows import journal, payments
from sim.clients import PARTNER, BuyerTask, ClientGoal
from sim.disk import Disk
from sim.fault_rates import QUIET, FaultRates
from sim.fixtures import ADA, NETWORK, START_MS, account, canaries
from sim.forks import mint_fork_block
from sim.judge import Judge, Signed
from sim.merchants import SimShop, SimTransport
from sim.network import Net
from sim.process import SimProcess
from sim.providers import Habits, SimProvider
from sim.stage import make_template
from sim.trace import Trace
from sim.virtual_loop import StuckError, VirtualLoop
from sim.world import asked_by, purchase_of

DAY_S = 86_400
BLOCK_S = 20.0
SETTLE_DEPTH = 2160
KEPT_BLOCKS = 3 * SETTLE_DEPTH
KEPT_ROWS = 1500
"""Of what each purchase leaves; by `DRIFT_FROM_DAY` there are more, so that what is kept grows no further."""

ARCHIVE_CACHE_KIB = 256
PRUNE_EVERY_BLOCKS = 25
"""Often enough that the world hardly grows after a fork, when much is signed again."""

FORK_HOURS = 14
CROSSES = 0.8
"""The share of transactions submitted during the split that also reach the other branch."""

UTXOS = 120
X402_EVERY = 10
"""How seldom a purchase is made by x402."""

DRIFT_FROM_DAY = 5

LIGHT = replace(
    QUIET,
    unknown=0.01,
    tip_lags=0.02,
    lost_request=0.02,
    lost_reply=0.02,
    late_accept=0.01,
    evicted=0.01,
    merchant_reply_lost=0.01,
)
"""What a good week on a network is like: the faults that come again and again, not the rare ones."""


@dataclass(frozen=True, slots=True)
class Size:
    """How long and how much."""

    days: float
    payments: int
    beat_s: float
    fork_hours: float
    seed: int = 1

    @property
    def every_s(self) -> float:
        """Between two wants: the last day is for what is still open."""
        return (self.days - 1) * DAY_S / self.payments

    @property
    def fork_at_s(self) -> float:
        return (self.days - 1) * DAY_S / 2


class Window:
    """A list of blocks that drops its oldest items; reading a dropped one raises KeyError."""

    def __init__(self, items: list[Any]) -> None:
        self._items = items
        self._first = 0
        self.kept: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._first + len(self._items)

    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return self._items[max(0, (at.start or 0) - self._first) :]
        if at < 0:
            return self._items[at]
        return self._items[at - self._first] if at >= self._first else self.kept[at]

    def append(self, item: Any) -> None:
        self._items.append(item)

    def pop(self) -> Any:
        return self._items.pop()

    def drop_below(self, height: int) -> list[tuple[int, Any]]:
        """What is forgotten, by height."""
        count = height - self._first
        if count <= 0:
            return []
        dropped = list(enumerate(self._items[:count], self._first))
        del self._items[:count]
        self._first = height
        return dropped


class Forgetful(Net):
    """The net with a chain that keeps what a provider may still be asked about."""

    def __init__(self, own: bytes, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._own = own
        self.chain.blocks = Window(self.chain.blocks)  # type: ignore[assignment]
        self.released_at: dict[str, int] = {}
        self.on_buried: Callable[[Tx], None] = lambda tx: None

    def release(self, raw: bytes) -> Tx:
        tx = super().release(raw)
        self.released_at.setdefault(tx.tx_id, self.chain.slot)
        return tx

    def prune(self) -> None:
        chain, blocks = self.chain, self.chain.blocks
        buried = blocks.drop_below(chain.tip.height - KEPT_BLOCKS)  # type: ignore[attr-defined]
        for _, block in buried:
            for tx in block.txs:
                self.on_buried(tx)
                for ref in tx.inputs:
                    chain.spender.pop(ref, None)  # for good: no fork gives it back
        old = [*blocks.kept.items(), *buried]  # type: ignore[attr-defined]
        blocks.kept = {  # type: ignore[attr-defined]
            height: block for height, block in old if any(self._has_utxos(tx) for tx in block.txs)
        }
        for height, block in old:
            chain._by_hash.pop(block.hash, None)
            if height not in blocks.kept:  # type: ignore[attr-defined]
                for tx in block.txs:
                    self._forget(tx)
        ids = chain._tx_ids_at
        for address, known in ids.items():
            ids[address] = known[-KEPT_ROWS:]
        for rows in (self.hoard, self.released_at, self.taken, self.unanswered, self._shown):
            trim(rows)

    def _has_utxos(self, tx: Tx) -> bool:
        """Whether an output of it is a UTxO of the wallet, or becomes one again after a fork."""
        chain = self.chain
        return any(
            out.address == self._own and ((tx.tx_id, index) in chain.utxos or (tx.tx_id, index) in chain.spender)
            for index, out in enumerate(tx.outputs)
        )

    def _forget(self, tx: Tx) -> None:
        chain = self.chain
        chain._place.pop(tx.tx_id, None)
        for index, out in enumerate(tx.outputs):
            ref = (tx.tx_id, index)
            if chain.utxos.pop(ref, None) is not None:
                chain._refs_at[out.address].remove(ref)

    def split(self, since: DevnetBlock) -> tuple[int, int, int]:
        """The other branch wins: (blocks undone, transactions lost by it, transactions that landed on it)."""
        chain, rng = self.chain, self._rng
        depth = chain.tip.height - since.height
        undone = chain.rollback(depth)
        lost = {tx.tx_id for block in undone for tx in block.txs}
        heard = [
            (at, self.hoard[tx_id])
            for tx_id, at in self.released_at.items()
            if at >= since.slot and tx_id in self.hoard and rng.random() < CROSSES
        ]
        first, last = since.slot + 1, chain.slot
        made = []
        for slot in sorted(rng.sample(range(first, last), depth + 1)):
            chosen = []
            for at, tx in heard:
                if (
                    at <= slot
                    and self._fits(tx, slot)
                    and all(not set(tx.inputs) & set(one.inputs) for one in chosen)
                ):
                    chosen.append(tx)
            landed = {tx.tx_id for tx in chosen}
            heard = [pair for pair in heard if pair[1].tx_id not in landed]
            made.append(mint_fork_block(chain, [tx.raw for tx in chosen], slot))
        self.on_blocks(made)
        return depth, len(lost), sum(len(block.txs) for block in made)


def trim(rows: MutableMapping[Any, Any], kept: int = KEPT_ROWS) -> list[tuple[Any, Any]]:
    """Forget the oldest; what was forgotten."""
    old = list(islice(rows.items(), max(0, len(rows) - kept)))
    for key, _ in old:
        del rows[key]
    return old


class LongJudge(Judge):
    """The judge with a memory on disk; it checks new blocks only, and everything once a day."""

    def __init__(self, archive: Path, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._archive = sqlite3.connect(archive, isolation_level=None)
        self._archive.execute("PRAGMA synchronous = OFF")
        self._archive.execute(f"PRAGMA cache_size = -{ARCHIVE_CACHE_KIB}")
        for table in ("landed", "forgotten"):
            self._archive.execute(f"CREATE TABLE {table} (tx_id TEXT PRIMARY KEY, purchase TEXT, kind TEXT)")
        self.funded_lovelace = 0

    def close(self) -> None:
        self._archive.close()

    def _check_conflicts(self, tx: Tx, signed: Signed) -> None:
        if self._by_purchase.setdefault(signed.purchase, []):
            super()._check_conflicts(tx, signed)
        else:
            self._by_purchase[signed.purchase].append(tx.tx_id)

    def blocks_made(self, blocks: Iterable[DevnetBlock]) -> None:
        """I1 on the chain as it is."""
        for tx in [tx for block in blocks for tx in block.txs if tx.tx_id in self.signed]:
            purchase = self.signed[tx.tx_id].purchase
            landed = [other for other in self._by_purchase.get(purchase, []) if self._is_in_block(other)]
            if len(landed) > 1:
                self._story.violate("I1", f"{purchase[:16]} is paid by {[name[:8] for name in landed]}")

    def outflow_is_booked(self, conn: Connection) -> None:
        """I2 at all times: what is held or posted is no less than what the wallet lacks of what it was given."""
        left = sum(out.lovelace for own in self._own for _, out in self._net.chain.utxos_at(own))
        booked = sum(
            units
            for account_name, asset, units in journal.balances(conn)
            if asset == LOVELACE and account_name not in ("wallet", "external")
        )
        if booked < self.funded_lovelace - left:
            self._story.violate("I2", f"{self.funded_lovelace - left} lovelace left, {booked} are held or posted")

    def _check_payment(self, conn: Connection, payment_id: str, landed: list[str]) -> None:
        if all(tx_id in self._spends for tx_id in landed):
            super()._check_payment(conn, payment_id, landed)

    def bury(self, tx: Tx) -> None:
        """What is older than any fork goes to the archive: where it landed does not change any more."""
        if (signed := self.signed.get(tx.tx_id)) is not None:
            self._archive.execute("INSERT INTO landed VALUES (?, ?, ?)", (tx.tx_id, signed.purchase, signed.kind))
        else:  # after a fork more is signed than is kept in the time that a block takes to be buried
            self._archive.execute("INSERT INTO landed SELECT * FROM forgotten WHERE tx_id = ?", (tx.tx_id,))

    def prune(self) -> None:
        for tx_id, signed in trim(self.signed):
            self._durable.discard(tx_id)
            self._archive.execute("INSERT INTO forgotten VALUES (?, ?, ?)", (tx_id, signed.purchase, signed.kind))
        of_purchases = (self._by_purchase, self._answers, self._accepted, self._nonce_utxos)
        for rows in (self._released, self._spends, *of_purchases):
            trim(rows)

    def _is_in_block(self, tx_id: str) -> bool:
        return super()._is_in_block(tx_id) or self._is_archived(tx_id)

    def _is_archived(self, tx_id: str) -> bool:
        return self._archive.execute("SELECT 1 FROM landed WHERE tx_id = ?", (tx_id,)).fetchone() is not None

    def at_rest(self, conn: Connection) -> None:
        super().at_rest(conn)
        twice = "SELECT purchase, COUNT(*) FROM landed WHERE kind = 'pay' GROUP BY purchase HAVING COUNT(*) > 1"
        for purchase, count in self._archive.execute(twice):
            self._story.violate("I1", f"{purchase[:16]} was paid {count} times")


class LongDisk(Disk):
    """As SQLite keeps it: the log is folded into the file now and then."""

    def attach(self, conn: Connection) -> None:
        return

    def committed(self) -> bool:
        return True


class CountingSource(SimProvider):
    """A provider that counts its calls."""

    calls = 0

    async def _read(self, *asked: Any) -> Any:
        CountingSource.calls += 1
        return await super()._read(*asked)

    async def submit(self, raw: bytes, tx_id: str) -> Any:
        CountingSource.calls += 1
        return await super().submit(raw, tx_id)


@dataclass(frozen=True, slots=True)
class DayLine:
    """What a day left."""

    day: int
    payments: int
    rss_mb: float
    files: int
    ledger_mb: float
    provider_calls: int
    tasks: int
    wall_s: float
    blocks: int
    """Pieces of memory that Python's objects have, what it holds for later ones not among them."""


class Soak:
    """The world of one soak. One use."""

    def __init__(self, size: Size, folder: Path) -> None:
        self.size = size
        self.package, self.commit = package_hash(), commit()  # as it is now: the run is long
        self.rng = Random(size.seed)
        self.loop = VirtualLoop()
        self.story = Trace(size.seed, self.loop.time, canaries())
        self.disk = LongDisk(folder, make_template(folder))
        self.signer = account().signer
        self.wallet = account().address.text
        self.beat_s = size.beat_s
        self.weak_job = ""
        self.is_calm = False
        self.is_split = False
        own = account().address.raw
        self.net = Forgetful(own, self.rng, self.story, self.mix, self._now_ms, 0)
        self.net.on_blocks = lambda blocks: self.judge.blocks_made(blocks)
        self.shops = {shop.origin: shop for shop in self._make_shops()}
        owner = Owner(account().address, NETWORK)
        self.judge = LongJudge(
            folder / "judge.db", self.net, self.story, owner, self, self.size.payments * 10 * ADA, Random(0)
        )
        self.net.on_buried = self.judge.bury
        self.terms = self._terms()
        self.days: list[DayLine] = []
        self.fork: tuple[int, int, int] | None = None
        self.asking: Counter[str] = Counter()
        self.wanted = 0
        self.served = 0
        self._buyers = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._began_s = time.monotonic()

    def _make_shops(self) -> list[SimShop]:
        base = ShopTerms(price_units=2 * ADA, splits=(), timeout_s=600, confirmations=1)
        kinds = (
            base,
            replace(base, splits=ShopTerms().splits[1:], timeout_s=300),
            replace(base, proof="signed_cbor"),
        )
        return [
            SimShop(f"shop{number}", terms, X402(), self.net, self.rng, self.story, self.mix, self._released)
            for number, terms in enumerate(kinds)
        ]

    # --- the run

    def run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._run())
        except StuckError as stuck:
            self.story.violate("I4", str(stuck))
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()
            self.judge.close()

    async def _run(self) -> None:
        self._fund()
        self._life = SimProcess(self)
        self.judge.committed(self._life.conn, synced=True)
        await self._life.begin()
        for work in (self._make_blocks(), self._measure(), self._split()):
            self._do(work)
        await self._buy()
        self.is_calm = True
        await self._come_to_rest()
        self.judge.at_rest(self._life.conn)
        self.story.at_rest()
        await self._life.stop()
        for task in list(self._tasks):
            task.cancel()

    def _do(self, work: Any) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.story.violate("BUG", "".join(traceback.format_exception(error)))

    def _fund(self) -> None:
        lovelace = max(100, 8 * self.size.payments // UTXOS) * ADA
        for _ in range(UTXOS):
            self.net.node.faucet(account().address.raw, lovelace, {})
            self.net.chain.make_block()
            self.judge.funded_lovelace += lovelace

    async def _buy(self) -> None:
        """Customers come by chance, one for each payment."""
        shops = list(self.shops.values())
        await asyncio.sleep(120)
        for number in range(self.size.payments):
            await asyncio.sleep(self.rng.expovariate(1 / self.size.every_s))
            want = ClientGoal(
                app_id="app_test",
                shop=shops[number % len(shops)],
                path="/x402/chat" if number % X402_EVERY == 0 else "/chat",
                text=f"want {number}",
                key=f"key-{number}" if number % 2 else None,
                by_proxy=number % 4 == 3,
                starts_at_s=0,
                pause_s=40.0,
                tries=6,
            )
            self._do(self._serve(BuyerTask(self, want)))

    async def _serve(self, buyer: BuyerTask) -> None:
        self.wanted += 1
        self._buyers += 1
        await buyer.run()
        self._buyers -= 1
        self.served += buyer.is_served

    async def _make_blocks(self) -> None:
        """Half as dense while the chain is split."""
        while True:
            mean_s = BLOCK_S * (2 if self.is_split else 1)
            await asyncio.sleep(max(1.0, self.rng.expovariate(1 / mean_s)))
            self.net.make_block()
            if self.net.chain.tip.height % PRUNE_EVERY_BLOCKS == 0:
                self._prune()

    async def _split(self) -> None:
        if not self.size.fork_hours:
            return
        await asyncio.sleep(self.size.fork_at_s)
        since, self.is_split = self.net.chain.tip, True
        await asyncio.sleep(self.size.fork_hours * 3600)
        self.is_split = False
        self.fork = self.net.split(since)
        say(f"the other branch wins: {self.fork[0]} blocks undone, {self.fork[1]} payments' transactions lost, "
            f"{self.fork[2]} landed at old slots")  # fmt: skip

    async def _come_to_rest(self) -> None:
        """Blocks, until nothing is open."""
        deadline_s = self.loop.time() + 4 * DAY_S
        while self.loop.time() < deadline_s:
            await asyncio.sleep(3600)
            rows = payments.payments_in(self._life.conn, [s for s in State if s not in _ENDED])
            if not rows and not payments.watched_voids(self._life.conn) and not self._buyers:
                break
        await asyncio.sleep(self.beat_s * 3 + 60)

    def _prune(self) -> None:
        self.net.prune()
        self.judge.prune()
        self.story.at_rest()
        kept = KEPT_ROWS // len(self.shops)
        for shop in self.shops.values():
            merchant, x402 = shop.merchant, shop.shop
            for rows in (merchant.invoices, merchant._paid_with, merchant._open):
                trim(rows, kept)
            for rows in (x402._identified, x402._asked, x402.facilitator.claims):
                trim(rows, kept // X402_EVERY)

    async def _measure(self) -> None:
        day = 0
        while True:
            await asyncio.sleep(DAY_S)
            day += 1
            self.judge.outflow_is_booked(self._life.conn)
            gc.collect()
            line = DayLine(
                day=day,
                payments=self.wanted,
                rss_mb=rss_mb(),
                files=sum(1 for _ in Path("/proc/self/fd").iterdir()),
                ledger_mb=round(self.disk.path.stat().st_size / 1e6, 2),
                provider_calls=CountingSource.calls,
                tasks=len(asyncio.all_tasks(self.loop)),
                wall_s=round(time.monotonic() - self._began_s, 1),
                blocks=sys.getallocatedblocks(),
            )
            self.days.append(line)
            say(json.dumps(asdict(line)))

    # --- what the parts ask of the world

    async def life(self) -> SimProcess:
        return self._life

    def died(self, why: str) -> None:
        self.story.violate("BUG", f"the daemon died: {why}")

    def failed_inside(self, where: str, error: str) -> None:
        if not error.startswith("Refused("):
            self.story.violate("BUG", f"{where}: {error}")

    def mix(self) -> FaultRates:
        return QUIET if self.is_calm else LIGHT

    def draw(self) -> float:
        return self.rng.random()

    def _now_ms(self) -> int:
        return START_MS + int(self.loop.time() * 1000)

    def daemon_now_ms(self) -> int:
        return self._now_ms()

    def providers(self) -> list[ChainProvider]:
        return [CountingSource(Habits("honest"), self.net, self.rng, self.story, self.mix, self._released)]

    def merchants(self) -> MerchantClient:
        return MerchantClient(SimTransport(self.shops))

    def channel_signer(self) -> None:
        return None

    def committed(self, conn: Connection, *, synced: bool) -> None:
        self.judge.committed(conn, synced=synced)

    def _released(self, raw: bytes, where: str) -> None:
        self.judge.released(raw, where)

    def asked(self, origin: str, invoice_id: str | None) -> list[tuple[tuple[bytes, str, int], ...]]:
        return asked_by(self.shops[origin], invoice_id)

    def purchase(self, origin: str, invoice_id: str | None) -> str | None:
        return purchase_of(self.shops[origin], invoice_id) if origin else None

    def _terms(self) -> AgentConfig:
        merchants = {
            shop.origin: MerchantConfig(
                shop.name, shop.origin, PARTNER, None, "submitted", 30,
                proof="signed_cbor" if shop.merchant.terms.proof == "signed_cbor" else "tx_hash",
            )
            for shop in self.shops.values()
        }  # fmt: skip
        return AgentConfig(
            network=NETWORK,
            own=account().address,
            merchants=merchants,
            limits=limits_of(LOVELACE, {"per_payment": 100 * ADA, "per_day": self.size.payments * 10 * ADA}),
            decimals={},
            confirm_depth=3,
            void_depth=15,
            settle_depth=SETTLE_DEPTH,
            min_window_s=120,
            unconfirmed_ancestors_max=8,
        )


_ENDED = (State.SETTLED, *ENDED_WITHOUT_PAYING)


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 2)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def outcome(soak: Soak) -> dict[str, Any]:
    """What is reported."""
    days = soak.days
    early, late = days[min(DRIFT_FROM_DAY, len(days)) - 1], days[-1]
    return {
        "package": soak.package,
        "commit": soak.commit,
        "size": asdict(soak.size),
        "wanted": soak.wanted,
        "served": soak.served,
        "violations": soak.story.violations,
        "fork": soak.fork,
        "reached": dict(soak.story.reached),
        "rss_drift_percent": round(100 * (late.rss_mb - early.rss_mb) / early.rss_mb, 2),
        "blocks_drift_percent": round(100 * (late.blocks - early.blocks) / early.blocks, 2),
        "calls_per_payment": round(late.provider_calls / max(1, late.payments), 1),
        "days": [asdict(line) for line in days],
    }


def as_page(told: dict[str, Any]) -> str:
    """docs/evidence/soak.md."""
    size, days, of = told["size"], told["days"], machine()
    undone, lost, landed = told["fork"] or (0, 0, 0)
    shown = [
        line for line in days if line["day"] in (1, DRIFT_FROM_DAY) or line["day"] % 15 == 0 or line is days[-1]
    ]
    growth = [
        (later["ledger_mb"] - earlier["ledger_mb"]) / (later["payments"] - earlier["payments"]) * 1000
        for earlier, later in pairwise(shown)
        if later["payments"] > earlier["payments"]
    ]
    lines = [
        "# The soak",
        "",
        "Written by `scripts/evidence soak` (`tests/simulation/soak.py`): one daemon on the simulator's parts,",
        "whose time is virtual.",
        "",
        f"Program: sources {told['package'][:16]}, at commit {told['commit']}.",
        f"Machine: {of['processors']} processors ({of['cpu']}), {of['system']}, Python {of['python']}, "
        f"SQLite {of['sqlite']}; {days[-1]['wall_s'] / 60:.0f} minutes on one of them.",
        "",
        f"{size['days']:g} virtual days, {told['wanted']:,} purchases of which {told['served']:,} were served, "
        f"a look at the chain every {size['beat_s']:g} s, settle depth {SETTLE_DEPTH}.",
        f"Once the chain was split for {size['fork_hours']:g} hours, with half the density on each branch:",
        f"{undone:,} blocks were undone with {lost} of our transactions; {landed} of ours had landed at old slots",
        "of the other branch.",
        f"{len(told['violations'])} violations of I1 to I10.",
        *(f"- {what.splitlines()[0]}" for what in told["violations"]),
        "",
        f"Memory: {told['rss_drift_percent']:+.1f} % from day {DRIFT_FROM_DAY} to the last one,",
        "of the whole process. The world forgets what is deeper than three settle depths, so that what is",
        "measured is the daemon and a world that stays as large as it is. Python seldom gives back what a burst",
        "took, and uses it again, so a step that the fork makes stays. What tells it from a leak are the pieces",
        f"of memory that objects have in use: {told['blocks_drift_percent']:+.1f} % over the same days.",
        f"The ledger grows by {min(growth):.1f} to {max(growth):.1f} KB a payment between the days below.",
        f"{told['calls_per_payment']} calls to the provider for a payment, the looks at an idle chain among them.",
        "",
        "| day | purchases | RSS MB | pieces in use | open files | ledger MB | calls to the provider | tasks |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {line['day']} | {line['payments']:,} | {line['rss_mb']} | {line['blocks']:,} | {line['files']} "
        f"| {line['ledger_mb']} | {line['provider_calls']:,} | {line['tasks']} |"
        for line in shown
    ]
    return "\n".join(lines) + "\n"


def run_soak(size: Size) -> dict[str, Any]:
    """One soak, in a folder in memory if there is one."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="payagent-soak-", dir=shared if shared.is_dir() else None) as folder:
        soak = Soak(size, Path(folder))
        soak.run()
        return outcome(soak)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/evidence soak", description="Ninety virtual days of one daemon, in one process."
    )
    parser.add_argument("--days", type=float, default=90)
    parser.add_argument("--payments", type=int, default=50_000)
    parser.add_argument("--beat", type=float, default=180.0, help="seconds between two looks at the chain")
    parser.add_argument("--fork-hours", type=float, default=FORK_HOURS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/evidence", help="where the report goes")
    options = parser.parse_args()
    silence()
    told = run_soak(Size(options.days, options.payments, options.beat, options.fork_hours, options.seed))
    for path, text in (
        (options.out / "soak.md", as_page(told)),
        (options.out / "soak.json", json.dumps(told) + "\n"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    say(json.dumps({key: value for key, value in told.items() if key not in ("days", "reached")}, indent=1))
    return 1 if told["violations"] else 0


def silence() -> None:
    """The daemon's log would be tens of millions of lines."""
    import logging

    import structlog

    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


if __name__ == "__main__":
    sys.exit(main())
