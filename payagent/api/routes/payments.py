"""/v1/payments and /v1/quotes: a 402 comes in, the headers for the retry go out.

May import: core, dialects, agent, store, the rest of api, FastAPI. Never: decides whether to pay.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from payagent.agent.base.payment_view import attempts_view, history_view
from payagent.agent.context import AgentContext
from payagent.api.http.connection_limits import STOPPING
from payagent.api.http.problems import Json, JsonResponse
from payagent.api.models.openapi import gives, takes
from payagent.api.models.parse import read_ask, read_delivery, time_ms
from payagent.api.models.payments import (
    CreatePayment,
    Payment,
    Payments,
    PaymentWithAnswer,
    PaymentWithHistory,
    Quote,
    Receipt,
    ReportDelivery,
)
from payagent.api.models.render import advice_view, quote_view
from payagent.api.models.render_receipt import receipt_view
from payagent.api.routes.approvals import asked_view
from payagent.api.routes.auth import APPROVE, OPERATE, PAY, READ, Caller, bearer, need
from payagent.api.routes.params import Page, PaymentId, Waiting, first_of, single_header
from payagent.core.origin import parse_origin
from payagent.core.payment import State
from payagent.core.problems import Refused
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows import events
from payagent.store.rows import payments as stored
from payagent.store.rows.approvals import count_awaiting
from payagent.store.rows.payments import PaymentRow

_KEY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Names the intent, for ever. Without it the request, or else the invoice, names it.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}

_PAYER = need(PAY)
Payer = Annotated[Caller, Depends(_PAYER)]
Looker = Annotated[Caller, Depends(need(PAY, READ, OPERATE, APPROVE))]
Auditor = Annotated[Caller, Depends(need(READ, OPERATE, APPROVE))]

router = APIRouter(tags=["payments"])


class PaymentFilter(Page):
    """Which payments."""

    state: State | None = None
    origin: str | None = None
    app: Annotated[str | None, Field(description="An app's id or name.")] = None
    since: Annotated[str | None, Field(description="RFC 3339, with its zone.")] = None


@router.post(
    "/v1/payments",
    summary="Pay a 402, or find the payment that its intent has",
    responses=gives(Payment, 200, 201, 202),
    openapi_extra=takes(CreatePayment) | {"parameters": [_KEY_PARAMETER]},
    status_code=201,
)
async def pay(request: Request, caller: Payer) -> JsonResponse:
    """Answers once the signed attempt is durable and before it is sent: 201 when new, 200 when there was one. 202,
    with `approval`, while a person has to decide: nothing is signed, and it counts against the limits. Ask for it
    with `wait`, or repeat the call."""
    ask = read_ask(caller.app.id, await caller.json_body(request), single_header(request, "Idempotency-Key"))
    row, is_new = await caller.agent.pay(ask)
    if row.state is State.AWAITING_APPROVAL:
        return JsonResponse(caller.context.view(row) | asked_view(caller, row), 202)
    return JsonResponse(caller.context.view(row), 201 if is_new else 200)


async def pay_at_once(request: Request) -> JsonResponse:
    """As `pay`, for `express`."""
    return await pay(request, await _PAYER(request, await bearer(request)))


@router.post(
    "/v1/quotes",
    summary="What paying a 402 would take now; nothing is reserved",
    responses=gives(Quote, 200),
    openapi_extra=takes(CreatePayment),
)
async def quote(request: Request, caller: Payer) -> JsonResponse:
    """Refused like the payment would be, but for limits: those are told in `refusal`. An invoice with a payment
    that paying would find is `invoice_already_paid/same_intent`."""
    ask = read_ask(caller.app.id, await caller.json_body(request), None)
    return JsonResponse(quote_view(await caller.agent.quote(ask), caller.context.terms))


@router.get("/v1/payments", summary="Payments, newest first", responses=gives(Payments, 200))
async def payments(caller: Looker, query: Annotated[PaymentFilter, Query()]) -> JsonResponse:
    """An app sees its own; a token for approve those too that a person was asked about; one for read or operate
    all."""
    app_id = None if caller.sees_asked else caller.app.id
    if query.app is not None:
        app_id = caller.app_named(query.app).id
    origin = None if query.origin is None else _origin(query.origin)
    since_ms = None if query.since is None else time_ms(query.since, "since")
    only_app = None if caller.sees_asked else caller.app.id
    awaiting = await run_in_threadpool(lambda: count_awaiting(caller.context.conn, only_app))
    asked_or_of = caller.app.id if caller.sees_asked and not caller.sees_all else None
    rows = await run_in_threadpool(_page, caller.context, query, app_id, asked_or_of, origin, since_ms)
    cursor = str(rows[-1].seq) if len(rows) == query.limit else None
    shown = [caller.context.view(row) for row in rows]
    return JsonResponse({"payments": shown, "cursor": cursor, "awaiting_approval": awaiting})


def _page(
    context: AgentContext,
    query: PaymentFilter,
    app_id: str | None,
    asked_or_of: str | None,
    origin: str | None,
    since_ms: int | None,
) -> list[PaymentRow]:
    rows = stored.payments_page(
        context.conn,
        app_id=app_id,
        asked_or_of=asked_or_of,
        state=query.state,
        origin=origin,
        since_ms=since_ms,
        before_seq=query.before,
        limit=query.limit,
    )
    return [context.as_noted(row) for row in rows]


@router.get("/v1/payments/{payment_id}", summary="One payment", responses=gives(PaymentWithHistory, 200))
async def payment(
    request: Request, caller: Looker, payment_id: PaymentId, query: Annotated[Waiting, Query()]
) -> JsonResponse:
    """With its history. With `wait` (seconds) it answers when the state or `ready` changes, when time is up, or
    when payagent stops; at once when it is ready, or has ended without paying."""
    context = caller.context
    row = caller.payment(payment_id)
    if query.wait:
        await first_of(context.wait(row.id, query.wait), request.scope[STOPPING].wait())
        caller.require_let_in()
        row = context.payment(row.id)
    history = history_view(events.events(context.conn, row.id), sees_all=caller.sees_all)
    attempts = attempts_view(queries.attempts(context.conn, row.id))
    more = {"depth": context.depth(row) or None, "attempts": attempts, "history": history}
    return JsonResponse(context.view(row) | asked_view(caller, row) | more)


@router.get(
    "/v1/payments/{payment_id}/receipt",
    summary="Everything that is recorded of one payment, to be checked by others",
    responses=gives(Receipt, 200),
)
async def receipt(caller: Auditor, payment_id: PaymentId) -> JsonResponse:
    """With the 402 as received, the decision, the transaction's bytes and each event. A refused payment has one
    too. It tells what every limit left, so a token that only pays gets none."""
    row = caller.payment(payment_id)
    return JsonResponse(await run_in_threadpool(_receipt, caller.context, row.id))


def _receipt(context: AgentContext, payment_id: str) -> Json:
    with context.snapshot() as conn:
        row = stored.payment(conn, payment_id)
        if row is None:
            raise Refused("not_found", f"there is no payment {payment_id!r}")
        return receipt_view(conn, context.require_noted(row), context.terms)


@router.post(
    "/v1/payments/{payment_id}/delivery",
    summary="Say what the retry got",
    responses=gives(PaymentWithAnswer, 200),
    openapi_extra=takes(ReportDelivery),
)
async def delivery(
    request: Request, caller: Annotated[Caller, Depends(need(PAY, OPERATE))], payment_id: PaymentId
) -> JsonResponse:
    """A 2xx or a 304 means that the call was served, unless a 202 says otherwise. Of a 202 and of any other, tell
    its headers and body too: what is to be done next stands in `answer`. A 402 soon after paying is normal, and
    the same proof is shown again."""
    told, depth = read_delivery(await caller.json_body(request))
    row = caller.payment(payment_id)
    if row.app_id != caller.app.id and OPERATE not in caller.app.scopes:
        raise Refused("forbidden", "another app's delivery needs a token with scope operate", needs=OPERATE)
    if row.kind != "invoice" or (row.tx_id is None and row.state is not State.REPLACING):
        raise Refused("wrong_state", "the payment has no proof to present")
    deliveries = caller.agent.deliveries
    if isinstance(told, str):
        row, advice = await deliveries.take_silence(row.id, told)
    else:
        row, advice = await deliveries.take_answer(row.id, told, shown_depth=depth, is_delivered=True)
    return JsonResponse(caller.context.view(row) | {"answer": advice_view(advice)})


@router.post(
    "/v1/payments/{payment_id}/resolve",
    summary="Take a payment's coins back now",
    responses=gives(Payment, 200),
)
async def resolve(caller: Annotated[Caller, Depends(need(OPERATE))], payment_id: PaymentId) -> JsonResponse:
    """What nothing was signed for is rejected, and its hold is free. Else it is cancelled: one more transaction
    spends its coins to the wallet itself, and at most one of that and what was signed can win. Refused with 409
    when the payment is in a block or has ended, or its deposit is gone (`deposit_rolled_back`)."""
    row = await caller.agent.carrying.resolve(caller.payment(payment_id).id, caller.app.id)
    return JsonResponse(caller.context.view(row))


def _origin(text: str) -> str:
    try:
        return parse_origin(text)
    except ValueError as error:
        raise Refused("bad_request", str(error), key="origin") from None
