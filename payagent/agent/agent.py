"""The agent's doors: pay, quote, transfer, deliver; and how a payment is carried one step on.

Call order that everything relies on: `pay` admits (C1 + C2), then signs (C3), and only then hands out headers
or sends (C4). `resume` is the same path from wherever a crash left it.

May import: core, dialects, chain.source, chain.guard, store, wallet, the rest of agent. Never: HTTP, SQL, a clock
of its own.
"""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import BinaryIO, TypeVar

import structlog

from payagent.agent import emptying, prepaid, steps, trust, uses
from payagent.agent.admission import Admission, note_price, require_same
from payagent.agent.chainview import ChainView
from payagent.agent.changes import Changes
from payagent.agent.configured import overlaid
from payagent.agent.floods import Floods
from payagent.agent.line import Line, Look
from payagent.agent.orders import Admitted, Approver, Ids, Purchase, TransferOrder
from payagent.agent.planner import TransferPlan
from payagent.agent.ports import Ports, Signatures, Writes
from payagent.agent.prepaid import Buyer, Part, ServedCall, fitting
from payagent.agent.purse import coin_of
from payagent.agent.questions import note_refused
from payagent.agent.replacement import (
    NEXT_INVOICE_PATIENCE_S,
    is_lost,
    last_ttl_slot,
    rebuilt,
    require_anchor,
    reserve_more,
    same_again,
)
from payagent.agent.rulebook import as_told
from payagent.agent.terms import MerchantTerms, Terms
from payagent.agent.upkeep import Means, Upkeep
from payagent.agent.view import is_ready
from payagent.chain.guard import Guarded
from payagent.chain.source import ChainSource
from payagent.core import policy
from payagent.core.address import Address
from payagent.core.invoice import Invoice, Output, Role
from payagent.core.money import LOVELACE, format_amount
from payagent.core.network import ROLLBACK_S
from payagent.core.payment import (
    ENDED_WITHOUT_PAYING,
    NEVER_SIGNED,
    TRANSITIONS,
    UNSIGNED,
    Delivery,
    Event,
    State,
)
from payagent.core.problem import Refused
from payagent.core.verdict import Reasons
from payagent.dialects import Answer, Call, Reading, Response, Said, read_answer, read_offers
from payagent.store import onchain, pauses, queries, records, spending
from payagent.store import prepaid as pools
from payagent.store import uses as store_uses
from payagent.store.queries import AttemptRow, PaymentRow
from payagent.store.writer import Connection, Readers, Unit
from payagent.wallet.coins import Coin, Coins
from payagent.wallet.transaction import Plan, assemble, check, fan_out, select

T = TypeVar("T")

SIGNING_PATIENCE_S = 10.0
"""How long a repeated request waits for the first one to be signed."""

GIVE_WAY_S = 0.02
"""So long a look at a payment waits at most while others are on the way to their signature."""

RECEIVED_MAX_CHARS = 4000
"""How much of a 402 that was refused is kept."""

BATCH_LOOK_S = 5.0
"""How often at least it is looked again whether a batch is still under way: its invoice may end unheard."""

CANCEL_TTL_S = ROLLBACK_S
"""How long a cancel lives: beyond the last rollback. It pays nobody else, so nobody's terms end it.

What descends from it stays good for as long as its block may be lost.
"""

KEPT_EVERY_MS = 600_000
"""How often at least the coins are looked at: that it is quiet now is written nowhere."""

NOT_SIGNED = frozenset({"asset_not_allowed", "limit_exceeded", "signer_refused"})
"""What the signer says by its own policy: asking again gives the same answer, for a day at least."""

log = structlog.get_logger("payagent.agent")


@dataclass(frozen=True, slots=True)
class Request:
    """The call that is to be bought. `headers` (names in lower case) are those that a merchant may bind it to."""

    method: str
    path: str
    body_sha256: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def call(self, origin: str) -> Call:
        """As a dialect reads it."""
        return Call(self.method, origin + self.path, self.body_sha256, self.headers)


@dataclass(frozen=True, slots=True)
class Ask:
    """A 402 that an app wants paid. `received` is the 402 as it came, for the record.

    `buyer`: whose prepaid balance a batch raises, where the call said another than the configured one. `topup`: it
    is a part of that order, which names the intent.
    """

    app_id: str
    origin: str
    response: Response
    received: str
    request: Request | None = None
    idempotency_key: str | None = None
    max_total_units: int | None = None
    buyer: Buyer | None = None
    heard_at_ms: int | None = None
    topup: Part | None = None

    @property
    def fingerprint(self) -> str:
        """What the intent is: origin and request, never the 402."""
        request = self.request
        parts = [self.origin] + ([request.method, request.path, request.body_sha256] if request else [])
        return _digest(parts)

    def key(self, invoice_id: str | None) -> str | None:
        """The intent's key; None when it is the invoice's id that names it and there is none."""
        if self.topup is not None:
            return f"topup:{self.topup.topup}:{self.topup.number}"
        if self.idempotency_key is not None:
            return f"key:{self.idempotency_key}"
        if self.request is not None:
            return f"request:{self.fingerprint}"
        return None if invoice_id is None else f"invoice:{self.origin} {invoice_id}"


@dataclass(frozen=True, slots=True)
class Advice:
    """What a merchant said to a retry, and in how many seconds the same proof is shown again; None: not again."""

    answer: Answer
    again_after_s: float | None


@dataclass(frozen=True, slots=True)
class Quote:
    """What a payment would be now. `refusal` is the limit or the guard that stands against it, if one does;
    `reasons` are why a person would be asked first.
    """

    invoice: Invoice
    plan: Plan
    refusal: Refused | None
    reasons: Reasons = ()


