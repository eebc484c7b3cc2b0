"""Approvals: requests one for a payment, records the decision once, or denies the payment after the timeout.

Never: approves by itself; signs; waits for anything.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from payagent.agent.base import merchant_trust
from payagent.agent.base.config import MerchantConfig
from payagent.agent.base.prepaid import Buyer, TopupPart, part_of
from payagent.agent.base.requests import AdmittedPayment, Approver, Ids, PaymentIntent
from payagent.agent.commits.replacement import same_again
from payagent.agent.commits.reservation import Reservation, nonce_utxo_of, note_price
from payagent.agent.commits.rules import require_may_have, visible_to_app
from payagent.core.aggregate import LoadedPayment, PaymentRow
from payagent.core.changes import AddApproval
from payagent.core.findings import Reasons
from payagent.core.hard_caps import Caps
from payagent.core.invoice import Invoice
from payagent.core.money import LOVELACE, format_amount
from payagent.core.payment.apply import apply, release_approval_hold
from payagent.core.payment.events import Approve, Deny, RequestApproval
from payagent.core.payment.machine import State
from payagent.core.policy import LimitCheck
from payagent.core.problems import Refused
from payagent.store.db.unit import Connection, Unit
from payagent.store.executor import write
from payagent.store.load import load, load_row
from payagent.store.rows import approvals, events, intents, pauses, payments, topups, writes
from payagent.store.rows.approvals import ApprovalRow
from payagent.store.rows.intents import IntentRow
from payagent.wallet.transaction import TxPlan

FEE_ROOM_LOVELACE = 50_000
"""How much the fee may grow until the payment is approved: the fee of 26 more inputs."""


@dataclass(frozen=True, slots=True)
class ApprovalRules:
    """Requests and decides approvals."""

    reservation: Reservation

    @property
    def timeout_s(self) -> int:
        """Time to decide, unless the invoice expires earlier."""
        return self.reservation.rules.config.approval_timeout_s

    def request_approval(
        self,
        unit: Unit,
        intent: PaymentIntent,
        plan: TxPlan,
        worst: Mapping[str, int],
        reasons: Reasons,
        expires_at_ms: int | None,
        now_ms: int,
    ) -> None:
        """Request an approval. The payment counts in full against all limits, and reserves no UTxOs yet."""
        payment_id, clock_ms = intent.ids.payment, self.reservation.rules.clock_ms(unit.conn, now_ms)
        ends_at_ms = clock_ms + self.timeout_s * 1000
        if expires_at_ms is not None:
            ends_at_ms = min(ends_at_ms, expires_at_ms - intent.min_window_s * 1000)
        asked = AddApproval(
            payment_id, intent.invoice.terms_hash, reasons, _plan_view(plan), intent.max_total_units, ends_at_ms
        )
        payment = LoadedPayment(load_row(unit.conn, payment_id))
        write(unit, apply(payment, RequestApproval(asked, worst, clock_ms)), now_ms)

    def approve(
        self, unit: Unit, payment_id: str, by: Approver, min_window_s: int, now_ms: int
    ) -> AdmittedPayment:
        """Approve the payment. Everything is decided anew, as of now; after the timeout it is denied.

        Refused, with nothing changed and the approval still open: `already_decided`, `terms_changed`, `paused`,
        `approved_amount_exceeded`, the code that stopped its top-up, and every code that refuses a new payment.
        """
        row, approval = self._awaiting(unit, payment_id, by)
        if payment_id in self.over(unit.conn, min_window_s, now_ms):
            return self._time_out(unit, payment_id, now_ms)
        pauses.require_running(unit.conn)
        self.reservation.planner.chain.require_ready(now_ms)
        intent = self._intent_of(unit, row, approval, min_window_s)
        require_may_have(unit.conn, row, now_ms)
        worst = payments.hold(unit.conn, payment_id, "approval")
        write(unit, release_approval_hold(load(unit.conn, payment_id)), now_ms)
        try:
            nonce_utxo = nonce_utxo_of(unit, row.intent.id, row.account)
            plan, checks = self.reservation.decide(unit, intent, nonce_utxo, row.invoice.expires_at_ms, now_ms)
        except Refused as refusal:
            if refusal.code == "invoice_expired":
                return self._time_out(unit, payment_id, now_ms)
            raise
        _require_listed(
            self.reservation.rules.reasons(unit.conn, intent, intent.invoice, plan.spend), approval.reasons
        )
        for asset, units in plan.spend.items():
            if units > worst.get(asset, 0):
                most = format_amount(asset, worst.get(asset, 0))
                raise Refused(
                    "approved_amount_exceeded",
                    f"{format_amount(asset, units)} are needed now, only {most} was approved",
                )
        detail = {"by": by.app_id, "via": by.via}
        learnt = merchant_trust.allowed(
            unit.conn, self.reservation.rules.config.rules(intent.invoice.origin), row, detail
        )
        self.reservation.hold(unit, payment_id, Approve, plan, now_ms, checks, learnt, detail)
        note_price(unit, intent)
        return AdmittedPayment(payment_id, False, plan)

    def deny(self, unit: Unit, payment_id: str, by: Approver, now_ms: int) -> None:
        """Deny the payment. Refused: `already_decided`, `terms_changed`."""
        self._awaiting(unit, payment_id, by)
        why = Refused("approval_denied/person", "a person denied it")
        end(unit, payment_id, by, why, now_ms)

    def over(self, conn: Connection, min_window_s: int, now_ms: int) -> list[str]:
        """Ids of payments whose approval has timed out, by the limits' clock.

        That clock stands still while no block is seen. So an approval also times out once its invoice can no
        longer be paid by the local clock. A wrong clock can only deny.
        """
        return approvals.over(conn, self.reservation.rules.clock_ms(conn, now_ms), now_ms + min_window_s * 1000)

    def deny_when_over(
        self, unit: Unit, payment_id: str, min_window_s: int, now_ms: int
    ) -> AdmittedPayment | None:
        """Deny a payment whose approval timed out; None, and no change, if it was decided meanwhile."""
        if payment_id not in self.over(unit.conn, min_window_s, now_ms):
            return None
        return self._time_out(unit, payment_id, now_ms)

    def require_not_denied(self, unit: Unit, intent: PaymentIntent, stored: IntentRow | None, now_ms: int) -> None:
        """Refused: `approval_denied/person` if the same request was denied in the last `timeout_s`.

        The request counts, whatever its key; without a request, the intent. A denial dated more than `timeout_s`
        in the future came from a wrong clock and does not count.
        """
        denied = approvals.denied_between(
            unit.conn,
            now_ms - self.timeout_s * 1000,
            now_ms + self.timeout_s * 1000,
            intent_id=None if stored is None else stored.id,
            app_id=intent.app_id,
            fingerprint=None if intent.request is None else intent.fingerprint,
        )
        if denied is not None:
            raise Refused(
                "approval_denied/person", f"a person denied {denied}, which is the same call", payment=denied
            )

    def _time_out(self, unit: Unit, payment_id: str, now_ms: int) -> AdmittedPayment:
        why = Refused("approval_denied/timeout", "nobody decided in time", payment=payment_id)
        end(unit, payment_id, Approver("clock"), why, now_ms)
        return AdmittedPayment(payment_id, False, refusal=why)

    def _awaiting(self, unit: Unit, payment_id: str, by: Approver) -> tuple[PaymentRow, ApprovalRow]:
        row, approval = load_row(unit.conn, payment_id), approvals.of_payment(unit.conn, payment_id)
        if approval is None or row.state is not State.AWAITING_APPROVAL:
            decision = None if approval is None else approvals.decided(unit.conn, payment_id)
            context = {} if decision is None else {"decision": decision.decision}
            raise Refused(
                "already_decided",
                f"{payment_id} is {row.state}",
                payment=payment_id,
                state=str(row.state),
                **context,
            )
        if by.terms_hash is not None and by.terms_hash != approval.terms_hash:
            raise Refused("terms_changed", f"{payment_id} has other terms than the ones that the decision was for")
        return row, approval

    def _intent_of(self, unit: Unit, row: PaymentRow, approval: ApprovalRow, min_window_s: int) -> PaymentIntent:
        """The payment's intent as it was admitted. Refused: `merchant_not_allowed`."""
        merchant = self.reservation.rules.config.merchants.get(row.invoice.origin or "")
        if merchant is None or row.invoice.id is None or row.invoice.dialect is None:
            raise Refused(
                "merchant_not_allowed", f"{row.invoice.origin} may no longer be paid", origin=row.invoice.origin
            )
        next_attempt = same_again(row, self.reservation.planner.chain.network)
        invoice = Invoice(
            *(
                row.invoice.dialect,
                merchant.origin,
                row.invoice.id,
                self.reservation.planner.chain.network.name,
                next_attempt.outputs,
            ),
            expires_at_ms=row.invoice.expires_at_ms,
            batch_target=row.invoice.batch_target,
            proof=row.invoice.proof,
            merchant_submits=row.invoice.merchant_submits,
            echo=row.invoice.echo,
            commitment=row.invoice.commitment,
        )
        stored = intents.intent(unit.conn, row.intent.id)
        return PaymentIntent(
            ids=Ids(row.intent.id, row.id, row.intent.request_id),
            app_id=row.app_id,
            key=stored.idempotency_key,
            derived=stored.is_key_derived,
            fingerprint=stored.fingerprint,
            request=intents.request_of(unit.conn, row.intent.id),
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


def end(unit: Unit, payment_id: str, by: Approver, why: Refused, now_ms: int) -> None:
    """End the payment as denied, and release its hold."""
    denied = Deny(why, {"by": by.app_id, "via": by.via})
    write(unit, apply(load(unit.conn, payment_id), denied), now_ms)


def note_refused(unit: Unit, payment_id: str, by: Approver, refusal: Refused, now_ms: int) -> None:
    """Note a refused decision in the payment's events, with no more detail than its app may see."""
    row = payments.payment(unit.conn, payment_id)
    if row is not None and events.has_room(unit.conn, payment_id, "decision_refused", now_ms):
        visible = visible_to_app(unit.conn, row.app_id, refusal)
        detail = visible.record
        if visible is not refusal:
            detail["figures"] = refusal.detail
        writes.note(
            unit, payment_id, "decision_refused", row.state, now_ms, {**detail, "by": by.app_id, "via": by.via}
        )


def _require_listed(reasons: Reasons, listed: Reasons) -> None:
    """Refused by any reason that the approval request did not list: it has not been decided on."""
    listed_codes = {reason.code for reason in listed}
    for reason in reasons:
        if reason.code not in listed_codes:
            raise Refused(
                reason.code,
                f"{reason.detail}. The approval was not for that. Once it has expired, "
                "the same call requests a new approval for this reason",
            )


def _part_of(conn: Connection, row: PaymentRow, merchant: MerchantConfig) -> TopupPart | None:
    topup = None if row.prepaid.topup_id is None else topups.find(conn, row.prepaid.topup_id)
    if topup is None:
        return None
    return part_of(topup, 1, merchant.topup_per_day_lovelace)


def with_fee_room(spend: Mapping[str, int], checks: Iterable[LimitCheck], caps: Caps | None) -> dict[str, int]:
    """The most that a payment may cost when it is approved: by then it may need other UTxOs.

    At most what the limits and the hard caps leave.
    """
    left_units = [check.left_units for check in checks if check.asset == LOVELACE]
    if caps is not None:
        left_units.append(caps.get(LOVELACE, 0))
    most = min((spend[LOVELACE] + FEE_ROOM_LOVELACE, *left_units))
    return {**spend, LOVELACE: max(spend[LOVELACE], most)}


def _plan_view(plan: TxPlan) -> dict[str, object]:
    """The transaction as shown to the approver: every output as in its bytes, and the fee."""
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
