"""What is asked of the agent, read and ready to be decided on in one commit, and what came of it. Values only.

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
    """Fresh ids, drawn before the job, so that it stays a function of its values."""

    intent: str
    payment: str
    request: str


@dataclass(frozen=True, slots=True)
class PaymentIntent:
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
    topup: TopupPart | None = None
    max_total_asset: str | None = None
    is_heard: bool = False
    """Whether we heard the 402 from its merchant ourselves; else it is its app's word."""

    def most_units(self, asset: str) -> int | None:
        """The caller's own bound on what may leave of the asset that is paid in; of another, nothing."""
        if self.max_total_units is None or self.max_total_asset in (None, asset):
            return self.max_total_units
        return 0


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """One order of the operator's to move coins. Without a key of its own it is an intent that nothing names."""

    ids: Ids
    app_id: str
    key: str
    derived: bool
    fingerprint: str
    kind: str


@dataclass(frozen=True, slots=True)
class AdmittedPayment:
    """The intent's payment. `plan` is there when it is new and to be signed; `refusal` when it was rejected."""

    payment_id: str
    is_new: bool
    plan: TxPlan | None = None
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
class DecidedPayment:
    """What became of a payment that awaited a decision: it is signed by `plan`, or was denied for `refusal`."""

    payment_id: str
    plan: TxPlan | None
    refusal: Refused | None = None
