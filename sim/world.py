"""The world of one seed: draws a plan, runs until clients are done and faults have stopped, and is judged.

Start at `World.run`.

Never: goes on after the end.
"""

import asyncio
import traceback
from collections import Counter
from collections.abc import Coroutine
from dataclasses import astuple
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from payagent.agent.base.config import AgentConfig, MerchantConfig, TopupSource
from payagent.agent.chain_sync.external_spends import unfreeze
from payagent.agent.chain_sync.open_payments import LOOKED_FOR
from payagent.agent.topups.orders import TopupGoal
from payagent.audit.signed_bytes import Owner
from payagent.chain.provider import ChainProvider
from payagent.core.money import LOVELACE
from payagent.core.payment.machine import CANCELLABLE, ENDED_WITHOUT_PAYING, State
from payagent.core.policy import limits_of
from payagent.core.problems import Refused
from payagent.devnet.ledger import DevnetBlock
from payagent.devnet.merchant import Terms as ShopTerms
from payagent.devnet.merchant import role_address
from payagent.devnet.merchant_api import TOP_UP
from payagent.devnet.x402_terms import X402
from payagent.outbound.merchant_client import MerchantClient
from payagent.signer.channels import Channels
from payagent.store.db import lease as lease_file
from payagent.store.db.lease import lease
from payagent.store.db.unit import Connection
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows import events, payments
from payagent.wallet.transaction import send_all
from payagent.wallet.utxo_index import Utxo, UtxoIndex
from sim.clients import PARTNER, BuyerTask, ClientGoal
from sim.coverage import Coverage
from sim.disk import Disk
from sim.fault_rates import QUIET, FaultRates
from sim.fixtures import ADA, API_KEY, NETWORK, START_MS, account, canaries
from sim.judge import Judge, outputs_asked
from sim.merchants import TURNS_DOWN, SimShop, SimTransport
from sim.network import Net
from sim.operator import QUESTION_S, SimOperator
from sim.prepaid_judge import PrepaidJudge
from sim.process import DeadError, SimProcess
from sim.providers import SimProvider
from sim.seed_plan import SeedPlan, draw_plan
from sim.signing import sign
from sim.tokens import Beside
from sim.trace import Trace
from sim.virtual_loop import StuckError, VirtualLoop

TROUBLE_S = 2400.0
QUIET_MAX_S = 12_000.0
"""A top-up may wait for the longest invoice to expire (7200 s), and then buys and settles all its batches."""

CALM_BLOCK_S = 20.0
CALM_BEAT_S = 62.0
AWAY_BLOCK_S = 200.0
AWAY_S = 131_000.0
AWAY_MAX = 2
"""What can neither land nor be cancelled ends when the last TTL is over; a cancel's TTL is 36 hours.

A daemon that had not yet seen that a deposit was rolled back makes one more cancel at its next start.
"""

AWAKE_S = 1500.0
"""This long after a start, all passes that detect expired transactions are done."""

LAST_LOOKS_S = 600.0
"""External spends are searched for once a minute, and a provider may take two."""

LAST_LOOKS_BESIDE_A_LIAR_S = 2400.0
"""A rolled-back transaction is denied once the lying provider is excluded."""

ROUNDS = 900
"""The daemon dies `crash_at_await` times on average per this many rounds of the loop, a run's trouble."""

SENT_TO, SENT_UNITS = role_address("creator"), 2 * ADA


