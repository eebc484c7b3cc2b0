"""The agent's doors: pay, quote, transfer, deliver; and how a payment is carried one step on.

Call order that everything relies on: `pay` admits (C1 + C2), then signs (C3), and only then hands out headers
or sends (C4). `resume` is the same path from wherever a crash left it.

May import: core, dialects, chain.source, chain.guard, store, wallet, the rest of agent. Never: HTTP, SQL, a clock
of its own.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import structlog

from payagent.agent import emptying, prepaid, steps, trust, uses
from payagent.agent.admission import note_price, require_same
from payagent.agent.asks import Advice, Ask, Quote, digest
from payagent.agent.carrying import Carrying
from payagent.agent.desk import Desk
from payagent.agent.floods import Floods
from payagent.agent.line import Line, Look
from payagent.agent.orders import Admitted, Approver, Purchase, TransferOrder
from payagent.agent.planner import TransferPlan
from payagent.agent.ports import Ports, Signatures, Writes
from payagent.agent.prepaid import Buyer, Part, ServedCall, fitting
from payagent.agent.questions import note_refused
from payagent.agent.rulebook import as_told
from payagent.agent.sending import Sending
from payagent.agent.signing import NOT_SIGNED, Signing
from payagent.agent.terms import MerchantTerms, Terms
from payagent.agent.upkeep import Means, Upkeep
from payagent.chain.source import ChainSource
from payagent.core.address import Address
from payagent.core.invoice import Invoice, Output, Role
from payagent.core.money import LOVELACE, format_amount
from payagent.core.payment import (
    Delivery,
)
from payagent.core.problem import Refused
from payagent.dialects import Reading, Response, Said, read_answer, read_offers
from payagent.store import prepaid as pools
from payagent.store import queries, records
from payagent.store import uses as store_uses
from payagent.store.queries import PaymentRow
from payagent.store.writer import Readers, Unit
from payagent.wallet.coins import Coin, Coins
from payagent.wallet.transaction import Plan, fan_out, select

T = TypeVar("T")

RECEIVED_MAX_CHARS = 4000
"""How much of a 402 that was refused is kept."""

BATCH_LOOK_S = 5.0
"""How often at least it is looked again whether a batch is still under way: its invoice may end unheard."""

KEPT_EVERY_MS = 600_000
"""How often at least the coins are looked at: that it is quiet now is written nowhere."""

log = structlog.get_logger("payagent.agent")


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
        self.desk = Desk(terms, ports, writer, readers, sources)
        self._floods = Floods()
        self.sending = Sending(self.desk)
        self.signing = Signing(self.desk, signer)
        self.carrying = Carrying(self.desk, self.signing, self.sending)
        self._upkeep = Upkeep(self.desk.admission)
        self._line = Line(self.signing.claimed, self.signing.stirred, self.keep_coins)
        self._kept: tuple[object, int] = (None, 0)
        """The version of the ledger at the last look that found nothing to keep, and when that was."""

    async def pay(self, ask: Ask) -> tuple[PaymentRow, bool]:
        """Pay a 402, or find the payment that its intent has; True when it is new.

        Returns once the attempt is durable and before it is sent. Raises `Refused`, with nothing signed.
        """
        now_ms = self.desk.ports.clock.now_ms()
        try:
            merchant = self.desk.terms.merchant(ask.origin)
            offers = self._offers(merchant, ask, now_ms)
        except Refused as refusal:
            if ask.origin in self.desk.terms.merchants and (row := self._paid_already(ask)) is not None:
                return row, False
            await self._note_refusal(ask, refusal, None, now_ms)
            raise
        purchase = self._purchase(ask, offers, now_ms)
        if (known := self._known_already(purchase)) is not None:
            return await self.carrying.once_signed(known), False
        with self.signing.claim(purchase.ids.payment):
            try:
                admitted = await self._admit(purchase)
            except Refused as refusal:
                await self._note_refusal(ask, refusal, purchase, now_ms)
                raise as_told(self.desk.conn, ask.app_id, refusal) from None
            log.info("payment.admit", payment=admitted.payment_id, intent_known=not admitted.is_new)
            if admitted.refusal is not None:
                self._note_on_record(ask.app_id, ask.topup)
                raise admitted.refusal
            carried_out = await self.carrying.carry_out(admitted)
            if admitted.plan is not None:
                self._look_ahead(admitted.plan)
            return carried_out

    def _known_already(self, purchase: Purchase) -> PaymentRow | None:
        """The payment that admission would find, where all that came is in the ledger already: the same intent,
        with the very invoice that one of its payments is for. Nothing is to be decided or recorded then.

        What the signer's own record lacks goes the writer's way, which notes it or says why not.
        """
        (offer, *others), conn = purchase.offers, self.desk.conn
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
        return row if self.desk.as_noted(row).is_noted else None

    async def quote(self, ask: Ask, count: int = 1) -> Quote:
        """What paying would take now, or so many payments like it: nothing is reserved, nothing is written.

        Refused like the payment would be, and as `invoice_paid_already` where there is one.
        """
        now_ms = self.desk.ports.clock.now_ms()
        offers = self._offers(self.desk.terms.merchant(ask.origin), ask, now_ms)
        purchase = self._purchase(ask, offers, now_ms)

        def job(unit: Unit) -> Quote:
            chosen = self.desk.admission.choose(unit, purchase, now_ms)
            self.desk.admission.require_unpaid(unit.conn, chosen)
            invoice = chosen.invoice
            plan = self.desk.admission.planner.plan(
                unit, invoice, invoice.expires_at_ms, self.desk.terms.min_window_s, now_ms
            )
            try:
                self.desk.admission.rulebook.require_within_limits(
                    unit.conn, purchase, plan.spend, invoice.asset, now_ms, count
                )
                reasons = self.desk.admission.rulebook.reasons(unit.conn, purchase, invoice, plan.spend)
                if count > 1:
                    self._require_funds({asset: units * count for asset, units in plan.spend.items()})
            except Refused as refusal:
                return Quote(invoice, plan, refusal)
            return Quote(invoice, plan, None, reasons)

        try:
            quote = await self.desk.write("quote", job)
        except Refused as refusal:
            raise as_told(self.desk.conn, ask.app_id, refusal) from None
        if quote.refusal is None:
            return quote
        return replace(quote, refusal=as_told(self.desk.conn, ask.app_id, quote.refusal))

    async def send(
        self, app_id: str, to: Address, asset: str, units: int, key: str | None = None
    ) -> tuple[PaymentRow, bool]:
        """Send out of the wallet, by the operator's order: no limit applies; durable first, and once per key."""
        role: Role = "change" if to.raw == self.desk.terms.own.raw else "pay_to"
        outputs = (Output(role, to, asset, units),)
        order = self._order(app_id, "send", key, to.text, asset, str(units))
        return await self._transfer(order, partial(self._select, outputs))

    async def sweep(self, app_id: str, to: Address, key: str | None = None) -> tuple[PaymentRow, bool]:
        """Send everything that is free and may leave, as far as one transaction holds it, smallest coins first."""
        order, now_ms = self._order(app_id, "sweep", key, to.text), self.desk.ports.clock.now_ms()
        return await self._order_transfer(
            order, lambda unit: emptying.admit(self.desk.admission, unit, order, to, now_ms)
        )

    def left_behind(self, payment_id: str) -> Mapping[str, object] | None:
        """What a sweep left behind, as `LeftBehind.view` has it; None: nothing."""
        return emptying.told_of(self.desk.conn, payment_id)

    async def split(
        self, app_id: str, count: int, lovelace: int, key: str | None = None
    ) -> tuple[PaymentRow, bool]:
        """Fan out into `count` coins of pure ADA, so that as many payments can be on their way at once."""
        outputs = fan_out(self.desk.terms.own, count, lovelace)
        order = self._order(app_id, "split", key, str(count), str(lovelace))
        return await self._transfer(order, partial(self._select, outputs))

    async def keep_coins(self, waiting: Sequence[int] = ()) -> Look:
        """Split or gather coins by ourselves, where that is worth its fee: for payments that wait, or later ones.

        Refused as `Upkeep.keep` does.
        """
        ids, now_ms = self.desk.new_ids(), self.desk.ports.clock.now_ms()
        means = Means(self.desk.terms.upkeep_lovelace, self.desk.assets_allowed())
        with self.signing.claim(ids.payment):
            kept = await self.desk.write("keep", lambda unit: self._upkeep.keep(unit, ids, means, waiting, now_ms))
            if kept.admitted is not None:
                log.info("coins.kept", payment=kept.admitted.payment_id, waiting=len(waiting))
                await self.carrying.carry_out(kept.admitted)
        return Look(kept.admitted is not None, kept.room)

    async def keep_ready(self) -> None:
        """As `keep_coins`, for later payments: when the ledger has changed since, and now and then."""
        now_ms, version = self.desk.ports.clock.now_ms(), queries.version(self.desk.conn)
        if (
            not self.desk.terms.upkeep_lovelace
            or self._line
            or self.desk.is_paused
            or not self.desk.chain.is_ready(now_ms)
        ):
            return
        if version != self._kept[0] or not self._kept[1] <= now_ms < self._kept[1] + KEPT_EVERY_MS:
            look = await self.keep_coins()
            self._kept = (None if look.is_split else version, now_ms)

    async def record_delivery(self, payment_id: str, http_status: int) -> PaymentRow:
        """Note what the retry got. A derived intent ends when its call was served."""
        now_ms = self.desk.ports.clock.now_ms()
        rules = self.desk.terms.rules
        await self.desk.write(
            "delivery",
            lambda unit: steps.record_delivery(unit, payment_id, http_status, rules, now_ms),
            payment_id,
        )
        return self.desk.payment(payment_id)

    async def record_unanswered(self, payment_id: str, why: str) -> None:
        """A proof was shown to the merchant, and no answer came to it."""
        if self.desk.payment(payment_id).delivery is not Delivery.NOT_PRESENTED:
            return
        now_ms, rules = self.desk.ports.clock.now_ms(), self.desk.terms.rules
        await self.desk.write(
            "delivery",
            lambda unit: steps.record_unanswered(unit, payment_id, why, rules, now_ms),
            payment_id,
        )

    async def record_used_up(self, payment_id: str) -> PaymentRow:
        """The merchant says that the proof is used up, which was shown by nobody but us: it took it."""
        now_ms = self.desk.ports.clock.now_ms()
        rules = self.desk.terms.rules
        await self.desk.write(
            "delivery", lambda unit: steps.record_used_up(unit, payment_id, rules, now_ms), payment_id
        )
        return self.desk.payment(payment_id)

    async def take_answer(self, payment_id: str, response: Response) -> tuple[PaymentRow, Advice]:
        """Read what the merchant answered to a retry, note it, and say whether the same proof is shown again.

        That a call was served is only noted: it counts once its answer is in the client's hands, which
        `record_delivery` tells. A transaction that was handed over and refused is cancelled.
        """
        row = self.desk.payment(payment_id)
        answer = read_answer(
            row.dialect or "", response, invoice_id=row.invoice_id or "", shown_tx=row.tx_id or ""
        )
        now_ms, rules = self.desk.ports.clock.now_ms(), self.desk.terms.rules
        again_after_s = await self.desk.write(
            "delivery",
            lambda unit: steps.record_answer_to_retry(unit, payment_id, answer, response.status, rules, now_ms),
            payment_id,
        )
        row = self.desk.payment(payment_id)
        if row.handed_over and answer.said is Said.REFUSED:
            try:
                await self.carrying.cancel(row)
            except Refused as refusal:
                log.info("payment.not_cancelled_yet", payment=payment_id, why=refusal.detail)
            row = self.desk.payment(payment_id)
        return row, Advice(answer, again_after_s)

    async def let_through(self, call: ServedCall, *, is_costly: bool = False) -> int | None:
        """Before a call goes out that a prepaid balance may serve: what it would use counts against its app's own
        limits. Its number, for `record_call` or `give_back`; None where nothing counts beforehand.

        `is_costly`: the merchant showed that it costs something, and not how much.
        """
        if not uses.is_bound(self.desk.conn, call) or not (is_costly or prepaid.is_counted(self.desk.conn, call)):
            return None
        now_ms = self.desk.ports.clock.now_ms()

        def job(unit: Unit) -> int | None:
            return uses.let_through(
                unit, call, self.desk.terms.limits, self.desk.limits_clock_ms(unit.conn, now_ms), now_ms
            )

        try:
            return await self.desk.write("let_through", job)
        except Refused as refused:
            told = {"code": refused.code, "detail": refused.detail, "app": call.app_id, "origin": call.origin}
            told["request"] = f"{call.method} {call.path}"[:500]
            if self._is_on_record(call.app_id):
                self._note_on_record(call.app_id)
                await self.desk.write(
                    "refuse", lambda unit: records.note(unit, None, "refused", None, now_ms, told)
                )
            raise

    def is_price_wanted(self, call: ServedCall) -> bool:
        """Whether a balance may serve the call, its app has limits of its own, and nobody knows if it costs."""
        return uses.is_bound(self.desk.conn, call) and not prepaid.is_counted(self.desk.conn, call)

    async def learn_price(self, call: ServedCall, ask: Ask) -> None:
        """A call has answered 402: note what was asked for it, where that is understood."""
        now_ms = self.desk.ports.clock.now_ms()
        try:
            offer = self._offers(self.desk.terms.merchant(ask.origin), ask, now_ms)[0]
        except Refused:
            return
        price = (call.origin, call.method, call.path, offer.asset, offer.total_units)
        await self.desk.write("price", lambda unit: pools.note_price(unit, *price))

    async def give_back(self, use: int | None) -> None:
        """A call that was let through used nothing."""
        if use is not None:
            await self.desk.write("give_back", lambda unit: store_uses.take_back(unit, use))

    async def record_call(self, call: ServedCall, use: int | None = None) -> None:
        """A call was served without a payment of its own: what it uses of a prepaid balance, if it uses any."""
        if prepaid.is_counted(self.desk.conn, call):
            now_ms = self.desk.ports.clock.now_ms()

            def job(unit: Unit) -> None:
                prepaid.used(unit, call, self.desk.limits_clock_ms(unit.conn, now_ms), now_ms, use)

            await self.desk.write("use", job)

    async def wait_for_batch(self, origin: str, buyer: Buyer, timeout_s: float) -> None:
        """Return when no payment for the buyer's prepaid balance is under way, or time is up."""
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while (left_s := deadline_s - asyncio.get_running_loop().time()) > 0:
            pool = pools.find_pool(self.desk.conn, origin, buyer.partner, buyer.wallet)
            now_ms = self.desk.ports.clock.now_ms()
            other = None if pool is None else pools.batch_under_way(self.desk.conn, pool.id, now_ms)
            if other is None:
                return
            await self.desk.changes.wait(other, min(left_s, BATCH_LOOK_S))

    async def approve(self, payment_id: str, by: Approver) -> PaymentRow:
        """Let a payment go on that awaits a decision: it is held, signed and sent as any other.

        What is to be handed over is signed when it is asked for again. Refused as `Questions.approve` does.
        """
        now_ms, window_s = self.desk.ports.clock.now_ms(), self.desk.terms.min_window_s
        with self.signing.claim(payment_id):
            decided = await self._decide(
                "approve",
                lambda unit: self.desk.admission.questions.approve(unit, payment_id, by, window_s, now_ms),
                payment_id,
                by,
            )
            if decided.plan is None:
                raise decided.refusal or Refused("already_decided", f"{payment_id} is decided")
            if not self.desk.payment(payment_id).handed_over:
                try:
                    await self.signing.sign(payment_id, decided.plan)
                    self.sending.send_off(payment_id)
                except Refused as refused:  # it is approved and held: the next look signs it
                    log.warning("payment.not_signed_yet", payment=payment_id, code=refused.code)
                    if refused.code in NOT_SIGNED:
                        self.desk.refusals[refused.code] += 1
        return self.desk.payment(payment_id)

    async def deny(self, payment_id: str, by: Approver) -> PaymentRow:
        """End a payment that awaits a decision. Refused as `Questions.deny` does."""
        now_ms = self.desk.ports.clock.now_ms()
        await self._decide(
            "deny", lambda unit: self.desk.admission.questions.deny(unit, payment_id, by, now_ms), payment_id, by
        )
        return self.desk.payment(payment_id)

    async def _decide(self, name: str, job: Callable[[Unit], T], payment_id: str, by: Approver) -> T:
        """Have a person's decision made. One that is refused leaves the question as it was, and is told in it."""
        try:
            return await self.desk.write(name, job, payment_id)
        except Refused as refusal:
            now_ms, why = self.desk.ports.clock.now_ms(), refusal
            await self.desk.write("refuse", lambda unit: note_refused(unit, payment_id, by, why, now_ms))
            raise

    async def deny_what_is_over(self) -> None:
        """End the payments on which nobody decided in time."""
        now_ms, window_s = self.desk.ports.clock.now_ms(), self.desk.terms.min_window_s
        questions = self.desk.admission.questions
        for payment_id in questions.over(self.desk.conn, window_s, now_ms):
            job = partial(questions.deny_when_over, payment_id=payment_id, min_window_s=window_s, now_ms=now_ms)
            decided = await self.desk.write("deny", job, payment_id)
            if decided is not None and decided.refusal is not None:
                self.desk.refusals[decided.refusal.code] += 1

    def _order(self, app_id: str, kind: str, key: str | None, *what: str) -> TransferOrder:
        ids = self.desk.new_ids()
        return TransferOrder(
            ids=ids,
            app_id=app_id,
            key=f"order:{ids.intent}" if key is None else f"key:{key}",
            derived=key is None,
            fingerprint=digest([kind, *what]),
            kind=kind,
        )

    async def _transfer(self, order: TransferOrder, plan: TransferPlan) -> tuple[PaymentRow, bool]:
        now_ms = self.desk.ports.clock.now_ms()
        return await self._order_transfer(
            order, lambda unit: self.desk.admission.admit_transfer(unit, order, plan, now_ms)
        )

    async def _order_transfer(
        self, order: TransferOrder, admit: Callable[[Unit], Admitted]
    ) -> tuple[PaymentRow, bool]:
        with self.signing.claim(order.ids.payment):
            return await self.carrying.carry_out(await self.desk.write("admit", admit))

    async def _admit(self, purchase: Purchase) -> Admitted:
        """As `Admission.admit`; where all coins are in use, in line with the others, while change can be had."""

        async def admit(can_wait: bool) -> Admitted:
            now_ms = self.desk.ports.clock.now_ms()
            job = partial(
                self.desk.admission.admit,
                purchase=purchase,
                now_ms=now_ms,
                can_wait=can_wait,
                on_record=self._is_on_record(purchase.app_id, purchase.topup),
            )
            return await self.desk.write("admit", job)

        is_kept = self.desk.terms.upkeep_lovelace > 0 and self.desk.terms.chain_depth > 0
        if not is_kept or any(one.asset != LOVELACE or one.handed_over for one in purchase.offers):
            return await admit(False)
        return await self._line.admit(
            purchase.ids.payment,
            purchase.invoice.total_units,
            admit,
            partial(self._wants_coins, purchase),
            is_turn=self._line.is_free(len(self.desk.coins)),
        )

    def _wants_coins(self, purchase: Purchase) -> bool:
        """Whether it needs a coin of its own, so that it may stand in line. What needs none is decided at once.

        For those in line a coin may be split, and that costs a fee which no limit of an app bounds.
        """
        intent = queries.live_intent(self.desk.conn, purchase.app_id, purchase.key)
        if intent is not None and queries.live_payment_of(self.desk.conn, intent.id) is not None:
            return False
        return self.desk.admission.wants_coins(self.desk.conn, purchase, self.desk.ports.clock.now_ms())

    def _look_ahead(self, plan: Plan) -> None:
        """When half of the depth is used up to which change is spent: later there is no coin that can be split."""
        depth, most = self.desk.admission.planner.depth_of(plan.tx_id), self.desk.terms.chain_depth
        if self.desk.terms.upkeep_lovelace and 0 < depth >= most - most // 2:
            self._line.nudge()

    def _select(self, outputs: Sequence[Output], coins: Coins, ttl_slot: int, anchor: Coin | None) -> Plan:
        return select(
            coins,
            outputs,
            change=self.desk.terms.own,
            ttl_slot=ttl_slot,
            network_id=self.desk.terms.network.network_id,
            anchor=anchor,
        )

    def _offers(self, merchant: MerchantTerms, ask: Ask, now_ms: int) -> tuple[Invoice, ...]:
        return fitting(read_offers(ask.response, self._reading(merchant, ask, now_ms)), ask.topup)

    def _require_funds(self, spend: Mapping[str, int]) -> None:
        """Whether all that is free suffices; on the writer's thread."""
        for asset, units in spend.items():
            free = self.desk.coins.totals.get(asset, 0)
            if units > free:
                have, need = format_amount(asset, free), format_amount(asset, units)
                raise Refused("not_enough_funds", f"{have} are free, {need} are needed")

    def _reading(self, merchant: MerchantTerms, ask: Ask, now_ms: int) -> Reading:
        return Reading(
            origin=merchant.origin,
            call=None if ask.request is None else ask.request.call(merchant.origin),
            salt=bytes.fromhex(self.desk.ports.randomness.token_hex(32)) if merchant.request_commitment else None,
            proof=merchant.proof,
            known_as=merchant.known_as,
            assets=self.desk.assets_allowed(),
            network=self.desk.terms.network,
            split_mode=merchant.split_mode,
            received_at_ms=now_ms,
            decimals=self.desk.terms.decimals,
            own=self.desk.terms.own,
        )

    def _purchase(self, ask: Ask, offers: tuple[Invoice, ...], now_ms: int) -> Purchase:
        request = ask.request
        return Purchase(
            ids=self.desk.new_ids(),
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
            min_window_s=self.desk.terms.min_window_s,
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

        await self.desk.write("refuse", job)

    def _is_on_record(self, app_id: str, topup: Part | None = None) -> bool:
        """Whether a refusal of the app goes on record; all that a top-up is refused do, which end it."""
        return topup is not None or self._floods.has_room(app_id, asyncio.get_running_loop().time())

    def _note_on_record(self, app_id: str, topup: Part | None = None) -> None:
        if topup is None:
            self._floods.note(app_id, asyncio.get_running_loop().time())

    def _buyer(self, ask: Ask) -> Buyer:
        """Whose prepaid balance it is: as the call's headers say, else as configured."""
        said = ask.request.headers if ask.request is not None else {}
        partner = self.desk.terms.merchant(ask.origin).partner or ""
        return Buyer(said.get("x-partner", partner), said.get("x-wallet-address", self.desk.terms.own.text))

    def _paid_already(self, ask: Ask) -> PaymentRow | None:
        """The live payment of an intent that comes again, with a 402 that is over or only says "pending"."""
        key = ask.key(None)
        intent = None if key is None else queries.live_intent(self.desk.conn, ask.app_id, key)
        if intent is None:
            return None
        require_same(intent, ask.fingerprint)
        row = queries.live_payment_of(self.desk.conn, intent.id)
        return None if row is None else self.desk.require_noted(row)
