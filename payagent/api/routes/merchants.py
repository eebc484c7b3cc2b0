"""/v1/merchants: lists, shows, adds and removes merchants, and changes their pins.

Never: shows a merchant's key.
"""

from typing import Annotated

from fastapi import APIRouter, Depends

from payagent.agent.operator.merchants import add_merchant, pin, remove_merchant, resume, standing, unpin
from payagent.api.http.problems import JsonResponse
from payagent.api.models.merchants import CreateMerchant, CreatePin, Merchant, MerchantDetails, Merchants
from payagent.api.models.openapi import gives, takes
from payagent.api.routes.auth import APPROVE, OPERATE, READ, AnyApp, Caller, Operator, need, sent
from payagent.store.rows.merchants import prices, readiness

Reader = Annotated[Caller, Depends(need(READ, OPERATE, APPROVE))]
Pin = Annotated[CreatePin, sent(CreatePin)]

router = APIRouter(tags=["merchants"])


@router.get("/v1/merchants", summary="List the merchants that the app may pay", responses=gives(Merchants, 200))
async def merchants(caller: AnyApp) -> JsonResponse:
    """Send `call_headers` with every request to the merchant, because its invoices are bound to them."""
    return _listed(caller)


@router.post(
    "/v1/merchants",
    summary="Add a merchant",
    responses=gives(Merchants, 201),
    openapi_extra=takes(CreateMerchant),
    status_code=201,
)
async def add(caller: Operator, order: Annotated[CreateMerchant, sent(CreateMerchant)]) -> JsonResponse:
    """Applies at once and survives restarts. A name or origin that is already in use is refused with 409."""
    await add_merchant(caller.context, caller.app.id, order.name, order.settings)
    return _listed(caller, 201)


@router.post("/v1/merchants/{name}/remove", summary="Remove a merchant", responses=gives(Merchants, 200))
async def remove(name: str, caller: Operator) -> JsonResponse:
    """Only a merchant that was added at run time. Its open payments go on."""
    await remove_merchant(caller.context, caller.app.id, name)
    return _listed(caller)


@router.get("/v1/merchants/{name}", summary="Show a merchant", responses=gives(MerchantDetails, 200))
async def merchant(name: str, caller: Reader) -> JsonResponse:
    """The addresses that it may be paid at, the agreed prices, and whether it served what was paid."""
    return _details(caller, name)


@router.post(
    "/v1/merchants/{name}/pins",
    summary="Allow a merchant to be paid at an address",
    responses=gives(MerchantDetails, 200),
    openapi_extra=takes(CreatePin),
    status_code=200,
)
async def add_pin(name: str, caller: Operator, order: Pin) -> JsonResponse:
    """Applies at once, survives restarts, and adds to the addresses of the config file."""
    await pin(caller.context, caller.app.id, name, order.role, order.address)
    return _details(caller, name)


@router.post(
    "/v1/merchants/{name}/unpin",
    summary="Remove an address of a merchant",
    responses=gives(MerchantDetails, 200),
    openapi_extra=takes(CreatePin),
    status_code=200,
)
async def drop_pin(name: str, caller: Operator, order: Pin) -> JsonResponse:
    """Only an address that was learned or pinned at run time. `last_pinned_address` if none would be left."""
    await unpin(caller.context, caller.app.id, name, order.role, order.address)
    return _details(caller, name)


@router.post(
    "/v1/merchants/{name}/resume", summary="Resume payments to a merchant", responses=gives(MerchantDetails, 200)
)
async def resume_merchant(name: str, caller: Operator) -> JsonResponse:
    """The count of unserved payments starts again at zero."""
    await resume(caller.context, caller.app.id, name)
    return _details(caller, name)


def _listed(caller: Caller, status: int = 200) -> JsonResponse:
    config, allowed = caller.context.config, caller.app.merchants
    by_name = sorted(config.merchants.values(), key=lambda merchant: merchant.name)
    rows = [merchant for merchant in by_name if allowed is None or merchant.origin in allowed]
    conn = caller.context.conn
    items = [Merchant.of(row, readiness(conn, row.origin), prices(conn, row.origin), config) for row in rows]
    return JsonResponse(Merchants(merchants=items), status)


def _details(caller: Caller, name: str) -> JsonResponse:
    return JsonResponse(MerchantDetails.of_status(standing(caller.context, name), caller.context.config))