class World:
    """One run. Use it once."""

    make_process: type[SimProcess] = SimProcess

    def __init__(self, seed: int, folder: Path, template: Path, *, keep_story: bool = False) -> None:
        self.rng = Random(seed)  # noqa: S311  a seed gives the same run again
        self.loop = VirtualLoop()
        self.story = Trace(seed, self.loop.time, canaries(), keep=keep_story)
        self.plan = self._draw_plan(seed)
        self.beside = Beside.of(seed, self.plan.asset)
        self.is_calm = self.is_away = False
        self.disk = Disk(folder, template)
        self.signer = account().signer
        self.wallet = account().address.text
        self.weak_job = self.plan.weak_job
        fork_max = self.plan.settle_depth - 4
        self.net = Net(self.rng, self.story, self.mix, self._now_ms, fork_max)
        self.net.on_blocks = self._blocks_made
        self.net.is_dry = self._is_dry
        self.shops = {
            shop.origin: shop
            for number, terms in enumerate(self.plan.shops)
            for shop in [self._shop(number, terms)]
        }
        # its own random numbers, so that the judge changes nothing
        judge_rng = Random(f"{seed} judge")  # noqa: S311
        self.judge = self._make_judge(judge_rng)
        self.coverage = Coverage(self.net, self.story)
        self.pools = PrepaidJudge(self.story, self)
        self.operator = self._draw_operator(seed)
        self.terms = self._terms()
        self._life: SimProcess | None = None
        self._started = asyncio.Event()
        self._clock_off_ms = 0
        self._is_put_back = False
        self.asking: Counter[str] = Counter()
        self._tasks: list[asyncio.Task[Any]] = []

    def _make_judge(self, rng: Random) -> Judge:
        owner = Owner(account().address, NETWORK)
        return Judge(self.net, self.story, owner, self, self.plan.per_day_units, rng)

    def _draw_plan(self, seed: int) -> SeedPlan:
        return draw_plan(self.rng, seed)

    def _draw_operator(self, seed: int) -> SimOperator:
        return SimOperator.of(seed)

    # --- the run

    def run(self) -> Trace:
        """Run from the first deposit to the verdict."""
        asyncio.set_event_loop(self.loop)
        self.loop.before_round = self._maybe_die
        try:
            self.loop.run_until_complete(self._run())
        except StuckError as stuck:
            self.story.violate("I4", str(stuck))
        except Exception as error:  # noqa: BLE001  one seed's bug is that seed's verdict
            self._tell_bug(error)
        finally:
            self.loop.before_round = lambda: None
            asyncio.set_event_loop(None)
            self.loop.close()
        return self.story

    async def _run(self) -> None:
        self.story.tell(f"seed {self.story.seed}: {astuple(self.plan)}")
        self._fund()
        self._start()
        self._do(self._make_blocks())
        self._do(self._jump_clock())
        self._do(self._operate())
        self._do(self._unfreeze())
        if self.operator.pauses:
            self._do(self.operator.pause_now_and_then(self))
        if self.operator.asks_above is not None:
            self._do(self.operator.answer(self))
        self._do(self._fund_again())
        self._do(self._put_back())
        self._do(self._second_daemon())
        clients = [self._do(self._buyer(want).run()) for want in self._wants()]
        if self.plan.topup:
            clients.append(self._do(self._order_topup()))
        await asyncio.wait(clients, timeout=TROUBLE_S)
        await asyncio.sleep(max(self.plan.lasts_s, self.plan.calm_from_s - self.loop.time()))
        self._calm_down()
        _, waiting = await asyncio.wait(clients, timeout=QUIET_MAX_S)
        if waiting:
            self.story.violate("I4", f"{len(waiting)} clients are never answered")
        await self._settle()
        life = await self.life()
        self.judge.at_rest(life.conn)
        self.pools.at_rest(life.conn, self.judge.landed_invoices())
        self.coverage.at_rest()
        self.story.at_rest()
        _, last_hash = events.last_event(life.conn)
        # makes the digests differ of two runs that no other line tells apart
        self.story.tell(f"the end: {self.loop.rounds} rounds, record {last_hash[:16]}, next draw {self.draw()}")
        self.judge.search(self.disk.path)
        await self._stop(life)
        for task in self._tasks:
            task.cancel()

    async def _stop(self, life: SimProcess) -> None:
        await life.stop()

    def _shop(self, number: int, terms: ShopTerms) -> SimShop:
        count, refused_below = self.plan.turned_down, self.plan.refused_below[number]
        x402 = X402(self.plan.x402_version, fault=TURNS_DOWN if count else None, fault_count=count or None)
        name, rng, story = f"shop{number}", self.rng, self.story
        return SimShop(name, terms, x402, self.net, rng, story, self.mix, self._released, refused_below)

    def _do(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.loop.create_task(work)
        self._tasks.append(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._tell_bug(error)

    def _tell_bug(self, error: BaseException) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
        self.story.violate("BUG", f"{type(error).__name__}: {error} at {where}")

    def _fund(self) -> None:
        for lovelace in self.plan.utxos:
            self._deposit(lovelace)
            self.net.chain.make_block()

    async def _fund_again(self) -> None:
        """Someone sends money to the wallet."""
        while not self.is_calm:
            await asyncio.sleep(60)
            if self.rng.random() < self.mix().deposit:
                self._deposit(self.rng.randint(8, 40) * ADA)

    def _deposit(self, lovelace: int) -> None:
        assets, datum_hash = self.beside.draw(lovelace)
        if assets.keys() - {self.plan.asset}:
            self.story.reach("a stranger sends tokens that nobody wants")
        if datum_hash is not None:
            self.story.reach("a stranger sends a coin with a datum")
        self.net.node.faucet(self._deposited_to(), lovelace, assets, datum_hash)

    def _deposited_to(self) -> bytes:
        return account().address.raw

    def _wants(self) -> list[ClientGoal]:
        wants = self._draw_wants()
        shared = [want for want in wants if want.key is not None and self.rng.random() < self.plan.shared]
        return wants + [want for want in shared for _ in range(self.rng.randint(1, 2))]

    def _buyer(self, goal: ClientGoal) -> BuyerTask:
        return BuyerTask(self, goal)

    def _draw_wants(self) -> list[ClientGoal]:
        rng, shops = self.rng, list(self.shops.values())
        return [
            ClientGoal(
                app_id="app_test",
                shop=rng.choice(shops),
                path="/x402/chat" if rng.random() < self.plan.by_x402 else "/chat",
                text=f"want {number}",
                key=f"key-{number}" if rng.random() < self.plan.keyed else None,
                by_proxy=rng.random() < self.plan.by_proxy,
                starts_at_s=self.plan.wanted_from_s + rng.random() * self.plan.wanted_within_s,
                pause_s=60.0 if self.plan.is_stubborn else rng.choice((60.0, 60.0, 60.0, 200.0)),
                tries=10 if self.plan.is_stubborn else 4,
            )
            for number in range(self.plan.wants)
        ]

    async def _order_topup(self) -> None:
        shop = next(iter(self.shops.values()))
        goal = TopupGoal(shop.origin, self.plan.asset, 8 * ADA)
        await asyncio.sleep(60 + self.rng.random() * 600)
        for _ in range(5):
            life = await self.life()
            try:
                await life.call(life.fleet.order_topup("app_test", "top-up", goal))
            except (DeadError, Refused) as error:
                self.story.reach(f"a top-up is not taken: {getattr(error, 'code', 'the daemon died')}")
                await asyncio.sleep(60)
                continue
            self.story.reach("a top-up is ordered")
            return

    async def _make_blocks(self) -> None:
        while True:
            calm_s = AWAY_BLOCK_S if self.is_away else CALM_BLOCK_S
            await asyncio.sleep(calm_s if self.is_calm else self.net.next_block_s())
            self.net.make_block()

    async def _jump_clock(self) -> None:
        """The daemon's clock is set wrong, forward or back, and corrected some time later."""
        while not self.is_calm:
            await asyncio.sleep(60)
            if self.rng.random() < self.mix().clock_jump:
                self._clock_off_ms = self.rng.choice((-1, 1)) * self.rng.choice((30_000, 200_000, 86_400_000))
                self.story.reach("the clock jumps")
                self.story.tell(f"the clock jumps by {self._clock_off_ms} ms")
            elif self.rng.random() < 0.5:
                self._clock_off_ms = 0

    async def _operate(self) -> None:
        """An operator moves UTxOs, and cancels payments that hang or seem to."""
        while not self.is_calm:
            await asyncio.sleep(60)
            if self.rng.random() >= self.mix().operator_acts:
                continue
            life = await self.life()
            agent = life.agent
            rows = payments.payments_in(life.conn, CANCELLABLE)
            act = self.rng.choice(
                ("split", "send", "sweep", "resolve", "resolve", "spend elsewhere", "spend elsewhere")
            )
            try:
                if act == "split":
                    await life.call(agent.transfers.split("app_test", 2, 4 * ADA))
                elif act == "send":
                    await life.call(agent.transfers.send("app_test", SENT_TO, self.plan.asset, SENT_UNITS))
                elif act == "sweep":
                    await life.call(agent.transfers.send_all("app_test", account().address))
                elif act == "spend elsewhere":
                    if any(habits.lie for habits in self.plan.providers):
                        continue  # what one of two providers denies is not accepted while it denies it
                    self._spend_elsewhere()
                elif rows:
                    await life.call(agent.lifecycle.resolve(self.rng.choice(rows).id, "app_test"))
            except (DeadError, Refused):
                continue
            self.story.reach(f"an operator orders: {act}")
            self.story.tell(f"the operator orders: {act}")

    async def _put_back(self) -> None:
        """Someone replaces the ledger with an old copy and starts the daemon on it."""
        if self.plan.copied_s is None:
            return
        await asyncio.sleep(self.plan.copied_s)
        await self.life()
        self.disk.copy()
        await asyncio.sleep(self.plan.put_back_s - self.loop.time())
        life = await self.life()
        life.die("an older ledger takes the place of its own")
        self.disk.put_back()
        self.operator.forgets()
        self._is_put_back = True
        self._clock_off_ms = self.plan.put_back_clock_off_ms or self._clock_off_ms
        self.story.reach("an older ledger is put back")

    async def _second_daemon(self) -> None:
        """Someone starts another daemon on the same files in some way, or it takes the ledger over."""
        while not self.is_calm:
            await asyncio.sleep(60)
            if self._life is None:
                continue
            if self.rng.random() < self.mix().second_daemon:
                self._start_another()
            if self.rng.random() < self.mix().taken_over:
                self.story.tell("another daemon takes the ledger over")
                self._life.take_over()

    def _start_another(self) -> None:
        """Start in the same folder, or in one that has the ledger or the keystore under another name."""
        folder = self.disk.folder
        linked = self.rng.choice(("", *self.disk.leased))
        if linked:
            folder = folder / "another"
            folder.mkdir(exist_ok=True)
            (folder / linked).unlink(missing_ok=True)
            (folder / linked).hardlink_to(self.disk.folder / linked)
        try:
            # it would wait in real time for the keystore's lock
            with patch.object(lease_file, "_PAUSE_S", 0), lease(folder, self.disk.leased):
                self.story.violate("I6", f"a second daemon starts in {folder.name} beside the first")
        except Refused as refused:
            self.story.reach(f"a second daemon is refused: {refused.name}")

    async def _unfreeze(self) -> None:
        """Another operator, who unfreezes signing after external spends."""
        while True:
            await asyncio.sleep(120)
            life = await self.life()
            if life.fleet.context.chain.external_spends:
                self.story.reach("signing is frozen since coins were spent elsewhere")
                try:
                    await life.call(unfreeze(life.fleet.context, "app_test"))
                except (DeadError, Refused):
                    continue

    def _spend_elsewhere(self) -> None:
        """Another program with the wallet's keys sends some of its money away. No change comes back."""
        own = account().address
        utxos = UtxoIndex(
            Utxo(ref[0], ref[1], out.lovelace, tuple(out.assets.items()))
            for ref, out in self.net.chain.utxos_at(own.raw)
            if self.rng.random() < 0.5
        )
        slot = self.net.chain.slot
        plan = send_all(utxos, SENT_TO, own=own, ttl_slot=slot + 600, network_id=NETWORK.network_id)
        raw = sign(plan, self.signer)
        nonce_utxos = {signed.nonce_utxo for signed in self.judge.signed.values()}
        if any(f"{ref[0]}#{ref[1]}" in nonce_utxos for ref in self.net.release(raw).inputs):
            self.story.reach("another program spends a payment's nonce UTxO")
        self.net.submit_quietly(raw)

    def _is_dry(self) -> bool:
        """Whether blocks have no room for us: longer than an invoice lasts, and sometimes than a TTL."""
        begins_s, ends_s = self.plan.drought_s
        return not self.is_calm and begins_s <= self.loop.time() < ends_s

    def _calm_down(self) -> None:
        self.story.tell("faults stop")
        self.is_calm = True
        self._clock_off_ms = 0

    async def _settle(self) -> None:
        """Wait until nothing is open. Long waits for TTLs are spent with the daemon stopped."""
        ends_s, times, is_refilled = self.loop.time() + QUIET_MAX_S, 0, False
        while self.loop.time() < ends_s:
            await asyncio.sleep(100)
            life = await self.life()
            if not self._is_anything_open(life):
                break
            if not is_refilled and self.loop.time() >= ends_s and _has_no_fee(life.conn):
                self.story.reach("a wallet that cannot pay a fee is refilled")
                self.net.node.faucet(self._deposited_to(), 10 * ADA, {})
                is_refilled, ends_s = True, self.loop.time() + QUIET_MAX_S
            if times < AWAY_MAX and _is_stuck(life.conn):
                times += 1
                await self._be_away(life)
                ends_s = self.loop.time() + QUIET_MAX_S
        is_lied_to = any(habits.lie for habits in self.plan.providers)
        await asyncio.sleep(LAST_LOOKS_BESIDE_A_LIAR_S if is_lied_to else LAST_LOOKS_S)

    async def _be_away(self, life: SimProcess) -> None:
        """The daemon is stopped for some days while the chain goes on."""
        self.story.reach("the daemon is off until time limits are over")
        self.story.tell("the daemon is stopped for a long time")
        self._life, self.is_away = None, True
        self._started.clear()
        await life.stop()
        await asyncio.sleep(AWAY_S)
        self.is_away = False
        self._start()
        await asyncio.sleep(AWAKE_S)

    def _is_anything_open(self, life: SimProcess) -> bool:
        chain = life.agent.context.chain
        is_held_up = chain.behind is not None or bool(chain.external_spends)
        return is_held_up or _is_open(life.conn)

    # --- starts and deaths of the daemon

    def _start(self) -> None:
        self._life = life = self.make_process(self)
        if self._is_put_back:
            self.judge.put_back(life.conn)
            self._is_put_back = False
        self.judge.reborn(life.conn)
        self.coverage.reborn(life.conn)
        self.judge.committed(life.conn, synced=True)
        self.story.tell("the daemon starts")
        begun = life.spawn(life.begin())
        begun.add_done_callback(lambda done: self._begun(life, done))

    def _begun(self, life: SimProcess, done: asyncio.Task[None]) -> None:
        if life is not self._life:
            return
        if not done.cancelled() and done.exception() is not None:
            life.die("it could not begin")  # as with a disk failure: its supervisor starts it again
            return
        self.judge.begun(life.agent.context.chain.behind)
        self._started.set()

    async def life(self) -> SimProcess:
        while True:
            await self._started.wait()
            if self._life is not None:
                return self._life

    def died(self, why: str) -> None:
        self._life = None
        self._started.clear()  # else a caller that waits for this daemon would wait for ever
        self.loop.call_later(self.rng.random() * 90, self._start)

    def _maybe_die(self) -> None:
        """Perhaps die, between two awaits of any task."""
        chance = self.plan.mix.crash_at_await
        if chance and not self.is_calm and self._life is not None and self.rng.random() * ROUNDS < chance:
            self.story.reach("a death between two steps")
            self._life.die("between two steps")

    # --- callbacks of the parts

    def mix(self) -> FaultRates:
        if self.is_calm:
            return QUIET
        return self.plan.dry_mix if self._is_dry() else self.plan.mix

    @property
    def beat_s(self) -> float:
        return CALM_BEAT_S if self.is_calm else self.plan.beat_s

    def draw(self) -> float:
        return self.rng.random()

    def _now_ms(self) -> int:
        return START_MS + int(self.loop.now_s * 1000)

    def daemon_now_ms(self) -> int:
        return START_MS + int(self.loop.now_s * 1000) + self._clock_off_ms

    def providers(self) -> list[ChainProvider]:
        return [
            SimProvider(habits, self.net, self.rng, self.story, self.mix, self._released)
            for habits in self.plan.providers
        ]

    def merchants(self) -> MerchantClient:
        return MerchantClient(SimTransport(self.shops))

    def channel_signer(self) -> Channels | None:
        return None

    def committed(self, conn: Connection, *, synced: bool) -> None:
        self.judge.committed(conn, synced=synced)
        self.operator.committed(self, conn)
        self.coverage.committed(conn)
        self.pools.committed(conn)

    def failed_inside(self, where: str, error: str) -> None:
        """A step of the daemon raised, and the error ended in its log."""
        if not error.startswith("Refused("):
            self.story.violate("BUG", f"{where}: {error}")
            return
        code = error.removeprefix("Refused(").strip("'\"").partition(":")[0].partition(",")[0]
        self.story.reach(f"a step is put off: {code}")

    def _released(self, raw: bytes, where: str) -> None:
        self.judge.released(raw, where)

    def _blocks_made(self, blocks: list[DevnetBlock]) -> None:
        self.judge.blocks_made(blocks)
        if self._life is not None:
            self.judge.outflow_is_booked(self._life.conn)

    def asked(self, origin: str, invoice_id: str | None) -> list[tuple[tuple[bytes, str, int], ...]]:
        """The outputs that may be paid, by the merchant's own records or the operator's transfers."""
        if not origin:
            return [(), ((SENT_TO.raw, self.plan.asset, SENT_UNITS),)]
        return asked_by(self.shops[origin], invoice_id)

    def calls_served(self, origin: str, partner: str, wallet: str) -> int:
        account = self.shops[origin].merchant.accounts.get((partner, wallet))
        return 0 if account is None else account.used

    def batch(self, origin: str, invoice_id: str | None) -> int:
        invoice = self.shops[origin].invoice(invoice_id or "")
        return invoice.terms.batch if invoice is not None and invoice.terms.batch > 1 else 0

    def purchase(self, origin: str, invoice_id: str | None) -> str | None:
        """The purchase that an invoice is for; None if no record says."""
        return purchase_of(self.shops[origin], invoice_id) if origin else None

    def _terms(self) -> AgentConfig:
        plan = self.plan
        caps = {"per_payment": 100 * ADA, "per_day": plan.per_day_units}
        merchants = {
            shop.origin: MerchantConfig(
                shop.name, shop.origin, PARTNER, None,
                "auto" if is_auto else self.rng.choice(("submitted", "confirmed")), 30,
                api_key=API_KEY,
                proof="signed_cbor" if shop.merchant.terms.proof == "signed_cbor" else "tx_hash",
                topup_request=TopupSource("POST", TOP_UP, "{}") if shop.merchant.terms.batch > 1 else None,
            )
            for shop, is_auto in zip(self.shops.values(), plan.auto, strict=False)
        }  # fmt: skip
        return AgentConfig(
            network=NETWORK,
            own=account().address,
            merchants=merchants,
            limits=tuple(limit for asset in {LOVELACE: 0, plan.asset: 0} for limit in limits_of(asset, caps)),
            decimals={},
            confirm_depth=plan.confirm_depth,
            void_depth=plan.void_depth,
            settle_depth=plan.settle_depth,
            min_window_s=120,
            unconfirmed_ancestors_max=plan.unconfirmed_ancestors_max,
            upkeep_fees_per_day_lovelace=plan.upkeep_fees_per_day_lovelace,
            approval_required_above={}
            if self.operator.asks_above is None
            else {plan.asset: self.operator.asks_above},
            approval_timeout_s=QUESTION_S,
        )


def _is_open(conn: Connection) -> bool:
    """Whether a payment, a void that may be reopened, or a top-up is open."""
    ended = (State.SETTLED, *ENDED_WITHOUT_PAYING)
    marks = ",".join("?" * len(ended))
    is_any = conn.execute(f"SELECT 1 FROM payments WHERE state NOT IN ({marks})", ended).fetchone()  # noqa: S608
    is_ordered = conn.execute("SELECT 1 FROM topups WHERE ended_at_ms IS NULL").fetchone()
    return is_any is not None or is_ordered is not None or bool(payments.watched_voids(conn))


def _has_no_fee(conn: Connection) -> bool:
    """Whether all ADA of the wallet is in UTxOs of payments, so that a cancel may lack its fee."""
    return not any(utxo.state == "available" and utxo.reserved_for is None for utxo in queries.utxos(conn))


def _is_stuck(conn: Connection) -> bool:
    return any(queries.is_rolled_back(conn, row.nonce_utxo) for row in payments.payments_in(conn, LOOKED_FOR))


def asked_by(shop: SimShop, invoice_id: str | None) -> list[tuple[tuple[bytes, str, int], ...]]:
    """The outputs that may be paid to a merchant, by its records. x402 asks its price, to one address."""
    invoice = shop.invoice(invoice_id or "")
    if invoice is not None:
        return [outputs_asked(invoice.terms.required, invoice.terms.asset)]
    terms = shop.merchant.terms
    return [((terms.pay_to.raw, terms.asset, price),) for price in sorted(shop.prices)]


def purchase_of(shop: SimShop, invoice_id: str | None) -> str | None:
    """The hash of the body that an invoice is for, by a merchant's own records; None if unknown."""
    invoice = shop.invoice(invoice_id or "")
    return None if invoice is None else invoice.request_key[2]
