"""Approve and deny a payment that waits for a person; and what that person is shown.

May import: core, agent, store, the rest of api, FastAPI. Never: decides whether a payment may be made.
"""

from typing import Annotated

from fastapi import APIRouter, Depends

from payagent.agent.base.requests import Approver
from payagent.agent.context import AgentContext
from payagent.agent.operator.limits import names_of, standing
from payagent.api.http.problems import Json, JsonResponse
from payagent.api.models.openapi import gives
from payagent.api.models.payments import Payment
from payagent.api.models.render import approval_view, limit_view
from payagent.api.routes.auth import APPROVE, OPERATE, Caller, need
from payagent.api.routes.params import PaymentId
from payagent.core.payment import ENDED_WITHOUT_PAYING, POSTED
from payagent.core.policy import ANY, Scope, scopes_of
from payagent.core.problems import Refused
from payagent.core.timestamps import iso_time
from payagent.store.rows import approvals, apps, intents, payments
from payagent.store.rows import limit_counters as spending
from payagent.store.rows.payments import PaymentRow

Decider = Annotated[Caller, Depends(need(APPROVE, OPERATE))]

router = APIRouter(tags=["payments"])


@router.post(
    "/v1/payments/{payment_id}/approve", summary="Let a payment go on that waits", responses=gives(Payment, 200)
)
async def approve(caller: Decider, payment_id: PaymentId) -> JsonResponse:
    """All is decided anew, limits and funds too, and then it is signed. What is refused now stays open until its
    time is over; 409 `already_decided` says what was decided before. No app but an operator's decides on its own
    payment."""
    row = await caller.agent.decisions.approve(_open_to(caller, payment_id), Approver("token", caller.app.id))
    return JsonResponse(caller.context.view(row) | asked_view(caller, row))


@router.post("/v1/payments/{payment_id}/deny", summary="End a payment that waits", responses=gives(Payment, 200))
async def deny(caller: Decider, payment_id: PaymentId) -> JsonResponse:
    """Nothing was signed, and what counted for it is free. For as long as it could have waited, the same call is
    refused without asking again."""
    row = await caller.agent.decisions.deny(_open_to(caller, payment_id), Approver("token", caller.app.id))
    return JsonResponse(caller.context.view(row) | asked_view(caller, row))


def _open_to(caller: Caller, payment_id: str) -> str:
    """A payment that the caller may decide on."""
    row = caller.payment(payment_id)
    if row.app_id == caller.app.id and OPERATE not in caller.app.scopes:
        raise Refused("forbidden", "an app cannot decide on its own payment", needs=OPERATE)
    return row.id


def asked_view(caller: Caller, row: PaymentRow) -> Json:
    """What a person is or was asked about a payment, under `approval`; nothing where nobody was asked."""
    approval = approvals.of_payment(caller.context.conn, row.id)
    if approval is None:
        return {}
    at_most, decided = (
        payments.hold(caller.context.conn, row.id, "ask"),
        approvals.decided(caller.context.conn, row.id),
    )
    view = approval_view(approval, row, at_most, decided)
    return {"approval": view | (decider_view(caller.context, row) if caller.sees_asked else {})}


def decider_view(context: AgentContext, row: PaymentRow) -> Json:
    """What only those see who decide: who wants it, what limits leave, and what there was with the merchant."""
    conn, origin, names = context.conn, row.origin or "", dict(names_of(context))
    decided = approvals.decided(conn, row.id)
    by = None if decided is None else decided.by_app
    assets, scopes = payments.hold(conn, row.id, "ask").keys(), scopes_of(row.app_id, origin)
    bind = [one for one in standing(context) if one.limit.scope in scopes and one.limit.asset in assets]
    return {
        "app": apps.require(conn, row.app_id).name,
        "request": intents.request_of(conn, row.intent_id),
        "by": None if by is None else names.get(by, by),
        "limits": [limit_view(one, names) for one in bind],
        "history": _history(context, row.id, origin),
    }


def _history(context: AgentContext, payment_id: str, origin: str) -> Json:
    found = approvals.standing_at(context.conn, origin, payment_id)
    paid = [one for state, one in found.items() if state in POSTED]
    last_ms = max((newest_ms for _, newest_ms in paid), default=None)
    not_paid = sum(count for state, (count, _) in found.items() if state in ENDED_WITHOUT_PAYING)
    under_way = sum(count for count, _ in found.values()) - sum(count for count, _ in paid) - not_paid
    return {
        "paid": sum(count for count, _ in paid),
        "last_at": None if last_ms is None else iso_time(last_ms),
        "not_paid": not_paid,
        "under_way": under_way,
        "spent": {asset: str(n) for asset, n in spending.totals(context.conn, Scope(ANY, origin)).items()},
    }
