"""C1 + C2: what happens inside the one commit that admits a payment, on the writer's thread.

Intent, invoice, decision, hold, anchor and coins are written together, so that no other request can come
between the decision and what it decided on (rule 7). A refusal by policy or for lack of funds is
recorded too, as a payment that is `rejected`.

May import: core, chain.source, wallet, store, agent.alarm, .chainview, .prepaid, .purse, .replacement, .terms,
.trust. Never: signs; waits for anything.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from payagent.agent import trust
from payagent.agent.alarm import clear_alert, raise_alert
from payagent.agent.chainview import ChainView
from payagent.agent.prepaid import Buyer, Part, is_batch, require_may_buy
from payagent.agent.purse import coin_of, take
from payagent.agent.replacement import (
    Replacing,
    is_lost,
    next_invoice,
    parameters_of,
    require_anchor,
    same_again,
)
from payagent.agent.terms import MerchantTerms, Terms
from payagent.chain.source import SubmitKind
from payagent.core import ledger, policy
from payagent.core.address import Address
from payagent.core.caps import Caps, require_within_caps
from payagent.core.guards import Moment, Rules, look
from payagent.core.invoice import Invoice
from payagent.core.money import LOVELACE, check_supply
from payagent.core.payment import Event, State
from payagent.core.policy import Asked, Limit, Span, Window
from payagent.core.prepaid import CALLS, Cost
from payagent.core.problem import Refused, own_order
from payagent.core.times import iso_time
from payagent.core.verdict import Finding, Reasons, above, judge
from payagent.store import approvals, apps, pauses, prepaid, queries, records, spending, topups
from payagent.store.approvals import Approval, Via
from payagent.store.queries import IntentRow, InvoiceRow, OutputRow, PaymentRow
from payagent.store.writer import Connection, Unit
from payagent.wallet.coins import Coin, Coins
from payagent.wallet.transaction import Plan, build, select, smallest_of

FEE_ROOM_LOVELACE = 50_000
"""How much more fee than now a payment may come to when it is approved: that of 26 more coins."""

TransferPlan = Callable[[Coins, int, Coin | None], Plan]
"""Makes the transaction of some coins, for a TTL; it spends the anchor, when there is one."""


@dataclass(frozen=True, slots=True)
class Ids:
    """Fresh ids, drawn before the job, so that it stays a function of its values."""

    intent: str
    payment: str
    request: str


@dataclass(frozen=True, slots=True)
class Purchase:
    """One request to pay, read and ready to be decided. `invoice` is the first of what the merchant `offers`."""

    ids: Ids
    app_id: str
    key: str
    derived: bool
    fingerprint: str
    request: str | None
    invoice: Invoice
    offers: tuple[Invoice, ...]
    response: str
    received_at_ms: int
    heard_at_ms: int
    max_total_units: int | None
    min_window_s: int
    buyer: Buyer
    topup: Part | None = None


@dataclass(frozen=True, slots=True)
class TransferOrder:
    """One order of the operator's to move coins. Without a key of its own it is an intent that nothing names."""

    ids: Ids
    app_id: str
    key: str
    derived: bool
    fingerprint: str
    kind: str


@dataclass(frozen=True, slots=True)
class Admitted:
    """The intent's payment. `plan` is there when it is new and to be signed; `refusal` when it was rejected."""

    payment_id: str
    is_new: bool
    plan: Plan | None = None
    refusal: Refused | None = None


@dataclass(frozen=True, slots=True)
class Approver:
    """Who decides on a payment: an app's token (`app_id`), a signed link, or the clock.

    `terms_hash`: of the terms that were decided on, where that was said.
    """

    via: Via
    app_id: str | None = None
    terms_hash: str | None = None


@dataclass(frozen=True, slots=True)
class Decided:
    """What became of a payment that awaited a decision: it is signed by `plan`, or was denied for `refusal`."""

    payment_id: str
    plan: Plan | None
    refusal: Refused | None = None


