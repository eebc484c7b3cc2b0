"""The dashboard's application: what every request passes before its page.

`Doors` sends a request to the dashboard or to the API by its host name, so that no merchant's page, which the
proxy passes on, shares the dashboard's origin. `Dashboard` then adds the headers, finds the session, and asks each
POST for the dashboard's own origin and the session's CSRF token.

Never: answers under the API's host names; changes anything on a GET.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from hmac import compare_digest
from typing import Any, cast
from urllib.parse import parse_qsl, quote

import structlog
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from payagent.agent.operator.approval_links import PREFIX
from payagent.api.http.connection_limits import break_off
from payagent.api.http.problems import BrokenOffError
from payagent.api.http.sessions import Session, Sessions
from payagent.api.routes.auth import SESSION_IS_OPEN
from payagent.api.routes.params import bounded_body
from payagent.core.problems import Refused
from payagent.dashboard.checks import Checks
from payagent.dashboard.in_process import ApiRefusedError, InProcessApi
from payagent.dashboard.render import Renderer
from payagent.dashboard.visit import DashboardPage, Note, Visit, is_background, is_refresh, menu_of
from payagent.store.rows.apps import AppRow

COOKIE = "__Host-payagent"
FORM_MAX_BYTES = 64 * 1024
FORM_S = 10.0
ORDERS_KEPT = 256
AGAIN_S = 1.0
"""For so long after an answer, the same form sent again is a double click and gets the same answer."""

HOST = "payagent.localhost"

_NO_PAGES = frozenset(
    (
        "/ui/events",
        "/ui/ledger/export",
        "/ui/ledger/report",
        "/ui/ledger/snapshot",
        "/ui/payments/{payment_id}/receipt",
    )
)
"""What answers no page: signing in does not lead there."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "require-trusted-types-for 'script'; trusted-types payagent"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # under no-referrer a browser sends "Origin: null" with a form
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}

log = structlog.get_logger("payagent.dashboard")


class Doors:
    """Sends a request to the dashboard if its `Host` is one of `hosts`, and any other to the API.

    `link_host` is known to strangers: of the dashboard, only the pages of approval links answer there.
    """

    def __init__(
        self, api: ASGIApp, dashboard: ASGIApp, hosts: frozenset[str], link_host: str | None = None
    ) -> None:
        self._api = api
        self._dashboard = dashboard
        self._hosts = hosts
        self._link_host = link_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = _host(scope) if scope["type"] == "http" else None
        is_link = host == self._link_host and scope["path"].startswith((PREFIX, "/ui/static/"))
        is_dashboard = host is not None and (host in self._hosts or is_link)
        await (self._dashboard if is_dashboard else self._api)(scope, receive, send)


def _host(scope: Scope) -> str | None:
    """The name in `Host`, without its port. None on the Unix socket, where no browser is."""
    server = scope.get("server")
    hosts = Headers(scope=scope).getlist("host")
    if len(hosts) != 1 or (server is not None and server[1] is None):
        return None
    return hosts[0].lower().rpartition(":")[0] if ":" in hosts[0] else hosts[0].lower()


