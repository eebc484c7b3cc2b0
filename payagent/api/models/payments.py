"""Payments: the 402 that comes in, the payment and its history, the merchant's answer, and quotes.

Never: I/O; decides whether to pay.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, PlainValidator

from payagent.agent.base.config import AgentConfig
from payagent.agent.base.merchant_trust import priced_call
from payagent.agent.base.payment_view import retry_headers
from payagent.agent.base.requests import MerchantRequest, PaymentQuote, PaymentRequest
from payagent.agent.context import AgentContext
from payagent.api.models.apps import LimitStanding
from payagent.api.models.base import (
    Amounts,
    Base64,
    GivenAsset,
    GivenUnits,
    Headers,
    Hex,
    Line,
    Origin,
    Pairs,
    Reason,
    RequestBody,
    Shown,
    Time,
    Units,
    absent,
    closed,
    read_key,
    read_pairs,
    strict_body,
)
from payagent.api.models.merchants import AgreedPrice, PinnedAddress
from payagent.core import strict_json
from payagent.core.aggregate import CHANNEL_CALL, PaymentRow
from payagent.core.findings import Reasons
from payagent.core.invoice import Proof, Role
from payagent.core.payment.machine import ON_CHAIN, Delivery, State
from payagent.core.policy import is_shared
from payagent.core.problems import Refused
from payagent.dialects import HttpResponse, RetryVerdict, make_response, parse_answer, parse_response
from payagent.store.rows import apps, events, intents, journal
from payagent.store.rows.events import EventRow

_UNANSWERED = 504
"""The status reported when no answer came: a gateway's own status for a timeout (RFC 9110 15.6.5)."""
_BUYER = ("x-partner", "x-wallet-address")

VoucherName = Annotated[
    str,
    Field(
        pattern=r"^[0-9a-f]{64}:[0-9]+$",
        description="Of a call by channel: the channel, and the voucher's amount.",
    ),
]


def _call_headers(value: object) -> dict[str, str]:
    """By name in lower case. Repeated headers form one list (RFC 9110 5.3), except those that name the buyer."""
    headers: dict[str, str] = {}
    for name, text in read_pairs(value):
        key, before = name.lower(), headers.get(name.lower())
        if key in _BUYER and before not in (None, text):
            raise ValueError(f"the header {name} is given twice")
        headers[key] = text if before is None or key in _BUYER else f"{before}, {text}"
    return headers


class RequestLine(RequestBody):
    """Method and path of a request to a merchant."""

    method: Annotated[str, Field(pattern=r"^[A-Z]{1,16}$")]
    path: Annotated[str, Field(pattern=r"^/[!-~]{0,8191}$", description="With its query.")]


class RequestWithHeaders(RequestLine):
    headers: Annotated[
        dict[str, str], PlainValidator(_call_headers, json_schema_input_type=dict[str, str] | Pairs)
    ] = Field(default={}, description="Those that the merchant may bind the payment to, such as X-Partner.")

    def request(self, body_sha256: str = "") -> MerchantRequest:
        return MerchantRequest(self.method, self.path, body_sha256, self.headers)


class BoughtRequest(RequestWithHeaders):
    """The request to buy. With the origin it identifies the purchase.

    The method of a call to an MCP server is `MCP`, and `body_sha256` is of its arguments in RFC 8785's form. The
    path is the server's, with tools/NAME, resources/URI or prompts/NAME as its fragment: /mcp#tools/report. In
    place of the server's query it has `;` and the first 16 digits of the query's SHA-256.
    """

    body_sha256: Hex

    @property
    def bought(self) -> MerchantRequest:
        return self.request(self.body_sha256)


class _ForwardedAnswer(RequestBody):
    """An HTTP answer. Its body as a JSON value or text, or byte for byte in base64."""

    status: Annotated[int, Field(ge=100, le=599)]
    headers: Headers = Field(default=[])
    body: Any = absent("A JSON value, or the text as received.")
    body_base64: Base64 = absent("The bytes as received, instead of `body`.")


class PaymentRequiredResponse(_ForwardedAnswer):
    """The 402 as received. Its body as a JSON value or text, or byte for byte in base64."""

    model_config = closed("body", "body_base64")

    def response(self, received: str) -> HttpResponse:
        """`received`: this object as JSON. Refused: `bad_request`, `body_too_big`, and a body that is not JSON."""
        if ("body" in self.model_fields_set) == (self.body_base64 is not None):
            raise Refused("bad_request", "response must have either body or body_base64", key="response.body")
        if self.body_base64 is not None:
            return parse_response(self.status, self.headers, self.body_base64)
        response = make_response(self.status, self.headers, self.body)
        if len(received) > strict_json.MAX_BYTES:
            _require_small(self.body)
        return response


