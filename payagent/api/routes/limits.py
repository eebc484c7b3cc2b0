"""/v1/limits: what may still be spent; and setting it while the daemon runs.

May import: core, agent, the rest of api, FastAPI. Never: shows an app what others spent.
"""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request

from payagent.agent.operator.limits import names_of, set_limits, standing
from payagent.api.http.problems import JsonResponse
from payagent.api.models.apps import Limits, SetLimits
from payagent.api.models.openapi import gives, takes
from payagent.api.routes.auth import OPERATE, PAY, READ, Caller, need

Viewer = Annotated[Caller, Depends(need(PAY, READ, OPERATE))]
Operator = Annotated[Caller, Depends(need(OPERATE))]

router = APIRouter(tags=["limits"])


@router.get("/v1/limits", summary="What may still be spent", responses=gives(Limits, 200))
async def limits(caller: Viewer) -> JsonResponse:
    """Every limit that is in force, with what its window counts now; `frees_at`: when the oldest of that does not.

    A token that only pays is shown the limits that bind its app, and what the app itself spent: of a limit that
    others share, `left` is null.
    """
    return _standing(caller)


@router.post(
    "/v1/limits",
    summary="Set limits",
    responses=gives(Limits, 200),
    openapi_extra=takes(SetLimits),
    status_code=200,
)
async def change(request: Request, caller: Operator) -> JsonResponse:
    """At once, for good, and over what the config file says. null: what the config file says counts again."""
    order = SetLimits.read(await caller.json_body(request))
    await set_limits(caller.context, caller.app.id, order.app, order.merchant, order.asset, order.limits)
    return _standing(caller)


def _standing(caller: Caller) -> JsonResponse:
    context = caller.context
    only_app = None if caller.sees_all else caller.app.id
    return JsonResponse(Limits.of(standing(context, only_app), dict(names_of(context))))
