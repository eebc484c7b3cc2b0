"""/v1/pause and /v1/resume: stops all signing, and starts it again.

Never: signs.
"""

from typing import Annotated

from fastapi import APIRouter

from payagent.agent.operator.pause import pause, unpause
from payagent.api.http.problems import JsonResponse
from payagent.api.models.openapi import gives, takes
from payagent.api.models.wallet import PauseStatus, PauseWallet
from payagent.api.routes.auth import AnyApp, Caller, Operator, sent
from payagent.store.rows import apps, pauses
from payagent.store.rows.pauses import Pause

router = APIRouter(tags=["pause"])


@router.get("/v1/pause", summary="Show whether signing is paused", responses=gives(PauseStatus, 200))
async def standing(caller: AnyApp) -> JsonResponse:
    """`by` and `reason` need a token for read or operate."""
    return _status(caller, pauses.standing(caller.context.conn))


@router.post(
    "/v1/pause",
    summary="Stop all signing",
    responses=gives(PauseStatus, 200),
    openapi_extra=takes(PauseWallet, may_be_absent=True),
)
async def begin(
    caller: Operator, order: Annotated[PauseWallet, sent(PauseWallet, may_be_absent=True)]
) -> JsonResponse:
    """After this answer nothing is signed until `/v1/resume`, even across restarts: no payment, replacement,
    cancellation or transfer. Transactions signed before are still submitted and may be included. If signing was
    paused before, that pause stays with its reason, and `already` says so."""
    row, is_new = await pause(caller.context, caller.app.id, order.reason)
    return _status(caller, row, already=not is_new)


@router.post("/v1/resume", summary="Resume signing", responses=gives(PauseStatus, 200))
async def end(caller: Operator) -> JsonResponse:
    """Payments that were reserved before the pause are signed now, if there is time left. Others are released."""
    return _status(caller, await unpause(caller.context, caller.app.id))


def _status(caller: Caller, pause: Pause | None, *, already: bool = False) -> JsonResponse:
    by = None if pause is None else apps.by_id(caller.context.conn, pause.by)
    name = None if pause is None else pause.by if by is None else by.name
    sees_all = caller.app.sees_all
    return JsonResponse(
        PauseStatus(
            paused=pause is not None,
            since=None if pause is None else pause.at_ms,
            by=name if sees_all else None,
            reason=pause.reason if pause is not None and sees_all else None,
            **({"already": True} if already else {}),
        )
    )
