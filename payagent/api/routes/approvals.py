"""Approve and deny a payment that waits for a person; and what that person is shown.

May import: core, agent, store, the rest of api, FastAPI. Never: decides whether a payment may be made.
"""

from typing import Annotated

from fastapi import APIRouter, Depends

from payagent.agent.base.orders import Approver
from payagent.agent.context import AgentContext
from payagent.agent.operator.limits import names_of, standing
from payagent.api.http.problems import JsonResponse
from payagent.api.models.apps import LimitStanding
from payagent.api.models.openapi import gives
from payagent.api.models.payments import Approval, MerchantHistory, Payment, Transaction, reasons_of
from payagent.api.routes.auth import APPROVE, OPERATE, Caller, need
from payagent.api.routes.params import PaymentId
from payagent.core.invoice import calls_of
from payagent.core.payment import ENDED_WITHOUT_PAYING, POSTED
from payagent.core.policy import ANY, Scope, scopes_of
from payagent.core.problems import Refused
from payagent.store.rows import approvals, apps, intents, payments
from payagent.store.rows import limit_counters as spending
from payagent.store.rows.approvals import ApprovalRow
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
    return JsonResponse(Payment.of(caller.context, row, **asked(caller, row)))


@router.post("/v1/payments/{payment_id}/deny", summary="End a payment that waits", responses=gives(Payment, 200))
async def deny(caller: Decider, payment_id: PaymentId) -> JsonResponse:
    """Nothing was signed, and what counted for it is free. For as long as it could have waited, the same call is
    refused without asking again."""
    row = await caller.agent.decisions.deny(_open_to(caller, payment_id), Approver("token", caller.app.id))
    return JsonResponse(Payment.of(caller.context, row, **asked(caller, row)))


def _open_to(caller: Caller, payment_id: str) -> str:
    """A payment that the caller may decide on."""
    row = caller.payment(payment_id)
    if row.app_id == caller.app.id and OPERATE not in caller.app.scopes:
        raise Refused("forbidden", "an app does not decide on its own payment", needs=OPERATE)
    return row.id


def asked(caller: Caller, row: PaymentRow) -> dict[str, Approval]:
    """`approval` of the payment, if it needed one."""
    found = approvals.of_payment(caller.context.conn, row.id)
    return (
        {}
        if found is None
        else {"approval": approval_of(caller.context, row, found, sees_asked=caller.sees_asked)}
    )


def approval_of(context: AgentContext, row: PaymentRow, found: ApprovalRow, *, sees_asked: bool) -> Approval:
    """What a payment's own app may see; with `sees_asked`, also what the person who decides needs to know."""
    conn, origin = context.conn, row.origin or ""
    decided, at_most = approvals.decided(conn, row.id), payments.hold(conn, row.id, "ask")
    approval = Approval(
        calls=calls_of(row.batch_target),
        reasons=reasons_of(found.reasons),
        terms_hash=found.terms_hash,
        transaction=Transaction.model_validate(found.plan),
        at_most=at_most,
        asked_at=found.asked_at_ms,
        ends_at=found.ends_at_ms,
        decision=None if decided is None else decided.decision,
        via=None if decided is None else decided.via,
        decided_at=None if decided is None else decided.at_ms,
    )
    if sees_asked:
        names, scopes = dict(names_of(context)), scopes_of(row.app_id, origin)
        by = None if decided is None else decided.by_app
        approval.app = apps.require(conn, row.app_id).name
        approval.request = intents.request_of(conn, row.intent_id)
        approval.by = None if by is None else names.get(by, by)
        approval.limits = [
            LimitStanding.of(one, names)
            for one in standing(context)
            if one.limit.scope in scopes and one.limit.asset in at_most
        ]
        approval.history = _history(context, row.id, origin)
    return approval


def _history(context: AgentContext, payment_id: str, origin: str) -> MerchantHistory:
    found = approvals.standing_at(context.conn, origin, payment_id)
    paid = [one for state, one in found.items() if state in POSTED]
    not_paid = sum(count for state, (count, _) in found.items() if state in ENDED_WITHOUT_PAYING)
    return MerchantHistory(
        paid=sum(count for count, _ in paid),
        last_at=max((newest_ms for _, newest_ms in paid), default=None),
        not_paid=not_paid,
        under_way=sum(count for count, _ in found.values()) - sum(count for count, _ in paid) - not_paid,
        spent=spending.totals(context.conn, Scope(ANY, origin)),
    )
