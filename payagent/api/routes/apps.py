"""/v1/apps: the clients of payagent, and their tokens.

May import: core, agent, store.rows, the rest of api, FastAPI. Never: shows a token twice.
"""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request

from payagent.agent.context import AgentContext
from payagent.agent.operator.apps import add_app, everybody, renew_token, revoke
from payagent.api.http.problems import Json, JsonResponse
from payagent.api.http.tokens import hash_token, new_token
from payagent.api.models.apps import App, AppsPage, AppWithToken, CreateApp, RotateToken
from payagent.api.models.openapi import gives, takes
from payagent.api.models.parse import read_new_app, read_token_order
from payagent.api.models.render import app_view, merchant_names
from payagent.api.routes.auth import OPERATE, Caller, need
from payagent.core.problems import Refused
from payagent.store.rows.apps import AppRow, TokenRow, last_token, was_given

Operator = Annotated[Caller, Depends(need(OPERATE))]

router = APIRouter(tags=["apps"])


@router.get("/v1/apps", summary="Who may ask for what", responses=gives(AppsPage, 200))
async def every_app(caller: Operator) -> JsonResponse:
    """All that there ever were, oldest first; of each its last token, without the token itself."""
    rows = [_view(caller.context, app, token) for app, token in everybody(caller.context)]
    return JsonResponse({"apps": rows, "caller": caller.app.id})


@router.post(
    "/v1/apps",
    summary="Add an app",
    responses=gives(AppWithToken, 201),
    openapi_extra=takes(CreateApp),
    status_code=201,
)
async def add(request: Request, caller: Operator) -> JsonResponse:
    """`token` is shown this once; only its hash is kept. No app gets a scope that the caller's token lacks."""
    token = new_token(caller.context.ports.randomness)
    app = await add_app(
        caller.context, caller.app, read_new_app(await caller.json_body(request)), hash_token(token)
    )
    return JsonResponse(_told(caller, app) | {"token": token}, 201)


@router.post(
    "/v1/apps/{name}/token",
    summary="Give an app a new token",
    responses=gives(AppWithToken, 200),
    openapi_extra=takes(RotateToken),
)
async def renew(name: str, request: Request, caller: Operator) -> JsonResponse:
    """The one before is no good from that moment on. `token` is shown this once; only its hash is kept."""
    expires_at_ms, own = read_token_order(await caller.json_body(request))
    if own is not None and was_given(caller.context.conn, hash_token(own)):
        raise Refused("bad_request", "the token is in use already; make a new one", key="token")
    token = own or new_token(caller.context.ports.randomness)
    app = await renew_token(caller.context, caller.app, name, hash_token(token), expires_at_ms)
    return JsonResponse(_told(caller, app) | {"token": token})


@router.post("/v1/apps/{name}/revoke", summary="End an app's token", responses=gives(App, 200))
async def end(name: str, caller: Operator) -> JsonResponse:
    """At once. What the app has under way is carried on to its end; nobody can ask for anything new."""
    return JsonResponse(_told(caller, await revoke(caller.context, caller.app, name)))


def _told(caller: Caller, app: AppRow) -> dict[str, object]:
    return _view(caller.context, app, last_token(caller.context.conn, app.id))


def _view(context: AgentContext, app: AppRow, token: TokenRow | None) -> Json:
    is_active = token is not None and token.is_good(context.conn, context.latest_ms)
    return app_view(app, token, merchant_names(context.terms), is_active=is_active)
