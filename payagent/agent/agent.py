"""The agent's doors: pay, quote, transfer, deliver; and how a payment is carried one step on.

Call order that everything relies on: `pay` admits (C1 + C2), then signs (C3), and only then hands out headers
or sends (C4). `resume` is the same path from wherever a crash left it.

May import: core, dialects, chain.source, chain.guard, store, wallet, the rest of agent. Never: HTTP, SQL, a clock
of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import structlog

from payagent.agent import emptying
from payagent.agent.admission import require_same
from payagent.agent.asks import Ask, Quote, digest
from payagent.agent.carrying import Carrying
from payagent.agent.decisions import Decisions
from payagent.agent.deliveries import Deliveries
from payagent.agent.desk import Desk
from payagent.agent.line import Line, Look
from payagent.agent.orders import Admitted, Purchase, TransferOrder
from payagent.agent.planner import TransferPlan
from payagent.agent.ports import Ports, Signatures, Writes
from payagent.agent.prepaid_calls import PrepaidCalls
from payagent.agent.reception import Reception
from payagent.agent.rulebook import as_told
from payagent.agent.sending import Sending
from payagent.agent.signing import Signing
from payagent.agent.terms import Terms
from payagent.agent.upkeep import Means, Upkeep
from payagent.chain.source import ChainSource
from payagent.core.address import Address
from payagent.core.invoice import Output, Role
from payagent.core.money import LOVELACE, format_amount
from payagent.core.problem import Refused
from payagent.store import queries
from payagent.store.queries import PaymentRow
from payagent.store.writer import Readers, Unit
from payagent.wallet.coins import Coin, Coins
from payagent.wallet.transaction import Plan, fan_out, select

T = TypeVar("T")

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
        self.sending = Sending(self.desk)
        self.signing = Signing(self.desk, signer)
        self.carrying = Carrying(self.desk, self.signing, self.sending)
        self.decisions = Decisions(self.desk, self.signing, self.sending)
        self.deliveries = Deliveries(self.desk, self.carrying)
        self._reception = Reception(self.desk)
        self.prepaid_calls = PrepaidCalls(self.desk, self._reception)
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
            offers = self._reception.offers(merchant, ask, now_ms)
        except Refused as refusal:
            if ask.origin in self.desk.terms.merchants and (row := self._paid_already(ask)) is not None:
                return row, False
            await self._reception.note_refusal(ask, refusal, None, now_ms)
            raise
        purchase = self._reception.purchase(ask, offers, now_ms)
        if (known := self._known_already(purchase)) is not None:
            return await self.carrying.once_signed(known), False
        with self.signing.claim(purchase.ids.payment):
            try:
                admitted = await self._admit(purchase)
            except Refused as refusal:
                await self._reception.note_refusal(ask, refusal, purchase, now_ms)
                raise as_told(self.desk.conn, ask.app_id, refusal) from None
            log.info("payment.admit", payment=admitted.payment_id, intent_known=not admitted.is_new)
            if admitted.refusal is not None:
                self._reception.note_on_record(ask.app_id, ask.topup)
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
        offers = self._reception.offers(self.desk.terms.merchant(ask.origin), ask, now_ms)
        purchase = self._reception.purchase(ask, offers, now_ms)

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
                on_record=self._reception.is_on_record(purchase.app_id, purchase.topup),
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

    def _require_funds(self, spend: Mapping[str, int]) -> None:
        """Whether all that is free suffices; on the writer's thread."""
        for asset, units in spend.items():
            free = self.desk.coins.totals.get(asset, 0)
            if units > free:
                have, need = format_amount(asset, free), format_amount(asset, units)
                raise Refused("not_enough_funds", f"{have} are free, {need} are needed")

    def _paid_already(self, ask: Ask) -> PaymentRow | None:
        """The live payment of an intent that comes again, with a 402 that is over or only says "pending"."""
        key = ask.key(None)
        intent = None if key is None else queries.live_intent(self.desk.conn, ask.app_id, key)
        if intent is None:
            return None
        require_same(intent, ask.fingerprint)
        row = queries.live_payment_of(self.desk.conn, intent.id)
        return None if row is None else self.desk.require_noted(row)