class Agent:
    """Reload, decide, do one step. All methods are for one event loop."""

    def __init__(
        self,
        terms: Terms,
        ports: Ports,
        writer: Writes,
        readers: Readers,
        sources: Sequence[ChainSource],
        signer: Signatures,
    ) -> None:
        self.filed = terms
        """The terms of the config file; `terms` are those that count, with what was set at run time."""
        self.terms = terms = overlaid(terms, readers.conn)
        self.ports = ports
        self.sources = [Guarded(source, ports.clock, terms.call_rate) for source in sources]
        self.chain = ChainView(
            terms.network,
            restored_at_ms=queries.restored_at_ms(readers.conn),
            foreign=onchain.frozen_by(readers.conn),
        )
        self.changes = Changes()
        self.coins = Coins(coin_of(row) for row in queries.free_coins(readers.conn))
        self._writer = writer
        self._readers = readers
        self._signer = signer
        self._admission = Admission.by(terms, self.coins, self.chain)
        self.senders: Sequence[Guarded] = self.sources
        self.providers: Mapping[str, str | None] = {}
        """Why a provider is not heard, by name, or None when it is: what the watch last found."""
        self.refusals: Counter[str] = Counter()
        """How often each code was told, through whichever door, since the start."""
        self._floods = Floods()
        self._signing: set[str] = set()
        self._none_signing = asyncio.Event()
        self._sending: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._taking = asyncio.Lock()
        self._upkeep = Upkeep(self._admission)
        self._line = Line(self._signing, self.keep_coins)
        self._kept: tuple[object, int] = (None, 0)
        """The version of the ledger at the last look that found nothing to keep, and when that was."""

    @property
    def conn(self) -> Connection:
        """A read-only connection."""
        return self._readers.conn

    def snapshot(self) -> AbstractContextManager[Connection]:
        """The ledger as it is now, for what takes long to read."""
        return self._readers.snapshot()

    def room_problem(self) -> str | None:
        """Why nothing more could soon be written down; None while there is room."""
        return self._readers.room_problem()

    def copied(self) -> AbstractContextManager[BinaryIO]:
        """A copy of the ledger as it is now, as a file that is gone when it is closed."""
        return self._readers.copied()

    async def write(self, name: str, job: Callable[[Unit], T], payment_id: str | None = None) -> T:
        """Run a job at a commit point; who waits for the payment is woken once it is durable."""
        result = await self._writer.run(name, job)
        if payment_id is not None:
            log.info(f"payment.{name}", payment=payment_id)
            self.changes.notify(payment_id)
        return result

    async def take_terms(self, filed: Terms, job: Callable[[Unit], None]) -> None:
        """Go by these terms of the config file, and by what `job` sets at run time, from its commit on."""

        def take(unit: Unit) -> Terms:
            job(unit)
            terms = overlaid(filed, unit.conn)
            unit.undo(partial(self._admission.take, self.terms))
            self._admission.take(terms)
            return terms

        async with self._taking:
            self.terms = await self.write("terms", take)
            self.filed = filed

    def payment(self, payment_id: str) -> PaymentRow:
        row = queries.payment(self.conn, payment_id)
        if row is None:
            raise Refused("not_found", f"there is no payment {payment_id[:80]!r}")
        return self.as_noted(row)

    def as_noted(self, row: PaymentRow) -> PaymentRow:
        """With whether its attempt may be shown: no proof of what the signer's own record lacks yet."""
        return row if self._writer.is_noted(row.attempt) else replace(row, is_noted=False)

    def require_noted(self, row: PaymentRow) -> PaymentRow:
        """As `as_noted`. Refused: `store_failed`, where nothing may be shown."""
        row = self.as_noted(row)
        if not row.is_noted:
            raise Refused("store_failed", f"the signer's own record lacks the transaction of {row.id} yet")
        return row

    def assets_allowed(self) -> frozenset[str]:
        """What the wallet may spend at all, by its limits."""
        at_run_time = spending.limits_binding(self.conn, policy.ANY, policy.ANY)
        return policy.allowed_assets(policy.in_force(self.terms.limits, at_run_time))

    async def pay(self, ask: Ask) -> tuple[PaymentRow, bool]:
        """Pay a 402, or find the payment that its intent has; True when it is new.

        Returns once the attempt is durable and before it is sent. Raises `Refused`, with nothing signed.
        """
        now_ms = self.ports.clock.now_ms()
        try:
            merchant = self.terms.merchant(ask.origin)
            offers = self._offers(merchant, ask, now_ms)
        except Refused as refusal:
            if ask.origin in self.terms.merchants and (row := self._paid_already(ask)) is not None:
                return row, False
            await self._note_refusal(ask, refusal, None, now_ms)
            raise
        purchase = self._purchase(ask, offers, now_ms)
        if (known := self._known_already(purchase)) is not None:
            return await self._once_signed(known), False
        with self._claim(purchase.ids.payment):
            try:
                admitted = await self._admit(purchase)
            except Refused as refusal:
                await self._note_refusal(ask, refusal, purchase, now_ms)
                raise as_told(self.conn, ask.app_id, refusal) from None
            log.info("payment.admit", payment=admitted.payment_id, intent_known=not admitted.is_new)
            if admitted.refusal is not None:
                self._note_on_record(ask.app_id, ask.topup)
                raise admitted.refusal
            carried_out = await self._carry_out(admitted)
            if admitted.plan is not None:
                self._look_ahead(admitted.plan)
            return carried_out

    def _known_already(self, purchase: Purchase) -> PaymentRow | None:
        """The payment that admission would find, where all that came is in the ledger already: the same intent,
        with the very invoice that one of its payments is for. Nothing is to be decided or recorded then.

        What the signer's own record lacks goes the writer's way, which notes it or says why not.
        """
        (offer, *others), conn = purchase.offers, self.conn
        intent = None if others else queries.live_intent(conn, purchase.app_id, purchase.key)
        row = None if intent is None else queries.live_payment_of(conn, intent.id)
        if intent is None or row is None or intent.fingerprint != purchase.fingerprint:
            return None
        told = (offer.origin, offer.invoice_id, offer.terms_hash)
        if told != (row.origin, row.invoice_id, row.terms_hash):
            known = queries.invoice(conn, offer.origin, offer.invoice_id)
            if known is None or known.terms_hash != offer.terms_hash:
                return None
            if queries.payment_of_invoice(conn, known.seq) is None:
                return None
        return row if self.as_noted(row).is_noted else None

    async def quote(self, ask: Ask, count: int = 1) -> Quote:
        """What paying would take now, or so many payments like it: nothing is reserved, nothing is written.

        Refused like the payment would be, and as `invoice_paid_already` where there is one.
        """
        now_ms = self.ports.clock.now_ms()
        offers = self._offers(self.terms.merchant(ask.origin), ask, now_ms)
        purchase = self._purchase(ask, offers, now_ms)

        def job(unit: Unit) -> Quote:
            chosen = self._admission.choose(unit, purchase, now_ms)
            self._admission.require_open(unit, chosen, now_ms)
            invoice = chosen.invoice
            plan = self._admission.planner.plan(
                unit, invoice, invoice.expires_at_ms, self.terms.min_window_s, now_ms
            )
            try:
                self._admission.rulebook.require_within_limits(
                    unit.conn, purchase, plan.spend, invoice.asset, now_ms, count
                )
                reasons = self._admission.rulebook.reasons(unit.conn, purchase, invoice, plan.spend)
                if count > 1:
                    self._require_funds({asset: units * count for asset, units in plan.spend.items()})
            except Refused as refusal:
                return Quote(invoice, plan, refusal)
            return Quote(invoice, plan, None, reasons)

        try:
            quote = await self.write("quote", job)
        except Refused as refusal:
            raise as_told(self.conn, ask.app_id, refusal) from None
        if quote.refusal is None:
            return quote
        return replace(quote, refusal=as_told(self.conn, ask.app_id, quote.refusal))

    async def send(
        self, app_id: str, to: Address, asset: str, units: int, key: str | None = None
    ) -> tuple[PaymentRow, bool]:
        """Send out of the wallet, by the operator's order: no limit applies; durable first, and once per key."""
        role: Role = "change" if to.raw == self.terms.own.raw else "pay_to"
        outputs = (Output(role, to, asset, units),)
        order = self._order(app_id, "send", key, to.text, asset, str(units))
        return await self._transfer(order, partial(self._select, outputs))

    async def sweep(self, app_id: str, to: Address, key: str | None = None) -> tuple[PaymentRow, bool]:
        """Send everything that is free and may leave, as far as one transaction holds it, smallest coins first."""
        order, now_ms = self._order(app_id, "sweep", key, to.text), self.ports.clock.now_ms()
        return await self._order_transfer(
            order, lambda unit: emptying.admit(self._admission, unit, order, to, now_ms)
        )

    def left_behind(self, payment_id: str) -> Mapping[str, object] | None:
        """What a sweep left behind, as `LeftBehind.view` has it; None: nothing."""
        return emptying.told_of(self.conn, payment_id)

    async def split(
        self, app_id: str, count: int, lovelace: int, key: str | None = None
    ) -> tuple[PaymentRow, bool]:
        """Fan out into `count` coins of pure ADA, so that as many payments can be on their way at once."""
        outputs = fan_out(self.terms.own, count, lovelace)
        order = self._order(app_id, "split", key, str(count), str(lovelace))
        return await self._transfer(order, partial(self._select, outputs))

    async def keep_coins(self, waiting: Sequence[int] = ()) -> Look:
        """Split or gather coins by ourselves, where that is worth its fee: for payments that wait, or later ones.

        Refused as `Upkeep.keep` does.
        """
        ids, now_ms = self._new_ids(), self.ports.clock.now_ms()
        means = Means(self.terms.upkeep_lovelace, self.assets_allowed())
        with self._claim(ids.payment):
            kept = await self.write("keep", lambda unit: self._upkeep.keep(unit, ids, means, waiting, now_ms))
            if kept.admitted is not None:
                log.info("coins.kept", payment=kept.admitted.payment_id, waiting=len(waiting))
                await self._carry_out(kept.admitted)
        return Look(kept.admitted is not None, kept.room)

    async def keep_ready(self) -> None:
        """As `keep_coins`, for later payments: when the ledger has changed since, and now and then."""
        now_ms, version = self.ports.clock.now_ms(), queries.version(self.conn)
        if not self.terms.upkeep_lovelace or self._line or self.is_paused or not self.chain.is_ready(now_ms):
            return
        if version != self._kept[0] or not self._kept[1] <= now_ms < self._kept[1] + KEPT_EVERY_MS:
            look = await self.keep_coins()
            self._kept = (None if look.is_split else version, now_ms)

    async def record_delivery(self, payment_id: str, http_status: int) -> PaymentRow:
        """Note what the retry got. A derived intent ends when its call was served."""
        now_ms = self.ports.clock.now_ms()
        rules = self.terms.rules
        await self.write(
            "delivery",
            lambda unit: steps.record_delivery(unit, payment_id, http_status, rules, now_ms),
            payment_id,
        )
        return self.payment(payment_id)

    async def record_unanswered(self, payment_id: str, why: str) -> None:
        """A proof was shown to the merchant, and no answer came to it."""
        if self.payment(payment_id).delivery is not Delivery.NOT_PRESENTED:
            return
        now_ms, rules = self.ports.clock.now_ms(), self.terms.rules
        await self.write(
            "delivery",
            lambda unit: steps.record_unanswered(unit, payment_id, why, rules, now_ms),
            payment_id,
        )

    async def record_used_up(self, payment_id: str) -> PaymentRow:
        """The merchant says that the proof is used up, which was shown by nobody but us: it took it."""
        now_ms = self.ports.clock.now_ms()
        rules = self.terms.rules
        await self.write(
            "delivery", lambda unit: steps.record_used_up(unit, payment_id, rules, now_ms), payment_id
        )
        return self.payment(payment_id)

    async def take_answer(self, payment_id: str, response: Response) -> tuple[PaymentRow, Advice]:
        """Read what the merchant answered to a retry, note it, and say whether the same proof is shown again.

        That a call was served is only noted: it counts once its answer is in the client's hands, which
        `record_delivery` tells. A transaction that was handed over and refused is cancelled.
        """
        row = self.payment(payment_id)
        answer = read_answer(
            row.dialect or "", response, invoice_id=row.invoice_id or "", shown_tx=row.tx_id or ""
        )
        now_ms, rules = self.ports.clock.now_ms(), self.terms.rules
        again_after_s = await self.write(
            "delivery",
            lambda unit: steps.record_answer_to_retry(unit, payment_id, answer, response.status, rules, now_ms),
            payment_id,
        )
        row = self.payment(payment_id)
        if row.handed_over and answer.said is Said.REFUSED:
            try:
                await self.cancel(row)
            except Refused as refusal:
                log.info("payment.not_cancelled_yet", payment=payment_id, why=refusal.detail)
            row = self.payment(payment_id)
        return row, Advice(answer, again_after_s)

    async def let_through(self, call: ServedCall, *, is_costly: bool = False) -> int | None:
        """Before a call goes out that a prepaid balance may serve: what it would use counts against its app's own
        limits. Its number, for `record_call` or `give_back`; None where nothing counts beforehand.

        `is_costly`: the merchant showed that it costs something, and not how much.
        """
        if not uses.is_bound(self.conn, call) or not (is_costly or prepaid.is_counted(self.conn, call)):
            return None
        now_ms = self.ports.clock.now_ms()

        def job(unit: Unit) -> int | None:
            return uses.let_through(unit, call, self.terms.limits, self.limits_clock_ms(unit.conn, now_ms), now_ms)

        try:
            return await self.write("let_through", job)
        except Refused as refused:
            told = {"code": refused.code, "detail": refused.detail, "app": call.app_id, "origin": call.origin}
            told["request"] = f"{call.method} {call.path}"[:500]
            if self._is_on_record(call.app_id):
                self._note_on_record(call.app_id)
                await self.write("refuse", lambda unit: records.note(unit, None, "refused", None, now_ms, told))
            raise

    def is_price_wanted(self, call: ServedCall) -> bool:
        """Whether a balance may serve the call, its app has limits of its own, and nobody knows if it costs."""
        return uses.is_bound(self.conn, call) and not prepaid.is_counted(self.conn, call)

    async def learn_price(self, call: ServedCall, ask: Ask) -> None:
        """A call has answered 402: note what was asked for it, where that is understood."""
        now_ms = self.ports.clock.now_ms()
        try:
            offer = self._offers(self.terms.merchant(ask.origin), ask, now_ms)[0]
        except Refused:
            return
        price = (call.origin, call.method, call.path, offer.asset, offer.total_units)
        await self.write("price", lambda unit: pools.note_price(unit, *price))

    async def give_back(self, use: int | None) -> None:
        """A call that was let through used nothing."""
        if use is not None:
            await self.write("give_back", lambda unit: store_uses.take_back(unit, use))

    async def record_call(self, call: ServedCall, use: int | None = None) -> None:
        """A call was served without a payment of its own: what it uses of a prepaid balance, if it uses any."""
        if prepaid.is_counted(self.conn, call):
            now_ms = self.ports.clock.now_ms()

            def job(unit: Unit) -> None:
                prepaid.used(unit, call, self.limits_clock_ms(unit.conn, now_ms), now_ms, use)

            await self.write("use", job)

    def limits_clock_ms(self, conn: Connection, now_ms: int) -> int:
        """The clock of the limits (store.spending)."""
        return self._admission.rulebook.clock_ms(conn, now_ms)

    async def wait_for_batch(self, origin: str, buyer: Buyer, timeout_s: float) -> None:
        """Return when no payment for the buyer's prepaid balance is under way, or time is up."""
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while (left_s := deadline_s - asyncio.get_running_loop().time()) > 0:
            pool = pools.find_pool(self.conn, origin, buyer.partner, buyer.wallet)
            now_ms = self.ports.clock.now_ms()
            other = None if pool is None else pools.batch_under_way(self.conn, pool.id, now_ms)
            if other is None:
                return
            await self.changes.wait(other, min(left_s, BATCH_LOOK_S))

    async def cancel(self, row: PaymentRow) -> None:
        """Take a payment's coins back: one transaction that spends all of them, the anchor too, to ourselves.

        Whatever became of the attempt that pays, at most one of the two can be on the chain. Refused as
        `ChainView.require_ready` does; nothing has changed then.
        """
        if row.id in self._signing or self.is_paused:
            return
        now_ms = self.ports.clock.now_ms()
        slot = self.chain.require_ready(now_ms)
        with self._claim(row.id):
            row = self.payment(row.id)
            why = steps.reason_to_cancel(self.conn, row, slot)
            if why is not None:
                await self._take_back(row, why, slot, now_ms)

    async def _take_back(
        self, row: PaymentRow, why: Refused, slot: int, now_ms: int, by: str | None = None
    ) -> None:
        """Sign the cancel of a payment that this task has claimed, and send it."""
        plan = await self.write(
            "plan", lambda unit: self._admission.planner.cancel(unit, row, slot + CANCEL_TTL_S)
        )
        raw = await self._sign_and_check(row.id, plan)
        own = self.terms.own.raw

        def job(unit: Unit) -> None:
            steps.record_cancel(unit, row, plan, raw, own, why, now_ms, by)
            reserve_more(unit, self.coins, row.id, plan)

        await self.write("cancel", job, row.id)
        self.send_off(row.id)

    async def renew(self, row: PaymentRow) -> None:
        """Replace an attempt that can land no more, on the same anchor; too late for that, take its coins back.

        Nothing happens to a payment that is not lost. Refused as `ChainView.require_ready` does.
        """
        if row.id in self._signing or self.is_paused:
            return
        now_ms = self.ports.clock.now_ms()
        slot = self.chain.require_ready(now_ms)
        if not self._is_renewal_due(row, slot):
            return

        def job(unit: Unit) -> tuple[Refused | None, PaymentRow]:
            why = self._admission.replace(unit, row.id, self.terms.min_window_s, now_ms)
            return why, steps.row_of(unit, row.id)

        with self._claim(row.id):
            why, decided = await self.write("replace", job, row.id)
            if why is not None:
                await self._take_back(decided, why, slot, now_ms)
            elif decided.state is State.REPLACING:
                await self._sign(row.id, self._rebuild(decided))
                self.send_off(row.id)

    @property
    def is_paused(self) -> bool:
        """Whether an operator has stopped all signing."""
        return pauses.standing(self.conn) is not None

    def _is_renewal_due(self, row: PaymentRow, slot: int) -> bool:
        """Whether a lost payment can be replaced, or has waited long enough for another invoice."""
        tip = self.chain.tip
        if tip is None or not is_lost(self.conn, row, tip.slot):
            return False
        is_over = row.kind == "invoice" and not self.chain.has_time(
            slot, row.expires_at_ms, self.terms.min_window_s
        )
        return not is_over or tip.slot >= last_ttl_slot(self.conn, row) + NEXT_INVOICE_PATIENCE_S

    async def resolve(self, payment_id: str, app_id: str) -> PaymentRow:
        """Take a payment's coins back now, by order of the operator's app.

        What nothing was signed for is rejected; else a cancel competes for the anchor with what was signed. One
        that waits for a coin that is not there is signed anew without it.
        Refused: `illegal_transition` when it is in a block or has ended, `not_signed_yet` while it is signed,
        `anchor_gone` when no cancel could land.
        """
        now_ms = self.ports.clock.now_ms()
        row = self.payment(payment_id)
        if row.state is State.CANCELLING:
            require_anchor(self.conn, row)
        if row.state is State.CANCELLING and self._is_all_there(row):
            return row
        if row.state is not State.RESERVED and (row.state, Event.CANCEL) not in TRANSITIONS:
            raise Refused("illegal_transition", f"a payment that is {row.state} has no coins to take back")
        if row.id in self._signing:
            raise Refused("not_signed_yet", f"{row.id} is being signed at this moment", payment=row.id)
        with self._claim(row.id):
            why = Refused("resolved", "an operator took its coins back")
            if row.state is State.RESERVED:
                await self.write(
                    "reject",
                    lambda unit: steps.reject_unsigned(unit, row.id, self.coins, why, now_ms, app_id),
                    row.id,
                )
            else:
                await self._take_back(row, why, self.chain.require_ready(now_ms), now_ms, app_id)
        return self.payment(row.id)

    async def approve(self, payment_id: str, by: Approver) -> PaymentRow:
        """Let a payment go on that awaits a decision: it is held, signed and sent as any other.

        What is to be handed over is signed when it is asked for again. Refused as `Questions.approve` does.
        """
        now_ms, window_s = self.ports.clock.now_ms(), self.terms.min_window_s
        with self._claim(payment_id):
            decided = await self._decide(
                "approve",
                lambda unit: self._admission.questions.approve(unit, payment_id, by, window_s, now_ms),
                payment_id,
                by,
            )
            if decided.plan is None:
                raise decided.refusal or Refused("already_decided", f"{payment_id} is decided")
            if not self.payment(payment_id).handed_over:
                try:
                    await self._sign(payment_id, decided.plan)
                    self.send_off(payment_id)
                except Refused as refused:  # it is approved and held: the next look signs it
                    log.warning("payment.not_signed_yet", payment=payment_id, code=refused.code)
                    if refused.code in NOT_SIGNED:
                        self.refusals[refused.code] += 1
        return self.payment(payment_id)

    async def deny(self, payment_id: str, by: Approver) -> PaymentRow:
        """End a payment that awaits a decision. Refused as `Questions.deny` does."""
        now_ms = self.ports.clock.now_ms()
        await self._decide(
            "deny", lambda unit: self._admission.questions.deny(unit, payment_id, by, now_ms), payment_id, by
        )
        return self.payment(payment_id)

    async def _decide(self, name: str, job: Callable[[Unit], T], payment_id: str, by: Approver) -> T:
        """Have a person's decision made. One that is refused leaves the question as it was, and is told in it."""
        try:
            return await self.write(name, job, payment_id)
        except Refused as refusal:
            now_ms, why = self.ports.clock.now_ms(), refusal
            await self.write("refuse", lambda unit: note_refused(unit, payment_id, by, why, now_ms))
            raise

    async def deny_what_is_over(self) -> None:
        """End the payments on which nobody decided in time."""
        now_ms, window_s = self.ports.clock.now_ms(), self.terms.min_window_s
        questions = self._admission.questions
        for payment_id in questions.over(self.conn, window_s, now_ms):
            job = partial(questions.deny_when_over, payment_id=payment_id, min_window_s=window_s, now_ms=now_ms)
            decided = await self.write("deny", job, payment_id)
            if decided is not None and decided.refusal is not None:
                self.refusals[decided.refusal.code] += 1

    def _is_all_there(self, row: PaymentRow) -> bool:
        """Whether all that a payment's last attempt spends beside its anchor is there now."""
        attempt = queries.attempts(self.conn, row.id)[-1]
        coins = [queries.coin(self.conn, ref) for ref in attempt.inputs if ref != attempt.anchor]
        return all(coin is not None and coin.state == "free" for coin in coins)

    async def wait(self, payment_id: str, timeout_s: float) -> PaymentRow:
        """The payment, when its state or readiness has changed or time is up; at once when it is ready or ended.

        A caller learns of a payment and then asks to wait: what changed in between must not be waited for.
        """
        row = self.payment(payment_id)
        if self.is_ready(row) or row.state in ENDED_WITHOUT_PAYING:
            return row
        before = (row.state, self.is_ready(row))
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while (left_s := deadline_s - asyncio.get_running_loop().time()) > 0:
            if not await self.changes.wait(payment_id, left_s):
                break
            row = self.payment(payment_id)
            if (row.state, self.is_ready(row)) != before:
                break
        return row

    def is_ready(self, row: PaymentRow) -> bool:
        merchant = self.terms.merchants.get(row.origin or "")
        return is_ready(row, merchant.ready if merchant else "confirmed")

    async def resume(self, row: PaymentRow, *, asked: bool = False) -> None:
        """Sign what was admitted, or is to be replaced, with the coins, the anchor and the TTL that it was given.

        Too late for that, or its merchant is stopped: what nothing was signed for is rejected and its hold goes
        back, else it is cancelled.
        What is to be handed over is only signed when it is asked for: a proof that nobody shows would have to be
        cancelled.
        """
        if row.id in self._signing:
            return
        now_ms = self.ports.clock.now_ms()
        slot = self.chain.require_ready(now_ms)
        with self._claim(row.id):
            row = self.payment(row.id)
            if row.state not in UNSIGNED:
                return
            try:
                rejected = await self._sign_or_end(row, slot, now_ms, asked)
            except Refused as refused:
                if not asked and row.state is State.RESERVED and refused.code in NOT_SIGNED:
                    self.refusals[refused.code] += 1
                raise
            if not asked and rejected is not None:  # nobody is there who is told, and counts it
                self.refusals[rejected.code] += 1

    async def _sign_or_end(self, row: PaymentRow, slot: int, now_ms: int, asked: bool) -> Refused | None:
        """As `resume`; why it was rejected, where it was."""
        stopped = self._admission.rulebook.why_stopped(self.conn, row)
        if stopped is None and (row.ttl_slot or 0) - slot >= self.terms.min_window_s:
            if asked or not (row.handed_over or self.is_paused):
                await self._sign(row.id, self._rebuild(row))
                self.send_off(row.id)
        elif row.state is State.RESERVED:
            late = stopped or Refused(
                "invoice_expired", "payagent came to sign it when its invoice was nearly over"
            )
            await self.write(
                "reject", lambda unit: steps.reject_unsigned(unit, row.id, self.coins, late, now_ms), row.id
            )
            return late
        elif asked or not self.is_paused:
            late = Refused("attempt_expired", "payagent came to replace it when its invoice was nearly over")
            await self._take_back(row, stopped or late, slot, now_ms)
        return None

    def send_off(self, payment_id: str) -> None:
        """Send the payment's last attempt (again), beside whatever else goes on."""
        if payment_id not in self._sending:
            self._sending[payment_id] = asyncio.Event()
            task = asyncio.create_task(self._leave(payment_id), name=f"send {payment_id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    @property
    def sending_count(self) -> int:
        """How many payments are being sent."""
        return len(self._sending)

    async def drain(self, timeout_s: float) -> None:
        """Let what is being sent end; at a stop, before the scheduler goes."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    async def _leave(self, payment_id: str) -> None:
        """To every provider that is to be believed: one that only says that it took the bytes delays nothing."""
        try:
            row = self.payment(payment_id)
            attempt = next((a for a in queries.attempts(self.conn, payment_id) if a.tx_id == row.tx_id), None)
            if attempt is None:  # it is being replaced
                return
            now_ms = self.ports.clock.now_ms()
            if self.chain.slots and self.chain.slots.slot_at(now_ms) >= attempt.ttl_slot:
                return
            if steps.may_broadcast(row):
                await self._leave_parents(attempt.tx_id)
                ready = [source for source in self.senders if source.takes_submissions(now_ms)]
                await asyncio.gather(*(self._leave_to(source, row.id, attempt) for source in ready))
        finally:
            self._sending.pop(payment_id).set()

    async def _leave_parents(self, tx_id: str) -> None:
        """First the bytes without which these are refused: again, unless nothing says that they are not there."""
        parents = queries.pending_parents(self.conn, tx_id)
        is_again = bool(parents) and queries.submissions(self.conn, tx_id)[0] > 0
        for parent_tx in parents:
            parent = queries.payment_of_attempt(self.conn, parent_tx)
            if parent is None or parent.tx_id != parent_tx:
                continue
            if parent.id in self._sending:
                await self._sending[parent.id].wait()
            elif is_again or not parent.accepted_by_provider:
                self._sending[parent.id] = asyncio.Event()
                await self._leave(parent.id)

    async def _leave_to(self, source: Guarded, payment_id: str, attempt: AttemptRow) -> None:
        """C4, and then the bytes. What comes back is noted and decides nothing (docs/exactly-once.md R4)."""
        try:
            now_ms = self.ports.clock.now_ms()
            may_leave = await self.write(
                "leave",
                lambda unit: steps.record_leave(unit, payment_id, attempt.tx_id, source.name, now_ms),
                payment_id,
            )
            if not may_leave:
                return
            answer = await source.submit(attempt.cbor, attempt.tx_id)
            told_ms = self.ports.clock.now_ms()
            await self.write(
                "answer",
                lambda unit: steps.record_answer(unit, payment_id, attempt.tx_id, answer, source.name, told_ms),
                payment_id,
            )
        except Exception as error:
            is_bug = not isinstance(error, Refused)
            log.warning("payment.not_sent", payment=payment_id, error=repr(error), exc_info=is_bug)

    def _order(self, app_id: str, kind: str, key: str | None, *what: str) -> TransferOrder:
        ids = self._new_ids()
        return TransferOrder(
            ids=ids,
            app_id=app_id,
            key=f"order:{ids.intent}" if key is None else f"key:{key}",
            derived=key is None,
            fingerprint=_digest([kind, *what]),
            kind=kind,
        )

    async def _transfer(self, order: TransferOrder, plan: TransferPlan) -> tuple[PaymentRow, bool]:
        now_ms = self.ports.clock.now_ms()
        return await self._order_transfer(
            order, lambda unit: self._admission.admit_transfer(unit, order, plan, now_ms)
        )

    async def _order_transfer(
        self, order: TransferOrder, admit: Callable[[Unit], Admitted]
    ) -> tuple[PaymentRow, bool]:
        with self._claim(order.ids.payment):
            return await self._carry_out(await self.write("admit", admit))

    async def _admit(self, purchase: Purchase) -> Admitted:
        """As `Admission.admit`; where all coins are in use, in line with the others, while change can be had."""

        async def admit(can_wait: bool) -> Admitted:
            now_ms = self.ports.clock.now_ms()
            job = partial(
                self._admission.admit,
                purchase=purchase,
                now_ms=now_ms,
                can_wait=can_wait,
                on_record=self._is_on_record(purchase.app_id, purchase.topup),
            )
            return await self.write("admit", job)

        is_kept = self.terms.upkeep_lovelace > 0 and self.terms.chain_depth > 0
        if not is_kept or any(one.asset != LOVELACE or one.handed_over for one in purchase.offers):
            return await admit(False)
        return await self._line.admit(
            purchase.ids.payment,
            purchase.invoice.total_units,
            admit,
            partial(self._wants_coins, purchase),
            is_turn=self._line.is_free(len(self.coins)),
        )

    def _wants_coins(self, purchase: Purchase) -> bool:
        """Whether it needs a coin of its own, so that it may stand in line. What needs none is decided at once.

        For those in line a coin may be split, and that costs a fee which no limit of an app bounds.
        """
        intent = queries.live_intent(self.conn, purchase.app_id, purchase.key)
        if intent is not None and queries.live_payment_of(self.conn, intent.id) is not None:
            return False
        return self._admission.wants_coins(self.conn, purchase, self.ports.clock.now_ms())

    def _look_ahead(self, plan: Plan) -> None:
        """When half of the depth is used up to which change is spent: later there is no coin that can be split."""
        depth, most = self._admission.planner.depth_of(plan.tx_id), self.terms.chain_depth
        if self.terms.upkeep_lovelace and 0 < depth >= most - most // 2:
            self._line.nudge()

    async def _carry_out(self, admitted: Admitted) -> tuple[PaymentRow, bool]:
        """From admitted to signed."""
        if admitted.plan is not None:
            await self._sign(admitted.payment_id, admitted.plan)
            self.send_off(admitted.payment_id)
        return await self._once_signed(self.payment(admitted.payment_id)), admitted.is_new

    async def _once_signed(self, row: PaymentRow) -> PaymentRow:
        """A request that found the payment waits for whoever is signing it."""
        if row.state is State.RESERVED and row.handed_over:
            await self.resume(row, asked=True)
            row = self.payment(row.id)
            if row.state in NEVER_SIGNED:  # too late for its invoice: the same request opens a new payment
                raise Refused(row.reason_code or "invoice_expired", row.reason or "", payment=row.id)
        if row.state is State.REPLACING:
            await self.resume(row)
            row = self.payment(row.id)
        if row.state in UNSIGNED:
            pauses.require_running(self.conn)
            row = await self.wait(row.id, SIGNING_PATIENCE_S)
        if row.state in UNSIGNED:
            raise Refused("not_signed_yet", f"{row.id} is admitted and waits for its signature", payment=row.id)
        return row

    async def _sign(self, payment_id: str, plan: Plan) -> None:
        """Sign, read the bytes again and compare them with the plan, then C3."""
        raw = await self._sign_and_check(payment_id, plan)
        now_ms = self.ports.clock.now_ms()
        await self.write(
            "sign",
            lambda unit: steps.record_attempt(unit, payment_id, plan, raw, self.terms.own.raw, now_ms),
            payment_id,
        )

    async def _sign_and_check(self, payment_id: str, plan: Plan) -> bytes:
        """Refused by the signer's own policy: what was never signed is rejected, and it is told once. `paused`, as
        the commit is that would make it durable: a pause may come between the two.
        """
        pauses.require_running(self.conn)
        key = self._signer.public_key
        try:
            signature = await self._signer.signature(plan.body, plan.paid)
        except Refused as refusal:
            if refusal.code in NOT_SIGNED:
                await self._note_not_signed(payment_id, refusal)
            raise
        raw = assemble(plan, key, signature)
        check(raw, plan, key)
        return raw

    async def _note_not_signed(self, payment_id: str, refusal: Refused) -> None:
        now_ms = self.ports.clock.now_ms()
        await self.write(
            "reject",
            lambda unit: steps.record_not_signed(unit, payment_id, self.coins, refusal, now_ms),
            payment_id,
        )

    @contextmanager
    def _claim(self, payment_id: str) -> Iterator[None]:
        """While one task carries a payment to its signature, no sweep takes it up beside it."""
        self._signing.add(payment_id)
        self._none_signing.clear()
        try:
            yield
        finally:
            self._signing.discard(payment_id)
            if not self._signing:
                self._none_signing.set()
            self._line.stir()

    async def give_way(self) -> float:
        """Wait a moment while payments are on the way to their signature, for somebody waits for each of these.

        How many seconds that took.
        """
        if not self._signing:
            return 0.0
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        with suppress(TimeoutError):
            async with asyncio.timeout(GIVE_WAY_S):
                await self._none_signing.wait()
        return loop.time() - began_s

    def _select(self, outputs: Sequence[Output], coins: Coins, ttl_slot: int, anchor: Coin | None) -> Plan:
        return select(
            coins,
            outputs,
            change=self.terms.own,
            ttl_slot=ttl_slot,
            network_id=self.terms.network.network_id,
            anchor=anchor,
        )

    def _coins_of(self, row: PaymentRow) -> tuple[list[Coin], Coin]:
        """The coins that are reserved for a payment, and the one of them that is its anchor."""
        inputs = [coin_of(coin) for coin in queries.coins_reserved_for(self.conn, row.id)]
        return inputs, next(coin for coin in inputs if coin.ref == row.anchor)

    def _rebuild(self, row: PaymentRow) -> Plan:
        """The plan that a payment was admitted or is replaced with: the same coins give the same bytes."""
        inputs, anchor = self._coins_of(row)
        if row.state is State.REPLACING:
            chosen = queries.replacement_inputs(self.conn, row.id)
            inputs = [coin for coin in inputs if coin.ref in chosen]
        wanted = same_again(row, self.terms.network)
        return rebuilt(inputs, anchor, wanted, row.ttl_slot or 0, self.terms.own, self.terms.network)

    def _offers(self, merchant: MerchantTerms, ask: Ask, now_ms: int) -> tuple[Invoice, ...]:
        return fitting(read_offers(ask.response, self._reading(merchant, ask, now_ms)), ask.topup)

    def _require_funds(self, spend: Mapping[str, int]) -> None:
        """Whether all that is free suffices; on the writer's thread."""
        for asset, units in spend.items():
            free = self.coins.totals.get(asset, 0)
            if units > free:
                have, need = format_amount(asset, free), format_amount(asset, units)
                raise Refused("not_enough_funds", f"{have} are free, {need} are needed")

    def _reading(self, merchant: MerchantTerms, ask: Ask, now_ms: int) -> Reading:
        return Reading(
            origin=merchant.origin,
            call=None if ask.request is None else ask.request.call(merchant.origin),
            salt=bytes.fromhex(self.ports.randomness.token_hex(32)) if merchant.request_commitment else None,
            proof=merchant.proof,
            known_as=merchant.known_as,
            assets=self.assets_allowed(),
            network=self.terms.network,
            split_mode=merchant.split_mode,
            received_at_ms=now_ms,
            decimals=self.terms.decimals,
            own=self.terms.own,
        )

    def _new_ids(self) -> Ids:
        return Ids(self.ports.new_id("int"), self.ports.new_id("pay"), self.ports.new_id("req"))

    def _purchase(self, ask: Ask, offers: tuple[Invoice, ...], now_ms: int) -> Purchase:
        request = ask.request
        return Purchase(
            ids=self._new_ids(),
            app_id=ask.app_id,
            key=ask.key(offers[0].invoice_id) or "",
            derived=ask.idempotency_key is None and ask.topup is None,
            fingerprint=ask.fingerprint,
            request=None if request is None else f"{request.method} {request.path} {request.body_sha256}",
            invoice=offers[0],
            offers=offers,
            response=ask.received,
            received_at_ms=now_ms,
            heard_at_ms=now_ms if ask.heard_at_ms is None else ask.heard_at_ms,
            max_total_units=ask.max_total_units,
            min_window_s=self.terms.min_window_s,
            buyer=ask.buyer or self._buyer(ask),
            topup=ask.topup,
        )

    async def _note_refusal(self, ask: Ask, refusal: Refused, purchase: Purchase | None, now_ms: int) -> None:
        """What was refused before there was a payment is in the record too, unless it may just be asked again."""
        if refusal.problem.retryable and purchase is None:
            return
        is_kept = not refusal.problem.retryable and self._is_on_record(ask.app_id, ask.topup)
        if is_kept:
            self._note_on_record(ask.app_id, ask.topup)

        def job(unit: Unit) -> None:
            if purchase is not None:
                note_price(unit, purchase)
            if is_kept:
                request = ask.request
                told = {
                    "code": refusal.code,
                    "detail": refusal.detail[:500],
                    "app": ask.app_id,
                    "origin": ask.origin[:200],
                    "request": None if request is None else f"{request.method} {request.path}"[:500],
                    "received": ask.received[:RECEIVED_MAX_CHARS],
                }
                records.note(unit, None, "refused", None, now_ms, told)
            if refusal.code == "terms_changed":
                trust.warn_of_terms(unit, ask.origin, refusal.detail, now_ms)

        await self.write("refuse", job)

    def _is_on_record(self, app_id: str, topup: Part | None = None) -> bool:
        """Whether a refusal of the app goes on record; all that a top-up is refused do, which end it."""
        return topup is not None or self._floods.has_room(app_id, asyncio.get_running_loop().time())

    def _note_on_record(self, app_id: str, topup: Part | None = None) -> None:
        if topup is None:
            self._floods.note(app_id, asyncio.get_running_loop().time())

    def _buyer(self, ask: Ask) -> Buyer:
        """Whose prepaid balance it is: as the call's headers say, else as configured."""
        said = ask.request.headers if ask.request is not None else {}
        partner = self.terms.merchant(ask.origin).partner or ""
        return Buyer(said.get("x-partner", partner), said.get("x-wallet-address", self.terms.own.text))

    def _paid_already(self, ask: Ask) -> PaymentRow | None:
        """The live payment of an intent that comes again, with a 402 that is over or only says "pending"."""
        key = ask.key(None)
        intent = None if key is None else queries.live_intent(self.conn, ask.app_id, key)
        if intent is None:
            return None
        require_same(intent, ask.fingerprint)
        row = queries.live_payment_of(self.conn, intent.id)
        return None if row is None else self.require_noted(row)


def _digest(parts: list[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
