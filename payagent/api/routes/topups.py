"""/v1/prepaid/topups: order a top-up, see what it would take, and how the orders stand.

May import: core, agent, store, the rest of api, FastAPI. Never: pays; the beats do, one step after the other.
"""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from starlette.requests import Request

from payagent.agent.base.requests import PrepaidQuote
from payagent.agent.context import AgentContext
from payagent.agent.topups.orders import bought, gained_by
from payagent.agent.topups.runner import TopupPlan, TopupRunner
from payagent.api.http.connection_limits import STOPPING
from payagent.api.http.problems import JsonResponse
from payagent.api.models.openapi import gives, takes
from payagent.api.models.parse import read_key, read_topup
from payagent.api.models.prepaid import CreateTopup, PrepaidQuoteAnswer, Topup, TopupQuote, TopupsPage
from payagent.api.models.render import prepaid_quote_view, verdict_view
from payagent.api.routes.auth import OPERATE, READ, Caller, need
from payagent.api.routes.params import Page, Waiting, first_of, single_header
from payagent.core.payment import ENDED_WITHOUT_PAYING
from payagent.core.prepaid_balance import CALLS
from payagent.core.timestamps import iso_time
from payagent.store.rows import payments, prepaid, topups
from payagent.store.rows.topups import TopupRow

Viewer = Annotated[Caller, Depends(need(READ, OPERATE))]
Operator = Annotated[Caller, Depends(need(OPERATE))]
TopupId = Annotated[str, Path(description="As /v1/prepaid/topups gave it.")]
Json = dict[str, object]

_PLAN_OR_FOUND: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Topup | TopupQuote | PrepaidQuoteAnswer,
        "description": "What it would take, or that the call would be served; or the order of this key.",
    }
}
_KEY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Names the order, for ever. Without it each call is an order of its own.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}

router = APIRouter(tags=["prepaid"])


def _topups(request: Request) -> TopupRunner:
    orders: TopupRunner = request.app.state.topups
    return orders


Orders = Annotated[TopupRunner, Depends(_topups)]


@router.post(
    "/v1/prepaid/topups",
    summary="Raise a prepaid balance, or see what that would take",
    responses=gives(Topup, 201) | _PLAN_OR_FOUND,
    openapi_extra=takes(CreateTopup) | {"parameters": [_KEY_PARAMETER]},
    status_code=201,
)
async def order(request: Request, caller: Operator, orders: Orders) -> JsonResponse:
    """Answers once the order is durable; it is carried out from then on, whatever becomes of the caller.

    A dry run makes the merchant's request and reads its 402. Nothing is paid. An ordinary call that a prepaid
    balance would serve is not made.
    """
    key = read_key(single_header(request, "Idempotency-Key"))
    wish, is_dry = read_topup(await caller.json_body(request), caller.context.terms)
    if is_dry:
        return JsonResponse(_plan_view(caller.context, await orders.plan(caller.app.id, wish)))
    row, is_new = await orders.order(caller.app.id, key, wish)
    return JsonResponse(_view(caller.context, row), 201 if is_new else 200)


@router.get("/v1/prepaid/topups", summary="Top-ups, newest first", responses=gives(TopupsPage, 200))
async def page(caller: Viewer, query: Annotated[Page, Query()]) -> JsonResponse:
    """Those that were ordered, and those of a balance that was low."""
    rows = topups.page(caller.context.conn, query.before, query.limit)
    cursor = str(rows[-1].seq) if len(rows) == query.limit else None
    return JsonResponse({"topups": [_view(caller.context, row) for row in rows], "cursor": cursor})


@router.get("/v1/prepaid/topups/{topup_id}", summary="One top-up", responses=gives(Topup, 200))
async def one(
    request: Request, caller: Viewer, orders: Orders, topup_id: TopupId, query: Annotated[Waiting, Query()]
) -> JsonResponse:
    """With `wait` (seconds) it answers when something has happened to it, time is up, or payagent stops."""
    row = orders.find(topup_id)
    if query.wait:
        await first_of(orders.wait(row.id, query.wait), request.scope[STOPPING].wait())
        caller.require_let_in()
        row = orders.find(row.id)
    return JsonResponse(_view(caller.context, row))


@router.post(
    "/v1/prepaid/topups/{topup_id}/cancel",
    summary="Buy nothing more for a top-up",
    responses=gives(Topup, 200),
)
async def cancel(caller: Operator, orders: Orders, topup_id: TopupId) -> JsonResponse:
    """It ends at once; or, where a payment of it is under way, when the merchant has taken its proof, and is
    `stopping` until then. What it bought stays. Refused with 409 when it has ended."""
    caller.require_let_in()  # since `orders` was fetched in another thread
    return JsonResponse(_view(caller.context, await orders.cancel(topup_id, caller.app.id)))


def _view(context: AgentContext, row: TopupRow) -> Json:
    made = payments.payments_of_topup(context.conn, row.id)
    pool = prepaid.pool(context.conn, row.pool)
    merchant, request = context.terms.merchants.get(pool.origin), json.loads(row.request)
    paid: dict[str, int] = {}
    for payment in made:
        for output in payment.outputs if payment.state not in ENDED_WITHOUT_PAYING else ():
            paid[output.asset] = paid.get(output.asset, 0) + output.units
    view: Json = {
        "id": row.id,
        "merchant": None if merchant is None else merchant.name,
        "origin": pool.origin,
        "partner": pool.partner or None,
        "wallet": pool.wallet,
        "cause": row.cause,
        "state": row.state,
        "unit": row.unit,
        "units": str(row.units),
        "bought": str(bought(row, made)),
        "paid": {asset: str(units) for asset, units in paid.items()},
        "request": {"method": request["method"], "path": request["path"]},
        "payments": [payment.id for payment in made],
        "created_at": iso_time(row.created_at_ms),
        "ended_at": None if row.ended_at_ms is None else iso_time(row.ended_at_ms),
    }
    if row.code is not None:
        view["reason"] = {"code": row.code, "reason": row.reason, "detail": row.detail}
    elif row.stop_code is not None:
        view["reason"] = {"code": row.stop_code, "reason": row.stop_reason, "detail": row.stop_detail}
    return view


def _plan_view(context: AgentContext, plan: TopupPlan | PrepaidQuote) -> Json:
    """`count` payments of `price` each, without fees; `spend` is all that leaves the wallet."""
    if isinstance(plan, PrepaidQuote):
        return prepaid_quote_view(plan, context.terms)
    invoice, spend = plan.quote.invoice, plan.quote.plan.spend
    calls = gained_by(CALLS, invoice) * plan.count
    view: Json = {
        "prepaid": False,
        "merchant": context.terms.merchant(plan.wish.origin).name,
        "origin": plan.wish.origin,
        "unit": plan.wish.unit,
        "units": str(plan.wish.units),
        "count": plan.count,
        "price": {"asset": invoice.asset, "units": str(invoice.total_units)},
        "total": str(invoice.total_units * plan.count),
        "calls": str(calls) if calls else None,
        "fees": str(plan.quote.plan.fee_lovelace * plan.count),
        "spend": {asset: str(units * plan.count) for asset, units in spend.items()},
        "under_way": plan.under_way,
        "within_limits": plan.quote.refusal is None,
    }
    return view | verdict_view(plan.quote)