def _require_small(body: object) -> None:
    """Apply the size limit of a 402's body whatever form it was forwarded in."""
    if len(json.dumps(body, default=lambda number: number.text, ensure_ascii=False)) > strict_json.MAX_BYTES:
        raise Refused("body_too_big", f"the 402's body has more than {strict_json.MAX_BYTES} bytes")


def _serialised(body: object) -> str:
    """Serialise as `strict_json.dumps` does. `json` is faster when no number has a fraction, as in most 402s."""
    try:
        return json.dumps(body, separators=(",", ":"))
    except TypeError:
        return strict_json.dumps(body)


class CreatePayment(RequestBody):
    """A 402 to pay."""

    origin: Annotated[Origin, Field(description="Scheme, host and port of the server that answered.")]
    request: BoughtRequest = absent("The request to buy.")
    response: PaymentRequiredResponse
    max_total: GivenUnits = absent("The most that may leave the wallet in the invoice's asset, including the fee.")
    max_total_asset: GivenAsset = absent("The asset of `max_total`: no other asset is paid. Default: any asset.")
    purpose: Line = absent("Why the app buys this, in one line for people. It does not tell purchases apart.")

    @classmethod
    def payment_request(cls, app_id: str, raw: bytes, idempotency_key: str | None) -> PaymentRequest:
        """Read the body of /v1/payments and /v1/quotes. It contains a 402, so invalid JSON counts as a bad 402."""
        value: Any = strict_body(raw)
        body = cls.check(value)
        if body.max_total is None and body.max_total_asset is not None:
            raise Refused(
                "bad_request", "max_total_asset is the asset of max_total, which is missing", key="max_total"
            )
        received = _serialised(value["response"])
        return PaymentRequest(
            app_id=app_id,
            origin=body.origin,
            response=body.response.response(received),
            received=received,
            request=None if body.request is None else body.request.bought,
            idempotency_key=read_key(idempotency_key),
            max_total_units=body.max_total,
            max_total_asset=body.max_total_asset,
            purpose=body.purpose,
        )


class Decide(RequestBody):
    """A decision on a payment that needs an approval."""

    terms_hash: Hex = absent("The terms that were read. If others apply meanwhile, the decision is refused.")


class ReportDelivery(_ForwardedAnswer):
    """The answer to the retry. For any answer but a 2xx, headers and body say what to do next."""

    depth: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="The payment's `depth` when the proof was presented. Default: its depth now."
    )
    unanswered: Line = absent("Why no answer came to a proof that was sent, in one line; `status` is 504 then.")

    @property
    def answer(self) -> HttpResponse | str:
        """The retry's answer, as far as reported, or the reason why none came."""
        given = self.model_fields_set
        if self.unanswered is not None:
            if self.status != _UNANSWERED or given & {"headers", "body", "body_base64"}:
                detail = f"unanswered goes with status {_UNANSWERED} and with no headers and no body"
                raise Refused("bad_request", detail, key="unanswered")
            return self.unanswered
        if {"body", "body_base64"} <= given:
            raise Refused("bad_request", "give either body or body_base64", key="body")
        body = self.body if "body" in given else self.body_base64 or b""
        if isinstance(body, str | bytes):
            raw = body.encode() if isinstance(body, str) else body
            return parse_answer(self.status, self.headers, raw)
        return HttpResponse(self.status, {name.lower(): value for name, value in self.headers}, body)


class PaymentOutput(Shown):
    role: Role
    address: str
    asset: str
    units: Units


class Block(BaseModel):
    hash: Hex
    height: int
    slot: int


class TransactionOutput(BaseModel):
    role: Role
    address: str
    lovelace: Units
    assets: Amounts


class Transaction(BaseModel):
    """The transaction as planned when the approval was requested: every output, including the change."""

    outputs: list[TransactionOutput]
    fee: Units
    size: int


class MerchantHistory(BaseModel):
    """Of the last 1,000 payments to the merchant, how many were paid, ended unpaid or are open; `spent` of all."""

    paid: int
    last_at: Time | None
    not_paid: int
    under_way: int
    spent: Amounts


