"""The dashboard as a browser calls it, without one: every header by hand, so that a test can leave one out."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import unescape
from urllib.parse import urlsplit

import httpx

from kit.cli import Shop
from payagent.dashboard.app import COOKIE, DashboardPage
from payagent.dashboard.build import MODULES

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

    def enter(self, link: str) -> httpx.Response:
        """Press the button of a sign-in link's page, and keep the cookie."""
        return self._kept(self.post(urlsplit(link).path))

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
    found = stranger(shop)
    answer = found.enter(shop.payagent("dashboard", *options).json["url"])
    assert answer.status_code == 303, answer.text
    assert found.cookie.startswith(f"{COOKIE}=")
    return found


def stranger(shop: Shop) -> Visitor:
    """Somebody at the dashboard's host who has not signed in."""
    host = urlsplit(shop.payagent("dashboard").json["url"]).netloc
    port = host.rpartition(":")[2]
    return Visitor(shop.http, f"http://127.0.0.1:{port}", host)
