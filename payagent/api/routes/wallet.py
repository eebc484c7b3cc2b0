"""/v1/wallet: balances, UTxOs, and the operator's own transfers.

Never: builds a transaction.
"""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request

from payagent.agent.chain_sync.external_spends import unfreeze
from payagent.agent.utxos import transfers
from payagent.api.http.problems import JsonResponse
from payagent.api.models.base import read_key
from payagent.api.models.openapi import gives, takes
from payagent.api.models.payments import Payment
from payagent.api.models.wallet import (
    SendFunds,
    SplitOrder,
    Transfer,
    UnfreezeResult,
    UnfreezeWallet,
    Utxos,
    Wallet,
)
from payagent.api.routes.auth import OPERATE, PAY, READ, Caller, Operator, Reader, need, sent
from payagent.api.routes.params import single_header
from payagent.store.rows import attempts_and_utxos, journal, payments

# an app needs the address for its requests, but must not see what the wallet does for others
Viewer = Annotated[Caller, Depends(need(PAY, READ, OPERATE))]

router = APIRouter(tags=["wallet"])


@router.get("/v1/wallet", summary="Show balances, UTxOs and the chain as last read", responses=gives(Wallet, 200))
async def wallet(caller: Viewer) -> JsonResponse:
    """`available` can be spent now, `held` is reserved for payments, `total` is what the ledger says is ours.

    A token with the pay scope alone sees the address and no balances."""
    context, now_ms = caller.context, caller.context.ports.clock.now_ms()
    if not caller.app.sees_all:
        return JsonResponse(Wallet.of(context.config, context.chain, now_ms, fleet=caller.fleet.status()))
    utxos, balances = attempts_and_utxos.utxos(context.conn), journal.balances(context.conn)
    in_flight = payments.signed_holds(context.conn)
    status = caller.fleet.status()
    return JsonResponse(Wallet.of(context.config, context.chain, now_ms, utxos, balances, in_flight, status))


@router.get("/v1/wallet/utxos", summary="List unspent UTxOs", responses=gives(Utxos, 200))
async def utxos(caller: Reader) -> JsonResponse:
    """`reserved_for`: the id of the payment that a UTxO is reserved for."""
    return JsonResponse(Utxos.of(attempts_and_utxos.utxos(caller.context.conn)))


@router.post(
    "/v1/wallet/split",
    summary="Split funds into equal UTxOs, so that more payments can be in flight at once",
    responses=gives(Payment, 201),
    openapi_extra=takes(SplitOrder),
    status_code=201,
)
async def split(
    request: Request, caller: Operator, order: Annotated[SplitOrder, sent(SplitOrder)]
) -> JsonResponse:
    """With an Idempotency-Key you can repeat the request safely. Without one, each makes a transaction."""
    fleet, key = caller.fleet, read_key(single_header(request, "Idempotency-Key"))
    row, is_new = await fleet.split(caller.app.id, order.count, order.lovelace, key)
    return JsonResponse(Payment.of(fleet.context, row), 201 if is_new else 200)


@router.post(
    "/v1/wallet/send",
    summary="Send funds out of the wallet, outside the limits",
    responses=gives(Transfer, 201),
    openapi_extra=takes(SendFunds),
    status_code=201,
)
async def send(request: Request, caller: Operator, order: Annotated[SendFunds, sent(SendFunds)]) -> JsonResponse:
    """With an Idempotency-Key you can repeat the request safely. Without one, each makes a transaction."""
    fleet, key = caller.fleet, read_key(single_header(request, "Idempotency-Key"))
    to = order.destination(fleet.context.config.network)
    if order.all:
        account = order.account if "account" in order.model_fields_set else None
        row, is_new = await fleet.send_all(caller.app.id, to, key, account)
    else:
        row, is_new = await fleet.send(caller.app.id, to, order.asset, order.units, key)
    left_behind = transfers.left_behind_of(fleet.context.conn, row.id)
    more = {} if left_behind is None else {"left_behind": left_behind}
    return JsonResponse(Transfer.of(fleet.context, row, **more), 201 if is_new else 200)


@router.post(
    "/v1/wallet/unfreeze",
    summary="Sign again after another program spent from the wallet",
    responses=gives(UnfreezeResult, 200),
    openapi_extra=takes(UnfreezeWallet, may_be_absent=True),
)
async def unfreeze_wallet(
    caller: Operator, order: Annotated[UnfreezeWallet, sent(UnfreezeWallet, may_be_absent=True)]
) -> JsonResponse:
    """Confirms that no other program uses this wallet's key any more. `txs`: the transactions that had frozen it;
    `tx`: the last of them, or null. Refused as `external_spend_new` if `seen` is given and lacks one of them."""
    txs = await unfreeze(caller.context, caller.app.id, order.seen)
    return JsonResponse(UnfreezeResult(tx=txs[-1] if txs else None, txs=txs))
