"""The dashboard as a browser calls it, without one: every header by hand, so that a test can leave one out."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from typing import Any
from urllib.parse import urlsplit

import httpx
from starlette.types import Receive, Scope, Send

from kit.cli import Shop, running
from payagent.agent.base.ports import SystemRandomness
from payagent.api.http.sessions import Session, Sessions
from payagent.dashboard.app import COOKIE, Dashboard
from payagent.dashboard.build import MODULES
from payagent.dashboard.render import Renderer
from payagent.dashboard.visit import DashboardPage
from payagent.store.rows.apps import AppRow

PAGES: tuple[DashboardPage, ...] = tuple(one for module in MODULES for one in module.PAGES)
"""Every page and form of the dashboard that needs a session."""


@dataclass
class Visitor:
    """A browser at `host`, with its cookie. It connects to `server`, the daemon's port, whatever `host` says."""

    http: httpx.Client
    server: str
    host: str
    cookie: str = ""

    @property
    def origin(self) -> str:
        return f"http://{self.host}"

    @property
    def browser_cookie(self) -> Any:
        """The session's cookie as Playwright takes it. A browser keeps a secure one of payagent.localhost too."""
        name, _, value = self.cookie.partition("=")
        return {
            "name": name,
            "value": value,
            "url": f"https://{self.host}",
            "httpOnly": True,
            "secure": True,
            "sameSite": "Strict",
        }

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.http.get(self.server + path, headers=self._headers(headers))

    def post(self, path: str, form: Mapping[str, str] | None = None, **headers: str) -> httpx.Response:
        """Send a form as the dashboard's own page does. A header that is given as "" is left out."""
        own = {"origin": self.origin, "sec-fetch-site": "same-origin"} | headers
        return self.http.post(self.server + path, data=dict(form or {}), headers=self._headers(own))

    def hidden(self, path: str = "/ui/") -> dict[str, str]:
        """The hidden fields of a page's first form: its CSRF token and its order's id."""
        found = re.findall(r'<input type="hidden" name="(csrf|order)" value="(.*?)">', self.get(path).text)
        return {name: unescape(value) for name, value in found[:2]}

    def enter(self, link: str, **headers: str) -> httpx.Response:
        """Press the button of a sign-in link's page, and keep the cookie."""
        return self._kept(self.post(urlsplit(link).path, **headers))

    def enter_by_code(self, code: str, path: str = "") -> httpx.Response:
        return self._kept(self.post("/ui/sign-in", {"code": code, "next": path}))

    def _kept(self, answer: httpx.Response) -> httpx.Response:
        set_cookie = answer.headers.get("set-cookie", "")
        self.cookie = set_cookie.partition(";")[0] or self.cookie
        return answer

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        """Parameter names have _ in place of -."""
        own = {"host": self.host} | ({"cookie": self.cookie} if self.cookie else {})
        named = {name.replace("_", "-"): text for name, text in more.items()}
        return {name: text for name, text in (own | named).items() if text}


def visitor(shop: Shop, *options: str) -> Visitor:
    """Somebody who has just signed in by a new link; `options` are those of `payagent dashboard`."""
    link = shop.payagent("dashboard", *options).json["url"]
    found = _at_host_of(link, shop)
    answer = found.enter(link)
    assert answer.status_code == 303, answer.text
    assert found.cookie.startswith(f"{COOKIE}=")
    return found


def stranger(shop: Shop) -> Visitor:
    """Somebody at the dashboard's host who has not signed in."""
    return _at_host_of(shop.payagent("dashboard").json["url"], shop)


def _at_host_of(link: str, shop: Shop) -> Visitor:
    host = urlsplit(link).netloc
    return Visitor(shop.http, f"http://127.0.0.1:{host.rpartition(':')[2]}", host)


@contextmanager
def running_daemon(shop: Shop, *more: str) -> Iterator[None]:
    """As `kit.cli.running`, with patience for the pages of a busy machine."""
    shop.http.timeout = httpx.Timeout(120)
    with running(shop, *more):
        yield


class Stub:
    """The dashboard before an API that answers as `answers` says (status and object by path), and one operator's
    session there."""

    def __init__(self, pages: Sequence[DashboardPage]) -> None:
        self.answers: dict[str, tuple[int, object]] = {
            "/readyz": (200, {"ready": True, "checks": {}}),
            "/v1/payments": (200, {"awaiting_approval": 0}),
            "/v1/pause": (200, {"paused": False}),
            "/v1/wallet": (200, {"chain": None}),
            "/v1/events": (200, {}),
        }
        self.sessions = Sessions(SystemRandomness(), lambda: 0.0, lambda: 0, "http://payagent.localhost")
        app = AppRow("app_1", "operator", frozenset({"operate"}), None, None)
        opened = self.sessions.enter(self.sessions.ask_in("token", app)[0])
        assert opened is not None
        self.session: Session = opened[0]
        renderer = Renderer(network="devnet", explorer="", tokens={}, api_url="http://127.0.0.1", daemon={})
        dashboard = Dashboard(
            self._api, self.sessions, lambda _: app, lambda kind: kind, renderer, self._note, pages, []
        )
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(dashboard),
            base_url="http://payagent.localhost",
            headers={
                "cookie": f"{COOKIE}={opened[1]}",
                "origin": "http://payagent.localhost",
                "sec-fetch-site": "same-origin",
            },
        )

    async def post(self, path: str, order: str) -> httpx.Response:
        return await self.http.post(path, data={"csrf": self.session.csrf, "order": order})

    async def _note(self, _event: str, _detail: Mapping[str, object]) -> None:
        """It has no ledger."""

    async def _api(self, scope: Scope, _receive: Receive, send: Send) -> None:
        status, body = self.answers[scope["path"]]
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})
