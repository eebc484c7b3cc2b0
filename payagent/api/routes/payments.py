"""/v1/payments and /v1/quotes: take a 402, and return the headers for the retry.

Never: decides whether to pay.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import AfterValidator, Field, WithJsonSchema
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from payagent.agent.context import AgentContext
from payagent.api.http.connection_limits import STOPPING
from payagent.api.http.problems import JsonResponse
from payagent.api.models.openapi import gives, takes
from payagent.api.models.payments import (
    Attempt,
    CreatePayment,
    MerchantAnswer,
    NamedPayment,
    Payment,
    PaymentEvent,
    Payments,
    PaymentWithAnswer,
    PaymentWithHistory,
    Quote,
    ReportDelivery,
)
from payagent.api.models.receipt import call_receipt_of, receipt_of
from payagent.api.routes.approvals import approval_field
from payagent.api.routes.auth import APPROVE, BEARER, OPERATE, PAY, READ, AnyApp, Caller, Operator, need, sent
from payagent.api.routes.params import Page, PaymentId, Since, Until, Waiting, first_of, single_header
from payagent.audit.receipt_form import AnyReceipt, CallReceipt, Receipt
from payagent.core.aggregate import CHANNEL_CALL, PaymentRow
from payagent.core.origin import parse_origin
from payagent.core.payment.machine import Delivery, State
from payagent.core.problems import Refused
from payagent.store.rows import attempts_and_utxos, events
from payagent.store.rows import payments as stored
from payagent.store.rows.approvals import count_awaiting

_KEY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Identifies the intent, forever. Without it the request does, or else the invoice.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}

_PAYER = need(PAY)
Payer = Annotated[Caller, Depends(_PAYER)]
Auditor = Annotated[Caller, Depends(need(READ, OPERATE, APPROVE))]

router = APIRouter(tags=["payments"])


def _states(text: str) -> str:
    if not set(text.split(",")) <= set(State):
        raise ValueError(f"write one of {', '.join(State)}; or several, with commas and no spaces between them")
    return text


_STATE = "|".join(State)
States = Annotated[
    str,
    AfterValidator(_states),
    WithJsonSchema({"type": "string", "pattern": f"^({_STATE})(,({_STATE}))*$"}),
]


class PaymentFilter(Page):
    """Filters of the list of payments."""

    state: Annotated[States | None, Field(description="One, or several between commas.")] = None
    origin: str | None = None
    app: Annotated[str | None, Field(description="An app's id or name.")] = None
    since: Since = None
    until: Until = None
    delivery: Delivery | None = None
    text: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=200,
            description="A part of the id, of the invoice's id, of the transaction's hash or of the request.",
        ),
    ] = None
    decided: Annotated[bool, Field(description="Only those that needed an approval and are decided.")] = False

    @property
    def states(self) -> tuple[str | None, ...]:
        return (None,) if self.state is None else tuple(dict.fromkeys(self.state.split(",")))


@router.post(
    "/v1/payments",
    summary="Pay a 402, or find the payment that its intent already has",
    responses=gives(Payment, 200, 201, 202),
    openapi_extra=takes(CreatePayment) | {"parameters": [_KEY_PARAMETER]},
    status_code=201,
)
async def pay(request: Request, caller: Payer) -> JsonResponse:
    """Answers once the signed attempt is durable and before it is submitted: 201 for a new payment, 200 for an
    existing one. 202, with `approval`, if the payment needs an approval: nothing is signed, and it counts against
    the limits. Then get the payment with `wait`, or repeat the request."""
    raw = await caller.json_body(request)
    payment_request = CreatePayment.payment_request(caller.app.id, raw, single_header(request, "Idempotency-Key"))
    row, is_new = await caller.fleet.pay(payment_request)
    if row.state is State.AWAITING_APPROVAL:
        return JsonResponse(Payment.of(caller.context, row, **approval_field(caller, row)), 202)
    return JsonResponse(Payment.of(caller.context, row), 201 if is_new else 200)


async def pay_at_once(request: Request) -> JsonResponse:
    """The same as `pay`, for the fast path."""
    return await pay(request, await _PAYER(request, await BEARER(request)))


@router.post(
    "/v1/quotes",
    summary="Quote what paying a 402 would cost now",
    responses=gives(Quote, 200),
    openapi_extra=takes(CreatePayment),
)
async def quote(request: Request, caller: Payer) -> JsonResponse:
    """Nothing is reserved. Refused as the payment would be, except by limits: these are reported in `refusal`. If
    the invoice already has a payment, the refusal is `invoice_already_paid/same_intent`."""
    payment_request = CreatePayment.payment_request(caller.app.id, await caller.json_body(request), None)
    return JsonResponse(Quote.of(await caller.fleet.quote(payment_request), caller.context.config))


@router.get("/v1/payments", summary="List payments, newest first", responses=gives(Payments, 200))
async def payments(caller: AnyApp, query: Annotated[PaymentFilter, Query()]) -> JsonResponse:
    """An app sees its own payments. A token for approve also sees those that need or needed an approval, and a
    token for read or operate sees all. `approval` is in the answer while a payment awaits one, and with `decided`.
    Calls by channel are not in it: `/v1/channels/{id}` lists them, and `/v1/payments/{id}` shows each.
    With `delivery`, or a `text` that is no whole id, a page looks at 10,000 payments. It may have few of them, or
    none, and still a cursor."""
    app_id = None if caller.sees_approvals else caller.app.id
    if query.app is not None:
        app_id = caller.app_named(query.app).id
    origin = None if query.origin is None else _origin(query.origin)
    only_app = None if caller.sees_approvals else caller.app.id
    awaiting = await run_in_threadpool(lambda: count_awaiting(caller.context.conn, only_app))
    asked_or_of = caller.app.id if caller.sees_approvals and not caller.app.sees_all else None
    rows, next_seq = await run_in_threadpool(_page, caller.context, query, app_id, asked_or_of, origin)
    items = [
        NamedPayment.of(
            caller.context,
            row,
            **(approval_field(caller, row) if query.decided or row.state is State.AWAITING_APPROVAL else {}),
        )
        for row in rows
    ]
    cursor = None if next_seq is None else str(next_seq)
    return JsonResponse(Payments(payments=items, cursor=cursor, awaiting_approval=awaiting))


def _page(
    context: AgentContext,
    query: PaymentFilter,
    app_id: str | None,
    asked_or_of: str | None,
    origin: str | None,
) -> tuple[list[PaymentRow], int | None]:
    """A page, and where the next one begins."""
    conn = context.conn
    named = None if query.text is None else stored.named(conn, query.text)
    is_scan = named is None and (query.text is not None or query.delivery is not None)
    floor = stored.scan_floor(conn, query.before) if is_scan else None
    rows = [
        row
        for state in query.states
        for row in stored.payments_page(
            conn,
            app_id=app_id,
            asked_or_of=asked_or_of,
            state=state,
            origin=origin,
            since_ms=query.since,
            until_ms=query.until,
            before_seq=query.before,
            limit=query.limit,
            payment_id=named,
            text=None if named else query.text,
            delivery=query.delivery,
            from_seq=floor,
            is_decided=query.decided,
        )
    ]
    newest = sorted(rows, key=lambda row: row.seq, reverse=True)[: query.limit]
    is_full = len(newest) == query.limit
    next_seq = newest[-1].seq if is_full else floor if floor is not None and floor > 1 else None
    return [context.as_noted(row) for row in newest], next_seq


@router.get("/v1/payments/{payment_id}", summary="Show a payment", responses=gives(PaymentWithHistory, 200))
async def payment(
    request: Request, caller: AnyApp, payment_id: PaymentId, query: Annotated[Waiting, Query()]
) -> JsonResponse:
    """With its history. With `wait` (seconds) it answers when the state or `ready` changes, time is up, or
    payagent stops. It answers at once if the payment is ready, or has ended without paying."""
    context = caller.context
    row = caller.payment(payment_id)
    if query.wait:
        await first_of(context.wait(row.id, query.wait), request.scope[STOPPING].wait())
        caller.require_valid_token()
        row = context.payment(row.id)
    answer = PaymentWithHistory.of(
        context,
        row,
        **approval_field(caller, row),
        depth=context.depth(row) or None,
        attempts=[Attempt.model_validate(one) for one in attempts_and_utxos.attempts(context.conn, row.id)],
        history=PaymentEvent.history(events.events(context.conn, row.id), sees_all=caller.app.sees_all),
    )
    return JsonResponse(answer)


@router.get(
    "/v1/payments/{payment_id}/receipt",
    summary="Export the receipt of a payment, for others to check",
    responses=gives(AnyReceipt, 200),
)
async def receipt(caller: Auditor, payment_id: PaymentId) -> JsonResponse:
    """With the 402 as received, the decision, the transaction's bytes and each event. A refused payment has one
    too. It shows what every limit left, so a token with the pay scope alone gets none. The receipt of a call by
    channel has the channel's newest voucher."""
    row = caller.payment(payment_id)
    return JsonResponse(await run_in_threadpool(_receipt, caller.context, row.id))


