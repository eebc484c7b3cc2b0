"""/v1/prepaid: prepaid balances, by our count and by merchants' reports, and which requests they would serve.

Never: counts by a merchant's report.
"""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request

from payagent.agent.base.config import AgentConfig
from payagent.api.http.problems import JsonResponse
from payagent.api.models.openapi import gives, takes
from payagent.api.models.prepaid import Prepaid, PrepaidPool, PrepaidQuestion, PrepaidQuoteAnswer
from payagent.api.routes.auth import PAY, Caller, Reader, need
from payagent.store.db.unit import Connection
from payagent.store.rows import prepaid

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
async def quote(request: Request, caller: Payer) -> JsonResponse:
    """Ask this before a dry run makes the request: the merchant would serve it and use up prepaid balance.
    Nothing is requested, counted or reserved. The answer uses our count and the merchant's last report."""
    question = PrepaidQuestion.read(await caller.json_body(request))
    calls = caller.fleet.prepaid_calls
    prepaid_quote = calls.quote(calls.call_of(caller.app.id, question.origin, question.request.request()))
    return JsonResponse(PrepaidQuoteAnswer.of(prepaid_quote, caller.context.config))


def all_pools(conn: Connection, config: AgentConfig) -> list[PrepaidPool]:
    """Every balance, as we count it and as its merchant reports it."""
    return [
        PrepaidPool.of(one, prepaid.last_observation(conn, one.pool.id), config) for one in prepaid.holdings(conn)
    ]
