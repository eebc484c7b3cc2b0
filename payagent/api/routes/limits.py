"""/v1/limits: shows each limit and what is left of it, and sets limits while the daemon runs.

Never: shows an app what others spent.
"""

from typing import Annotated

from fastapi import APIRouter, Depends

from payagent.agent.operator.limits import names_of, set_limits, standing
from payagent.api.http.problems import JsonResponse
from payagent.api.models.apps import Limits, SetLimits, SignerCaps
from payagent.api.models.openapi import gives, takes
from payagent.api.routes.auth import OPERATE, PAY, READ, Caller, Operator, need, sent

Viewer = Annotated[Caller, Depends(need(PAY, READ, OPERATE))]

router = APIRouter(tags=["limits"])


@router.get("/v1/limits", summary="List the limits and what is left of each", responses=gives(Limits, 200))
async def limits(caller: Viewer) -> JsonResponse:
    """Every limit in force, with what its window counts now.

    A token with the pay scope alone sees the limits that apply to its app, and what the app itself spent. `left`
    of a limit that it shares with other apps is null.
    """
    return _standing(caller)


@router.post(
    "/v1/limits",
    summary="Set limits",
    responses=gives(Limits, 200),
    openapi_extra=takes(SetLimits),
    status_code=200,
)
async def change(caller: Operator, order: Annotated[SetLimits, sent(SetLimits)]) -> JsonResponse:
    """Applies at once, overrides the config file, and survives restarts. null reverts to the config file."""
    await set_limits(
        caller.context,
        caller.app.id,
        order.app,
        order.merchant,
        order.asset,
        order.limits,
        only_lower=order.only_lower,
    )
    return _standing(caller)


def _standing(caller: Caller) -> JsonResponse:
    context = caller.context
    names, config = dict(names_of(context)), context.config
    if not caller.app.sees_all:
        return JsonResponse(Limits.of(standing(context, caller.app.id), names, config.tokens))
    signer = SignerCaps(per_transaction=dict(config.caps or {}), signed_per_day=dict(config.day_caps or {}))
    approval_above = config.approval_required_above
    shown = Limits.of(standing(context), names, config.tokens, signer=signer, approval_above=approval_above)
    return JsonResponse(shown)
