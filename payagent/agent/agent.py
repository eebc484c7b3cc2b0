"""`Agent` builds the parts of the agent from one context, pays a 402 and quotes its cost.

`Agent.pay` admits (C1 + C2), then signs (C3), and only then returns headers and submits (C4). After a crash
`PaymentLifecycle.resume` continues the same path.

Never: HTTP, SQL, a clock of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from payagent.agent.base.config import AgentConfig
from payagent.agent.base.log import log
from payagent.agent.base.ports import Ports, Signatures, Writes
from payagent.agent.base.requests import AfterAdmission, PaymentIntent, PaymentQuote, PaymentRequest
from payagent.agent.commits.rules import visible_to_app
from payagent.agent.context import AgentContext
from payagent.agent.pay.lookup import LookupReason, find_payment
from payagent.agent.pay.offers import choose_offer
from payagent.agent.payments.decisions import Decisions
from payagent.agent.payments.deliveries import Deliveries
from payagent.agent.payments.intake import Intake
from payagent.agent.payments.lifecycle import PaymentLifecycle
from payagent.agent.payments.prepaid_calls import PrepaidCalls
from payagent.agent.payments.sign import PaymentSigner
from payagent.agent.payments.submit import TxSubmitter
from payagent.agent.utxos.pool import UtxoPool
from payagent.agent.utxos.transfers import Transfers
from payagent.chain.provider import ChainProvider
from payagent.core.aggregate import PaymentRow
from payagent.core.money import format_amount
from payagent.core.problems import Refused
from payagent.store.db.readers import Readers
from payagent.store.db.unit import Unit

if TYPE_CHECKING:
    from payagent.agent.channels.parts import ChannelParts


class Agent:
    """The agent and its parts. Call all of them from one event loop."""

    def __init__(
        self,
        config: AgentConfig,
        ports: Ports,
        writer: Writes,
        readers: Readers,
        providers: Sequence[ChainProvider],
        signer: Signatures,
        front: AgentContext | None = None,
    ) -> None:
        self.context = context = AgentContext(config, ports, writer, readers, providers, front)
        self.submitter = TxSubmitter(context)
        self.signing = PaymentSigner(context, signer)
        self.lifecycle = PaymentLifecycle(context, self.signing, self.submitter)
        self.intake = Intake(context)
        self.utxo_pool = UtxoPool(context, self.signing, self.lifecycle, self.intake)
        self.transfers = Transfers(context, self.signing, self.lifecycle)
        self.decisions = Decisions(context, self.signing, self.submitter)
        self.deliveries = Deliveries(context, self.lifecycle)
        self.prepaid_calls = PrepaidCalls(context, self.intake)
        self.channels: ChannelParts | None = None
        """None where channels are off: then no module of theirs is imported."""
        if config.channels is not None:
            from payagent.agent.channels import parts

            self.channels = parts.ChannelParts(context, self.signing, self.lifecycle, signer, self.intake)

    async def pay(
        self, payment_request: PaymentRequest, then: AfterAdmission | None = None
    ) -> tuple[PaymentRow, bool]:
        """Pay a 402, or find the payment of its intent. The bool is True for a new payment.

        Returns once the attempt is durable, before it is submitted. If it raises `Refused`, nothing was signed.
        `then` writes more into the commit that admits it.
        """
        now_ms = self.context.ports.clock.now_ms()
        try:
            if (
                self.channels is not None
                # another daemon, which asks with `then`, has no voucher of this one to show
                and (called := await self.channels.calls.pay(payment_request, then is None)) is not None
            ):
                return called
            merchant = self.context.config.merchant(payment_request.origin)
            offers = self.intake.offers(merchant, payment_request, now_ms)
        except Refused as refusal:
            if (
                payment_request.origin in self.context.config.merchants
                and (row := self._paid_by_key(payment_request)) is not None
            ):
                return row, False
            await self.intake.note_refusal(payment_request, refusal, None, now_ms)
            raise visible_to_app(self.context.conn, payment_request.app_id, refusal) from None
        intent = self.intake.intent(payment_request, offers, now_ms)
        if (existing := self._repeated(intent)) is not None:
            return await self.lifecycle.once_signed(existing), False
        with self.signing.claim(intent.ids.payment):
            try:
                admitted = await self.utxo_pool.enqueue(intent, then)
            except Refused as refusal:
                await self.intake.note_refusal(payment_request, refusal, intent, now_ms)
                raise visible_to_app(self.context.conn, payment_request.app_id, refusal) from None
            log.info("payment.admit", payment=admitted.payment_id, intent_known=not admitted.is_new)
            if admitted.refusal is not None:
                self.intake.note_on_record(payment_request.app_id, payment_request.topup)
                app_id, config = payment_request.app_id, self.context.config
                self.context.metrics.refuse(config, app_id, payment_request.origin, admitted.refusal)
                raise admitted.refusal
            carried_out = await self.lifecycle.carry_out(admitted)
            if admitted.plan is not None:
                self.utxo_pool.look_ahead(admitted.plan)
            return carried_out

    def deliveries_of(self, payment_id: str) -> Deliveries:
        """What records the deliveries of a payment, or of a call that a channel pays."""
        if self.channels is not None and self.context.call(payment_id) is not None:
            return self.channels.calls
        return self.deliveries

    def existing(self, payment_request: PaymentRequest) -> PaymentRow | None:
        """The payment that `pay` would find without a commit. Refused: as `pay`."""
        now_ms = self.context.ports.clock.now_ms()
        merchant = self.context.config.merchant(payment_request.origin)
        try:
            offers = self.intake.offers(merchant, payment_request, now_ms)
        except Refused:
            return self._paid_by_key(payment_request)
        return self._repeated(self.intake.intent(payment_request, offers, now_ms))

    def _repeated(self, intent: PaymentIntent) -> PaymentRow | None:
        """The payment that admission would find, if nothing is left to decide or record.

        None if the attempt is missing from the signer's record: the writer then records it, or says why not.
        """
        (offer, *others), conn = intent.offers, self.context.conn
        if others or not offer.has_own_id:  # admission chooses, or notes the price
            return None
        found = find_payment(conn, intent.app_id, intent.key, intent.fingerprint, offer)
        row = found.payment if found.reason is LookupReason.REPEATED else None
        return None if row is None or not self.context.as_noted(row).is_noted else row

    async def quote(self, payment_request: PaymentRequest, count: int = 1) -> PaymentQuote:
        """The cost of `count` such payments now. Reserves and writes nothing.

        Raises what `pay` would raise, and `invoice_already_paid` if a payment exists. A limit or a merchant rule
        comes back as the quote's `refusal`. A top-up waits for pending change, so its quote counts that change.
        """
        if self.channels is not None and (quote := self.channels.calls.quote(payment_request)) is not None:
            return quote
        now_ms = self.context.ports.clock.now_ms()
        offers = self.intake.offers(self.context.config.merchant(payment_request.origin), payment_request, now_ms)
        intent = self.intake.intent(payment_request, offers, now_ms)

        def job(unit: Unit) -> PaymentQuote:
            chosen = choose_offer(self.context.admission.reservation, unit, intent, now_ms)
            self.context.admission.require_open(unit, chosen, now_ms)
            invoice = chosen.invoice
            try:
                plan = self.context.admission.planner.plan(
                    unit,
                    invoice,
                    invoice.expires_at_ms,
                    self.context.config.min_window_s,
                    now_ms,
                    with_pending=payment_request.topup is not None,
                )
            except Refused:
                self.context.admission.reservation.require_before_fee(unit, chosen, now_ms, count)
                raise
            try:
                self.context.admission.rules.require_within_limits(
                    unit.conn, intent, plan.spend, invoice.asset, now_ms, count
                )
                reasons = self.context.admission.rules.reasons(unit.conn, intent, invoice, plan.spend)
                if count > 1:
                    spend = {asset: units * count for asset, units in plan.spend.items()}
                    self._require_funds(spend, self.context.admission.planner.totals_with_change(unit, now_ms))
            except Refused as refusal:
                return PaymentQuote(invoice, plan, refusal)
            return PaymentQuote(invoice, plan, None, reasons)

        try:
            quote = await self.context.write("quote", job)
        except Refused as refusal:
            raise visible_to_app(self.context.conn, payment_request.app_id, refusal) from None
        if quote.refusal is None:
            return quote
        return replace(quote, refusal=visible_to_app(self.context.conn, payment_request.app_id, quote.refusal))

    def _require_funds(self, spend: Mapping[str, int], totals: Mapping[str, int]) -> None:
        for asset, units in spend.items():
            available = totals.get(asset, 0)
            if units > available:
                have, need = format_amount(asset, available), format_amount(asset, units)
                raise Refused("not_enough_funds", f"{have} are available or pending, {need} are needed")

    def _paid_by_key(self, payment_request: PaymentRequest) -> PaymentRow | None:
        """The live payment of a repeated intent, for a 402 that has expired or only says "pending"."""
        app_id, key = payment_request.app_id, payment_request.key(None)
        found = find_payment(self.context.conn, app_id, key, payment_request.fingerprint)
        found.require_no_conflict()
        return None if found.payment is None else self.context.require_noted(found.payment)
