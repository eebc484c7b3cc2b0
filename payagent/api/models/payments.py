"""Payments: asked for, as they stand, and what happened to them. May import: core, dialects, pydantic."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from payagent.api.models.base import Amounts, Closed, Hex, LimitStanding, Reason, Time, Units, absent, closed
from payagent.core.invoice import Proof
from payagent.core.payment import Delivery, State
from payagent.dialects import RetryVerdict


class BoughtRequest(Closed):
    """The call that is to be bought; with the origin, it is what the intent is known by."""

    method: Annotated[str, Field(pattern=r"^[A-Z]{1,16}$")]
    path: Annotated[str, Field(pattern=r"^/[!-~]{0,8191}$", description="With its query.")]
    body_sha256: Hex
    headers: dict[str, str] | list[tuple[str, str]] = absent("Those that the merchant may bind the payment to.")


class PaymentRequiredResponse(Closed):
    """The answer as received. Its body as a JSON value, or as text, or in base64 byte for byte."""

    model_config = closed("body", "body_base64")

    status: Annotated[int, Field(ge=100, le=599)]
    headers: dict[str, str] | list[tuple[str, str]] = Field(default={})
    body: Any = absent("A JSON value, or the text as received.")
    body_base64: str = absent("The bytes as received.")


class CreatePayment(Closed):
    """A 402 that is to be paid."""

    origin: Annotated[str, Field(description="Scheme, host and port of the server that answered.")]
    request: BoughtRequest = absent("The call that is bought.")
    response: PaymentRequiredResponse
    max_total: Units = absent("A bound on what leaves in the invoice's asset, fee included.")
    max_total_asset: str = absent("What `max_total` is of: nothing is paid in another asset. Else: in whichever.")


class ReportDelivery(Closed):
    """What the retry got. Headers and body, in the forms of `response` of a payment, tell more of a 402."""

    status: Annotated[int, Field(ge=100, le=599)]
    headers: dict[str, str] | list[tuple[str, str]] = Field(default={})
    body: object = absent("The answer's body: JSON as received, or text.")
    body_base64: str = absent("The answer's body, in base64, instead of `body`.")
    depth: Annotated[int, Field(ge=0)] = absent("The payment's `depth` when the proof was shown. Default: now's.")
    unanswered: str = absent("In one line why no answer came to a proof that was sent; `status` is 504 then.")


class PaymentOutput(BaseModel):
    role: Literal["pay_to", "split", "change"]
    address: str
    asset: str
    units: Units


class Block(BaseModel):
    hash: Hex
    height: int
    slot: int


class TransactionOutput(BaseModel):
    role: Literal["pay_to", "split", "change"]
    address: str
    lovelace: Units
    assets: Amounts


class Transaction(BaseModel):
    """A transaction as it would have been when it was asked about: every output, also the change."""

    outputs: list[TransactionOutput]
    fee: Units
    size: int


class MerchantHistory(BaseModel):
    """What there was with a merchant before: payments that were paid, that ended otherwise, and what was spent."""

    paid: int
    last_at: Time | None
    not_paid: int
    under_way: int
    spent: Amounts


class Approval(BaseModel):
    """What a person is asked. `at_most` is what it counts against the limits: no more leaves if it is approved.

    `calls`: how many calls it buys. `terms_hash` is what is decided on. The last four are for those who see more
    than their own payments.
    """

    calls: int
    reasons: list[Reason]
    terms_hash: Hex
    transaction: Transaction
    at_most: Amounts
    asked_at: Time
    ends_at: Time
    decision: Literal["approved", "denied", "timed_out"] | None
    via: Literal["token", "link", "clock"] | None
    decided_at: Time | None
    app: str = absent("The app that wants to pay.")
    request: str | None = absent("The call that is bought.")
    by: str | None = absent("The app that decided.")
    limits: list[LimitStanding] = absent("The limits that bind it, with what they leave now.")
    history: MerchantHistory = absent("What there was with the merchant.")


class Payment(BaseModel):
    """A payment. `headers` is exactly what the client adds to its retry, once the attempt is durable."""

    id: str
    kind: Literal["invoice", "send", "split", "sweep"]
    app: Annotated[str, Field(description="The id of the app that ordered it.")]
    state: State
    delivery: Delivery
    network: str
    dialect: str | None
    origin: str | None
    invoice_id: str | None
    outputs: list[PaymentOutput]
    fee: Units | None
    tx_hash: Hex | None
    ttl_slot: int | None
    nonce_utxo: str | None
    proof: Proof
    merchant_submits: bool
    headers: dict[str, str]
    ready: bool
    request_id: str
    idempotency_key: str
    merchant_status: str | None
    block: Block | None
    batch_target: int | None
    expires_at: Time | None
    created_at: Time
    changed_at: Time
    reason: Reason = absent("There when the payment was refused.")
    approval: Approval = absent("There when a person was asked.")


class PaymentEvent(BaseModel):
    """Something that happened to a payment, and the state that it was in afterwards."""

    event: str
    state: State
    at: Time
    detail: dict[str, object]


class StreamEvent(BaseModel):
    """Something that happened: to a payment, or (null) to the wallet as a whole."""

    seq: int
    payment: str | None
    event: str
    state: State | None
    detail: dict[str, object]
    at: Time


class Receipt(BaseModel):
    """Everything that is recorded of a payment; `payagent ledger verify --receipt` checks it without a daemon.

    Each part has the columns of the ledger's tables. `decisions` and `answers` repeat some of `events` for people;
    in `events`, `detail` is the text that the hash is of.
    """

    format: Literal["payagent-receipt/1"]
    network: str
    wallet: str
    payment: dict[str, object]
    intent: dict[str, object]
    invoice: dict[str, object] | None
    other_invoices: list[dict[str, object]]
    decisions: list[dict[str, object]]
    holds: list[dict[str, object]]
    attempts: list[dict[str, object]]
    block_observations: list[dict[str, object]]
    answers: list[dict[str, object]]
    entries: list[dict[str, object]]
    events: list[dict[str, object]]
    ledger: dict[str, object]


class Attempt(BaseModel):
    """One signed transaction: it pays, or takes the coins back."""

    kind: Literal["pay", "cancel"]
    tx_hash: Hex
    fee: Units
    ttl_slot: int


class PaymentWithHistory(Payment):
    """`depth`: blocks from the payment's own to the newest, both counted; null while it is in none."""

    depth: int | None
    attempts: list[Attempt]
    history: list[PaymentEvent]


class MerchantAnswer(BaseModel):
    """What the merchant said to the retry. `again_after_s`: show the same proof again then; null: do not.

    Where the payment is not `ready` after the answer, wait until it is, and then show the proof again.

    With `poll_query` the call is then repeated without the proof, and with this added to its query.
    """

    said: RetryVerdict
    reason: str
    again_after_s: float | None
    poll_query: str | None


class PaymentWithAnswer(Payment):
    answer: MerchantAnswer


class Payments(BaseModel):
    """`awaiting_approval`: how many of all that the app sees wait for a person, on whatever page."""

    awaiting_approval: int
    payments: list[Payment]
    cursor: str | None


class Quote(BaseModel):
    """What paying would take now. Nothing is reserved."""

    prepaid: Literal[False]
    network: str
    dialect: str
    origin: str
    invoice_id: str
    batch_target: int | None
    outputs: list[PaymentOutput]
    fee: Units
    total: Units
    spend: Amounts
    size: int
    expires_at: Time | None
    within_limits: bool
    approval: list[Reason] = absent("There when a person would be asked first: why.")
    refusal: Reason = absent("There when a limit or a guard stands against it.")
