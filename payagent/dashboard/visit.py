"""One request of a signed-in browser, as the pages see it.

Never: SQL; calls the agent.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from payagent.api.http.sessions import PendingOrder, Session, Sessions
from payagent.core.timestamps import iso_time
from payagent.dashboard.checks import Checks
from payagent.dashboard.fields import on_page
from payagent.dashboard.in_process import ApiRefusedError, InProcessApi
from payagent.dashboard.render import Renderer
from payagent.store.rows.apps import AppRow

Note = Callable[[str, Mapping[str, object]], Awaitable[None]]
"""Writes an event to the ledger: its name, and details."""

REFRESH = "payagent-refresh"
"""The header of a request by which the script keeps an open page fresh. No person sent it."""


def is_refresh(request: Request) -> bool:
    return REFRESH in request.headers


def is_background(request: Request) -> bool:
    """Whether a browser asks for something else than a page, as for the stream. A refresh asks for its page."""
    return not is_refresh(request) and request.headers.get("sec-fetch-dest", "document") != "document"


@dataclass(frozen=True, slots=True)
class Visit:
    """A request, the app that its session acts for, and the API as this app.

    `form`: the fields of a POST. `order`: the form's own id, the same at a double click, which the API gets as
    idempotency key. `checks`: the runs of verify and reconcile. `kept`: what a page keeps from visit to visit.
    `menu`: the groups of the navigation.
    """

    request: Request
    session: Session
    sessions: Sessions
    app: AppRow
    api: InProcessApi
    renderer: Renderer
    note: Note
    form: Mapping[str, str] = field(default_factory=dict)
    new_order: Callable[[], str] = lambda: ""
    checks: Checks = field(default_factory=Checks)
    kept: dict[str, Any] = field(default_factory=dict)
    menu: Sequence[Sequence["DashboardPage"]] = ()

    @property
    def order(self) -> str:
        return self.form.get("order", "")

    def may(self, *scopes: str) -> bool:
        """Whether the session's app has one of these scopes."""
        return bool(self.app.scopes & set(scopes))

    async def page(
        self, template: str, refused: ApiRefusedError | None = None, /, *, status: int = 200, **values: object
    ) -> HTMLResponse:
        """Render a page in the frame that all pages share. `refused`: a refusal to show above it."""
        notice = ""
        if not is_refresh(self.request):  # else the script would take the notice away from the next page
            notice, self.session.notice = self.session.notice, ""
        menu = [shown for group in self.menu if (shown := [one for one in group if self.may(*one.scopes)])]
        path = self.request.url.path
        shell = {
            "visit": self,
            "path": path,
            "menu": menu,
            "here": next((one for group in menu for one in group if one.leads_to(path)), None),
            "signed_in_until": iso_time(self.sessions.ends_at_ms(self.session)),
            "csrf": self.session.csrf,
            "new_order": self.new_order,
            "notice": notice,
            "problem": None if refused is None else on_page(refused.problem, self.form),
            "form": self.form,
            **await self._health(),
        }
        html = self.renderer.html(template, **shell, **values)
        return HTMLResponse(html, status if refused is None else refused.status)

    async def _health(self) -> dict[str, Any]:
        """What the frame shows on every page: whether payagent pays, the chain, and what waits."""
        readiness = await self.api.get("/readyz")
        awaiting = (await self.api.get("/v1/payments", limit=1))["awaiting_approval"]
        pause = await self.api.get("/v1/pause")
        chain = (await self.api.get("/v1/wallet"))["chain"] if self.may("read", "operate") else None
        return {"readiness": readiness, "awaiting": awaiting, "pause": pause, "chain": chain}

    def done(self, path: str, notice: str) -> Response:
        """Go to a page after a change, which says once what was done. Reloading it repeats nothing."""
        self.session.notice = notice
        return RedirectResponse(path, 303)

    def confirm_in_terminal(
        self,
        title: str,
        facts: tuple[tuple[str, str], ...],
        back_to: str,
        path: str,
        body: object,
        key: str | None,
    ) -> Response:
        """Keep an order until `payagent dashboard confirm CODE`, and go to the page that shows the code."""
        api = InProcessApi(self.api.app, self.session.token_hash, {})
        kept: PendingOrder = self.sessions.ask_for(
            self.session, title, facts, back_to, lambda: api.call("POST", path, "", body, key)
        )
        return RedirectResponse(f"/ui/orders/{kept.id}", 303)


Handler = Callable[[Visit], Awaitable[Response]]
RefusalPage = Callable[[Visit, ApiRefusedError], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class MenuEntry:
    """What the navigation shows of a page."""

    title: str  # also the page's own, unless its template has another
    place: tuple[int, int]  # its group, and its place in it
    icon: str  # the elements of an SVG of 16 by 16


@dataclass(frozen=True, slots=True)
class DashboardPage:
    """A path of the dashboard. The session's app needs one of `scopes`. A form answers POST, a page GET.

    `refused_on`: the page that shows why a form was refused. Without it, a page of its own says so.
    """

    path: str
    handler: Handler
    scopes: tuple[str, ...] = ("read", "operate")
    is_form: bool = False
    entry: MenuEntry | None = None
    refused_on: RefusalPage | None = None

    def leads_to(self, path: str) -> bool:
        """Whether the navigation marks this page at a path: at its own and at those below it."""
        return path == self.path or (self.path != "/ui/" and path.startswith(self.path))


def page(path: str, handler: Handler, *scopes: str, entry: MenuEntry | None = None) -> DashboardPage:
    return DashboardPage(path, handler, scopes or ("read", "operate"), entry=entry)


def form(path: str, handler: Handler, *scopes: str, refused_on: RefusalPage | None = None) -> DashboardPage:
    return DashboardPage(path, handler, scopes or ("operate",), is_form=True, refused_on=refused_on)


def menu_of(pages: Sequence[DashboardPage]) -> list[list[DashboardPage]]:
    """The navigation: the pages with an entry, by group and place."""
    placed = sorted((one.entry.place, one.path, one) for one in pages if one.entry is not None)
    return [[one for _, _, one in group] for _, group in groupby(placed, key=lambda found: found[0][0])]
