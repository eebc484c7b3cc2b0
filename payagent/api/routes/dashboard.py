"""/v1/dashboard: makes sign-in links for the dashboard, and confirms its orders from the terminal.

Never: signs anybody in (the dashboard does).
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Path
from starlette.requests import Request

from payagent.api.http.problems import MEDIA_TYPE, JsonResponse
from payagent.api.http.sessions import LINK_S, PendingOrder, Sessions
from payagent.api.models.dashboard import ConfirmedOrder, CreateSignIn, DashboardOrder, Fact, SignIn
from payagent.api.models.openapi import gives, takes
from payagent.api.routes.auth import APPROVE, OPERATE, READ, Caller, Operator, need, sent
from payagent.core.problems import Refused
from payagent.store.rows import apps, writes

Person = Annotated[Caller, Depends(need(READ, OPERATE, APPROVE))]
Code = Annotated[str, Path(max_length=40, description="As the dashboard shows it.")]

router = APIRouter(prefix="/v1/dashboard", tags=["dashboard"])


def _sessions(request: Request) -> Sessions:
    sessions: Sessions | None = request.app.state.sessions
    if sessions is None:
        raise Refused("not_found", "the dashboard is off (api.dashboard)")
    return sessions


@router.post(
    "/links",
    summary="Make a link that opens the dashboard",
    responses=gives(SignIn, 201),
    openapi_extra=takes(CreateSignIn, may_be_absent=True),
    status_code=201,
)
async def make_link(
    request: Request, caller: Person, order: Annotated[CreateSignIn, sent(CreateSignIn, may_be_absent=True)]
) -> JsonResponse:
    """It works once, within two minutes. The session acts with the app's token, and ends with it. Only a token
    with operate makes a link for another app."""
    sessions = _sessions(request)
    app, token_hash = caller.app, caller.token_hash
    if order.app not in (None, app.name, app.id):
        if OPERATE not in app.scopes:
            raise Refused("forbidden", "a link for another app needs a token with scope operate", needs=OPERATE)
        app, token_hash = apps.valid_token_of(caller.context.conn, order.app, caller.context.latest_ms)
        if not app.scopes & {READ, OPERATE, APPROVE}:
            raise Refused("forbidden", f"{app.name} may only pay, so there is nothing that it may see", needs=READ)
    secret, code = sessions.ask_in(token_hash, app)
    return JsonResponse(
        SignIn(
            url=f"{sessions.origin}/ui/enter/{secret}",
            code=code,
            app=app.name,
            scopes=sorted(app.scopes),
            expires_at=caller.context.ports.clock.now_ms() + LINK_S * 1000,
        ),
        201,
    )


@router.get("/orders/{code}", summary="Show an order of the dashboard", responses=gives(DashboardOrder, 200))
async def order(request: Request, caller: Operator, code: Code) -> JsonResponse:
    """An order that waits to be confirmed in the terminal, as the daemon has it."""
    return JsonResponse(_shown(caller, _sessions(request).order_by_code(code)))


@router.post("/orders/{code}/withdraw", summary="Withdraw an order", responses=gives(DashboardOrder, 200))
async def withdraw(request: Request, caller: Operator, code: Code) -> JsonResponse:
    """Its code confirms nothing any more."""
    sessions = _sessions(request)
    order = sessions.order_by_code(code)
    sessions.withdraw(order)
    return JsonResponse(_shown(caller, order))


@router.post("/orders/{code}/confirm", summary="Confirm an order", responses=gives(ConfirmedOrder, 200))
async def confirm(request: Request, caller: Operator, code: Code) -> JsonResponse:
    """Carries it out, as the session that asked for it, and answers as the order's own path does. A code works
    once, even if the order then fails."""
    sessions = _sessions(request)
    order = sessions.take(code)  # before anything is awaited, so only one of several equal calls gets it
    now_ms, detail = (
        caller.context.ports.clock.now_ms(),
        {"what": order.title, "by": caller.app.id, "via": "dashboard"},
    )
    try:
        await caller.context.write(
            "dashboard", lambda unit: writes.note(unit, None, "dashboard_confirmed", None, now_ms, detail)
        )
    except Refused:
        sessions.withdraw(order)  # else its page would say that it is being carried out
        raise
    status, answer = await sessions.confirm(order)
    if status >= 400:
        return JsonResponse(answer, status, None, MEDIA_TYPE)
    return JsonResponse(ConfirmedOrder(title=order.title, answer=answer))


def _shown(caller: Caller, order: PendingOrder) -> DashboardOrder:
    return DashboardOrder(
        title=order.title,
        facts=[Fact(name=name, value=value) for name, value in order.facts],
        app=apps.require(caller.context.conn, order.session.app_id).name,
        signed_in_at=order.session.started_at_ms,
        expires_at=order.ends_at_ms,
    )
