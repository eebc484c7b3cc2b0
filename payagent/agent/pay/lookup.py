"""Has this intent a payment? `find_payment` is the one answer.

Admission asks inside its commit, on the writer's connection, and acts on the answer there. `Agent.pay`, the pool
and the fleet ask before, on a reader's connection: that spares a commit or chooses an account, and admission asks
again.

What follows from it is not in the answer: if a `LIVE` payment is lost, admission may replace its attempt by one
for the new invoice (`Replacement.take_invoice`). What comes before is not in it either: a 402 may have several
offers, and `offers.choose_offer` has decided which of them is the invoice.
Never: writes; decides whether to pay.
"""

from dataclasses import dataclass
from enum import Enum, auto

from payagent.core.aggregate import PaymentRow
from payagent.core.invoice import Invoice
from payagent.core.problems import Refused
from payagent.store.db.unit import Connection
from payagent.store.rows import intents, payments
from payagent.store.rows.intents import IntentRow, InvoiceRow


class LookupReason(Enum):
    """Why the answer is as it is. Where several hold, the first does."""

    OTHER_TERMS = auto()
    """The invoice came earlier with other terms. Refusal: `terms_changed`."""
    OTHER_REQUEST = auto()
    """The key was used for another request. Refusal: `idempotency_key_reused`."""
    REPEATED = auto()
    """The intent has a payment, and the invoice has one: nothing is left to decide or record."""
    LIVE = auto()
    """The intent has a payment. The invoice, if one was given, has none: it may replace a lost attempt."""
    OTHER_PURCHASE = auto()
    """The invoice has the payment of another purchase. Refusal: `invoice_already_paid/other_intent`."""
    LATE_COPY = auto()
    """The invoice has the payment of this same purchase, whose intent has ended, or whose payment is void."""
    NONE = auto()
    """There is no payment. Admission decides on one."""


@dataclass(frozen=True, slots=True)
class IntentPayment:
    """The answer. A part that was not asked for is None."""

    reason: LookupReason
    intent: IntentRow | None
    """The live intent of the key."""
    payment: PaymentRow | None
    """The intent's payment that is not rejected, denied or void."""
    account: int | None
    """The account that the intent's payments are made from, void ones included."""
    recorded: InvoiceRow | None
    """The invoice as first read."""
    paid_by: str | None
    """The payment that the invoice has. An invoice without an id of its own has its intent's."""
    refusal: Refused | None
    """Why this purchase gets no payment at all, by `reason`."""
    other_purchase: Refused | None
    """The refusal if the invoice has the payment of another purchase, whatever the intent has."""

    def require_no_conflict(self) -> None:
        """Raise the refusal that the reason names."""
        if self.refusal is not None:
            raise self.refusal

    @property
    def payment_id(self) -> str | None:
        """The payment that answers for this purchase, unless it is refused."""
        return self.paid_by if self.payment is None else self.payment.id


def find_payment(
    conn: Connection, app_id: str, key: str | None, fingerprint: str | None = None, invoice: Invoice | None = None
) -> IntentPayment:
    """The payment of the app's intent with this key, and of the invoice. Without a key there is no intent.

    `fingerprint`: the request's; None: any request's.
    """
    intent = None if key is None else intents.live_intent(conn, app_id, key)
    payment = None if intent is None else payments.live_payment_of(conn, intent.id)
    account = None if payment is None else payment.account
    if intent is not None and payment is None:
        account = payments.account_of_intent(conn, intent.id)
    recorded = None if invoice is None else intents.invoice(conn, invoice.origin, invoice.invoice_id)
    paid_by, refusal, other_purchase = None, None, None
    if recorded is not None:
        paid_by = payments.payment_of_invoice(conn, recorded.seq)
    elif payment is not None and invoice is not None and not invoice.has_own_id:
        paid_by = payment.id
    if invoice is not None and paid_by is not None:
        other_purchase = _other_purchase(conn, invoice, paid_by, (app_id, key, fingerprint))
    if invoice is not None and recorded is not None and recorded.terms_hash != invoice.terms_hash:
        reason = LookupReason.OTHER_TERMS
        refusal = Refused("terms_changed", f"invoice {invoice.invoice_id} came earlier with other terms")
    elif intent is not None and fingerprint not in (None, intent.fingerprint):
        reason, used = LookupReason.OTHER_REQUEST, intent.idempotency_key.removeprefix("key:")
        refusal = Refused("idempotency_key_reused", f"the key {used!r} was used for another request")
    elif payment is not None:
        reason = LookupReason.LIVE if paid_by is None else LookupReason.REPEATED
    elif other_purchase is not None:
        reason, refusal = LookupReason.OTHER_PURCHASE, other_purchase
    else:
        reason = LookupReason.NONE if paid_by is None else LookupReason.LATE_COPY
    return IntentPayment(reason, intent, payment, account, recorded, paid_by, refusal, other_purchase)


def _other_purchase(
    conn: Connection, invoice: Invoice, payment_id: str, asked: tuple[str, str | None, str | None]
) -> Refused | None:
    """The refusal if the payment is another purchase's; None if it is the same purchase's.

    A late copy of the same request finds its payment. A payment of another app is not named. The payment's intent
    decides. The invoice's may be another: the first intent that brought the invoice.
    """
    stored = intents.intent_of(conn, payment_id)
    if (stored.app_id, stored.idempotency_key, stored.fingerprint) == asked:
        return None
    is_ours = stored.app_id == asked[0]
    whose, ours = (f"{payment_id}, ", {"payment": payment_id}) if is_ours else ("", {})
    detail = f"{invoice.invoice_id} belongs to {whose}a payment of another purchase"
    return Refused("invoice_already_paid/other_intent", detail, **ours)