@dataclass(slots=True)
class Admission:
    """The decision, with what it needs: our free coins (owned by the writer's thread), the file's limits, chain.

    Change in no block yet is spent through `chain_depth` transactions, of such as can land for `chain_ttl_s` more.
    """

    coins: Coins
    limits: Sequence[Limit]
    chain: ChainView
    own: Address
    chain_depth: int = 0
    chain_ttl_s: int = 0
    caps: Caps | None = None
    approval_above: Mapping[str, int] = field(default_factory=dict)
    approval_timeout_s: int = 0
    merchants: Mapping[str, MerchantTerms] = field(default_factory=dict)

    def take(self, terms: Terms) -> None:
        """Decide by other terms from now on; in a job, so that none is decided by two."""
        self.limits, self.merchants = terms.limits, terms.merchants
        self.approval_above, self.approval_timeout_s = terms.approval_above, terms.approval_timeout_s

    def admit(self, unit: Unit, purchase: Purchase, now_ms: int) -> Admitted:
        """Find the intent's payment, or open it: at most one, whatever invoices come for it (rule 5)."""
        purchase = self.choose(unit, purchase, now_ms)
        invoice = purchase.invoice
        note_price(unit, purchase)
        known = queries.invoice(unit.conn, invoice.origin, invoice.invoice_id)
        if known is not None and known.terms_hash != invoice.terms_hash:
            raise Refused("terms_changed", f"invoice {invoice.invoice_id} came before with other terms")
        intent = queries.live_intent(unit.conn, purchase.app_id, purchase.key)
        if intent is not None:
            existing = self._existing(unit, intent, purchase, known, now_ms)
            if existing is not None:
                return existing
        if known is not None and (other := queries.payment_of_invoice(unit.conn, known.seq)):
            return _of_ended_intent(queries.intent(unit.conn, known.intent_id), purchase, other)
        if purchase.topup is None:
            apps.require_let_in(unit.conn, purchase.app_id, now_ms)
        if intent is not None:
            self._require_not_denied(unit, intent, now_ms)
        if invoice.origin not in self.merchants:
            raise Refused(
                "merchant_not_allowed", f"{invoice.origin} may not be paid any more", origin=invoice.origin
            )
        pauses.require_running(unit.conn)
        self.chain.require_ready(now_ms)
        pool = _pool_of(unit, purchase, now_ms)
        intent_id = intent.id if intent else purchase.ids.intent
        if intent is None:
            _open_intent(unit, purchase, origin=invoice.origin, request=purchase.request, now_ms=now_ms)
        seq = known.seq if known else _add_invoice(unit, purchase, intent_id)
        expires_at_ms = _earlier(invoice.expires_at_ms, known.expires_at_ms if known else None)
        return self._open_payment(unit, purchase, intent_id, seq, pool, expires_at_ms, now_ms)

    def _open_payment(
        self,
        unit: Unit,
        purchase: Purchase,
        intent_id: str,
        invoice_seq: int,
        pool: int | None,
        expires_at_ms: int | None,
        now_ms: int,
    ) -> Admitted:
        payment_id = purchase.ids.payment
        anchor = anchor_of(unit, intent_id)
        records.add_payment(
            unit,
            payment_id=payment_id,
            kind="invoice",
            app_id=purchase.app_id,
            intent_id=intent_id,
            invoice_seq=invoice_seq,
            outputs=records.output_rows(purchase.invoice),
            now_ms=now_ms,
            pool=pool,
            topup=None if purchase.topup is None else purchase.topup.topup,
        )
        try:
            plan, asked = self._decide(unit, purchase, anchor, expires_at_ms, now_ms)
            reasons = self.reasons(unit, purchase, purchase.invoice, plan.spend)
            if reasons:
                worst = _with_fee_room(plan.spend)
                self.require_within_limits(unit, purchase, worst, purchase.invoice.asset, now_ms)
                self._ask(unit, purchase, plan, worst, reasons, expires_at_ms, now_ms)
                return Admitted(payment_id, True)
        except Refused as refusal:
            if refusal.code in ("chain_not_ready", "merchant_busy"):
                raise  # no decision, and so no record
            told = as_told(unit.conn, purchase.app_id, refusal)
            figures = None if told is refusal else {"figures": refusal.detail}
            records.move_payment(
                unit, payment_id, Event.REJECT, now_ms, figures, reason_code=told.code, reason=told.detail
            )
            return Admitted(payment_id, True, refusal=told)
        self.hold(unit, payment_id, plan, now_ms, asked)
        origin, claim = purchase.invoice.origin, trust.claim_of_invoice(purchase.invoice)
        trust.learn_addresses(unit, self._rules(origin), origin, claim, payment_id, now_ms)
        return Admitted(payment_id, True, plan)

    def reasons(self, unit: Unit, purchase: Purchase, invoice: Invoice, spend: Mapping[str, int]) -> Reasons:
        """For which reasons a person is to be asked whether the invoice may be paid; none: nobody is asked.

        By the thresholds, and by what is known of the merchant in this transaction. Refused: `merchant_stopped`,
        `merchant_busy`.
        """
        return judge((*self._look(unit, purchase, invoice), *above(self.approval_above, spend)))

    def _look(
        self, unit: Unit, purchase: Purchase, invoice: Invoice, moment: Moment = Moment.PAYMENT
    ) -> tuple[Finding, ...]:
        """What the guards find against an invoice."""
        rules, claim = self._rules(invoice.origin), trust.claim_of_invoice(invoice)
        is_measured = purchase.topup is None or purchase.topup.is_auto
        known = trust.known_of(unit.conn, rules, invoice.origin, claim, purchase.request, is_measured)
        return look(claim, rules, known, moment)

    def why_stopped(self, conn: Connection, row: PaymentRow) -> Refused | None:
        """Why a payment is not signed (again) by what was decided before; None: that stands."""
        if row.origin is None:
            return None
        rules, claim = self._rules(row.origin), trust.claim_of_rows(row.outputs)
        try:
            judge(look(claim, rules, trust.known_of(conn, rules, row.origin, claim, None), Moment.SAME_TERMS))
        except Refused as refusal:
            return refusal
        return None

    def _rules(self, origin: str) -> Rules:
        merchant = self.merchants.get(origin)
        return Rules() if merchant is None else merchant.rules

    def _ask(
        self,
        unit: Unit,
        purchase: Purchase,
        plan: Plan,
        worst: Mapping[str, int],
        reasons: Reasons,
        expires_at_ms: int | None,
        now_ms: int,
    ) -> None:
        """Put the payment before a person: it counts in full against all limits, without coins or anchor."""
        payment_id, clock_ms = purchase.ids.payment, self.clock_ms(unit.conn, now_ms)
        ends_at_ms = clock_ms + self.approval_timeout_s * 1000
        if expires_at_ms is not None:
            ends_at_ms = min(ends_at_ms, expires_at_ms - purchase.min_window_s * 1000)
        approvals.ask(
            unit,
            payment_id=payment_id,
            terms_hash=purchase.invoice.terms_hash,
            reasons=reasons,
            plan=_plan_view(plan),
            max_total_units=purchase.max_total_units,
            ends_at_ms=ends_at_ms,
            now_ms=now_ms,
        )
        records.place_hold(unit, payment_id, worst, now_ms, clock_ms, is_counted=True, stage="ask")
        told = {"reasons": [reason[:2] for reason in reasons], "ends_at": iso_time(ends_at_ms)}
        records.move_payment(unit, payment_id, Event.ASK, now_ms, told)
        facts = {
            "detail": f"{payment_id} to {purchase.invoice.origin} waits for a person: {reasons[0].detail}",
            **{"payment": payment_id, "app": purchase.app_id, "merchant": purchase.invoice.origin},
            "ends_at": iso_time(ends_at_ms),
        }
        raise_alert(unit, "approval_needed", approval_subject(payment_id), facts, now_ms)

    def approve(self, unit: Unit, payment_id: str, by: Approver, min_window_s: int, now_ms: int) -> Decided:
        """A person says yes: everything is decided anew, as of now, and the payment goes on as any other.

        Too late, it is denied. Refused, with nothing changed and the question still open: `already_decided`,
        `terms_changed`, `paused`, `above_approved`, and all that refuses a new payment.
        """
        row, approval = self._awaiting(unit, payment_id, by)
        if self.clock_ms(unit.conn, now_ms) >= approval.ends_at_ms:
            return self._time_out(unit, payment_id, now_ms)
        pauses.require_running(unit.conn)
        self.chain.require_ready(now_ms)
        purchase = self._purchase_of(unit, row, approval, min_window_s)
        _require_let_in(unit.conn, row.app_id, now_ms)
        worst = queries.hold(unit.conn, payment_id, "ask")
        records.release_hold(unit, payment_id, now_ms, stage="ask")
        try:
            anchor = anchor_of(unit, row.intent_id)
            plan, asked = self._decide(unit, purchase, anchor, row.expires_at_ms, now_ms)
        except Refused as refusal:
            if refusal.code == "invoice_expired":
                return self._time_out(unit, payment_id, now_ms)
            raise
        _require_asked(self.reasons(unit, purchase, purchase.invoice, plan.spend), approval.reasons)
        for asset, units in plan.spend.items():
            if units > worst.get(asset, 0):
                raise Refused(
                    "above_approved", f"{units} units of {asset} are needed now, not {worst.get(asset, 0)}"
                )
        told = {"by": by.app_id, "via": by.via}
        self.hold(unit, payment_id, plan, now_ms, asked, told)
        trust.allow(unit, self._rules(purchase.invoice.origin), row, told, now_ms)
        _clear_question(unit, payment_id, "it was approved", now_ms)
        return Decided(payment_id, plan)

    def deny(self, unit: Unit, payment_id: str, by: Approver, now_ms: int) -> None:
        """A person says no. Refused: `already_decided`, `terms_changed`."""
        self._awaiting(unit, payment_id, by)
        why = Refused("approval_denied", "a person denied it")
        _deny(unit, payment_id, by, why, now_ms)

    def deny_when_over(self, unit: Unit, payment_id: str, now_ms: int) -> None:
        """Nobody has decided in time; nothing happens to what was decided meanwhile."""
        row = queries.payment(unit.conn, payment_id)
        approval = approvals.of_payment(unit.conn, payment_id)
        if row is None or approval is None or row.state is not State.AWAITING_APPROVAL:
            return
        if self.clock_ms(unit.conn, now_ms) >= approval.ends_at_ms:
            self._time_out(unit, payment_id, now_ms)

    def _time_out(self, unit: Unit, payment_id: str, now_ms: int) -> Decided:
        why = Refused("approval_timed_out", "nobody decided on it in time", payment=payment_id)
        _deny(unit, payment_id, Approver("clock"), why, now_ms)
        return Decided(payment_id, None, why)

    def _awaiting(self, unit: Unit, payment_id: str, by: Approver) -> tuple[PaymentRow, Approval]:
        row, approval = queries.payment(unit.conn, payment_id), approvals.of_payment(unit.conn, payment_id)
        if row is None:
            raise Refused("not_found", f"there is no payment {payment_id[:80]!r}")
        if approval is None or row.state is not State.AWAITING_APPROVAL:
            known = None if approval is None else approvals.decided(unit.conn, payment_id)
            decided = {} if known is None else {"decision": known.decision}
            raise Refused(
                "already_decided",
                f"{payment_id} is {row.state}",
                payment=payment_id,
                state=str(row.state),
                **decided,
            )
        if by.terms_hash is not None and by.terms_hash != approval.terms_hash:
            raise Refused("terms_changed", f"{payment_id} is for other terms than those that were decided on")
        return row, approval

    def _purchase_of(self, unit: Unit, row: PaymentRow, approval: Approval, min_window_s: int) -> Purchase:
        """What was asked for, as it was admitted. Refused: `merchant_not_allowed`, when it is not any more."""
        merchant = self.merchants.get(row.origin or "")
        if merchant is None or row.invoice_id is None or row.dialect is None:
            raise Refused("merchant_not_allowed", f"{row.origin} may not be paid any more", origin=row.origin)
        wanted = same_again(row, self.chain.network)
        invoice = Invoice(
            *(row.dialect, merchant.origin, row.invoice_id, self.chain.network.name, wanted.outputs),
            expires_at_ms=row.expires_at_ms,
            batch_target=row.batch_target,
            proof=row.proof,
            handed_over=row.handed_over,
            echo=row.echo,
            commitment=row.commitment,
        )
        intent = queries.intent(unit.conn, row.intent_id)
        return Purchase(
            ids=Ids(row.intent_id, row.id, row.request_id),
            app_id=row.app_id,
            key=intent.key,
            derived=intent.derived,
            fingerprint=intent.fingerprint,
            request=queries.request_of(unit.conn, row.intent_id),
            invoice=invoice,
            offers=(invoice,),
            response="",
            received_at_ms=row.created_at_ms,
            heard_at_ms=row.created_at_ms,
            max_total_units=approval.max_total_units,
            min_window_s=min_window_s,
            buyer=Buyer("", ""),
            topup=_part_of(unit.conn, row, merchant),
        )

    def _require_not_denied(self, unit: Unit, intent: IntentRow, now_ms: int) -> None:
        """Who was denied does not ask again and again: not for as long as a question lasts."""
        since_ms = now_ms - self.approval_timeout_s * 1000
        if (denied := approvals.denied_since(unit.conn, intent.id, since_ms)) is not None:
            raise Refused("approval_denied", f"a person denied {denied}, which is the same call", payment=denied)

    def _existing(
        self, unit: Unit, intent: IntentRow, purchase: Purchase, known: InvoiceRow | None, now_ms: int
    ) -> Admitted | None:
        """The payment that the intent already has; replaced for a further invoice where that is safe and due.

        Else the further invoice is recorded, and buys nothing.
        """
        require_same(intent, purchase.fingerprint)
        row = queries.live_payment_of(unit.conn, intent.id)
        if row is None:
            return None
        invoice = purchase.invoice
        if not invoice.has_own_id:
            return Admitted(row.id, False)
        seq = known.seq if known else _add_invoice(unit, purchase, intent.id)
        is_free = known is None or (
            known.intent_id == intent.id and queries.payment_of_invoice(unit.conn, seq) is None
        )
        if is_free and self._replace_for(unit, row, purchase, seq, known, now_ms):
            return Admitted(row.id, False)
        if known is None:
            records.note(unit, row.id, "invoiced_again", row.state, now_ms, {"invoice_id": invoice.invoice_id})
        return Admitted(row.id, False)

    def _replace_for(
        self, unit: Unit, row: PaymentRow, purchase: Purchase, seq: int, known: InvoiceRow | None, now_ms: int
    ) -> bool:
        """Whether a payment that is lost, its own invoice being over, was turned to another one of its intent."""
        invoice, tip = purchase.invoice, self.chain.tip
        if tip is None or not is_lost(unit.conn, row, tip.slot):
            return False
        is_alike = (invoice.asset, invoice.proof, invoice.handed_over, is_batch(invoice.batch_target)) == (
            *(row.outputs[0].asset, row.proof, row.handed_over),
            is_batch(row.batch_target),
        )
        most = purchase.max_total_units
        if not is_alike or (most is not None and queries.hold(unit.conn, row.id).get(invoice.asset, 0) > most):
            return False
        wanted = next_invoice(
            invoice, seq, _earlier(invoice.expires_at_ms, known.expires_at_ms if known else None)
        )
        try:
            pauses.require_running(unit.conn)
            slot = self.chain.require_ready(now_ms)
            if self.chain.has_time(slot, row.expires_at_ms, purchase.min_window_s):
                return False
            if approvals.of_payment(unit.conn, row.id) is not None:  # what a person allowed were other terms
                return False
            if self._look(unit, purchase, invoice, Moment.NEXT_INVOICE):
                return False
            self._replacing.start(unit, row, wanted, purchase.min_window_s, now_ms)
        except Refused:
            return False
        return True

    @property
    def _replacing(self) -> Replacing:
        return Replacing(self.coins, self.chain, self.own)

    def replace(self, unit: Unit, payment_id: str, min_window_s: int, now_ms: int) -> Refused | None:
        """Replace an attempt of ours that is lost, for the same invoice; else why its coins are to be taken back.

        Neither when the payment is not lost (any more). Refused as `ChainView.require_ready` does.
        """
        row, tip = queries.payment(unit.conn, payment_id), self.chain.tip
        pauses.require_running(unit.conn)
        self.chain.require_ready(now_ms)
        if row is None or tip is None or not is_lost(unit.conn, row, tip.slot):
            return None
        if (stopped := self.why_stopped(unit.conn, row)) is not None:
            return stopped
        if queries.was_told(unit.conn, row.id, row.tx_id, SubmitKind.NEVER):
            return Refused("attempt_expired", "a provider said that the transaction can never be valid")
        try:
            self._replacing.start(unit, row, same_again(row, self.chain.network), min_window_s, now_ms)
        except Refused as refusal:
            return Refused("attempt_expired", f"no block took the transaction in its time: {refusal.detail}")
        return None

    def plan_cancel(self, unit: Unit, row: PaymentRow, ttl_slot: int) -> Plan:
        """The cancel: all coins of a payment that are there, its anchor in any case, to ourselves.

        Not what is yet to come: it may never, and would keep the cancel from landing. With a free one too where
        they do not pay for it. Refused: `anchor_gone`.
        """
        pauses.require_running(unit.conn)
        require_anchor(unit.conn, row)
        reserved = queries.coins_reserved_for(unit.conn, row.id)
        there = [coin_of(coin) for coin in reserved if coin.state == "free" or coin.ref == row.anchor]
        anchor = next(coin for coin in there if coin.ref == row.anchor)
        network_id = self.chain.network.network_id
        try:
            return take_back(there, anchor, self.own, ttl_slot, network_id)
        except Refused:
            spent = {coin.ref for coin in there}
            for more in self.coins.largest():
                if more.ref not in spent:
                    return take_back([*there, more], anchor, self.own, ttl_slot, network_id)
            raise

    def choose(self, unit: Unit, purchase: Purchase, now_ms: int) -> Purchase:
        """Of several offers, the first within limits that the wallet has the asset for and nobody is asked about.

        Else the first.
        """
        chosen = purchase.offers[0]
        if len(purchase.offers) > 1:
            chosen = next(
                (offer for offer in purchase.offers if self._could_pay(unit, offer, purchase, now_ms)), chosen
            )
        if not chosen.has_own_id:
            chosen = replace(chosen, invoice_id=f"{chosen.invoice_id}-{purchase.ids.payment}")
        return replace(purchase, invoice=chosen)

    def _could_pay(self, unit: Unit, offer: Invoice, purchase: Purchase, now_ms: int) -> bool:
        asset, units = offer.asset, offer.total_units
        if units > self.coins.totals.get(asset, 0):
            return False
        try:
            self.require_within_limits(unit, purchase, {asset: units}, asset, now_ms)
            return not self.reasons(unit, purchase, offer, {asset: units})
        except Refused:
            return False

    def plan(
        self,
        unit: Unit,
        invoice: Invoice,
        expires_at_ms: int | None,
        min_window_s: int,
        now_ms: int,
        anchor: Coin | None = None,
    ) -> Plan:
        """The transaction that would pay the invoice now; raises what stands against it but for limits."""
        slot = self.chain.require_ready(now_ms)
        ttl_slot = self.chain.ttl_slot(slot, expires_at_ms, min_window_s)
        parameters = parameters_of(invoice.proof, invoice.echo)

        def pay(coins: Coins) -> Plan:
            return select(
                coins,
                invoice.outputs,
                change=self.own,
                ttl_slot=ttl_slot,
                network_id=self.chain.network.network_id,
                params=parameters,
                anchor=anchor,
                commitment=None if invoice.commitment is None else bytes.fromhex(invoice.commitment),
            )

        try:
            if invoice.handed_over:
                return self._plan_with(unit, self._cancellable(pay), slot, 0)
            return self._plan_with(unit, pay, slot, self.chain_depth)
        except Refused as refusal:
            if invoice.proof == "tx_hash" or refusal.code not in ("needs_consolidation", "transaction_too_big"):
                raise
            raise Refused(
                "proof_too_big", f"{refusal.detail}, of at most {parameters.max_tx_size} bytes"
            ) from None

    def _cancellable(self, pay: Callable[[Coins], Plan]) -> Callable[[Coins], Plan]:
        """As `pay`, of coins that also pay for their own way back: what is handed over may have to be cancelled.

        Coins that fit the outputs to the unit do not where the wallet's own output needs more ADA than theirs.
        """

        def planned(coins: Coins) -> Plan:
            plan = pay(coins)
            try:
                take_back(plan.inputs, plan.anchor, self.own, plan.ttl_slot, plan.network_id)
            except Refused:
                spent = {coin.ref for coin in plan.inputs}
                plan = pay(Coins(coin for coin in coins if coin.ref not in spent))
                take_back(plan.inputs, plan.anchor, self.own, plan.ttl_slot, plan.network_id)
            return plan

        return planned

    def _plan_with(self, unit: Unit, plan: Callable[[Coins], Plan], slot: int, chain_depth: int) -> Plan:
        """What `plan` makes of the free coins, or with them of change that is on its way, `chain_depth` deep.

        That they do not suffice is told with why, where more are ours.
        """
        try:
            return plan(self.coins)
        except Refused as refusal:
            if refusal.code not in ("not_enough_funds", "needs_consolidation"):
                raise
            if chained := self._chained(unit, plan, slot, chain_depth):
                return chained
            if missing := queries.missing_coins(unit.conn):
                raise Refused(
                    "chain_not_ready",
                    f"the provider does not list {len(missing)} of the wallet's coins: {refusal.detail}",
                ) from None
            coming = _coming(unit, slot)
            if not _suffices([*self.coins, *coming], plan):
                raise
            asset = str(refusal.context.get("asset", LOVELACE))
            raise _in_flight(asset, self.coins.totals.get(asset, 0), Coins(coming).totals.get(asset, 0)) from None

    def _chained(self, unit: Unit, plan: Callable[[Coins], Plan], slot: int, chain_depth: int) -> Plan | None:
        """The transaction with change that is in no block yet; its anchor is in one, when any of its coins is."""
        coming = [
            coin_of(row)
            for row in (queries.chainable_coins(unit.conn, slot + self.chain_ttl_s) if chain_depth else ())
            if queries.chain_depth(unit.conn, row.tx_id) < chain_depth
        ]
        if not coming:
            return None
        try:
            made = plan(Coins([*self.coins, *coming]))
        except Refused:
            return None
        settled = [coin for coin in made.inputs if coin.ref in self.coins]
        if settled and made.anchor.ref not in self.coins:
            made = replace(made, anchor=smallest_of(settled))
        return made

    def clock_ms(self, conn: Connection, now_ms: int) -> int:
        """The clock of the limits: the chain's, which no other clock moves on and nothing puts back."""
        return spending.clock_ms(conn, self.chain.block_ms(now_ms))

    def require_within_limits(
        self,
        unit: Unit,
        purchase: Purchase,
        spend: Mapping[str, int],
        paid_asset: str,
        now_ms: int,
        count: int = 1,
    ) -> tuple[Asked, ...]:
        """Decide by the sums as they stand in this transaction, for so many payments of that size.

        Refused: `merchant_not_allowed`, `asset_not_allowed`, `limit_exceeded` by the tightest limit.
        """
        self._require_within_caps(spend)
        app, origin = purchase.app_id, purchase.invoice.origin
        asker = apps.require(unit.conn, app)
        asker.require_may_pay(origin, paid_asset)
        conn, clock_ms = unit.conn, self.clock_ms(unit.conn, now_ms)
        limits = in_force_for(conn, self.limits, app, origin)
        binding = policy.concerning(limits, app, origin, spend)
        asked = {
            policy.ask(limit, spending.counted(conn, limit, clock_ms), spend, count): limit for limit in binding
        }
        bounds = policy.ask_bounds(
            spend, paid_asset, purchase.max_total_units, self._topup_left(unit, purchase, clock_ms), count
        )
        tight = policy.tightest((*asked, *bounds))
        if tight is not None:
            raise policy.refusal(tight, when_it_frees(conn, asked.get(tight), tight, clock_ms), asker.name)
        return (*asked, *bounds)

    def _require_within_caps(self, spend: Mapping[str, int]) -> None:
        """What the signer would refuse is held for by nobody; without caps only the signer knows."""
        if self.caps is not None:
            require_within_caps(spend, self.caps)

    def _topup_left(self, unit: Unit, purchase: Purchase, clock_ms: int) -> int | None:
        """What the merchant's own limit for top-ups leaves of the day."""
        part = purchase.topup
        if part is None or part.per_day_lovelace is None:
            return None
        since_ms = clock_ms - policy.LENGTH_MS[Window.DAY]
        return part.per_day_lovelace - topups.lovelace_since(unit.conn, purchase.invoice.origin, since_ms)

    def _decide(
        self, unit: Unit, purchase: Purchase, anchor: Coin | None, expires_at_ms: int | None, now_ms: int
    ) -> tuple[Plan, tuple[Asked, ...]]:
        """The plan, within limits. What is above one before any fee is refused as that, funds or none."""
        invoice = purchase.invoice
        known = {LOVELACE: 0} | {invoice.asset: invoice.total_units}
        asked = self.require_within_limits(unit, purchase, known, invoice.asset, now_ms)
        plan = self.plan(unit, invoice, expires_at_ms, purchase.min_window_s, now_ms, anchor)
        again = policy.ask_again(asked, plan.spend)
        if policy.tightest(again) is not None or not plan.spend.keys() <= known.keys():
            again = self.require_within_limits(unit, purchase, plan.spend, invoice.asset, now_ms)
        return plan, again

    def hold(
        self,
        unit: Unit,
        payment_id: str,
        plan: Plan,
        now_ms: int,
        asked: Sequence[Asked] | None = None,
        told: Mapping[str, object] | None = None,
    ) -> None:
        """Place the hold, take the coins, fix the anchor: the payment is `reserved`, and by which limits.

        Without any that were asked it counts against none.
        """
        for asset, units in plan.spend.items():
            check_supply(asset, units, "what the transaction takes")
        for coin in plan.inputs:
            if coin.ref in self.coins:
                take(unit, self.coins, coin.ref)
        records.reserve(unit, (coin.ref for coin in plan.inputs), payment_id)
        at_ms = self.clock_ms(unit.conn, now_ms)
        records.place_hold(unit, payment_id, plan.spend, now_ms, at_ms, asked is not None)
        records.write_entry(unit, ledger.reserve(plan.spend), now_ms, payment_id=payment_id)
        records.move_payment(
            unit,
            payment_id,
            Event.HOLD,
            now_ms,
            ({"limits": [_asked_view(one) for one in asked]} if asked else {}) | dict(told or {}),
            anchor=plan.anchor.ref,
            ttl_slot=plan.ttl_slot,
        )

    def admit_transfer(self, unit: Unit, order: TransferOrder, plan: TransferPlan, now_ms: int) -> Admitted:
        """Find the self-transfer that the order's key names, or admit it: no limits but the signer's own caps, the
        same machine and ledger.

        One whose payment was cancelled spends what the cancel gave back, as a purchase does.
        """
        intent = queries.live_intent(unit.conn, order.app_id, order.key)
        if intent is not None:
            require_same(intent, order.fingerprint)
            if (row := queries.live_payment_of(unit.conn, intent.id)) is not None:
                return Admitted(row.id, False)
        pauses.require_running(unit.conn)
        slot = self.chain.require_ready(now_ms)
        ttl_slot = self.chain.ttl_slot(slot, None, 0)
        anchor = None if intent is None else anchor_of(unit, intent.id)
        with own_order():
            planned = self._plan_with(unit, lambda coins: plan(coins, ttl_slot, anchor), slot, self.chain_depth)
        self._require_within_caps(planned.spend)
        if intent is None:
            _open_intent(unit, order, origin="", request=None, now_ms=now_ms)
        records.add_payment(
            unit,
            payment_id=order.ids.payment,
            kind=order.kind,
            app_id=order.app_id,
            intent_id=intent.id if intent else order.ids.intent,
            invoice_seq=None,
            outputs=_transfer_outputs(order.kind, planned),
            now_ms=now_ms,
        )
        self.hold(unit, order.ids.payment, planned, now_ms)
        return Admitted(order.ids.payment, True, planned)