def _receipt(context: AgentContext, payment_id: str) -> Receipt | CallReceipt:
    with context.readers.snapshot() as conn:
        if context.calls is not None and (call := context.calls.find(conn, payment_id)) is not None:
            return call_receipt_of(conn, call, context.config)
        row = stored.payment(conn, payment_id)
        if row is None:
            raise Refused("not_found", f"there is no payment {payment_id!r}")
        return receipt_of(conn, context.require_noted(row), context.config)


@router.post(
    "/v1/payments/{payment_id}/delivery",
    summary="Report the answer to the retry",
    responses=gives(PaymentWithAnswer, 200),
    openapi_extra=takes(ReportDelivery),
)
async def delivery(
    caller: Annotated[Caller, Depends(need(PAY, OPERATE))],
    report: Annotated[ReportDelivery, sent(ReportDelivery)],
    payment_id: PaymentId,
) -> JsonResponse:
    """A 2xx or a 304 means that the request was served, unless a 202 says otherwise. For a 202 and for any other
    answer, report its headers and body too: `answer` says what to do next. A 402 soon after paying is normal; then
    present the same proof again."""
    answer = report.answer
    row = caller.payment(payment_id)
    if row.app_id != caller.app.id and OPERATE not in caller.app.scopes:
        raise Refused("forbidden", "reporting another app's delivery needs a token for operate", needs=OPERATE)
    if row.kind not in ("invoice", CHANNEL_CALL) or (
        row.attempt.tx_id is None and row.state is not State.REPLACING
    ):
        raise Refused("wrong_state", "the payment has no proof that can have been presented")
    deliveries = caller.fleet.deliveries(row.id)
    if isinstance(answer, str):
        row, said = await deliveries.take_silence(row.id, answer)
    else:
        row, said = await deliveries.take_answer(row.id, answer, shown_depth=report.depth, is_delivered=True)
    return JsonResponse(PaymentWithAnswer.of(caller.context, row, answer=MerchantAnswer.model_validate(said)))


