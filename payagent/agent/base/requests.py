"""Values that callers send to the agent, its answers, and the values that one commit decides on.

Never: decides; I/O.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from payagent.agent.base.prepaid import Buyer, TopupPart
from payagent.core.findings import Reasons
from payagent.core.invoice import Invoice
from payagent.core.problems import Refused
from payagent.dialects import HttpRequest, HttpResponse
from payagent.store.db.unit import Unit
from payagent.store.rows.approvals import Via
from payagent.wallet.transaction import TxPlan


@dataclass(frozen=True, slots=True)
class MerchantRequest:
    """The HTTP request to pay for. `headers` (names in lower case): those that a merchant may bind it to."""

    method: str
    path: str
    body_sha256: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def call(self, origin: str) -> HttpRequest:
        """The request in the form that dialects read."""
        return HttpRequest(self.method, origin + self.path, self.body_sha256, self.headers)


@dataclass(frozen=True, slots=True)
class PaymentRequest:
    """A 402 that an app wants paid."""

    app_id: str
    origin: str
    response: HttpResponse
    received: str  # the 402 as it came, for the record
    request: MerchantRequest | None = None
    idempotency_key: str | None = None
    max_total_units: int | None = None
    max_total_asset: str | None = None  # None: the asset that is paid
    # whose prepaid balance a batch raises, if the request named another than the configured one
    buyer: Buyer | None = None
    # when payagent itself received the 402 from the merchant; None: an app forwarded it
    heard_at_ms: int | None = None
    topup: TopupPart | None = None  # the top-up that this payment is part of, which then names the intent
    purpose: str | None = None  # why the app buys this, in its words for people; no part of the intent

    @property
    def fingerprint(self) -> str:
        """Hash of the origin and the request, without the 402: the same purchase has the same one."""
        request = self.request
        parts = [self.origin] + ([request.method, request.path, request.body_sha256] if request else [])
        return digest(parts)

    def key(self, invoice_id: str | None) -> str | None:
        """The intent's key; None without a top-up, idempotency key, request and invoice id."""
        if self.topup is not None:
            return f"topup:{self.topup.topup}:{self.topup.number}"
        if self.idempotency_key is not None:
            return f"key:{self.idempotency_key}"
        if self.request is not None:
            return f"request:{self.fingerprint}"
        return None if invoice_id is None else f"invoice:{self.origin} {invoice_id}"


@dataclass(frozen=True, slots=True)
class PaymentQuote:
    """The cost of a payment now.

    `refusal`: the limit or merchant rule that forbids it. `reasons`: why it would need an approval.
    """

    invoice: Invoice
    plan: TxPlan
    refusal: Refused | None
    reasons: Reasons = ()


@dataclass(frozen=True, slots=True)
class PrepaidQuote:
    """The part of a prepaid balance that a request would use; no `units` if its price is unknown.

    `refusal`: the limit of its app that forbids it.
    """

    origin: str
    unit: str
    units: int | None
    refusal: Refused | None


def digest(parts: list[str]) -> str:
    """SHA-256 of the parts; equal only for equal parts."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Ids:
    """Fresh ids, drawn before the job: the job itself uses no randomness."""

    intent: str
    payment: str
    request: str


@dataclass(frozen=True, slots=True)
class Intent:
    """What an app wants once. `derived`: whether its key was made from the request or the invoice."""

    ids: Ids
    app_id: str
    key: str
    derived: bool
    fingerprint: str


@dataclass(frozen=True, slots=True)
class PaymentIntent(Intent):
    """One purchase, read from its 402. `invoice` is the first of the merchant's `offers`."""

    request: str | None
    invoice: Invoice
    offers: tuple[Invoice, ...]
    response: str
    received_at_ms: int
    heard_at_ms: int
    max_total_units: int | None
    min_window_s: int
    buyer: Buyer
    topup: TopupPart | None = None
    max_total_asset: str | None = None
    is_heard: bool = False
    """Whether payagent received the 402 from the merchant itself. Otherwise it is the app's claim."""
    purpose: str | None = None

    def most_units(self, asset: str) -> int | None:
        """The caller's own limit on the asset, None without one; 0 if its limit is in another asset."""
        if self.max_total_units is None or self.max_total_asset in (None, asset):
            return self.max_total_units
        return 0


@dataclass(frozen=True, slots=True)
class TransferRequest(Intent):
    """A transfer that the operator or upkeep requests. Its intent has a fresh key if the caller gave none.

    `origin`: the merchant whose channel it opens, changes or ends.
    """

    kind: str
    origin: str = ""


@dataclass(frozen=True, slots=True)
class AdmittedPayment:
    """A payment as admission or a decision left it.

    `is_new`: whether admission opened it. `plan` is set if it is to be signed now, `refusal` if it was rejected or
    denied.
    """

    payment_id: str
    is_new: bool
    plan: TxPlan | None = None
    refusal: Refused | None = None


AfterAdmission = Callable[[Unit, AdmittedPayment], None]
"""Writes more into the commit that admitted a payment."""


@dataclass(frozen=True, slots=True)
class Approver:
    """Who decides on an approval: an app's token (`app_id`), a signed link, a Telegram chat, or the clock.

    For a chat, `app_id` names the target, the chat and the user.
    `terms_hash`: hash of the terms that the approver saw, if given.
    """

    via: Via
    app_id: str | None = None
    terms_hash: str | None = None