def approval_subject(payment_id: str) -> str:
    """What the alert of a question is about."""
    return f"approval:{payment_id}"


def _deny(unit: Unit, payment_id: str, by: Approver, why: Refused, now_ms: int) -> None:
    """The question is over, and what counted for it counts no more."""
    records.release_hold(unit, payment_id, now_ms, stage="ask")
    told = {"by": by.app_id, "via": by.via}
    records.move_payment(unit, payment_id, Event.DENY, now_ms, told, reason_code=why.code, reason=why.detail)
    _clear_question(unit, payment_id, why.detail, now_ms)


def _clear_question(unit: Unit, payment_id: str, detail: str, now_ms: int) -> None:
    clear_alert(unit, approval_subject(payment_id), {"detail": detail, "payment": payment_id}, now_ms)


def _require_asked(now: Reasons, asked: Reasons) -> None:
    """Refused by a reason to ask that was none when the person was asked: nobody has decided on that."""
    known = {reason.code for reason in asked}
    for reason in now:
        if reason.code not in known:
            raise Refused(reason.code, f"{reason.detail}; that was not so when it was asked about")


def _require_let_in(conn: Connection, app_id: str, now_ms: int) -> None:
    """An app whose token has ended gets nothing any more; payagent's own has none, and needs none."""
    app, token = apps.require(conn, app_id), apps.last_token(conn, app_id)
    if app.scopes and (token is None or not token.is_good(now_ms)):
        raise Refused("forbidden", f"the app {app.name}, which asked for it, is revoked or has expired")


