"""/v1/payments/{id}/approve and /deny: decides on payments that need an approval.

Never: decides whether a payment may be made.
"""

from typing import Annotated

from fastapi import APIRouter, Depends

from payagent.agent.base.merchant_trust import priced_call
from payagent.agent.base.requests import Approver
from payagent.agent.context import AgentContext
from payagent.agent.operator.limits import names_of, standing
from payagent.api.http.problems import JsonResponse
from payagent.api.models.apps import LimitStanding
from payagent.api.models.merchants import AgreedPrice, PinnedAddress
from payagent.api.models.openapi import gives, takes
from payagent.api.models.payments import Approval, Decide, MerchantHistory, Payment, Transaction, approval_reasons
from payagent.api.routes.auth import APPROVE, OPERATE, Caller, need, sent
from payagent.api.routes.params import PaymentId
from payagent.core.aggregate import PaymentRow
from payagent.core.invoice import calls_of
from payagent.core.payment.machine import ENDED_WITHOUT_PAYING, POSTED
from payagent.core.policy import ANY, Scope, scopes_of
from payagent.core.problems import Refused
from payagent.store.rows import approvals, apps, intents, limit_counters, merchants, payments
from payagent.store.rows.approvals import ApprovalRow

Decider = Annotated[Caller, Depends(need(APPROVE, OPERATE))]
Decision = Annotated[Decide, sent(Decide, may_be_absent=True)]

router = APIRouter(tags=["payments"])


@router.post(
    "/v1/payments/{payment_id}/approve",
    summary="Approve a payment",
    responses=gives(Payment, 200),
    openapi_extra=takes(Decide, may_be_absent=True),
)
async def approve(caller: Decider, order: Decision, payment_id: PaymentId) -> JsonResponse:
    """Limits and funds are checked again, and then the payment is signed. If that is refused, the request for
    approval stays open until it times out. 409 `already_decided` says what was decided before. Only an app with
    the operate scope may decide on its own payment."""
    approver = Approver(caller.via, caller.app.id, order.terms_hash)
    row = await caller.fleet.approve(_open_to(caller, payment_id), approver)
    return JsonResponse(Payment.of(caller.context, row, **approval_field(caller, row)))


@router.post(
    "/v1/payments/{payment_id}/deny",
    summary="Deny a payment",
    responses=gives(Payment, 200),
    openapi_extra=takes(Decide, may_be_absent=True),
)
async def deny(caller: Decider, order: Decision, payment_id: PaymentId) -> JsonResponse:
    """Nothing was signed, and what it held is released. Until the approval would have timed out, the same request
    is refused without a new approval."""
    approver = Approver(caller.via, caller.app.id, order.terms_hash)
    row = await caller.fleet.deny(_open_to(caller, payment_id), approver)
    return JsonResponse(Payment.of(caller.context, row, **approval_field(caller, row)))


def _open_to(caller: Caller, payment_id: str) -> str:
    """The id of a payment that the caller may decide on. Refused: `forbidden`, `not_found`."""
    row = caller.payment(payment_id)
    if row.app_id == caller.app.id and OPERATE not in caller.app.scopes:
        raise Refused("forbidden", "an app may not decide on its own payment", needs=OPERATE)
    return row.id


def approval_field(caller: Caller, row: PaymentRow) -> dict[str, Approval]:
    """`approval` of the payment, if it needed one."""
    approval_row = approvals.of_payment(caller.context.conn, row.id)
    if approval_row is None:
        return {}
    approval = approval_of(caller.context, row, approval_row, sees_approvals=caller.sees_approvals)
    if approval.decision is None and caller.dashboard is not None:
        approval.page = f"{caller.dashboard}/ui/approvals#{row.id}"
    return {"approval": approval}


def approval_of(
    context: AgentContext, row: PaymentRow, approval_row: ApprovalRow, *, sees_approvals: bool
) -> Approval:
    """What a payment's own app may see; with `sees_approvals`, also what the person who decides needs to know."""
    conn, origin = context.conn, row.invoice.origin or ""
    decided, at_most = approvals.decided(conn, row.id), payments.hold(conn, row.id, "approval")
    approval = Approval(
        calls=calls_of(row.invoice.batch_target),
        reasons=approval_reasons(approval_row.reasons),
        terms_hash=approval_row.terms_hash,
        transaction=Transaction.model_validate(approval_row.plan),
        at_most=at_most,
        asked_at=approval_row.asked_at_ms,
        ends_at=approval_row.expires_at_ms,
        decision=None if decided is None else decided.decision,
        via=None if decided is None else decided.via,
        decided_at=None if decided is None else decided.at_ms,
    )
    if sees_approvals:
        names, scopes = dict(names_of(context)), scopes_of(row.app_id, origin)
        by = None if decided is None else decided.by_app
        approval.app = apps.require(conn, row.app_id).name
        approval.request = intents.request_of(conn, row.intent.id)
        approval.by = None if by is None else names.get(by, by)
        approval.limits = [
            LimitStanding.of(one, names)
            for one in standing(context)
            if one.limit.scope in scopes and one.limit.asset in at_most
        ]
        approval.history = _history(context, row.id, origin)
        approval.agreed = _agreed(context, origin, approval.request)
        approval.pinned = PinnedAddress.all(context.config.rules(origin), sorted(merchants.pins(conn, origin)))
    return approval


def _agreed(context: AgentContext, origin: str, request: str | None) -> list[AgreedPrice]:
    if request is None:
        return []
    prices = merchants.agreed(context.conn, origin, *priced_call(request))
    return [AgreedPrice.model_validate(price) for price in prices]


def _history(context: AgentContext, payment_id: str, origin: str) -> MerchantHistory:
    by_state = approvals.standing_at(context.conn, origin, payment_id)
    paid = [one for state, one in by_state.items() if state in POSTED]
    not_paid = sum(count for state, (count, _) in by_state.items() if state in ENDED_WITHOUT_PAYING)
    return MerchantHistory(
        paid=sum(count for count, _ in paid),
        last_at=max((newest_ms for _, newest_ms in paid), default=None),
        not_paid=not_paid,
        under_way=sum(count for count, _ in by_state.values()) - sum(count for count, _ in paid) - not_paid,
        spent=limit_counters.totals(context.conn, Scope(ANY, origin)),
    )