@router.post(
    "/v1/payments/{payment_id}/resolve",
    summary="Cancel a payment",
    responses=gives(Payment, 200),
)
async def resolve(caller: Operator, payment_id: PaymentId) -> JsonResponse:
    """If nothing was signed, the payment is rejected and its hold released. Otherwise another transaction sends
    its UTxOs back to the wallet, and the chain accepts at most one of the two. Refused with 409 if the payment is
    in a block or has ended, or if a rollback took its deposit (`deposit_rolled_back`)."""
    row = await caller.fleet.resolve(caller.payment(payment_id).id, caller.app.id)
    return JsonResponse(Payment.of(caller.context, row))


@router.post(
    "/v1/payments/{payment_id}/acknowledge",
    summary="Close a payment that was not served",
    responses=gives(Payment, 200),
)
async def acknowledge(caller: Operator, payment_id: PaymentId) -> JsonResponse:
    """Its alert `paid_not_served` ends, because somebody has dealt with it. Nothing else changes: no money moves,
    and the payment stays marked as paid and not served. Refused with 409 if it is not marked so."""
    deliveries = caller.fleet.deliveries(caller.payment(payment_id).id)
    row = await deliveries.acknowledge_unserved(payment_id, caller.app.id)
    return JsonResponse(Payment.of(caller.context, row))


def _origin(text: str) -> str:
    try:
        return parse_origin(text)
    except ValueError as error:
        raise Refused("bad_request", str(error), key="origin") from None