def _part_of(conn: Connection, row: PaymentRow, merchant: MerchantTerms) -> Part | None:
    order = None if row.topup is None else topups.find(conn, row.topup)
    if order is None:
        return None
    return Part(
        *(order.id, 1, order.unit, order.is_call, merchant.topup_per_day_lovelace, order.units),
        is_auto=order.cause == "auto",
    )


def _with_fee_room(spend: Mapping[str, int]) -> dict[str, int]:
    """What a payment may come to when it is decided on: by then other coins may have to pay for it."""
    return {**spend, LOVELACE: spend[LOVELACE] + FEE_ROOM_LOVELACE}


def _plan_view(plan: Plan) -> dict[str, object]:
    """A transaction for a person: every output, as its bytes have it, and the fee."""
    rest = plan.frame.rest.text
    addresses = [*(output.address.text for output in plan.asked), *[rest] * len(plan.outputs)]
    return {
        "outputs": [
            {
                "role": output.role,
                "address": address,
                "lovelace": str(output.lovelace),
                "assets": {asset: str(units) for asset, units in output.assets},
            }
            for address, output in zip(addresses, plan.outputs, strict=False)
        ],
        "fee": str(plan.fee_lovelace),
        "size": plan.size,
    }


def as_told(conn: Connection, app_id: str, refused: Refused) -> Refused:
    """A refusal as its app is told it; payagent's own app, which has no scope, tells its operator."""
    app = apps.require(conn, app_id)
    return refused if app.sees_all or not app.scopes else policy.without_figures(refused)


