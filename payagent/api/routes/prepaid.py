"""/v1/prepaid: what was bought ahead at merchants, as we count it and as they say, and which calls it would serve.

May import: core, agent, store, the rest of api, FastAPI. Never: takes a merchant's word for a count.
"""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request

from payagent.agent.base.config import AgentConfig
from payagent.api.http.problems import JsonResponse
from payagent.api.models.openapi import gives, takes
from payagent.api.models.parse import read_prepaid_question
from payagent.api.models.prepaid import Prepaid, PrepaidQuestion, PrepaidQuoteAnswer
from payagent.api.models.render import prepaid_quote_view
from payagent.api.routes.auth import OPERATE, PAY, READ, Caller, need
from payagent.core.prepaid_balance import CALLS
from payagent.core.timestamps import iso_time
from payagent.store.db.unit import Connection
from payagent.store.rows import prepaid
from payagent.store.rows.prepaid import Holding, Observation

Viewer = Annotated[Caller, Depends(need(READ, OPERATE))]
Payer = Annotated[Caller, Depends(need(PAY))]
Json = dict[str, object]

router = APIRouter(tags=["prepaid"])


@router.get("/v1/prepaid", summary="What is bought, used and left at each merchant", responses=gives(Prepaid, 200))
async def holdings(caller: Viewer) -> JsonResponse:
    """In calls, or in units of an asset. `difference` is what the merchant says is left less what we count."""
    return JsonResponse({"prepaid": holdings_view(caller.context.conn, caller.context.terms)})


@router.post(
    "/v1/prepaid/quotes",
    summary="Whether a prepaid balance would serve a call",
    responses=gives(PrepaidQuoteAnswer, 200),
    openapi_extra=takes(PrepaidQuestion),
)
async def quote(request: Request, caller: Payer) -> JsonResponse:
    """A dry run asks this before it makes the call, which would be served and use up what is prepaid. Nothing is
    called, counted or reserved. The answer goes by our count, and by the merchant's word as it was last heard."""
    origin, asked = read_prepaid_question(await caller.json_body(request))
    calls = caller.agent.prepaid_calls
    found = calls.quote(calls.call_of(caller.app.id, origin, asked))
    return JsonResponse(prepaid_quote_view(found, caller.context.terms))


def holdings_view(conn: Connection, terms: AgentConfig) -> list[Json]:
    """Every balance, as we count it and as its merchant says."""
    return [
        _holding_view(one, prepaid.last_observation(conn, one.pool.id), terms) for one in prepaid.holdings(conn)
    ]


def _holding_view(one: Holding, told: Observation | None, terms: AgentConfig) -> Json:
    balance, merchant = one.balance, terms.merchants.get(one.pool.origin)
    explained = min(balance.unexplained, one.coming)
    return {
        "merchant": None if merchant is None else merchant.name,
        "origin": one.pool.origin,
        "partner": one.pool.partner or None,
        "wallet": one.pool.wallet,
        "unit": one.unit,
        "bought": str(balance.bought),
        "used": str(balance.used),
        "left": str(balance.left),
        "coming": str(one.coming),
        "unexplained": str(balance.unexplained - explained),
        "costs": [
            {"asset": asset, "bought": str(cost.bought), "used": str(cost.used), "left": str(cost.left)}
            for asset, cost in sorted(balance.costs.items())
        ],
        "merchant_says": None if told is None else _told_view(told),
        "difference": difference(one, told),
    }


def _told_view(told: Observation) -> Json:
    numbers = {"remaining": told.remaining, "total": told.total, "used": told.used}
    return {
        **{name: None if value is None else str(value) for name, value in numbers.items()},
        "unit": told.unit,
        "expires_at": None if told.expires_at_ms is None else iso_time(told.expires_at_ms),
        "understood": told.why_not_understood is None,
        "why_not": told.why_not_understood,
        "source": told.source,
        "status": told.http_status,
        "body": told.body,
        "at": iso_time(told.at_ms),
    }


def difference(one: Holding, told: Observation | None) -> str | None:
    """Left by the merchant's word less left by our count; None where the two cannot be compared."""
    if told is None or told.remaining is None or (told.unit or CALLS) != one.unit:
        return None
    return str(told.remaining - one.balance.left)
