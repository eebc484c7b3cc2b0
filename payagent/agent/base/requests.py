"""What comes to the agent, and what it says to that. Values only.

What is read and ready to be decided on is in `agent.base.orders`.
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
    """The call that is to be bought. `headers` (names in lower case) are those that a merchant may bind it to."""

    method: str
    path: str
    body_sha256: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def call(self, origin: str) -> HttpRequest:
        """As a dialect reads it."""
        return HttpRequest(self.method, origin + self.path, self.body_sha256, self.headers)


@dataclass(frozen=True, slots=True)
class PaymentRequest:
    """A 402 that an app wants paid. `received` is the 402 as it came, for the record. `max_total_units` are of
    `max_total_asset`; None: of whichever it is paid in.

    `buyer`: whose prepaid balance a batch raises, where the call said another than the configured one. `topup`: it
    is a part of that order, which names the intent.
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
        """What the intent is: origin and request, never the 402."""
        request = self.request
        parts = [self.origin] + ([request.method, request.path, request.body_sha256] if request else [])
        return digest(parts)

    def key(self, invoice_id: str | None) -> str | None:
        """The intent's key; None when only an invoice id would name it, and there is none."""
        if self.topup is not None:
            return f"topup:{self.topup.topup}:{self.topup.number}"
        if self.idempotency_key is not None:
            return f"key:{self.idempotency_key}"
        if self.request is not None:
            return f"request:{self.fingerprint}"
        return None if invoice_id is None else f"invoice:{self.origin} {invoice_id}"


@dataclass(frozen=True, slots=True)
class Advice:
    """What a merchant said to a retry, and in how many seconds the same proof is shown again; None: not again."""

    answer: RetryAnswer
    again_after_s: float | None


@dataclass(frozen=True, slots=True)
class PaymentQuote:
    """What a payment would be now. `refusal` is the limit or the guard that stands against it, if one does;
    `reasons` are why a person would be asked first.
    """

    invoice: Invoice
    plan: TxPlan
    refusal: Refused | None
    reasons: Reasons = ()


@dataclass(frozen=True, slots=True)
class PrepaidQuote:
    """What a call would use of a prepaid balance that would serve it; no `units` where its price is not known.
    `refusal` is the limit of its app that stands against it.
    """

    origin: str
    unit: str
    units: int | None
    refusal: Refused | None


def digest(parts: list[str]) -> str:
    """What is wanted, in one text: the same only for the same parts."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