def in_force_for(conn: Connection, filed: Sequence[Limit], app: str, origin: str) -> tuple[Limit, ...]:
    """The limits that may bind a payment: the file's, and over them those that were set at run time."""
    return policy.in_force(filed, spending.limits_binding(conn, app, origin))


def when_it_frees(conn: Connection, limit: Limit | None, asked: Asked, clock_ms: int) -> int | None:
    """When a limit that is exceeded has room; None for what does not roll, or never has as much."""
    if limit is None or limit.window not in policy.LENGTH_MS or asked.asked_units > limit.most_units:
        return None
    spans = spending.spans(conn, limit, clock_ms)
    return policy.frees_at_ms(limit.window, spans, _excess(limit, spans, asked))


def _excess(limit: Limit, spans: Sequence[Span], asked: Asked) -> int:
    return sum(span.units for span in spans) + asked.asked_units - limit.most_units


def _asked_view(one: Asked) -> dict[str, str]:
    whose = {name: value for name, value in one.scope._asdict().items() if value != policy.ANY}
    view = {"limit": one.name, "asset": one.asset, "left": str(one.left_units), "asked": str(one.asked_units)}
    return view | whose


def note_price(unit: Unit, purchase: Purchase) -> None:
    """The call has answered 402: from now on, one that is served for nothing draws on a prepaid balance."""
    is_call = purchase.topup is None or purchase.topup.is_call
    if purchase.request is not None and is_call:
        method, path = purchase.request.split(" ")[:2]
        invoice = purchase.invoice
        prepaid.note_price(
            unit, invoice.origin, method, path.partition("?")[0], invoice.asset, invoice.total_units
        )


