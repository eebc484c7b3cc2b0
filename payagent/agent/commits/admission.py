"""C1 + C2: the one commit that admits a payment, on the writer's thread. Start at `Admission.admit`.

It writes intent, invoice, decision, hold, nonce UTxO and reserved UTxOs together, so no other request can change
the facts behind the decision (rule 7). A refusal by a limit or for lack of funds is recorded too, as a payment in
state `rejected`.

Never: signs; waits for anything.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from enum import IntEnum

from payagent.agent.base import merchant_trust
from payagent.agent.base.chain_view import SKEW_MAX_S, ChainView
from payagent.agent.base.config import AgentConfig
from payagent.agent.base.prepaid import require_may_buy
from payagent.agent.base.requests import AdmittedPayment, PaymentIntent, TransferRequest
from payagent.agent.commits.approvals import ApprovalRules, with_fee_room
from payagent.agent.commits.replacement import Replacement, is_hopeless, is_lost, next_invoice, same_again
from payagent.agent.commits.reservation import Reservation, nonce_utxo_of, note_price
from payagent.agent.commits.rules import PaymentRules, visible_to_app
from payagent.agent.commits.tx_planner import Planner, TransferPlan
from payagent.core.aggregate import LoadedPayment, OutputRow, PaymentRow
from payagent.core.invoice import Invoice, calls_of, is_batch
from payagent.core.merchant_rules import Moment
from payagent.core.money import LOVELACE, check_supply
from payagent.core.payment.apply import apply
from payagent.core.payment.events import Reject, ReserveFunds
from payagent.core.payment.machine import State
from payagent.core.prepaid_balance import CALLS, Cost
from payagent.core.problems import Refused
from payagent.dialects import TIMED_BY_BLOCK
from payagent.store import executor
from payagent.store.db.unit import Connection, Unit
from payagent.store.executor import write
from payagent.store.load import load_row
from payagent.store.rows import approvals, apps, events, intents, pauses, payments, prepaid, topups, writes
from payagent.store.rows.events import PURPOSE
from payagent.store.rows.intents import IntentRow, InvoiceRow
from payagent.wallet.transaction import TxPlan
from payagent.wallet.utxo_index import UtxoIndex


class _Outcome(IntEnum):
    """The outcome of choosing an offer, best first."""

    NOW = 0
    SOON = 1
    """It can be paid once pending change is available."""

    NEEDS_APPROVAL = 2
    REFUSED = 3


@dataclass(frozen=True, slots=True)
class Admission:
    """Admits payments and transfers: finds the one of the key, or opens a new one."""

    reservation: Reservation
    approval_rules: ApprovalRules

    @classmethod
    def by(cls, config: AgentConfig, utxos: UtxoIndex, chain: ChainView) -> "Admission":
        rules = PaymentRules(config.limits, chain, config.caps, config.approval_required_above, config.merchants)
        ancestors_max, chain_ttl_s = config.unconfirmed_ancestors_max, config.min_window_s
        planner = Planner(utxos, chain, config.own, ancestors_max, chain_ttl_s, config.account)
        reservation = Reservation(rules, planner)
        return cls(reservation, ApprovalRules(reservation, config.approval_timeout_s))

    @property
    def rules(self) -> PaymentRules:
        return self.reservation.rules

    @property
    def planner(self) -> Planner:
        return self.reservation.planner

    def take(self, config: AgentConfig) -> None:
        """Decide by another config from now on. Call it in a job: each decision then uses one config."""
        self.rules.take(config)
        self.approval_rules.timeout_s = config.approval_timeout_s

    def admit(
        self, unit: Unit, intent: PaymentIntent, now_ms: int, *, can_wait: bool = False, on_record: bool = True
    ) -> AdmittedPayment:
        """Find the intent's payment, or open it. An intent has one payment, whatever invoices come (rule 5).

        A refusal is recorded as a rejected payment. It is raised instead without `on_record`, for
        `chain_not_ready` and `merchant_in_flight_limit`, and for `funds_pending` if the caller `can_wait`.
        """
        intent = self.choose(unit, intent, now_ms)
        invoice = intent.invoice
        if intent.is_heard:
            note_price(unit, intent)
        recorded = _recorded_invoice(unit.conn, invoice)
        stored = intents.live_intent(unit.conn, intent.app_id, intent.key)
        if stored is not None:
            existing = self._existing(unit, stored, intent, recorded, now_ms)
            if existing is not None:
                return existing
        if recorded is not None and (other := payments.payment_of_invoice(unit.conn, recorded.seq)):
            _require_same_purchase(unit.conn, intent, other)
            return AdmittedPayment(other, False)
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
        expires_at_ms = _earlier(invoice.expires_at_ms, recorded.expires_at_ms if recorded else None)
        raised_codes = {"chain_not_ready", "merchant_in_flight_limit"} | ({"funds_pending"} if can_wait else set())
        return self._open_payment(
            unit, intent, intent_id, seq, pool, expires_at_ms, now_ms, raised_codes if on_record else None
        )

    def require_open(self, unit: Unit, intent: PaymentIntent, now_ms: int) -> None:
        """Refused if admission would open no payment for the chosen invoice, whatever its price.

        The quote of a top-up may show an invoice that a running top-up of the same balance pays: once ordered,
        the top-up requests another 402.
        """
        if intent.topup is None:
            self.require_unpaid(unit.conn, intent)
        else:
            _recorded_invoice(unit.conn, intent.invoice)
        stored = intents.live_intent(unit.conn, intent.app_id, intent.key)
        self.approval_rules.require_not_denied(unit, intent, stored, now_ms)
        pauses.require_running(unit.conn)
        self.planner.chain.require_ready(now_ms)

    def require_unpaid(self, conn: Connection, intent: PaymentIntent) -> None:
        """Refused if the chosen invoice has a payment: `invoice_already_paid`.

        An invoice without an id of its own counts as paid if its intent has a payment.
        """
        invoice = intent.invoice
        recorded = _recorded_invoice(conn, invoice)
        paying_id = None if recorded is None else payments.payment_of_invoice(conn, recorded.seq)
        if not invoice.has_own_id and (stored := intents.live_intent(conn, intent.app_id, intent.key)):
            live = payments.live_payment_of(conn, stored.id)
            paying_id = None if live is None else live.id
        row = None if paying_id is None else payments.payment(conn, paying_id)
        if row is not None:
            _require_same_purchase(conn, intent, row.id)
            detail = f"{row.id} pays for it, and is {row.state}"
            raise Refused("invoice_already_paid/same_intent", detail, payment=row.id, state=str(row.state))

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
                worst = with_fee_room(plan.spend, checks, self.rules.caps)
                self.rules.require_within_limits(unit.conn, intent, worst, intent.invoice.asset, now_ms)
                self.approval_rules.request_approval(unit, intent, plan, worst, reasons, expires_at_ms, now_ms)
                return AdmittedPayment(payment_id, True)
        except Refused as refusal:
            if raised_codes is None or refusal.code in raised_codes:
                raise
            return _rejected(unit, intent, refusal, now_ms)
        origin, claim = intent.invoice.origin, merchant_trust.claim_of_invoice(intent.invoice)
        pins = merchant_trust.first_addresses(unit.conn, self.rules.rules(origin), origin, claim, payment_id)
        self.reservation.hold(unit, payment_id, ReserveFunds, plan, now_ms, checks, pins)
        if not intent.is_heard:
            note_price(unit, intent)
        return AdmittedPayment(payment_id, True, plan)

    def _existing(
        self, unit: Unit, stored: IntentRow, intent: PaymentIntent, recorded: InvoiceRow | None, now_ms: int
    ) -> AdmittedPayment | None:
        """The payment that the intent already has. A new invoice replaces its lost attempt if that is due.

        Otherwise the new invoice buys nothing. It is recorded unless too many were of late.
        """
        require_same(stored, intent.fingerprint)
        row = payments.live_payment_of(unit.conn, stored.id)
        if row is None:
            return None
        invoice = intent.invoice
        if not invoice.has_own_id:
            return AdmittedPayment(row.id, False)
        if recorded is None and not events.has_room(unit.conn, row.id, "invoiced_again", now_ms):
            return AdmittedPayment(row.id, False)
        seq = recorded.seq if recorded else _add_invoice(unit, intent, stored.id)
        is_available = recorded is None or payments.payment_of_invoice(unit.conn, seq) is None
        if is_available and self._replace_for(unit, row, intent, seq, recorded, now_ms):
            return AdmittedPayment(row.id, False)
        if recorded is None:
            writes.note(unit, row.id, "invoiced_again", row.state, now_ms, {"invoice_id": invoice.invoice_id})
        return AdmittedPayment(row.id, False)

    def _replace_for(
        self,
        unit: Unit,
        row: PaymentRow,
        intent: PaymentIntent,
        seq: int,
        recorded: InvoiceRow | None,
        now_ms: int,
    ) -> bool:
        """Move a lost payment whose invoice has expired to a new invoice of its intent. Returns whether it did.

        An invoice that came before counts as it was read then, even if the config changed since.
        """
        invoice, tip = intent.invoice, self.planner.chain.tip
        if tip is None or row.account != self.planner.account or not is_lost(unit.conn, row, tip.slot):
            return False
        if not _is_alike(invoice, recorded or invoice, row):
            return False
        most = intent.most_units(invoice.asset)
        if most is not None and payments.hold(unit.conn, row.id).get(invoice.asset, 0) > most:
            return False
        next_attempt = next_invoice(
            invoice, seq, _earlier(invoice.expires_at_ms, recorded.expires_at_ms if recorded else None)
        )
        try:
            pauses.require_running(unit.conn)
            slot = self.planner.chain.require_ready(now_ms)
            by_block = row.invoice.dialect in TIMED_BY_BLOCK
            if self.planner.chain.has_time(
                slot, row.invoice.expires_at_ms, intent.min_window_s, from_block=by_block
            ):
                return False
            if approvals.of_payment(unit.conn, row.id) is not None:  # the approval was for other terms
                return False
            if self.rules.check(unit.conn, intent, invoice, Moment.NEXT_INVOICE):
                return False
            self._replacing.start(unit, row, next_attempt, intent.min_window_s, now_ms)
        except Refused:
            return False
        return True

    @property
    def _replacing(self) -> Replacement:
        return Replacement(self.planner.utxos, self.planner.chain, self.planner.own)

    def replace(self, unit: Unit, payment_id: str, min_window_s: int, now_ms: int) -> Refused | None:
        """Replace a lost attempt that payagent submitted, for the same invoice.

        Returns why the payment has to be cancelled instead; None if it was replaced or is not lost. Refused:
        `paused`; as `ChainView.require_ready`.
        """
        row, tip = payments.payment(unit.conn, payment_id), self.planner.chain.tip
        pauses.require_running(unit.conn)
        self.planner.chain.require_ready(now_ms)
        if row is None or tip is None or not is_lost(unit.conn, row, tip.slot):
            return None
        if (stopped := self.rules.why_stopped(unit.conn, row, now_ms)) is not None:
            return stopped
        if is_hopeless(unit.conn, row.id, row.attempt.tx_id):
            return Refused("payment_void/expired", "a provider said that the transaction can never be valid")
        try:
            self._replacing.start(unit, row, same_again(row, self.planner.chain.network), min_window_s, now_ms)
        except Refused as refusal:
            return Refused("payment_void/expired", f"the transaction expired in no block: {refusal.detail}")
        return None

    def choose(self, unit: Unit, intent: PaymentIntent, now_ms: int) -> PaymentIntent:
        """The first offer that is within limits, payable now and needs no approval.

        If there is none: the first that is payable once change confirms, then the first that needs an approval,
        then the first.
        """
        chosen, best = intent.offers[0], _Outcome.REFUSED
        for offer in intent.offers if len(intent.offers) > 1 else ():
            outcome = self._outcome_of(unit, offer, intent, now_ms)
            if outcome < best:
                chosen, best = offer, outcome
            if best is _Outcome.NOW:
                break
        if not chosen.has_own_id:
            chosen = replace(chosen, invoice_id=f"{chosen.invoice_id}-{intent.ids.payment}")
        return replace(intent, invoice=chosen)

    def _outcome_of(self, unit: Unit, offer: Invoice, intent: PaymentIntent, now_ms: int) -> _Outcome:
        """The outcome of an offer by its full cost now, with the fee and the min-ADA beside a token."""
        candidate = replace(intent, invoice=offer)
        try:
            plan, _ = self.reservation.decide(unit, candidate, None, offer.expires_at_ms, now_ms)
            reasons = self.rules.reasons(unit.conn, candidate, offer, plan.spend)
        except Refused as refusal:
            if refusal.code != "funds_pending":
                return _Outcome.REFUSED
            is_let_through = self._is_let_through(unit.conn, offer, intent, now_ms)
            return _Outcome.SOON if is_let_through else _Outcome.NEEDS_APPROVAL
        return _Outcome.NEEDS_APPROVAL if reasons else _Outcome.NOW

    def wants_utxos(self, conn: Connection, intent: PaymentIntent, now_ms: int) -> bool:
        """Whether admission would reserve UTxOs now, neither refusing nor requesting an approval."""
        return any(self._is_let_through(conn, offer, intent, now_ms) for offer in intent.offers)

    def _is_let_through(self, conn: Connection, offer: Invoice, intent: PaymentIntent, now_ms: int) -> bool:
        """Whether limits and merchant rules allow the offer's own amount without an approval."""
        asset, spend = offer.asset, {offer.asset: offer.total_units}
        try:
            self.rules.require_within_limits(conn, intent, spend, asset, now_ms)
            return not self.rules.reasons(conn, intent, offer, spend)
        except Refused:
            return False

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
        stored = intents.live_intent(unit.conn, transfer.app_id, transfer.key)
        if stored is not None:
            require_same(stored, transfer.fingerprint)
            if (row := payments.live_payment_of(unit.conn, stored.id)) is not None:
                return AdmittedPayment(row.id, False)
        pauses.require_running(unit.conn)
        nonce_utxo = None if stored is None else nonce_utxo_of(unit, stored.id, self.planner.account)
        planned = self.planner.transfer(unit, plan, nonce_utxo, now_ms)
        self.rules.require_within_caps(planned.spend)
        if stored is None:
            _open_intent(unit, transfer, origin="", request=None, now_ms=now_ms)
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


