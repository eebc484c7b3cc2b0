"""/v1/prepaid: what was bought ahead at merchants, as we count it and as they say, and which calls it would serve.

May import: core, agent, store, the rest of api, FastAPI. Never: takes a merchant's word for a count.
"""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request

from payagent.agent.base.config import AgentConfig
from payagent.api.http.problems import JsonResponse
from payagent.api.models.openapi import gives, takes
from payagent.api.models.prepaid import Prepaid, PrepaidPool, PrepaidQuestion, PrepaidQuoteAnswer
from payagent.api.routes.auth import OPERATE, PAY, READ, Caller, need
from payagent.store.db.unit import Connection
from payagent.store.rows import prepaid

Viewer = Annotated[Caller, Depends(need(READ, OPERATE))]
Payer = Annotated[Caller, Depends(need(PAY))]

router = APIRouter(tags=["prepaid"])


@router.get("/v1/prepaid", summary="What is bought, used and left at each merchant", responses=gives(Prepaid, 200))
async def holdings(caller: Viewer) -> JsonResponse:
    """In calls, or in units of an asset. `difference` is what the merchant says is left less what we count."""
    return JsonResponse(Prepaid(prepaid=all_pools(caller.context.conn, caller.context.terms)))


@router.post(
    "/v1/prepaid/quotes",
    summary="Whether a prepaid balance would serve a call",
    responses=gives(PrepaidQuoteAnswer, 200),
    openapi_extra=takes(PrepaidQuestion),
)
async def quote(request: Request, caller: Payer) -> JsonResponse:
    """A dry run asks this before it makes the call, which would be served and use up what is prepaid. Nothing is
    called, counted or reserved. The answer goes by our count, and by the merchant's word as it was last heard."""
    question = PrepaidQuestion.read(await caller.json_body(request))
    calls = caller.agent.prepaid_calls
    found = calls.quote(calls.call_of(caller.app.id, question.origin, question.request.request()))
    return JsonResponse(PrepaidQuoteAnswer.of(found, caller.context.terms))


def all_pools(conn: Connection, terms: AgentConfig) -> list[PrepaidPool]:
    """Every balance, as we count it and as its merchant reports it."""
    return [
        PrepaidPool.of(one, prepaid.last_observation(conn, one.pool.id), terms) for one in prepaid.holdings(conn)
    ]
