"""Balances, checks, exports, the journal, the spend and the month's report.

Never: SQL; adds amounts of two assets.
"""

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, get_args
from urllib.parse import urlencode

from starlette.responses import HTMLResponse, Response
from starlette.types import Message, Receive, Scope, Send

from payagent.core.ledger import Kind
from payagent.core.money import LOVELACE, Tokens
from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.dashboard.checks import CheckName
from payagent.dashboard.month import month_file, month_values, spend_charts, spent_by
from payagent.dashboard.visit import MenuEntry, Visit, form, page

FILTERS = ("since", "until", "merchant", "app", "asset", "kind", "state", "text")
FORMATS = {
    "csv": ("CSV, for spreadsheets", "csv"),
    "beancount": ("beancount", "beancount"),
    "hledger": ("hledger", "journal"),
    "jsonl": ("JSON lines", "jsonl"),
}
"""Each format of an export: its name for people, and the ending of its file."""

SPENT_BY = ("merchant", "app", "day")
SPENT_DAYS = 30
PLOT_DAYS_MAX = 100
"""Days that the plot of the spend shows, the newest ones: more would be narrower than a pixel on a phone."""

NEWEST = 8
ROWS = {
    "entries": "entries without a payment",
    "prepaid_moves": "moves of prepaid balances",
    "payments": "payments with their entries",
}
"""What verify has checked, where the table's name alone is unclear."""


async def show(visit: Visit) -> Response:
    api, checks = visit.api, visit.checks
    names = await _names(visit)
    balance = await api.get("/v1/ledger/balance")
    return await visit.page(
        "ledger.html",
        balances=_balances(balance["balances"], names),
        sums=sorted(balance["sums"].items(), key=lambda one: _ada_first(one[0])),
        verify=checks.newest.get("verify"),
        reconcile=checks.newest.get("reconcile"),
        rows=ROWS,
        poll=1 if checks.is_running else 5,
        formats=FORMATS,
        merchants=sorted(names.values()),
        apps=await _apps(visit),
        kinds=get_args(Kind),
        states=[str(state) for state in State],
        entries=(await _entries(visit, names, limit=NEWEST))["entries"],
    )


async def _names(visit: Visit) -> dict[str, str]:
    """The configured merchants' names, by origin."""
    return {one["origin"]: one["name"] for one in (await visit.api.get("/v1/merchants"))["merchants"]}


async def _apps(visit: Visit) -> list[str]:
    return [one["name"] for one in (await visit.api.get("/v1/apps"))["apps"]]


def _named(account: str, names: Mapping[str, str]) -> str:
    """An account with its merchant's name in place of the origin."""
    kind, colon, origin = account.partition(":")
    return f"{kind}{colon}{names.get(origin, origin)}"