def _is_alike(invoice: Invoice, first_read: Invoice | InvoiceRow, row: PaymentRow) -> bool:
    """Whether an invoice, as first read, is paid like the payment's own and buys at least as many calls."""
    return (
        invoice.asset == row.outputs[0].asset
        and first_read.proof == row.invoice.proof
        and first_read.merchant_submits == row.invoice.merchant_submits
        and is_batch(invoice.batch_target) == is_batch(row.invoice.batch_target)
        and invoice.calls >= calls_of(row.invoice.batch_target)
    )


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


def _require_same_purchase(conn: Connection, intent: PaymentIntent, payment_id: str) -> None:
    """Refused: `invoice_already_paid` if the payment is another purchase's.

    A late copy of the same request finds its payment. A payment of another app is not named. The payment's intent
    decides. The invoice's may be another: the first intent that brought the invoice.
    """
    stored = intents.intent_of(conn, payment_id)
    if (stored.app_id, stored.idempotency_key, stored.fingerprint) != (
        intent.app_id,
        intent.key,
        intent.fingerprint,
    ):
        is_ours = stored.app_id == intent.app_id
        whose, ours = (f"{payment_id}, ", {"payment": payment_id}) if is_ours else ("", {})
        detail = f"{intent.invoice.invoice_id} belongs to {whose}a payment of another purchase"
        raise Refused("invoice_already_paid/other_intent", detail, **ours)


def _recorded_invoice(conn: Connection, invoice: Invoice) -> InvoiceRow | None:
    """The invoice as recorded before, if it was. Refused: `terms_changed`."""
    recorded = intents.invoice(conn, invoice.origin, invoice.invoice_id)
    if recorded is not None and recorded.terms_hash != invoice.terms_hash:
        raise Refused("terms_changed", f"invoice {invoice.invoice_id} came earlier with other terms")
    return recorded


def require_same(stored: IntentRow, fingerprint: str) -> None:
    if stored.fingerprint != fingerprint:
        key = stored.idempotency_key.removeprefix("key:")
        raise Refused("idempotency_key_reused", f"the key {key!r} was used for another request")


def _open_intent(
    unit: Unit, requested: PaymentIntent | TransferRequest, *, origin: str, request: str | None, now_ms: int
) -> None:
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


def _earlier(first_ms: int | None, second_ms: int | None) -> int | None:
    """The earlier of two ends. A relative timeout counts from the first receipt of a 402, not from a copy."""
    ends_ms = [value for value in (first_ms, second_ms) if value is not None]
    return min(ends_ms, default=None)
