"""Values that callers send to the agent, and its answers.

`agent.base.orders` has what follows: the values that one commit decides on.
May import: core, dialects, wallet.transaction, agent.base. Never: decides; I/O.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from payagent.agent.base.prepaid import Buyer, TopupPart
from payagent.core.findings import Reasons
from payagent.core.invoice import Invoice
from payagent.core.problems import Refused
from payagent.dialects import HttpRequest, HttpResponse, RetryAnswer
from payagent.wallet.transaction import TxPlan


@dataclass(frozen=True, slots=True)
class MerchantRequest:
    """The HTTP request to buy. `headers` (names in lower case): those that a merchant may bind it to."""

    method: str
    path: str
    body_sha256: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def call(self, origin: str) -> HttpRequest:
        """The request in the form that dialects read."""
        return HttpRequest(self.method, origin + self.path, self.body_sha256, self.headers)


@dataclass(frozen=True, slots=True)
class PaymentRequest:
    """A 402 that an app wants paid.

    `received`: the 402 as it came, for the record. `max_total_asset`: the asset of `max_total_units`; None: the
    asset that is paid. `buyer`: whose prepaid balance a batch raises, if the request named another than the
    configured one. `topup`: the top-up that this payment is part of, which then names the intent.
    """

    app_id: str
    origin: str
    response: HttpResponse
    received: str
    request: MerchantRequest | None = None
    idempotency_key: str | None = None
    max_total_units: int | None = None
    max_total_asset: str | None = None
    buyer: Buyer | None = None
    heard_at_ms: int | None = None
    topup: TopupPart | None = None

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
class Advice:
    """A merchant's answer to a retry, and seconds until the same proof is presented again; None: never."""

    answer: RetryAnswer
    again_after_s: float | None


@dataclass(frozen=True, slots=True)
class PaymentQuote:
    """The cost of a payment now. `refusal`: the limit or merchant rule that forbids it. `reasons`: why it
    would need an approval.
    """

    invoice: Invoice
    plan: TxPlan
    refusal: Refused | None
    reasons: Reasons = ()


@dataclass(frozen=True, slots=True)
class PrepaidQuote:
    """The part of a prepaid balance that a request would use; no `units` if its price is unknown. `refusal`:
    the limit of its app that forbids it.
    """

    origin: str
    unit: str
    units: int | None
    refusal: Refused | None


def digest(parts: list[str]) -> str:
    """SHA-256 of the parts; equal only for equal parts."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