def _pool_of(unit: Unit, purchase: Purchase, now_ms: int) -> int | None:
    """The prepaid balance that the payment raises, if it does. One payment for it at a time: the others wait."""
    invoice, buyer = purchase.invoice, purchase.buyer
    if not is_batch(invoice.batch_target) and purchase.topup is None:
        return None
    if purchase.topup is not None and (order := topups.find(unit.conn, purchase.topup.topup)) is not None:
        require_may_buy(unit.conn, order, now_ms)
    pool = prepaid.ensure_pool(unit, invoice.origin, buyer.partner, buyer.wallet, now_ms)
    if (other := prepaid.batch_under_way(unit.conn, pool.id, now_ms)) is not None:
        row = queries.payment(unit.conn, other)
        if row is not None and row.state is State.AWAITING_APPROVAL:
            raise Refused("awaiting_approval", "a batch for the same partner and wallet waits for a person's word")
        ours = {"payment": other} if row is not None and row.app_id == purchase.app_id else {}
        raise Refused("batch_under_way", "a batch for the same partner and wallet is being bought", **ours)
    if purchase.heard_at_ms <= prepaid.last_served_ms(unit.conn, pool.id):
        raise Refused("batch_under_way", "a batch was bought since the merchant asked for this one")
    cost = prepaid.balance(unit.conn, pool.id, CALLS if is_batch(invoice.batch_target) else invoice.asset).costs
    paid = cost.get(invoice.asset, Cost()).bought + invoice.total_units
    check_supply(invoice.asset, paid, "what was ever paid for this prepaid balance")
    return pool.id


