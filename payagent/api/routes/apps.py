"""/v1/apps: lists and adds apps, and issues and revokes their tokens.

Never: shows a token twice.
"""

from typing import Annotated

from fastapi import APIRouter

from payagent.agent.context import AgentContext
from payagent.agent.operator.apps import add_app, all_apps, renew_token, revoke
from payagent.api.http.problems import JsonResponse
from payagent.api.http.tokens import hash_token, new_token
from payagent.api.models.apps import App, AppsPage, AppWithToken, CreateApp, RotateToken
from payagent.api.models.openapi import gives, takes
from payagent.api.routes.auth import Operator, Reader, sent
from payagent.core.problems import Refused
from payagent.store.rows.apps import AppRow, TokenRow, last_token, was_given

router = APIRouter(tags=["apps"])


@router.get("/v1/apps", summary="List apps", responses=gives(AppsPage, 200))
async def every_app(caller: Reader) -> JsonResponse:
    """All apps that ever existed, oldest first, each with the dates of its last token."""
    rows = [_app(caller.context, app, token) for app, token in all_apps(caller.context)]
    return JsonResponse(AppsPage(apps=rows, caller=caller.app.id))


@router.post(
    "/v1/apps",
    summary="Add an app",
    responses=gives(AppWithToken, 201),
    openapi_extra=takes(CreateApp),
    status_code=201,
)
async def add(caller: Operator, order: Annotated[CreateApp, sent(CreateApp)]) -> JsonResponse:
    """`token` is shown only now; payagent stores its hash. No app gets a scope that the caller lacks."""
    token = new_token(caller.context.ports.randomness)
    app = await add_app(caller.context, caller.app, order.new_app, hash_token(token))
    return JsonResponse(_app(caller.context, app, last_token(caller.context.conn, app.id), token=token), 201)


@router.post(
    "/v1/apps/{name}/rotate-token",
    summary="Issue a new token for an app",
    responses=gives(AppWithToken, 200),
    openapi_extra=takes(RotateToken),
)
async def rotate_token(
    name: str, caller: Operator, order: Annotated[RotateToken, sent(RotateToken)]
) -> JsonResponse:
    """The previous token is revoked at once. `token` is shown only now; payagent stores its hash."""
    if order.token is not None and was_given(caller.context.conn, hash_token(order.token)):
        raise Refused("bad_request", "that token was issued before; make a new one", key="token")
    token = order.token or new_token(caller.context.ports.randomness)
    app = await renew_token(caller.context, caller.app, name, hash_token(token), order.expires_at)
    return JsonResponse(_app(caller.context, app, last_token(caller.context.conn, app.id), token=token))


@router.post("/v1/apps/{name}/revoke", summary="Revoke an app's token", responses=gives(App, 200))
async def end(name: str, caller: Operator) -> JsonResponse:
    """Applies at once. The app's open payments go on; it can make no new requests."""
    app = await revoke(caller.context, caller.app, name)
    return JsonResponse(_app(caller.context, app, last_token(caller.context.conn, app.id)))


def _app(context: AgentContext, app: AppRow, last: TokenRow | None, **text: str) -> App:
    """`text`: the token itself, if this answer shows it."""
    names = {origin: merchant.name for origin, merchant in context.config.merchants.items()}
    merchants = None if app.merchants is None else sorted(names.get(one, one) for one in app.merchants)
    return (AppWithToken if text else App).model_validate(
        {
            "id": app.id,
            "name": app.name,
            "scopes": sorted(app.scopes),
            "merchants": merchants,
            "assets": None if app.assets is None else sorted(app.assets),
            "active": last is not None and last.is_good(context.conn, context.latest_ms),
            "token_made_at": None if last is None else last.created_at_ms,
            "expires_at": None if last is None else last.expires_at_ms,
            "revoked_at": None if last is None else last.revoked_at_ms,
            "last_call_at": context.metrics.last_calls_ms.get(app.id),
            **text,
        }
    )