class Dashboard:
    """The ASGI application. `open_routes` need no session: to sign in, and to decide by a signed link."""

    def __init__(
        self,
        api: ASGIApp,
        sessions: Sessions,
        find_app: Callable[[str], AppRow | None],
        new_id: Callable[[str], str],
        renderer: Renderer,
        note: Note,
        pages: Sequence[DashboardPage],
        open_routes: Sequence[Route],
    ) -> None:
        self._api = api
        self._sessions = sessions
        self._find_app = find_app
        self._new_id = new_id
        self._renderer = renderer
        self._note = note
        self._pages = [(Route(one.path, _never, methods=["POST" if one.is_form else "GET"]), one) for one in pages]
        self._menu = menu_of(pages)
        self._open_routes = open_routes
        self._checks = Checks()
        self._kept: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = self._new_id("call")
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                given = Headers(raw=message["headers"])
                more = {"cache-control": "no-store", **_HEADERS, "x-request-id": request_id}
                missing = [(name.encode(), text.encode()) for name, text in more.items() if name not in given]
                message["headers"] = [*message["headers"], *missing]
            await send(message)

        with structlog.contextvars.bound_contextvars(request=request_id):
            try:
                response = await self._respond(scope, receive, request_id)
                await response(scope, receive, answer)
            except asyncio.CancelledError:  # the server stops
                cast("asyncio.Task[None]", asyncio.current_task()).uncancel()
                await break_off(scope, receive)
            except ClientDisconnect:
                log.info("dashboard.client_gone")
            except BrokenOffError as why:
                log.info("dashboard.broken_off", why=str(why))
                await break_off(scope, receive)
            except Exception:
                page = "/".join(scope["path"].split("/")[:3])  # what follows may be a link, which is a secret
                log.exception("dashboard.failed", page=page)
                if started:
                    raise
                failed = ApiRefusedError.of(Refused("internal_error", "the page failed; see the log"), request_id)
                await self._alone(failed)(scope, receive, answer)

    async def _respond(self, scope: Scope, receive: Receive, request_id: str) -> Response:
        request, path = Request(scope, receive), scope["path"]
        if (static := self._renderer.static(path)) is not None:
            return static
        if path in ("/", "/ui"):
            return RedirectResponse("/ui/", 303)
        try:
            if scope["method"] == "POST":
                _require_own_page(request)
            for route in self._open_routes:
                match, found = route.matches(scope)
                if match is Match.FULL:
                    scope.update(found)
                    opened: Response = await route.endpoint(request)
                    return opened
            return await self._visit(request)
        except Refused as refused:
            return self._alone(ApiRefusedError.of(refused, request_id))

    async def _visit(self, request: Request) -> Response:
        scope = request.scope
        found = self._find(scope)
        session = self._session(request)
        app = None if session is None else self._find_app(session.token_hash)
        if session is not None and app is None:
            self._sessions.end(session)
        if session is None or app is None:
            return RedirectResponse(f"/ui/sign-in{self._next(request)}", 303)
        if found is None:
            raise Refused("not_found", "there is no such page")
        route, one = found
        request.scope.update(route.matches(scope)[1])
        scope[SESSION_IS_OPEN] = partial(self._sessions.is_open, session)
        visit = Visit(
            request,
            session,
            self._sessions,
            app,
            InProcessApi(self._api, session.token_hash, scope),
            self._renderer,
            self._note,
            await read_form(request) if one.is_form else {},
            lambda: self._new_id("form"),
            self._checks,
            self._kept,
            self._menu,
        )
        if not visit.may(*one.scopes):
            if scope["path"] == "/ui/" and visit.may("approve"):
                return RedirectResponse("/ui/approvals", 303)
            raise Refused(
                "forbidden", f"{app.name} needs the scope {' or '.join(one.scopes)}", needs=" or ".join(one.scopes)
            )
        try:
            return await self._once(visit, one) if one.is_form else await one.handler(visit)
        except ApiRefusedError as refused:
            try:
                return await visit.page("problem.html", refused)
            except ApiRefusedError:  # the frame reads from the API too, and pausing is still possible
                csrf = visit.session.csrf if visit.may("operate") else ""
                return self._alone(refused, csrf=csrf, new_order=visit.new_order)

    def _find(self, scope: Scope) -> tuple[Route, DashboardPage] | None:
        return next(((route, one) for route, one in self._pages if route.matches(scope)[0] is Match.FULL), None)

    def _next(self, request: Request) -> str:
        """The query that says where signing in leads: to the page, or to the one above an address of a form."""
        scope, path = request.scope, request.scope["path"]
        if scope["method"] != "GET" or is_background(request):
            return ""
        if (found := self._find(scope)) is None:
            path = path.rpartition("/")[0]
            found = self._find({**scope, "path": path})
        if found is None or found[1].path in _NO_PAGES:
            return ""
        return f"?next={quote(path + (f'?{request.url.query}' if request.url.query else ''))}"

    async def _once(self, visit: Visit, one: DashboardPage) -> Response:
        """Carry out a form. A second click waits for the first one, and gets the same answer. Later the form only
        leads on, as when an answer that shows something once (201 with its `Location`) is loaded again."""
        session, order = visit.session, visit.order
        if not compare_digest(visit.form.get("csrf", "").encode(), session.csrf.encode()):
            raise Refused("browser_refused/web_page", "the form was not made for this session")
        if not order:
            raise Refused("bad_request", "the form has no order id", key="order")
        before = session.done.get(order)
        if isinstance(before, str):
            return RedirectResponse(before, 303)
        if before is not None:
            same: Response = await asyncio.shield(before)
            return same
        handled = session.done[order] = asyncio.ensure_future(_carried_out(visit, one))
        led_to: str | None = None
        try:
            response: Response = await handled
            led_to = response.headers.get("location")
        finally:
            if led_to is None:  # refused: it may be sent again
                session.done.pop(order, None)
        if led_to is not None:
            asyncio.get_running_loop().call_later(AGAIN_S, _forget_answer, session, order, led_to)
            if len(session.done) > ORDERS_KEPT:
                session.done.pop(next(iter(session.done)))
        return response

    def _session(self, request: Request) -> Session | None:
        cookie = request.cookies.get(COOKIE)
        is_used = not (is_refresh(request) or request.url.path == "/ui/events")
        return None if cookie is None else self._sessions.find(cookie, is_used=is_used)

    def _alone(self, refused: ApiRefusedError, **values: object) -> HTMLResponse:
        """The page of a refusal without the frame."""
        html = self._renderer.html("alone_problem.html", problem=refused.problem, **{"csrf": "", **values})
        return HTMLResponse(html, refused.status)


async def _carried_out(visit: Visit, one: DashboardPage) -> Response:
    try:
        return await one.handler(visit)
    except (ApiRefusedError, Refused) as error:
        if one.refused_on is None:
            raise
        refused = ApiRefusedError.of(error) if isinstance(error, Refused) else error
    return await one.refused_on(visit, refused)


def _forget_answer(session: Session, order: str, led_to: str) -> None:
    """Keep of an answer only where it led."""
    if order in session.done:
        session.done[order] = led_to


async def _never(_request: Request) -> Response:
    raise AssertionError("the dashboard calls its pages itself")


def _require_own_page(request: Request) -> None:
    """Refuse a POST unless a page of the same origin sent it. Every browser states both headers."""
    origins, sites = request.headers.getlist("origin"), request.headers.getlist("sec-fetch-site")
    host = request.headers["host"].lower()
    if len(origins) != 1 or sites != ["same-origin"]:
        raise Refused("browser_refused/web_page", "the form was not sent by a page of the dashboard")
    if origins[0] not in (f"http://{host}", f"https://{host}"):
        raise Refused("browser_refused/web_page", "the form was sent by a page of another origin")


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form. A name that comes again is a list, joined by commas: boxes that were ticked."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise Refused("media_type_refused", "a form is sent as application/x-www-form-urlencoded")
    try:
        async with asyncio.timeout(FORM_S):
            raw = await bounded_body(request, FORM_MAX_BYTES, "form")
    except TimeoutError:
        raise Refused("body_too_slow", "the form did not arrive in time") from None
    fields: dict[str, str] = {}
    try:
        for name, text in parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=200, errors="strict"):
            fields[name] = f"{fields[name]},{text}" if name in fields else text.strip()
    except ValueError:
        raise Refused("bad_request", "the form is not readable") from None
    return fields
