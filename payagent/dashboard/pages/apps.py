"""The programs that may pay: their budgets, scopes and tokens.

A token is shown in the answer to its own POST and nowhere else. One that may operate or approve is first confirmed
in the terminal.

Never: SQL; keeps a token.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from starlette.responses import Response

from payagent.api.models.apps import CreateApp
from payagent.core.bounds import SCOPES
from payagent.core.policy import Window
from payagent.core.problems import Refused
from payagent.dashboard.bars import WINDOWS, limit_bar, wallet_bars
from payagent.dashboard.fields import LIFETIMES, expiry_of, ticked, units_of
from payagent.dashboard.in_process import ApiRefusedError
from payagent.dashboard.spent import spent
from payagent.dashboard.text import amount_text
from payagent.dashboard.visit import MenuEntry, Visit, form, page

BUDGETS = (Window.PAYMENT, Window.DAY, Window.MONTH, Window.TOTAL)
SUGGESTED = {"scopes": "pay", "per_payment": "1", "per_day": "5", "per_month": "60", "expires": "90d"}
ENDS_SOON_DAYS = 7
CONFIRMED_SCOPES = frozenset({"operate", "approve"})
"""A token with one of these is made only after a confirmation in the terminal."""


_OPENAI = """# Python; the token of APP is in $PAYAGENT_TOKEN
import os
from openai import OpenAI

client = OpenAI(
    base_url="API/proxy/MERCHANT/v1",
    api_key=os.environ["PAYAGENT_TOKEN"],
)"""
_MCP = """{
  "mcpServers": {
    "payagent": {
      "command": "payagent",
      "args": ["mcp", "--token-file",
               "FOLDER/APP.token"],
      "env": {"PAYAGENT_URL": "API"}
    }
  }
}"""
_INSTALL = """payagent mcp install claude-code --app coder \\
  --per-payment "1 ADA" --per-day "5 ADA\""""
_CURL = """curl API/proxy/MERCHANT/PATH \\
  -H "X-Payagent-Token: $PAYAGENT_TOKEN" \\
  -H "X-Payagent-Max-Cost: 2 ADA\""""
_HTTPX = """# the token of APP is in $PAYAGENT_TOKEN
import httpx
from payagent.client import PayAgentTransport

pays = PayAgentTransport(daemon="API")
with httpx.Client(transport=pays, timeout=60) as http:
    print(http.get("ORIGIN/PATH"))"""
SNIPPETS = (
    ("OpenAI SDK", _OPENAI, "For any SDK with a base URL. The token never reaches the merchant."),
    ("MCP", _MCP, "For any MCP client. FOLDER is where the token is, in a file that only you can read."),
    (
        "MCP, set up by payagent",
        _INSTALL,
        "Adds an app named coder, and names payagent in the client's configuration.",
    ),
    ("curl", _CURL, "Add the header X-Payagent-Dry-Run: true to see what it would cost."),
    ("Python, httpx", _HTTPX, "Waits until the merchant accepts the proof, and says what it cost."),
)
"""How programs connect: title, text and hint. API, APP, MERCHANT and ORIGIN stand for this daemon's."""


async def show(visit: Visit) -> Response:
    answer = await visit.api.get("/v1/apps")
    limits = (await visit.api.get("/v1/limits"))["limits"]
    merchants = (await visit.api.get("/v1/merchants"))["merchants"]
    spent_by: dict[str | None, Counter[str]] = defaultdict(Counter)
    for on, one in (await spent(visit)).items():
        spent_by[on.app][on.asset] += one.total
    apps = [
        {**app, **_budget(app["name"], limits), "chip": _token_chip(app), "spent": spent_by[app["name"]]}
        for app in answer["apps"]
    ]
    cards = [app for app in apps if app["active"] and app["id"] != answer["caller"] and "pay" in app["scopes"]]
    cards.sort(key=lambda app: (max((-bar["percent"] for bar in app["bars"]), default=0), not app["spent"]))
    payers = [app["name"] for app in sorted(cards, key=lambda app: bool(app["scopes"] != ["pay"]))]
    query = visit.request.query_params
    connect_app = _chosen(query.get("app"), payers, "my-agent")
    origins = {one["name"]: one["origin"] for one in merchants}
    connect_merchant = _chosen(query.get("merchant"), list(origins), "NAME")
    origin = origins.get(connect_merchant, "https://api.example.com")
    return await visit.page(
        "apps.html",
        cards=cards,
        others=[app for app in apps if app not in cards],
        own_id=answer["caller"],
        payers=payers,
        merchants=list(origins),
        connect_app=connect_app,
        connect_merchant=connect_merchant,
        snippets=_snippets(
            API=visit.renderer.facts["api_url"], APP=connect_app, MERCHANT=connect_merchant, ORIGIN=origin
        ),
    )