def _balances(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Balances by asset, ADA first, with the merchants' names."""
    named = [{**row, "account": _named(row["account"], names)} for row in rows]
    return sorted(named, key=lambda row: _ada_first(row["asset"]))


def _ada_first(asset: str) -> tuple[bool, str]:
    return asset != LOVELACE, asset


async def _entries(visit: Visit, names: Mapping[str, str], **query: object) -> dict[str, Any]:
    """A page of entries, and its cursor."""
    found = await visit.api.get("/v1/ledger/entries", **query)
    for entry in found["entries"]:
        for posting in entry["postings"]:
            posting["account"] = _named(posting["account"], names)
    return found


async def check(visit: Visit) -> Response:
    """Start verify or reconcile. While it runs, this only shows it."""
    name = _check_name(visit)
    head = visit.form.get("head", "")
    visit.checks.start(name, visit.api, visit.app.name, **({"head": head} if head and name == "verify" else {}))
    return visit.done("/ui/ledger", "")


async def stop(visit: Visit) -> Response:
    visit.checks.stop(_check_name(visit))
    return visit.done("/ui/ledger", "The check is being stopped. It only reads, so nothing is left half done.")


def _check_name(visit: Visit) -> CheckName:
    name: CheckName = visit.request.path_params["check"]
    if name not in get_args(CheckName):
        raise Refused("not_found", "there is no such check")
    return name


async def journal(visit: Visit) -> Response:
    """The entries that the filters select, newest first."""
    names, filters = await _names(visit), _filters(visit)
    query = filters | {
        name: value for name in ("payment", "account", "cursor") if (value := visit.request.query_params.get(name))
    }
    found = await _entries(visit, names, **query)
    older = urlencode(query | {"cursor": found["cursor"]}) if found["cursor"] else None
    return await visit.page(
        "ledger_journal.html",
        entries=found["entries"],
        older=older,
        given=visit.request.query_params,
        merchants=sorted(names.values()),
        apps=await _apps(visit),
        kinds=get_args(Kind),
        command=_command("entries", filters),
    )


def _filters(visit: Visit) -> dict[str, str]:
    """The filters that are given. A day is its first moment, UTC."""
    given = {name: visit.request.query_params.get(name, "").strip() for name in FILTERS}
    for name in ("since", "until"):
        if len(given[name]) == len("2026-11-01"):
            given[name] += "T00:00:00Z"
    return {name: value for name, value in given.items() if value}


def _command(name: str, options: Mapping[str, str]) -> str:
    more = (f" --{option} {shlex.quote(value)}" for option, value in options.items())
    return f"payagent ledger {name}{''.join(more)}"


class Download(Response):
    """An answer of the API as a file, as it comes."""

    def __init__(self, visit: Visit, path: str, query: str, name: str) -> None:
        super().__init__()
        self._visit, self._path, self._query, self._name = visit, path, query, name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def as_file(message: Message) -> None:
            if message["type"] == "http.response.start":
                disposition = f'attachment; filename="{self._name}"'.encode()
                message["headers"] = [*message["headers"], (b"content-disposition", disposition)]
            await send(message)

        await self._visit.api.stream(self._path, self._query, receive, as_file)


async def export(visit: Visit) -> Response:
    chosen = visit.request.query_params.get("format", "csv")
    if chosen not in FORMATS:
        raise Refused("bad_request", "there is no such format", key="format")
    filters = _filters(visit)
    await visit.api.get("/v1/ledger/entries", limit=1, **filters)  # so that a bad filter is shown as a page
    name = f"payagent-{filters.get('since', 'all')[:10]}.{FORMATS[chosen][1]}"
    return Download(visit, "/v1/ledger/export", urlencode({"format": chosen} | filters), name)


async def snapshot(visit: Visit) -> Response:
    return Download(visit, "/v1/ledger/snapshot", "", "payagent-ledger.db")


async def spend(visit: Visit) -> Response:
    """What left the wallet, by merchant, app or day."""
    by = visit.request.query_params.get("by", "merchant")
    if by not in SPENT_BY:
        raise Refused("bad_request", "the spend is shown by merchant, app or day", key="by")
    filters, today = _filters(visit), datetime.now(UTC).date()
    filters.setdefault("since", f"{today - timedelta(days=SPENT_DAYS - 1)}T00:00:00Z")
    series: Literal["merchant", "app"] = "app" if by == "app" else "merchant"
    rows = (await visit.api.get("/v1/ledger/spend", by=f"{series},day", **filters))["spend"]
    spent = spent_by(by, rows)
    if by == "day":
        spent["rows"].reverse()
    until = date.fromisoformat(filters.get("until", "9999-12-31")[:10])
    last = min(today, until - timedelta(days=1))
    count = (last - date.fromisoformat(filters["since"][:10])).days + 1
    dates = [str(last - timedelta(days=ago)) for ago in reversed(range(min(count, PLOT_DAYS_MAX)))]
    return await visit.page(
        "ledger_spend.html",
        by=by,
        ways=SPENT_BY,
        series=series,
        spent=spent,
        charts=spend_charts(series, rows, dates, visit.renderer.facts["tokens"]),
        is_cut=count > PLOT_DAYS_MAX,
        since=filters["since"][:10],
        until=filters.get("until", "")[:10],
        command=_command("spend", {"by": by} | filters),
    )


async def month(visit: Visit) -> Response:
    """The report of a month."""
    return await visit.page("ledger_month.html", is_file=False, **month_values(*await _month(visit)))


async def month_as_file(visit: Visit) -> Response:
    """The same as a file."""
    report, merchants, _ = await _month(visit)
    name = f'attachment; filename="payagent-{report["month"]}.html"'
    return HTMLResponse(month_file(visit.renderer, report, merchants), headers={"content-disposition": name})


async def _month(visit: Visit) -> tuple[dict[str, Any], list[dict[str, Any]], Tokens]:
    """The chosen month's report, the configured merchants, and the tokens' names."""
    chosen = visit.request.query_params.get("month") or datetime.now(UTC).strftime("%Y-%m")
    report = await visit.api.get("/v1/ledger/report", month=chosen)
    return report, (await visit.api.get("/v1/merchants"))["merchants"], visit.renderer.facts["tokens"]


PAGES = [
    page(
        "/ui/ledger",
        show,
        entry=MenuEntry(
            "Ledger",
            (3, 2),
            '<path d="M3.4 2.5h8.2a1 1 0 0 1 1 1v9a1 1 0 0 1-1 1H3.4zM5.8 2.5v11M8 5.6h2.5M8 8h2.5"/>',
        ),
    ),
    page("/ui/ledger/journal", journal),
    page("/ui/ledger/spend", spend),
    page("/ui/ledger/month", month),
    page("/ui/ledger/report", month_as_file),
    page("/ui/ledger/export", export),
    page("/ui/ledger/snapshot", snapshot, "operate"),
    form("/ui/ledger/{check}", check),
    form("/ui/ledger/{check}/stop", stop),
]
