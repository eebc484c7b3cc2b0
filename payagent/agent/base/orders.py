"""Values that one commit decides on, and its results.

May import: core, store.rows, wallet.transaction, agent.base. Never: decides.
"""

from dataclasses import dataclass

from payagent.agent.base.prepaid import Buyer, TopupPart
from payagent.core.invoice import Invoice
from payagent.core.problems import Refused
from payagent.store.rows.approvals import Via
from payagent.wallet.transaction import TxPlan


@dataclass(frozen=True, slots=True)
class Ids:
    """Fresh ids, drawn before the job: the job itself uses no randomness."""

    intent: str
    payment: str
    request: str


@dataclass(frozen=True, slots=True)
class PaymentIntent:
    """One purchase that an app wants, read from its 402. `invoice` is the first of the merchant's `offers`."""

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
    topup: TopupPart | None = None
    max_total_asset: str | None = None
    is_heard: bool = False
    """Whether payagent received the 402 from the merchant itself. Otherwise it is the app's claim."""

    def most_units(self, asset: str) -> int | None:
        """The caller's own limit on the asset, None without one; 0 if its limit is in another asset."""
        if self.max_total_units is None or self.max_total_asset in (None, asset):
            return self.max_total_units
        return 0


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """A transfer that the operator or upkeep requests. Its intent has a fresh key if the caller gave none."""

    ids: Ids
    app_id: str
    key: str
    derived: bool
    fingerprint: str
    kind: str


@dataclass(frozen=True, slots=True)
class AdmittedPayment:
    """The intent's payment. `plan` is set if it is new and to be signed, `refusal` if it was rejected."""

    payment_id: str
    is_new: bool
    plan: TxPlan | None = None
    refusal: Refused | None = None


@dataclass(frozen=True, slots=True)
class Approver:
    """Who decides on an approval: an app's token (`app_id`), a signed link, or the clock.

    `terms_hash`: hash of the terms that the approver saw, if given.
    """

    via: Via
    app_id: str | None = None
    terms_hash: str | None = None


@dataclass(frozen=True, slots=True)
class DecidedPayment:
    """The result of a decision: `plan` is to be signed, or the payment was denied for `refusal`."""

    payment_id: str
    plan: TxPlan | None
    refusal: Refused | None = None
