"""Signing in: the link of `payagent dashboard`, or its code. These pages need no session.

Opening a link only shows a page; the page's button uses the link up, so a link scanner signs nobody in.
Never: shows a link's secret; says why one is not valid.
"""

from urllib.parse import quote, unquote

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from payagent.api.http.sessions import SESSION_S, Session, Sessions
from payagent.core.timestamps import iso_time
from payagent.dashboard.app import COOKIE, read_form
from payagent.dashboard.render import Renderer
from payagent.dashboard.visit import Note, is_background

NEXT_COOKIE = "__Host-payagent-next"
"""Holds where to go on after signing in, because a new link does not know the page that asked for it."""
NEXT_S = 3600

_BROWSERS = {"Edg": "Edge", "OPR/": "Opera", "Firefox/": "Firefox", "Chrome/": "Chrome", "Safari/": "Safari"}
_SYSTEMS = ("Android", "iPhone", "iPad", "Windows", "Mac", "CrOS", "Linux")


class SignInPages:
    """The handlers. `note` records each new session."""

    def __init__(self, sessions: Sessions, renderer: Renderer, note: Note) -> None:
        self._sessions = sessions
        self._renderer = renderer
        self._note = note

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/ui/sign-in", self.show, methods=["GET"]),
            Route("/ui/sign-in", self.enter_by_code, methods=["POST"]),
            Route("/ui/enter/{secret}", self.show_link, methods=["GET"]),
            Route("/ui/enter/{secret}", self.enter, methods=["POST"]),
        ]

    async def show(self, request: Request) -> Response:
        path = own_path(request.query_params.get("next", ""))
        response = self._page(path)
        if not is_background(request):
            response.set_cookie(
                NEXT_COOKIE, quote(path), NEXT_S, path="/", secure=True, httponly=True, samesite="strict"
            )
        return response

    async def enter_by_code(self, request: Request) -> Response:
        form = await read_form(request)
        path = own_path(form.get("next", ""))
        was_open = self._sessions.has_codes
        opened = self._sessions.enter_by_code(form.get("code", ""))
        if opened is None:
            if was_open:  # five at most for each open code: strangers cannot fill the ledger
                await self._note("dashboard_refused", {"via": "dashboard", "reason": "the code is not valid"})
            return self._page(path, is_wrong=True)
        return await self._signed_in(request, opened, path)

    async def show_link(self, request: Request) -> Response:
        link = self._sessions.link(request.path_params["secret"])
        if link is None:
            return self._page("", is_wrong=True)
        scopes, asked_at = ", ".join(sorted(link.app.scopes)), iso_time(link.asked_at_ms)
        return HTMLResponse(self._renderer.html("enter.html", app=link.app.name, scopes=scopes, asked_at=asked_at))

    async def enter(self, request: Request) -> Response:
        opened = self._sessions.enter(request.path_params["secret"])
        if opened is None:
            return self._page("", is_wrong=True)
        path = own_path(unquote(request.cookies.get(NEXT_COOKIE, "")))
        return await self._signed_in(request, opened, path)

    async def _signed_in(self, request: Request, opened: tuple[Session, str], path: str) -> Response:
        session, cookie = opened
        where = "" if request.client is None else f", from {request.client.host}"
        session.device = f"{_device(request.headers.get('user-agent', ''))}{where}"
        await self._note("dashboard_opened", {"via": "dashboard", "by": session.app_id})
        response = RedirectResponse(path or "/ui/", 303)
        response.set_cookie(COOKIE, cookie, SESSION_S, path="/", secure=True, httponly=True, samesite="strict")
        if NEXT_COOKIE in request.cookies:
            response.delete_cookie(NEXT_COOKIE, path="/", secure=True, httponly=True, samesite="strict")
        return response

    def _page(self, path: str, *, is_wrong: bool = False) -> HTMLResponse:
        return HTMLResponse(
            self._renderer.html("sign_in.html", next=path, is_wrong=is_wrong), 403 if is_wrong else 200
        )


def _device(agent: str) -> str:
    """A browser and its system, as its `User-Agent` tells."""
    browser = next((name for mark, name in _BROWSERS.items() if mark in agent), "an unknown browser")
    system = next((name for name in _SYSTEMS if name in agent), "")
    return f"{browser} on {system}" if system else browser


def own_path(text: str) -> str:
    """A path of the dashboard to go on to, or an empty text: a link may lead to no other site."""
    return text if text.startswith("/ui/") and "\\" not in text and text.isprintable() else ""
