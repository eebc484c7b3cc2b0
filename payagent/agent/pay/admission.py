"""C1 + C2: the one commit that admits a payment, on the writer's thread. Start at `Admission.admit`.

It writes intent, invoice, decision, hold, nonce UTxO and reserved UTxOs together, so no other request can change
the facts behind the decision. A refusal by a limit or for lack of funds is recorded too, as a payment in
state `rejected`.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass

from payagent.agent.base import merchant_trust
from payagent.agent.base.chain_view import SKEW_MAX_S, ChainView
from payagent.agent.base.config import AgentConfig
from payagent.agent.base.prepaid import require_may_buy
from payagent.agent.base.requests import AdmittedPayment, Intent, PaymentIntent, TransferRequest
from payagent.agent.commits.approvals import ApprovalRules, with_fee_room
from payagent.agent.commits.replacement import Replacement, earlier
from payagent.agent.commits.reservation import Reservation, nonce_utxo_of, note_price
from payagent.agent.commits.rules import PaymentRules, visible_to_app
from payagent.agent.commits.tx_planner import Planner, TransferPlan
from payagent.agent.pay.lookup import IntentPayment, LookupReason, find_payment
from payagent.agent.pay.offers import choose_offer
from payagent.core.aggregate import LoadedPayment, OutputRow
from payagent.core.invoice import is_batch
from payagent.core.money import LOVELACE, check_supply
from payagent.core.payment.apply import apply
from payagent.core.payment.events import Reject, ReserveFunds
from payagent.core.payment.machine import State
from payagent.core.prepaid_balance import CALLS, Cost
from payagent.core.problems import Refused
from payagent.store import executor
from payagent.store.db.unit import Unit
from payagent.store.executor import write
from payagent.store.load import load_row
from payagent.store.rows import apps, events, pauses, payments, prepaid, topups, writes
from payagent.store.rows.events import PURPOSE
from payagent.wallet.transaction import TxPlan
from payagent.wallet.utxo_index import UtxoIndex


@dataclass(frozen=True, slots=True)
class Admission:
    """Admits payments and transfers: finds the one of the key, or opens a new one."""

    rules: PaymentRules
    planner: Planner
    reservation: Reservation
    approval_rules: ApprovalRules
    replacement: Replacement

    @classmethod
    def by(cls, config: AgentConfig, utxos: UtxoIndex, chain: ChainView) -> "Admission":
        rules = PaymentRules(config, chain)
        ancestors_max, chain_ttl_s = config.unconfirmed_ancestors_max, config.min_window_s
        planner = Planner(utxos, chain, config.own, ancestors_max, chain_ttl_s, config.account)
        reservation = Reservation(rules, planner)
        replacement = Replacement(rules, chain, utxos, config.own)
        return cls(rules, planner, reservation, ApprovalRules(reservation), replacement)

    def take(self, config: AgentConfig) -> None:
        """Replace the config. Call it in a job, so that each decision uses one config."""
        self.rules.config = config

    def admit(
        self, unit: Unit, intent: PaymentIntent, now_ms: int, *, can_wait: bool = False, on_record: bool = True
    ) -> AdmittedPayment:
        """Find the intent's payment, or open it. An intent has one payment, whatever invoices come.

        A refusal is stored as a rejected payment. It is raised, not stored, if `on_record` is false; for
        `chain_not_ready` and `merchant_in_flight_limit`; and for `funds_pending` if the caller `can_wait`.
        """
        intent = choose_offer(self.reservation, unit, intent, now_ms)
        invoice = intent.invoice
        if intent.is_heard:
            note_price(unit, intent)
        found = find_payment(unit.conn, intent.app_id, intent.key, intent.fingerprint, invoice)
        found.require_no_conflict()
        if found.reason is LookupReason.LIVE:
            self._take_invoice(unit, found, intent, now_ms)
        if found.payment_id is not None:
            return AdmittedPayment(found.payment_id, False)
        stored, recorded = found.intent, found.recorded
        if intent.topup is None:
            apps.require_let_in(unit.conn, intent.app_id, now_ms)
        self.approval_rules.require_not_denied(unit, intent, stored, now_ms)
        self.rules.require_merchant(invoice.origin)
        pauses.require_running(unit.conn)
        self.planner.chain.require_ready(now_ms)
        pool = _pool_of(unit, intent, self.planner.account, now_ms)
        intent_id = stored.id if stored else intent.ids.intent
        if stored is None:
            _open_intent(unit, intent, origin=invoice.origin, request=intent.request, now_ms=now_ms)
        seq = recorded.seq if recorded else _add_invoice(unit, intent, intent_id)
        expires_at_ms = earlier(invoice.expires_at_ms, recorded.expires_at_ms if recorded else None)
        raised_codes = {"chain_not_ready", "merchant_in_flight_limit"} | ({"funds_pending"} if can_wait else set())
        return self._open_payment(
            unit, intent, intent_id, seq, pool, expires_at_ms, now_ms, raised_codes if on_record else None
        )

    def require_open(self, unit: Unit, intent: PaymentIntent, now_ms: int) -> None:
        """Refused if admission would open no payment for the chosen invoice, whatever its price.

        An invoice that has a payment is refused as `invoice_already_paid`. The quote of a top-up may show an
        invoice that a running top-up of the same balance pays: once ordered, the top-up requests another 402.
        """
        found = find_payment(unit.conn, intent.app_id, intent.key, intent.fingerprint, intent.invoice)
        if found.reason is LookupReason.OTHER_TERMS:
            found.require_no_conflict()
        if intent.topup is None and found.paid_by is not None:
            state = load_row(unit.conn, found.paid_by).state
            detail, context = f"{found.paid_by} pays for it, and is {state}", {"payment": found.paid_by}
            raise found.other_purchase or Refused(
                "invoice_already_paid/same_intent", detail, **context, state=str(state)
            )
        self.approval_rules.require_not_denied(unit, intent, found.intent, now_ms)
        pauses.require_running(unit.conn)
        self.planner.chain.require_ready(now_ms)

    def _open_payment(
        self,
        unit: Unit,
        intent: PaymentIntent,
        intent_id: str,
        invoice_seq: int,
        pool: int | None,
        expires_at_ms: int | None,
        now_ms: int,
        raised_codes: Set[str] | None,
    ) -> AdmittedPayment:
        """`raised_codes`: codes of refusals that are raised and not recorded; None: all of them."""
        payment_id = intent.ids.payment
        nonce_utxo = nonce_utxo_of(unit, intent_id, self.planner.account)
        executor.open_payment(
            unit,
            payment_id=payment_id,
            kind="invoice",
            app_id=intent.app_id,
            intent_id=intent_id,
            invoice_seq=invoice_seq,
            outputs=executor.output_rows(intent.invoice),
            now_ms=now_ms,
            account=self.planner.account,
            pool_id=pool,
            topup_id=None if intent.topup is None else intent.topup.topup,
        )
        if intent.purpose is not None:
            writes.note(unit, payment_id, PURPOSE, State.RECEIVED, now_ms, {"purpose": intent.purpose})
        try:
            plan, checks = self.reservation.decide(unit, intent, nonce_utxo, expires_at_ms, now_ms)
            reasons = self.rules.reasons(unit.conn, intent, intent.invoice, plan.spend)
            if reasons:
                worst = with_fee_room(plan.spend, checks, self.rules.config.caps)
                self.rules.require_within_limits(unit.conn, intent, worst, intent.invoice.asset, now_ms)
                self.approval_rules.request_approval(unit, intent, plan, worst, reasons, expires_at_ms, now_ms)
                return AdmittedPayment(payment_id, True)
        except Refused as refusal:
            if raised_codes is None or refusal.code in raised_codes:
                raise
            return _rejected(unit, intent, refusal, now_ms)
        origin, claim = intent.invoice.origin, merchant_trust.claim_of_invoice(intent.invoice)
        pins = merchant_trust.first_addresses(
            unit.conn, self.rules.config.rules(origin), origin, claim, payment_id
        )
        self.reservation.hold(unit, payment_id, ReserveFunds, plan, now_ms, checks, pins)
        if not intent.is_heard:
            note_price(unit, intent)
        return AdmittedPayment(payment_id, True, plan)

    def _take_invoice(self, unit: Unit, found: IntentPayment, intent: PaymentIntent, now_ms: int) -> None:
        """A new invoice of an intent that has a payment replaces its lost attempt, if that is due.

        Otherwise the invoice buys nothing. It is recorded unless too many were of late.
        """
        row, recorded, invoice = found.payment, found.recorded, intent.invoice
        if row is None or (recorded is None and not events.has_room(unit.conn, row.id, "invoiced_again", now_ms)):
            return
        seq = recorded.seq if recorded else _add_invoice(unit, intent, row.intent.id)
        is_ours = row.account == self.planner.account
        is_taken = is_ours and self.replacement.take_invoice(unit, row, intent, seq, recorded, now_ms)
        if recorded is None and not is_taken:
            writes.note(unit, row.id, "invoiced_again", row.state, now_ms, {"invoice_id": invoice.invoice_id})

    def admit_transfer(
        self,
        unit: Unit,
        transfer: TransferRequest,
        plan: TransferPlan,
        now_ms: int,
        detail: Mapping[str, object] | None = None,
    ) -> AdmittedPayment:
        """Find the transfer of its key, or admit it. Only the hard caps limit it.

        It uses the state machine and the ledger of payments. If an earlier transfer of the key was cancelled, the
        new one spends the output of that cancel. `detail` is added to its event.
        """
        found = find_payment(unit.conn, transfer.app_id, transfer.key, transfer.fingerprint)
        found.require_no_conflict()
        if found.payment_id is not None:
            return AdmittedPayment(found.payment_id, False)
        stored = found.intent
        pauses.require_running(unit.conn)
        nonce_utxo = None if stored is None else nonce_utxo_of(unit, stored.id, self.planner.account)
        planned = self.planner.transfer(unit, plan, nonce_utxo, now_ms)
        self.rules.require_within_caps(planned.spend)
        if stored is None:
            _open_intent(unit, transfer, origin=transfer.origin, request=None, now_ms=now_ms)
        executor.open_payment(
            unit,
            payment_id=transfer.ids.payment,
            kind=transfer.kind,
            app_id=transfer.app_id,
            intent_id=stored.id if stored else transfer.ids.intent,
            invoice_seq=None,
            outputs=_transfer_outputs(transfer.kind, planned),
            now_ms=now_ms,
            account=self.planner.account,
        )
        self.reservation.hold(unit, transfer.ids.payment, ReserveFunds, planned, now_ms, detail=detail)
        return AdmittedPayment(transfer.ids.payment, True, planned)


def _rejected(unit: Unit, intent: PaymentIntent, refusal: Refused, now_ms: int) -> AdmittedPayment:
    """Record the refusal, as its app may see it, and end the payment as rejected."""
    payment_id, visible = intent.ids.payment, visible_to_app(unit.conn, intent.app_id, refusal)
    figures = {} if visible is refusal else {"figures": refusal.detail}
    payment = LoadedPayment(load_row(unit.conn, payment_id))
    write(unit, apply(payment, Reject(visible, refusal.limit_record | figures)), now_ms)
    return AdmittedPayment(payment_id, True, refusal=visible)


def _pool_of(unit: Unit, intent: PaymentIntent, account: int, now_ms: int) -> int | None:
    """Id of the prepaid pool that the payment raises; None if it raises none.

    Refused: `batch_in_progress` or `awaiting_approval` while another payment for the pool is open.
    """
    invoice, buyer = intent.invoice, intent.buyer
    if not is_batch(invoice.batch_target) and intent.topup is None:
        return None
    if intent.topup is not None and (topup := topups.find(unit.conn, intent.topup.topup)) is not None:
        require_may_buy(unit.conn, topup, now_ms)
    buyer.require_valid_headers()
    pool = prepaid.ensure_pool(unit, invoice.origin, buyer.partner, buyer.wallet, now_ms, account)
    if (other := prepaid.batch_under_way(unit.conn, pool.id, now_ms)) is not None:
        row = payments.payment(unit.conn, other)
        if row is not None and row.state is State.AWAITING_APPROVAL:
            raise Refused("awaiting_approval", "a batch for the same partner and wallet waits for approval")
        ours = {"payment": other} if row is not None and row.app_id == intent.app_id else {}
        raise Refused("batch_in_progress", "another request buys a batch for the same partner and wallet", **ours)
    served_ms = prepaid.last_served_ms(unit.conn, pool.id)
    # a serving time in the future was written while the clock ran ahead
    is_clock_corrected = intent.heard_at_ms <= now_ms < served_ms - SKEW_MAX_S * 1000
    if intent.heard_at_ms <= served_ms and not is_clock_corrected:
        raise Refused("batch_in_progress", "a batch was bought since the merchant asked for this one")
    cost = prepaid.balance(unit.conn, pool.id, CALLS if is_batch(invoice.batch_target) else invoice.asset).costs
    paid = cost.get(invoice.asset, Cost()).bought + invoice.total_units
    check_supply(invoice.asset, paid, "what was ever paid for this prepaid balance")
    return pool.id


def _transfer_outputs(kind: str, plan: TxPlan) -> list[OutputRow]:
    """The outputs of a transfer: those requested, or for `sweep` the whole amount, asset by asset."""
    if kind != "sweep":
        return [OutputRow(output.role, output.address.text, output.asset, output.units) for output in plan.asked]
    return [
        OutputRow(output.role, plan.frame.rest.text, asset, units)
        for output in plan.outputs
        for asset, units in ((LOVELACE, output.lovelace), *output.assets)
    ]


def _open_intent(unit: Unit, requested: Intent, *, origin: str, request: str | None, now_ms: int) -> None:
    executor.open_intent(
        unit,
        intent_id=requested.ids.intent,
        app_id=requested.app_id,
        idempotency_key=requested.key,
        is_key_derived=requested.derived,
        fingerprint=requested.fingerprint,
        origin=origin,
        request=request,
        request_id=requested.ids.request,
        now_ms=now_ms,
    )


def _add_invoice(unit: Unit, intent: PaymentIntent, intent_id: str) -> int:
    return executor.add_invoice(unit, intent.invoice, intent_id, intent.received_at_ms, intent.response)
