"""/v1/merchants: who may be paid, what calls to them should carry; what is known of each, and how that is changed.

May import: core, agent, store, the rest of api, FastAPI. Never: shows a merchant's key.
"""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request

from payagent.agent.operator.merchants import add_merchant, pin, remove_merchant, reopen, standing, unpin
from payagent.api.http.problems import JsonResponse
from payagent.api.models.merchants import CreateMerchant, CreatePin, MerchantDetails, Merchants
from payagent.api.models.openapi import gives, takes
from payagent.api.models.parse import read_new_merchant, read_pin
from payagent.api.models.render import merchant_view, standing_view
from payagent.api.routes.auth import APPROVE, OPERATE, PAY, READ, Caller, need
from payagent.store.rows.merchants import readiness

Reader = Annotated[Caller, Depends(need(READ, OPERATE, APPROVE))]
Operator = Annotated[Caller, Depends(need(OPERATE))]

router = APIRouter(tags=["merchants"])


@router.get("/v1/merchants", summary="The merchants that the app may pay", responses=gives(Merchants, 200))
async def merchants(caller: Annotated[Caller, Depends(need(PAY, READ, OPERATE, APPROVE))]) -> JsonResponse:
    """`call_headers` belong in every call to the merchant, the first one too: its invoices are bound to them."""
    return _listed(caller)


@router.post(
    "/v1/merchants",
    summary="Let a merchant be paid",
    responses=gives(Merchants, 201),
    openapi_extra=takes(CreateMerchant),
    status_code=201,
)
async def add(request: Request, caller: Operator) -> JsonResponse:
    """At once, and for good. One that is there by name or origin, in the config file too, is refused with 409."""
    name, settings = read_new_merchant(await caller.json_body(request))
    await add_merchant(caller.context, caller.app.id, name, settings)
    return _listed(caller, 201)


@router.post("/v1/merchants/{name}/remove", summary="Pay a merchant no more", responses=gives(Merchants, 200))
async def remove(name: str, caller: Operator) -> JsonResponse:
    """One that was added at run time. What is under way goes on."""
    await remove_merchant(caller.context, caller.app.id, name)
    return _listed(caller)


@router.get("/v1/merchants/{name}", summary="What is known of a merchant", responses=gives(MerchantDetails, 200))
async def merchant(name: str, caller: Reader) -> JsonResponse:
    """The addresses that it may be paid at, the prices that were agreed to, whether it served what was paid."""
    return _known(caller, name)


@router.post(
    "/v1/merchants/{name}/pins",
    summary="Let a merchant be paid at an address",
    responses=gives(MerchantDetails, 200),
    openapi_extra=takes(CreatePin),
    status_code=200,
)
async def add_pin(name: str, request: Request, caller: Operator) -> JsonResponse:
    """At once, for good, and beside what the config file says."""
    await pin(caller.context, caller.app.id, name, *read_pin(await caller.json_body(request)))
    return _known(caller, name)


@router.post(
    "/v1/merchants/{name}/unpin",
    summary="Forget an address of a merchant",
    responses=gives(MerchantDetails, 200),
    openapi_extra=takes(CreatePin),
    status_code=200,
)
async def drop_pin(name: str, request: Request, caller: Operator) -> JsonResponse:
    """One that was learnt or pinned; the config file's stay. 409 `last_pinned_address`: none would be left."""
    await unpin(caller.context, caller.app.id, name, *read_pin(await caller.json_body(request)))
    return _known(caller, name)


@router.post(
    "/v1/merchants/{name}/reopen", summary="Let a merchant be paid again", responses=gives(MerchantDetails, 200)
)
async def lift_stop(name: str, caller: Operator) -> JsonResponse:
    """What it does not serve is counted anew from here on."""
    await reopen(caller.context, caller.app.id, name)
    return _known(caller, name)


def _listed(caller: Caller, status: int = 200) -> JsonResponse:
    terms, allowed = caller.context.terms, caller.app.merchants
    named = sorted(terms.merchants.values(), key=lambda merchant: merchant.name)
    rows = [merchant for merchant in named if allowed is None or merchant.origin in allowed]
    told = [merchant_view(row, readiness(caller.context.conn, row.origin), terms) for row in rows]
    return JsonResponse({"merchants": told}, status)


def _known(caller: Caller, name: str) -> JsonResponse:
    return JsonResponse(standing_view(standing(caller.context, name), caller.context.terms))
