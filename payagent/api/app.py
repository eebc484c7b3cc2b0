"""The daemon's ASGI application, for both its Unix socket and its port.

Never: starts anything; serves a page with a script, which would be loaded from third-party servers.
"""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from functools import cache, partial
from typing import Any, NoReturn

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from payagent.agent.fleet.fleet import Fleet
from payagent.agent.operator.notifier import Notifier
from payagent.api.http.middleware import OuterMiddleware
from payagent.api.http.problems import JsonResponse, problem_response
from payagent.api.http.rate_limit import RateLimiter, Rates
from payagent.api.http.sessions import Sessions
from payagent.api.models.base import what_is_wrong
from payagent.api.models.openapi import add_schemas
from payagent.api.routes import (
    approvals,
    apps,
    channels,
    dashboard,
    events,
    ledger,
    limits,
    log,
    merchants,
    notifications,
    pause,
    payments,
    prepaid,
    reconcile,
    wallet,
)
from payagent.api.routes.health import Check, Heartbeat, alive, find, health_router, without_ledger
from payagent.api.routes.metrics import metrics_router
from payagent.api.routes.params import BODY_S
from payagent.audit.month import MonthRecords
from payagent.core.problems import Refused

ROOMS = (
    payments, approvals, events, log, notifications, merchants, wallet, limits, apps, pause, prepaid,
    channels, ledger, reconcile, dashboard,
)  # fmt: skip
"""Modules whose routers the application includes, besides those of `health` and `metrics`."""


class FastPath(FastAPI):
    """FastAPI, except that each (method, path) in `at_once` goes straight to an ASGI application of its own.

    For the most frequent request FastAPI's routing would cost more than the answer. It still routes and documents
    the same function. The shortcut makes the checks of `api.routes.auth.need`; a test compares both ways.
    """

    at_once: Mapping[tuple[str, str], ASGIApp] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = self.at_once.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if call is None:
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        await call(scope, receive, send)


def answering(call: Callable[[Request], Awaitable[Response]]) -> ASGIApp:
    """Wrap a function from request to response as an ASGI application."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        answer = await call(Request(scope, receive, send))
        await answer(scope, receive, send)

    return app


class Entrance:
    """The application of a daemon's server. `app`: what answers, from when the ledger is open on.

    Until then /healthz and /readyz answer, and all else is refused for the reason `why`.
    """

    def __init__(self, network: str, allowed_hosts: Set[str], new_id: Callable[[], str]) -> None:
        self.why = Refused("store_failed", "the ledger is being opened")
        self.app: ASGIApp = OuterMiddleware(answering(self._answer), new_id, allowed_hosts, Counter())
        self._network = network

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if request.url.path == "/healthz":
            return alive()
        if request.url.path == "/readyz":
            return without_ledger(self.why, self._network)
        return problem_response(self.why, request.state.request_id)


def create_app(
    fleet: Fleet,
    *,
    heartbeat: Heartbeat,
    signer: Check,
    allowed_hosts: Set[str] = frozenset(),
    rates: Rates = Rates(),  # noqa: B008  it is frozen
    body_s: float = BODY_S,
    sessions: Sessions | None = None,
    notifiers: Mapping[str, Notifier] = {},
) -> FastPath:
    """Build the application.

    `heartbeat` tells how the passes over the chain go, for /readyz. `allowed_hosts` are the names that `Host` may
    contain besides loopback ones. `rates` are each app's limits. `body_s` is how long a request body may take.
    `sessions` are the dashboard's, unless it is off. `notifiers` tell the targets of notifications, by name.
    """
    app = FastPath(
        title="payagent",
        version="1",
        summary="The paying side of HTTP 402 on Cardano.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.fleet = fleet
    app.state.streams = []
    app.state.body_s = body_s
    app.state.sessions = sessions
    app.state.months = MonthRecords()
    app.state.notifiers = notifiers
    app.state.rate_limiter = RateLimiter(rates, time.monotonic)
    guarded = partial(
        OuterMiddleware,
        new_id=partial(fleet.context.ports.new_id, "call"),
        allowed_hosts=allowed_hosts,
        refusals=fleet.context.metrics.refusals,
    )
    app.add_middleware(guarded)
    app.at_once = {("POST", "/v1/payments"): guarded(answering(payments.pay_at_once))}
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(HTTPException, _not_routed)
    checks = partial(find, fleet, heartbeat, signer)
    health = health_router(fleet, checks, heartbeat)
    routers = [*(room.router for room in ROOMS), health, metrics_router(checks)]
    for router in routers:
        app.include_router(router)
    app.state.methods = _methods(routers)
    app.add_route("/openapi.json", _describing(app.openapi), include_in_schema=False)
    return app


def _methods(routers: Iterable[APIRouter]) -> dict[str, set[str]]:
    """The methods that each path accepts."""
    methods: dict[str, set[str]] = {}
    for router in routers:
        for route in router.routes:
            if isinstance(route, APIRoute):
                methods.setdefault(route.path, set()).update(route.methods or ())
    return methods


def _describing(openapi: Callable[[], dict[str, Any]]) -> Callable[[Request], Awaitable[Response]]:
    """The handler of /openapi.json, which needs no token. The document is long, so it is built once."""
    document = cache(lambda: JsonResponse(add_schemas(openapi())).body)

    async def describe(_request: Request) -> Response:
        return Response(document(), media_type=JsonResponse.media_type)

    return describe


async def _not_valid(_request: Request, error: Exception) -> NoReturn:
    """A bad path or query parameter. The refusal does not repeat the value that was sent."""
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    key = str(first["loc"][-1])[:80]
    raise Refused("bad_request", f"the parameter {key!a}: {what_is_wrong(first)}", key=key)


_BY_STATUS = {
    404: ("not_found", "there is no such path"),
    405: ("method_not_allowed", "the path does not take this method"),
}


async def _not_routed(request: Request, error: Exception) -> Response:
    """Errors that FastAPI raises itself: unknown path, wrong method, unreadable body."""
    if not isinstance(error, HTTPException):
        raise error
    refused = Refused(*_BY_STATUS.get(error.status_code, ("bad_request", "the request is not understood")))
    headers, route = dict(error.headers or {}), request.scope.get("route")
    if error.status_code == 405 and isinstance(route, APIRoute):
        # FastAPI lists the methods of the path's first route only
        headers["Allow"] = ", ".join(sorted(request.app.state.methods[route.path]))
    fleet: Fleet = request.app.state.fleet
    fleet.context.metrics.refusals[refused.code] += 1
    return problem_response(refused, request.state.request_id, headers)