def _coming(unit: Unit, slot: int) -> list[Coin]:
    """Change that is on its way: of what is signed as planned, else what the coins hold above what is held."""
    coming = [coin_of(row) for row in queries.coming_coins(unit.conn, slot)]
    for row in queries.payments_in(unit.conn, (State.RESERVED,)):
        left = {asset: -units for asset, units in queries.hold(unit.conn, row.id).items()}
        for coin in queries.coins_reserved_for(unit.conn, row.id):
            left = ledger.add((left, {LOVELACE: coin.lovelace, **coin.assets}))
        lovelace = left.pop(LOVELACE, 0)
        if lovelace > 0 and (row.ttl_slot or 0) > slot:
            coming.append(
                Coin(
                    f"{row.seq:064x}", 0, lovelace, tuple((asset, units) for asset, units in left.items() if units)
                )
            )
    return coming


def _suffices(coins: list[Coin], plan: Callable[[Coins], Plan]) -> bool:
    try:
        plan(Coins(coins))
    except Refused:
        return False
    return True


def _in_flight(asset: str, available: int, coming: int) -> Refused:
    unit = LOVELACE if asset == LOVELACE else f"units of {asset}"
    return Refused(
        "funds_in_flight",
        f"{available} {unit} are free, and {coming} more come back as change of transactions that are in no "
        "block yet; together they suffice",
        asset=asset,
        available=str(available),
        coming=str(coming),
    )


