"""/v1/prepaid/topups: starts, quotes, lists and cancels top-ups.

Never: pays (the scheduler's jobs do).
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from starlette.requests import Request

from payagent.agent.base.requests import PrepaidQuote
from payagent.agent.context import AgentContext
from payagent.agent.fleet.fleet import Fleet
from payagent.agent.topups.runner import TopupRunner
from payagent.api.http.connection_limits import STOPPING
from payagent.api.http.problems import JsonResponse
from payagent.api.models.base import read_key
from payagent.api.models.openapi import gives, takes
from payagent.api.models.prepaid import (
    CreateTopup,
    PrepaidQuoteAnswer,
    Topup,
    TopupQuote,
    TopupsPage,
)
from payagent.api.routes.auth import Operator, Reader
from payagent.api.routes.params import Page, Waiting, first_of, single_header
from payagent.store.rows import payments, prepaid, topups
from payagent.store.rows.topups import TopupRow

TopupId = Annotated[str, Path(description="As returned by /v1/prepaid/topups.")]

_PLAN_OR_FOUND: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Topup | TopupQuote | PrepaidQuoteAnswer,
        "description": "The quote of a dry run, or the top-up that this key already has.",
    }
}
_KEY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Identifies the top-up, forever. Without it, each request starts a new one.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}

router = APIRouter(tags=["prepaid"])


def _topups(request: Request) -> TopupRunner:
    fleet: Fleet = request.app.state.fleet
    return fleet.topups


Orders = Annotated[TopupRunner, Depends(_topups)]


@router.post(
    "/v1/prepaid/topups",
    summary="Raise a prepaid balance, or quote what that would cost",
    responses=gives(Topup, 201) | _PLAN_OR_FOUND,
    openapi_extra=takes(CreateTopup) | {"parameters": [_KEY_PARAMETER]},
    status_code=201,
)
async def order(request: Request, caller: Operator, orders: Orders) -> JsonResponse:
    """Answers once the top-up is durable. payagent then carries it out, even if the caller disconnects.

    A dry run makes the request to the merchant and reads its 402, and pays nothing. It makes no ordinary request
    that a prepaid balance would serve.
    """
    key = read_key(single_header(request, "Idempotency-Key"))
    body = CreateTopup.read(await caller.json_body(request), caller.context.config)
    if not body.dry_run:
        row, is_new = await caller.fleet.order_topup(caller.app.id, key, body.goal)
        return JsonResponse(_topup(caller.context, row), 201 if is_new else 200)
    plan = await caller.fleet.plan_topup(caller.app.id, body.goal)
    if isinstance(plan, PrepaidQuote):
        return JsonResponse(PrepaidQuoteAnswer.of(plan, caller.context.config))
    return JsonResponse(TopupQuote.of(plan, caller.context.config))


@router.get("/v1/prepaid/topups", summary="List top-ups, newest first", responses=gives(TopupsPage, 200))
async def page(caller: Reader, query: Annotated[Page, Query()]) -> JsonResponse:
    """Those that an operator requested, and automatic ones."""
    rows = topups.page(caller.context.conn, query.before, query.limit)
    return JsonResponse(
        TopupsPage(
            topups=[_topup(caller.context, row) for row in rows], cursor=query.next_of([row.seq for row in rows])
        )
    )


@router.get("/v1/prepaid/topups/{topup_id}", summary="Show a top-up", responses=gives(Topup, 200))
async def one(
    request: Request, caller: Reader, orders: Orders, topup_id: TopupId, query: Annotated[Waiting, Query()]
) -> JsonResponse:
    """With `wait` (seconds) it answers when the top-up changes, time is up, or payagent stops."""
    row = orders.find(topup_id)
    if query.wait:
        await first_of(orders.wait(row.id, query.wait), request.scope[STOPPING].wait())
        caller.require_valid_token()
        row = orders.find(row.id)
    return JsonResponse(_topup(caller.context, row))


@router.post(
    "/v1/prepaid/topups/{topup_id}/cancel",
    summary="Cancel a top-up",
    responses=gives(Topup, 200),
)
async def cancel(caller: Operator, orders: Orders, topup_id: TopupId) -> JsonResponse:
    """It ends at once. If one of its payments is open, it is `stopping` until the merchant has accepted the proof.
    What it bought stays. Refused with 409 if it has ended."""
    caller.require_valid_token()  # `orders` was fetched in another thread
    return JsonResponse(_topup(caller.context, await caller.fleet.cancel_topup(topup_id, caller.app.id)))


def _topup(context: AgentContext, row: TopupRow) -> Topup:
    pool = prepaid.pool(context.conn, row.pool_id)
    return Topup.of(row, pool, payments.payments_of_topup(context.conn, row.id), context.config)
