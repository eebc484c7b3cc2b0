"""/v1/merchants: who may be paid, and what calls to them should carry.

May import: agent, the rest of api, FastAPI. Never: shows a merchant's key.
"""

from typing import Annotated

from fastapi import APIRouter, Depends

from payagent.api.access import APPROVE, OPERATE, PAY, READ, Caller, need
from payagent.api.problems import JsonResponse
from payagent.api.schemas import Merchants, gives
from payagent.api.views import merchant_view

router = APIRouter(tags=["merchants"])


@router.get("/v1/merchants", summary="The merchants that the app may pay", responses=gives(Merchants, 200))
async def merchants(caller: Annotated[Caller, Depends(need(PAY, READ, OPERATE, APPROVE))]) -> JsonResponse:
    """`call_headers` belong in every call to the merchant, the first one too: its invoices are bound to them."""
    terms, allowed = caller.agent.terms, caller.app.merchants
    named = sorted(terms.merchants.values(), key=lambda merchant: merchant.name)
    rows = [merchant for merchant in named if allowed is None or merchant.origin in allowed]
    return JsonResponse({"merchants": [merchant_view(merchant, terms) for merchant in rows]})
