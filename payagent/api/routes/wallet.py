"""/v1/wallet: what there is, and the operator's own transfers.

May import: agent, store.rows, the rest of api, FastAPI. Never: builds a transaction.
"""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request

from payagent.agent.chain_sync.external_spends import unfreeze
from payagent.agent.utxos import transfers
from payagent.api.http.problems import JsonResponse
from payagent.api.models.openapi import gives, takes
from payagent.api.models.parse import read_key, read_split, read_transfer, read_unfreeze
from payagent.api.models.payments import Payment
from payagent.api.models.render import address_view, utxo_view, wallet_view
from payagent.api.models.wallet import (
    SendFunds,
    SplitOrder,
    Transfer,
    UnfreezeResult,
    UnfreezeWallet,
    Utxos,
    Wallet,
)
from payagent.api.routes.auth import OPERATE, PAY, READ, Caller, need
from payagent.api.routes.params import single_header
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows import journal

# an app needs the address for its calls; what the wallet does for others is nothing to it
Viewer = Annotated[Caller, Depends(need(PAY, READ, OPERATE))]
Reader = Annotated[Caller, Depends(need(READ, OPERATE))]
Operator = Annotated[Caller, Depends(need(OPERATE))]

router = APIRouter(tags=["wallet"])


@router.get("/v1/wallet", summary="Balances per asset, coins, and the chain as seen", responses=gives(Wallet, 200))
async def wallet(caller: Viewer) -> JsonResponse:
    """`available` may be spent now, `held` is reserved for payments, `total` is all that is ours by the books.

    A token that only pays is shown the address, and no balances."""
    context, now_ms = caller.context, caller.context.ports.clock.now_ms()
    if not caller.sees_all:
        return JsonResponse(address_view(context.terms, context.chain, now_ms))
    utxos, balances = queries.utxos(context.conn), journal.balances(context.conn)
    return JsonResponse(wallet_view(context.terms, context.chain, utxos, balances, now_ms))


@router.get("/v1/wallet/utxos", summary="Every coin that is not spent", responses=gives(Utxos, 200))
async def utxos(caller: Reader) -> JsonResponse:
    """`reserved_for` names the payment that a coin is kept for."""
    return JsonResponse({"utxos": [utxo_view(utxo) for utxo in queries.utxos(caller.context.conn)]})


@router.post(
    "/v1/wallet/split",
    summary="Fan out into equal coins, so that as many payments can be under way at once",
    responses=gives(Payment, 201),
    openapi_extra=takes(SplitOrder),
    status_code=201,
)
async def split(request: Request, caller: Operator) -> JsonResponse:
    """With an Idempotency-Key the call can be repeated safely; without one every call is a new transaction."""
    agent, key = caller.agent, read_key(single_header(request, "Idempotency-Key"))
    count, lovelace = read_split(await caller.json_body(request))
    row, is_new = await agent.transfers.split(caller.app.id, count, lovelace, key)
    return JsonResponse(agent.context.view(row), 201 if is_new else 200)


@router.post(
    "/v1/wallet/send",
    summary="Send out of the wallet, past the limits",
    responses=gives(Transfer, 201),
    openapi_extra=takes(SendFunds),
    status_code=201,
)
async def send(request: Request, caller: Operator) -> JsonResponse:
    """With an Idempotency-Key the call can be repeated safely; without one every call is a new transaction."""
    agent, key = caller.agent, read_key(single_header(request, "Idempotency-Key"))
    order = read_transfer(await caller.json_body(request), agent.context.terms.network)
    if order.units is None:
        row, is_new = await agent.transfers.sweep(caller.app.id, order.to, key)
    else:
        row, is_new = await agent.transfers.send(caller.app.id, order.to, order.asset, order.units, key)
    behind = transfers.told_of(agent.context.conn, row.id)
    told = {} if behind is None else {"left_behind": behind}
    return JsonResponse(agent.context.view(row) | told, 201 if is_new else 200)


@router.post(
    "/v1/wallet/thaw",
    summary="Sign again after coins were spent elsewhere",
    responses=gives(UnfreezeResult, 200),
    openapi_extra=takes(UnfreezeWallet, may_be_absent=True),
)
async def unfreeze_wallet(request: Request, caller: Operator) -> JsonResponse:
    """The operator says that payagent alone has this wallet again. `txs`: what had frozen it; `tx`: the last of
    them, null when nothing had. Refused as `external_spend_new` when `seen` is given and lacks one of them."""
    seen = read_unfreeze(await caller.json_body(request, may_be_absent=True))
    txs = await unfreeze(caller.context, caller.app.id, seen)
    return JsonResponse({"tx": txs[-1] if txs else None, "txs": txs})