def _snippets(**names: str) -> list[dict[str, str]]:
    """What connects a program. The token is in a variable or a file, never in the text."""
    word = re.compile(rf"\b({'|'.join(names)})\b")
    return [
        {"title": title, "text": word.sub(lambda found: names[found[0]], text), "hint": hint}
        for title, text, hint in SNIPPETS
    ]


def _chosen(wanted: str | None, names: Sequence[str], otherwise: str) -> str:
    return wanted if wanted is not None and wanted in names else next(iter(names), otherwise)


def _budget(name: str, limits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """An app's own limits: as bars, and the most of one payment."""
    own = [limit_bar(one) for one in limits if one["app"] == name]
    return {
        "bars": [one for one in own if one["meter"]],
        "one_payment": [one for one in own if not one["meter"]],
    }


def _token_chip(app: Mapping[str, Any]) -> tuple[str, str]:
    """The look and the words of a token's state."""
    if app["active"]:
        if app["expires_at"] is None:
            return "ok", "token valid"
        days = (datetime.fromisoformat(app["expires_at"]) - datetime.now(UTC)).days
        return ("ok", "token valid") if days >= ENDS_SOON_DAYS else ("warn", f"ends in {max(days, 0)} days")
    if app["token_made_at"] is None:
        return "off", "no token"
    return "off", "expired" if app["revoked_at"] is None else "revoked"


async def new(visit: Visit, refused: ApiRefusedError | None = None) -> Response:
    typed = visit.form or SUGGESTED
    limits = (await visit.api.get("/v1/limits"))["limits"]
    merchants = (await visit.api.get("/v1/merchants"))["merchants"]
    return await visit.page(
        "app_new.html",
        refused,
        typed=typed,
        scopes=SCOPES,
        ticked_scopes=ticked(typed, "scopes"),
        merchants=[one["name"] for one in merchants],
        ticked_merchants=ticked(typed, "merchants"),
        lifetimes=LIFETIMES,
        budgets=[(window.value, WINDOWS[window]) for window in BUDGETS],
        wallet=wallet_bars(limits),
    )


async def add(visit: Visit) -> Response:
    body = _new_app(visit.form)
    if CONFIRMED_SCOPES & set(body["scopes"]):
        await _require_new(visit, body)
        title = f"Add the app {body['name']}"
        return visit.confirm_in_terminal(title, _facts(body), "/ui/apps", "/v1/apps", body, None)
    app = await visit.api.post("/v1/apps", body)
    return await _token_page(visit, app["name"], app["token"])


async def _require_new(visit: Visit, body: Mapping[str, Any]) -> None:
    """Check what can be checked before somebody goes to the terminal. Refused: `bad_request`, `already_exists`."""
    name = CreateApp.check(body).name
    if any(name in (one["name"], one["id"]) for one in (await visit.api.get("/v1/apps"))["apps"]):
        raise Refused("already_exists/app", f"the name {name!r} is taken; names are never reused")


def _new_app(typed: Mapping[str, str]) -> dict[str, Any]:
    """The API's order. Fields that are empty are left out."""
    units = {window.value: units_of(typed, window.value) for window in BUDGETS}
    body = {
        "name": typed.get("name", ""),
        "scopes": ticked(typed, "scopes"),
        "merchants": ticked(typed, "merchants") or None,
        "limits": {name: most for name, most in units.items() if most is not None},
        "expires_at": expiry_of(typed),
    }
    return {name: value for name, value in body.items() if value is not None}


def _facts(body: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    limits = [f"{WINDOWS[Window(name)]}: {amount_text(most)}" for name, most in body["limits"].items()]
    return (
        ("name", body["name"]),
        ("may", ", ".join(body["scopes"])),
        ("merchants", ", ".join(body.get("merchants", ["any"]))),
        ("limits", "; ".join(limits) or "only the wallet's"),
        ("token ends", body.get("expires_at", "never")),
        ("token", "shown once, in the dashboard"),
    )


async def rotating(visit: Visit, refused: ApiRefusedError | None = None) -> Response:
    """The page that asks for a new token, and says what happens to the old one."""
    app = await _other_app(visit)
    return await visit.page(
        "app_rotate.html",
        refused,
        app=app,
        lifetimes=LIFETIMES,
        is_confirmed=bool(CONFIRMED_SCOPES & set(app["scopes"])),
    )


async def _app(visit: Visit) -> dict[str, Any]:
    name = visit.request.path_params["name"]
    apps = (await visit.api.get("/v1/apps"))["apps"]
    found: dict[str, Any] | None = next((one for one in apps if one["name"] == name), None)
    if found is None:
        raise Refused("not_found", f"there is no app {name[:80]!r}")
    return found


async def _other_app(visit: Visit) -> dict[str, Any]:
    """The app that gets a new token. Refused: `forbidden` for the session's own, whose token the session needs."""
    app = await _app(visit)
    if app["id"] == visit.app.id:
        raise Refused(
            "forbidden",
            f"this session ends with the token of {app['name']}, before it could show a new one. In the terminal: "
            f"payagent app rotate-token {app['name']}",
        )
    return app


async def rotate(visit: Visit) -> Response:
    app, expires_at = await _other_app(visit), expiry_of(visit.form)
    path = f"/v1/apps/{app['name']}/rotate-token"
    body = {} if expires_at is None else {"expires_at": expires_at}
    if CONFIRMED_SCOPES & set(app["scopes"]):
        facts = (
            ("app", app["name"]),
            ("may", ", ".join(app["scopes"])),
            ("token ends", expires_at or "never"),
            ("before", "the present token ends at once" if app["active"] else "it has no valid token"),
            ("token", "shown once, in the dashboard"),
        )
        return visit.confirm_in_terminal(f"New token for {app['name']}", facts, "/ui/apps", path, body, None)
    made = await visit.api.post(path, body)
    return await _token_page(visit, made["name"], made["token"])


async def revoke(visit: Visit) -> Response:
    app = await _app(visit)
    await visit.api.post(f"/v1/apps/{app['name']}/revoke")
    return visit.done(
        "/ui/apps",
        f"{app['name']} is revoked. Its signed payments go on to their end, and what else it held is free again.",
    )


async def show_order_token(visit: Visit) -> Response:
    """Show the token that a confirmed order made, once."""
    kept = visit.sessions.order(visit.session, visit.request.path_params["order_id"])
    if kept is None or kept.token is None or kept.answer is None:
        raise Refused("not_found", "the order has no token to show: it was shown already, or 10 minutes are over")
    token, kept.token = kept.token, None
    return await _token_page(visit, str(kept.answer[1]["name"]), token)


async def _token_page(visit: Visit, name: str, token: str) -> Response:
    """The one page that shows a token. Its `Location` is where a reload leads."""
    response = await visit.page("app_token.html", status=201, name=name, token=token)
    response.headers["location"] = "/ui/apps"
    return response


PAGES = [
    page(
        "/ui/apps",
        show,
        entry=MenuEntry(
            "Apps",
            (2, 1),
            '<path d="M2.6 2.6h4.3v4.3H2.6zM9.1 2.6h4.3v4.3H9.1zM2.6 9.1h4.3v4.3H2.6z'
            'M11.250 9.1v4.3M9.1 11.250h4.3"/>',
        ),
    ),
    page("/ui/apps/new", new, "operate"),
    form("/ui/apps/new", add, refused_on=new),
    page("/ui/apps/{name}/token", rotating, "operate"),
    form("/ui/apps/{name}/token", rotate, refused_on=rotating),
    form("/ui/apps/{name}/revoke", revoke),
    form("/ui/orders/{order_id}", show_order_token),
]