class Approval(BaseModel):
    """A request for approval, and its decision. `at_most` is what it counts against the limits: no more can leave.

    `calls`: how many requests it buys. The decision is about `terms_hash`. Tokens that see only their own payments
    do not get the last seven fields.
    """

    calls: int
    reasons: list[Reason]
    terms_hash: Hex
    transaction: Transaction
    at_most: Amounts
    asked_at: Time
    ends_at: Time
    decision: Literal["approved", "denied", "timed_out"] | None
    via: Literal["token", "dashboard", "link", "telegram", "clock"] | None
    decided_at: Time | None
    page: str = absent("Where a signed-in person decides, while it is open and the dashboard is on.")
    app: str = absent("The app that wants to pay.")
    request: str | None = absent("The request to buy.")
    by: str | None = absent("The app that decided, or the Telegram target, chat and user.")
    limits: list[LimitStanding] = absent("The limits that apply, and what they leave now.")
    history: MerchantHistory = absent("Earlier payments to the merchant.")
    agreed: list[AgreedPrice] = absent("The prices that are agreed for the request now.")
    pinned: list[PinnedAddress] = absent("The addresses that the merchant may be paid at now.")


class Payment(BaseModel):
    """A payment. `headers` is exactly what the client adds to its retry, once the attempt is durable."""

    id: str
    kind: Literal["invoice", "send", "split", "sweep", "channel_call"]
    app: Annotated[str, Field(description="The id of the app that requested it.")]
    state: State
    delivery: Delivery
    network: str
    dialect: str | None
    origin: str | None
    invoice_id: str | None
    outputs: list[PaymentOutput]
    fee: Units | None
    tx_hash: Hex | VoucherName | None
    ttl_slot: int | None
    nonce_utxo: str | None
    proof: Proof
    merchant_submits: bool
    headers: dict[str, str]
    ready: bool
    request_id: str
    merchant_status: str | None
    block: Block | None
    batch_target: int | None
    expires_at: Time | None
    created_at: Time
    changed_at: Time
    reason: Reason = absent("Present if the payment was refused.")
    approval: Approval = absent("Present if the payment needed an approval.")

    @classmethod
    def of(cls, context: AgentContext, row: PaymentRow, **more: Any) -> Self:
        """`more`: the fields that a subclass adds, and `approval`."""
        config = context.config
        merchant, wallet = config.merchants.get(row.invoice.origin or ""), context.wallet_address(row)
        if row.problem.code is not None:
            more["reason"] = Reason(code=row.problem.code, reason=row.problem.reason, detail=row.problem.detail)
        return cls.model_validate(
            {
                "id": row.id,
                "kind": row.kind,
                "app": row.app_id,
                "state": row.state,
                "delivery": row.delivery,
                "network": config.network.name,
                "dialect": row.invoice.dialect,
                "origin": row.invoice.origin,
                "invoice_id": row.invoice.id,
                "outputs": row.outputs,
                "fee": row.attempt.fee_lovelace,
                "tx_hash": row.attempt.tx_id if row.is_noted else None,
                "ttl_slot": row.attempt.ttl_slot,
                "nonce_utxo": row.nonce_utxo,
                "proof": row.invoice.proof,
                "merchant_submits": row.invoice.merchant_submits,
                "headers": retry_headers(row, merchant, wallet),
                "ready": context.is_ready(row),
                "request_id": row.intent.request_id,
                "merchant_status": row.merchant_status,
                "block": _block(row),
                "batch_target": row.invoice.batch_target,
                "expires_at": row.invoice.expires_at_ms,
                "created_at": row.created_at_ms,
                "changed_at": row.updated_at_ms,
                **more,
            }
        )


def shown_request(request: str | None) -> str | None:
    """Method and path of a stored request, without the query (it may hold a key) and the hash of its body."""
    return None if request is None else " ".join(priced_call(request))


def _block(row: PaymentRow) -> dict[str, object] | None:
    if row.block.hash is None or row.state not in ON_CHAIN:
        return None
    return {"hash": row.block.hash, "height": row.block.height, "slot": row.block.slot}


def _shown_detail(detail: str, *, sees_all: bool) -> dict[str, object]:
    """The details of an event. An app that sees only its own data gets no figures of the wallet or others."""
    details: dict[str, object] = json.loads(detail)
    limits = details.get("limits")
    if not sees_all:
        details.pop("figures", None)
        if details.get("via") == "telegram":  # who the person is
            details.pop("by", None)
    if not sees_all and isinstance(limits, list):
        details["limits"] = [{**one, "left": None} if is_shared(one["limit"], one) else one for one in limits]
    return details


class PaymentEvent(BaseModel):
    """An event of a payment, and the payment's state after it."""

    event: str
    state: State
    at: Time
    detail: dict[str, object]

    @classmethod
    def history(cls, events: Iterable[EventRow], *, sees_all: bool) -> list[Self]:
        return [
            cls(
                event=row.event,
                state=State(row.state or ""),
                at=row.at_ms,
                detail=_shown_detail(row.detail, sees_all=sees_all),
            )
            for row in events
        ]