def _transfer_outputs(kind: str, plan: Plan) -> list[OutputRow]:
    """What a self-transfer pays: what was asked, or for a sweep whatever there was, asset by asset."""
    if kind != "sweep":
        return [OutputRow(o.role, o.address.text, o.asset, o.units) for o in plan.asked]
    return [
        OutputRow(output.role, plan.frame.rest.text, asset, units)
        for output in plan.outputs
        for asset, units in ((LOVELACE, output.lovelace), *output.assets)
    ]


def take_back(inputs: Sequence[Coin], anchor: Coin, own: Address, ttl_slot: int, network_id: int) -> Plan:
    """The cancel: all of a payment's coins to ourselves. Refused when they do not pay for it."""
    return build(inputs, anchor, (), change=own, ttl_slot=ttl_slot, network_id=network_id)


def anchor_of(unit: Unit, intent_id: str) -> Coin | None:
    """The coin that a payment must spend whose intent had others cancelled: only there when every cancel is.

    So no two of them can land, even if a rollback takes a cancel away (docs/exactly-once.md R8).
    """
    cancels = queries.watched_voids_of(unit.conn, intent_id)
    if not cancels:
        return None
    first, *others = [queries.free_descendants(unit.conn, cancel) for cancel in cancels]
    for row in first:
        if all(row in other for other in others):
            return coin_of(row)
    raise Refused("intent_settling", f"the coins that the cancel {cancels[-1]} gave back are in use")


def _of_ended_intent(intent: IntentRow, purchase: Purchase, payment_id: str) -> Admitted:
    """An invoice that was paid before, for an intent that is not live: a late copy of the same call finds it."""
    if (intent.app_id, intent.key, intent.fingerprint) == (purchase.app_id, purchase.key, purchase.fingerprint):
        return Admitted(payment_id, False)
    ours = {"payment": payment_id} if intent.app_id == purchase.app_id else {}
    raise Refused("invoice_paid_elsewhere", f"{purchase.invoice.invoice_id} was paid for another purchase", **ours)


def require_same(intent: IntentRow, fingerprint: str) -> None:
    if intent.fingerprint != fingerprint:
        raise Refused("idempotency_key_reused", f"the key {intent.key!r} named another request before")


def _open_intent(
    unit: Unit, order: Purchase | TransferOrder, *, origin: str, request: str | None, now_ms: int
) -> None:
    records.add_intent(
        unit,
        intent_id=order.ids.intent,
        app_id=order.app_id,
        key=order.key,
        derived=order.derived,
        fingerprint=order.fingerprint,
        origin=origin,
        request=request,
        request_id=order.ids.request,
        now_ms=now_ms,
    )


def _add_invoice(unit: Unit, purchase: Purchase, intent_id: str) -> int:
    return records.add_invoice(unit, purchase.invoice, intent_id, purchase.received_at_ms, purchase.response)


def _earlier(first_ms: int | None, second_ms: int | None) -> int | None:
    """A relative time-out is anchored to the first receipt: a later copy of the 402 gains nothing."""
    known = [value for value in (first_ms, second_ms) if value is not None]
    return min(known, default=None)
