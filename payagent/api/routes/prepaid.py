"""/v1/prepaid: prepaid balances, which requests they would serve, and top-ups.

Balances are by our count and by merchants' reports.
Never: counts by a merchant's report; pays for a top-up (the scheduler's jobs do).
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from starlette.requests import Request

from payagent.agent.base.config import AgentConfig
from payagent.agent.base.requests import PrepaidQuote
from payagent.agent.context import AgentContext
from payagent.api.http.connection_limits import STOPPING
from payagent.api.http.problems import JsonResponse
from payagent.api.models.base import read_key
from payagent.api.models.openapi import gives, takes
from payagent.api.models.prepaid import (
    CreateTopup,
    Prepaid,
    PrepaidPool,
    PrepaidQuestion,
    PrepaidQuoteAnswer,
    Topup,
    TopupQuote,
    TopupsPage,
)
from payagent.api.routes.auth import PAY, Caller, Operator, Reader, need, sent
from payagent.api.routes.params import Page, Waiting, first_of, single_header
from payagent.store.db.unit import Connection
from payagent.store.rows import payments, prepaid, topups
from payagent.store.rows.topups import TopupRow

Payer = Annotated[Caller, Depends(need(PAY))]

router = APIRouter(tags=["prepaid"])


@router.get("/v1/prepaid", summary="List prepaid balances", responses=gives(Prepaid, 200))
async def holdings(caller: Reader) -> JsonResponse:
    """What was bought, used and is left at each merchant, in calls or in units of an asset."""
    return JsonResponse(Prepaid(prepaid=all_pools(caller.context.conn, caller.context.config)))


@router.post(
    "/v1/prepaid/quotes",
    summary="Ask whether a prepaid balance would serve a request",
    responses=gives(PrepaidQuoteAnswer, 200),
    openapi_extra=takes(PrepaidQuestion),
)
async def quote(caller: Payer, question: Annotated[PrepaidQuestion, sent(PrepaidQuestion)]) -> JsonResponse:
    """Ask this before a dry run makes the request: the merchant would serve it and use up prepaid balance.
    Nothing is requested, counted or reserved. The answer uses our count and the merchant's last report."""
    calls = caller.fleet.prepaid_calls
    prepaid_quote = calls.quote(calls.call_of(caller.app.id, question.origin, question.request.request()))
    return JsonResponse(PrepaidQuoteAnswer.of(prepaid_quote, caller.context.config))


def all_pools(conn: Connection, config: AgentConfig) -> list[PrepaidPool]:
    """Every balance, as we count it and as its merchant reports it."""
    return [
        PrepaidPool.of(one, prepaid.last_observation(conn, one.pool.id), config) for one in prepaid.holdings(conn)
    ]


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


@router.post(
    "/v1/prepaid/topups",
    summary="Raise a prepaid balance, or quote what that would cost",
    responses=gives(Topup, 201) | _PLAN_OR_FOUND,
    openapi_extra=takes(CreateTopup) | {"parameters": [_KEY_PARAMETER]},
    status_code=201,
)
async def order(
    request: Request, caller: Operator, body: Annotated[CreateTopup, sent(CreateTopup)]
) -> JsonResponse:
    """Answers once the top-up is durable. payagent then carries it out, even if the caller disconnects.

    A dry run makes the request to the merchant and reads its 402, and pays nothing. It makes no ordinary request
    that a prepaid balance would serve.
    """
    key = read_key(single_header(request, "Idempotency-Key"))
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
    request: Request, caller: Reader, topup_id: TopupId, query: Annotated[Waiting, Query()]
) -> JsonResponse:
    """With `wait` (seconds) it answers when the top-up changes, time is up, or payagent stops."""
    topups = caller.fleet.topups
    row = topups.find(topup_id)
    if query.wait:
        await first_of(topups.wait(row.id, query.wait), request.scope[STOPPING].wait())
        caller.require_valid_token()
        row = topups.find(row.id)
    return JsonResponse(_topup(caller.context, row))


@router.post(
    "/v1/prepaid/topups/{topup_id}/cancel",
    summary="Cancel a top-up",
    responses=gives(Topup, 200),
)
async def cancel(caller: Operator, topup_id: TopupId) -> JsonResponse:
    """It ends at once. If one of its payments is open, it is `stopping` until the merchant has accepted the proof.
    What it bought stays. Refused with 409 if it has ended."""
    return JsonResponse(_topup(caller.context, await caller.fleet.cancel_topup(topup_id, caller.app.id)))


def _topup(context: AgentContext, row: TopupRow) -> Topup:
    pool = prepaid.pool(context.conn, row.pool_id)
    return Topup.of(row, pool, payments.payments_of_topup(context.conn, row.id), context.config)