class StreamEvent(BaseModel):
    """An event of a payment, or (`payment` is null) of the whole wallet."""

    seq: int
    payment: str | None
    event: str
    state: State | None
    detail: dict[str, object]
    at: Time

    @classmethod
    def of(cls, row: EventRow, *, sees_all: bool) -> Self:
        return cls(
            seq=row.seq,
            payment=row.payment_id,
            event=row.event,
            state=None if row.state is None else State(row.state),
            detail=_shown_detail(row.detail, sees_all=sees_all),
            at=row.at_ms,
        )


class Attempt(Shown):
    """A signed transaction: it pays the merchant, or cancels the payment."""

    kind: Literal["pay", "cancel"]
    tx_hash: Hex = Field(validation_alias="tx_id")
    fee: Units = Field(validation_alias="fee_lovelace")
    ttl_slot: int


class NamedPayment(Payment):
    """With the names that people know. `request`: method and path of the bought request, without its query.

    `purpose`: why the app buys it, in the app's words. `spend`: what leaves the wallet, with the fee and the ADA
    that goes along with a token; empty before it is reserved; of a void one, the fee of a cancel.
    """

    app_name: str
    merchant: str | None
    request: str | None
    purpose: str | None
    spend: Amounts

    @classmethod
    def of(cls, context: AgentContext, row: PaymentRow, **more: Any) -> Self:
        return super().of(
            context,
            row,
            app_name=apps.require(context.conn, row.app_id).name,
            merchant=context.config.merchant_name(row.invoice.origin),
            request=shown_request(intents.request_of(context.conn, row.intent.id)),
            purpose=events.purpose_of(context.conn, row.id),
            spend=journal.left_wallet(context.conn, row.id)
            if row.kind != CHANNEL_CALL
            else {one.asset: one.units for one in row.outputs},
            **more,
        )


class PaymentWithHistory(NamedPayment):
    """`depth`: blocks from the payment's own to the newest, counting both; null while it is in no block.

    `attempts`: oldest first. At most one of them is ever on the chain.
    """

    depth: int | None
    attempts: list[Attempt]
    history: list[PaymentEvent]


class MerchantAnswer(Shown):
    """What the merchant's answer means. `again_after_s`: present the same proof again then; null: do not.

    If the payment is not `ready` after the answer, wait until it is before you present the proof again. With
    `poll_query`, repeat the request without the proof and with this added to its query.
    """

    said: RetryVerdict = Field(validation_alias="verdict")
    reason: str
    again_after_s: float | None
    poll_query: str | None


class PaymentWithAnswer(Payment):
    answer: MerchantAnswer


class Payments(BaseModel):
    """`awaiting_approval`: how many of all payments that the app sees wait for approval, on any page."""

    payments: list[NamedPayment]
    cursor: str | None
    awaiting_approval: int


class Quote(BaseModel):
    """What the payment would cost now. Nothing is reserved.

    `total` is what leaves the wallet in the invoice's asset, with the fee if that is ADA.
    """

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
    approval: list[Reason] = absent("Present if the payment would need an approval: why.")
    refusal: Reason = absent("Present if a limit or a merchant rule forbids it.")

    @classmethod
    def of(cls, quote: PaymentQuote, config: AgentConfig) -> Self:
        invoice, plan = quote.invoice, quote.plan
        return cls(
            prepaid=False,
            network=config.network.name,
            dialect=invoice.dialect,
            origin=invoice.origin,
            invoice_id=invoice.invoice_id,
            batch_target=invoice.batch_target,
            outputs=[
                PaymentOutput(role=one.role, address=one.address.text, asset=one.asset, units=one.units)
                for one in invoice.outputs
            ],
            fee=plan.fee_lovelace,
            total=plan.spend[invoice.asset],
            spend=dict(plan.spend),
            size=plan.size,
            expires_at=invoice.expires_at_ms,
            **quote_verdict(quote.refusal, quote.reasons),
        )


def approval_reasons(reasons: Reasons) -> list[Reason]:
    """Why an approval is needed. The codes of findings have no `reason`."""
    return [Reason(code=one.code, reason=None, detail=one.detail) for one in reasons]


def quote_verdict(refusal: Refused | None, reasons: Reasons = ()) -> Mapping[str, Any]:
    """The last fields of a quote: what would stop the payment, if anything."""
    verdict: dict[str, Any] = {"within_limits": refusal is None}
    if reasons:
        verdict["approval"] = approval_reasons(reasons)
    if refusal is not None:
        verdict["refusal"] = refusal
    return verdict
