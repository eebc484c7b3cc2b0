"""`Agent` builds the parts of the agent from one context, pays a 402 and quotes its cost.

`Agent.pay` admits (C1 + C2), then signs (C3), and only then returns headers and submits (C4). After a crash
`PaymentLifecycle.resume` continues the same path.

May import: core, chain.provider, store, the rest of agent. Never: HTTP, SQL, a clock of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import structlog

from payagent.agent.base.config import AgentConfig
from payagent.agent.base.ports import Ports, Signatures, Writes
from payagent.agent.base.requests import PaymentIntent, PaymentQuote, PaymentRequest
from payagent.agent.commits.admission import require_same
from payagent.agent.commits.rules import as_told
from payagent.agent.context import AgentContext
from payagent.agent.payments.decisions import Decisions
from payagent.agent.payments.deliveries import Deliveries
from payagent.agent.payments.intake import Intake
from payagent.agent.payments.lifecycle import PaymentLifecycle
from payagent.agent.payments.prepaid_calls import PrepaidCalls
from payagent.agent.payments.sign import PaymentSigner
from payagent.agent.payments.submit import TxSubmitter
from payagent.agent.utxos.pool import UtxoPool
from payagent.agent.utxos.transfers import Transfers
from payagent.chain.provider import PacedProvider
from payagent.core.money import format_amount
from payagent.core.problems import Refused
from payagent.store.db.readers import Readers
from payagent.store.db.unit import Unit
from payagent.store.rows import intents, payments
from payagent.store.rows.payments import PaymentRow

log = structlog.get_logger("payagent.agent")


class Agent:
    """The agent and its parts. Call all of them from one event loop."""

    def __init__(
        self,
        terms: AgentConfig,
        ports: Ports,
        writer: Writes,
        readers: Readers,
        sources: Sequence[PacedProvider],
        signer: Signatures,
    ) -> None:
        self.context = context = AgentContext(terms, ports, writer, readers, sources)
        self.sending = TxSubmitter(context)
        self.signing = PaymentSigner(context, signer)
        self.carrying = PaymentLifecycle(context, self.signing, self.sending)
        self._reception = Intake(context)
        self.stock = UtxoPool(context, self.signing, self.carrying, self._reception)
        self.transfers = Transfers(context, self.signing, self.carrying)
        self.decisions = Decisions(context, self.signing, self.sending)
        self.deliveries = Deliveries(context, self.carrying)
        self.prepaid_calls = PrepaidCalls(context, self._reception)

    async def pay(self, ask: PaymentRequest) -> tuple[PaymentRow, bool]:
        """Pay a 402, or find the payment of its intent. The bool is True for a new payment.

        Returns once the attempt is durable, before it is submitted. If it raises `Refused`, nothing was signed.
        """
        now_ms = self.context.ports.clock.now_ms()
        try:
            merchant = self.context.terms.merchant(ask.origin)
            offers = self._reception.offers(merchant, ask, now_ms)
        except Refused as refusal:
            if ask.origin in self.context.terms.merchants and (row := self._paid_already(ask)) is not None:
                return row, False
            await self._reception.note_refusal(ask, refusal, None, now_ms)
            raise
        purchase = self._reception.purchase(ask, offers, now_ms)
        if (known := self._known_already(purchase)) is not None:
            return await self.carrying.once_signed(known), False
        with self.signing.claim(purchase.ids.payment):
            try:
                admitted = await self.stock.admit(purchase)
            except Refused as refusal:
                await self._reception.note_refusal(ask, refusal, purchase, now_ms)
                raise as_told(self.context.conn, ask.app_id, refusal) from None
            log.info("payment.admit", payment=admitted.payment_id, intent_known=not admitted.is_new)
            if admitted.refusal is not None:
                self._reception.note_on_record(ask.app_id, ask.topup)
                raise admitted.refusal
            carried_out = await self.carrying.carry_out(admitted)
            if admitted.plan is not None:
                self.stock.look_ahead(admitted.plan)
            return carried_out

    def _known_already(self, purchase: PaymentIntent) -> PaymentRow | None:
        """The payment that admission would find, if nothing is left to decide or record.

        That is so if the intent is the same and one of its payments is for this very invoice. An attempt that is
        missing from the signer's record returns None: the writer then records it, or says why not.
        """
        (offer, *others), conn = purchase.offers, self.context.conn
        intent = None if others else intents.live_intent(conn, purchase.app_id, purchase.key)
        row = None if intent is None else payments.live_payment_of(conn, intent.id)
        if intent is None or row is None or intent.fingerprint != purchase.fingerprint:
            return None
        told = (offer.origin, offer.invoice_id, offer.terms_hash)
        if told != (row.invoice.origin, row.invoice.id, row.invoice.terms_hash):
            known = intents.invoice(conn, offer.origin, offer.invoice_id)
            if known is None or known.terms_hash != offer.terms_hash:
                return None
            if payments.payment_of_invoice(conn, known.seq) is None:
                return None
        return row if self.context.as_noted(row).is_noted else None

    async def quote(self, ask: PaymentRequest, count: int = 1) -> PaymentQuote:
        """The cost of `count` such payments now. Reserves and writes nothing.

        Raises what `pay` would raise, and `invoice_already_paid` if a payment exists. A limit or a merchant rule
        comes back as the quote's `refusal`. A top-up waits for pending change, so its quote counts that change.
        """
        now_ms = self.context.ports.clock.now_ms()
        offers = self._reception.offers(self.context.terms.merchant(ask.origin), ask, now_ms)
        purchase = self._reception.purchase(ask, offers, now_ms)

        def job(unit: Unit) -> PaymentQuote:
            chosen = self.context.admission.choose(unit, purchase, now_ms)
            self.context.admission.require_open(unit, chosen, now_ms)
            invoice = chosen.invoice
            try:
                plan = self.context.admission.planner.plan(
                    unit,
                    invoice,
                    invoice.expires_at_ms,
                    self.context.terms.min_window_s,
                    now_ms,
                    waits=ask.topup is not None,
                )
            except Refused:
                self.context.admission.holding.require_before_fee(unit, chosen, now_ms, count)
                raise
            try:
                self.context.admission.rulebook.require_within_limits(
                    unit.conn, purchase, plan.spend, invoice.asset, now_ms, count
                )
                reasons = self.context.admission.rulebook.reasons(unit.conn, purchase, invoice, plan.spend)
                if count > 1:
                    spend = {asset: units * count for asset, units in plan.spend.items()}
                    self._require_funds(spend, self.context.admission.planner.totals_with_change(unit, now_ms))
            except Refused as refusal:
                return PaymentQuote(invoice, plan, refusal)
            return PaymentQuote(invoice, plan, None, reasons)

        try:
            quote = await self.context.write("quote", job)
        except Refused as refusal:
            raise as_told(self.context.conn, ask.app_id, refusal) from None
        if quote.refusal is None:
            return quote
        return replace(quote, refusal=as_told(self.context.conn, ask.app_id, quote.refusal))

    def _require_funds(self, spend: Mapping[str, int], totals: Mapping[str, int]) -> None:
        for asset, units in spend.items():
            free = totals.get(asset, 0)
            if units > free:
                have, need = format_amount(asset, free), format_amount(asset, units)
                raise Refused("not_enough_funds", f"{have} are available or pending, {need} are needed")

    def _paid_already(self, ask: PaymentRequest) -> PaymentRow | None:
        """The live payment of a repeated intent whose 402 has expired or only says "pending"."""
        key = ask.key(None)
        intent = None if key is None else intents.live_intent(self.context.conn, ask.app_id, key)
        if intent is None:
            return None
        require_same(intent, ask.fingerprint)
        row = payments.live_payment_of(self.context.conn, intent.id)
        return None if row is None else self.context.require_noted(row)
