"""Who changed what, by which way. Never: SQL."""

import shlex
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, get_args
from urllib.parse import urlencode

from starlette.responses import Response

from payagent.core.operator_log import LogKind, sentence, who
from payagent.dashboard.visit import MenuEntry, Visit, page

WAYS = {
    "token": "with its token",
    "link": "by a signed link",
    "telegram": "by Telegram",
    "clock": "because the time was over",
    "dashboard": "in the dashboard",
}
"""How a change was made, by `via` of its event."""


async def show(visit: Visit) -> Response:
    given = visit.request.query_params
    typed = {name: value for name in ("kind", "by", "since", "until", "cursor") if (value := given.get(name))}
    query = {"kind": "changes"} | typed
    query |= {day: f"{typed[day][:10]}T00:00:00Z" for day in ("since", "until") if day in typed}
    found, refused = await visit.api.get("/v1/log", **query), []
    if not {"kind", "cursor"} & typed.keys():
        refused = (await visit.api.get("/v1/log", **query | {"kind": "refusals", "limit": "10"}))["log"]
    more = urlencode(typed | {"cursor": found["cursor"]}) if found["cursor"] else None
    return await visit.page(
        "activity.html",
        sections=[("Changes", by_day(found["log"])), ("Refusals", by_day(refused))][: 1 + bool(refused)],
        kinds=get_args(LogKind),
        apps=[one["name"] for one in (await visit.api.get("/v1/apps"))["apps"]],
        typed=typed,
        older=more,
        command="payagent log"
        + "".join(f" --{name} {shlex.quote(query[name])}" for name in typed if name != "cursor"),
    )


def by_day(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Each day's first time, and its lines."""
    days = []
    for _, of_day in groupby(entries, key=lambda entry: str(entry["at"])[:10]):
        lines = [
            {
                "at": (entry := same[0])["at"],
                "who": who(entry),
                "sentence": "; ".join(sentence(one) for one in reversed(same)),
                "way": _way(entry),
                "payment": entry["payment"],
            }
            for same in (list(of_one) for _, of_one in groupby(of_day, key=_change))
        ]
        days.append((lines[0]["at"], lines))
    return days


def _change(entry: Mapping[str, Any]) -> tuple[object, ...]:
    """Equal for the events of one change, such as a new app with its token and its limits."""
    return (entry["at"], entry["by"], entry["app"]) if entry["by"] and entry["app"] else (entry["seq"],)


def _way(entry: Mapping[str, Any]) -> str:
    """An operator's change of before has no `via`: it was made by a token."""
    via = entry["detail"].get("via") or ("token" if entry["by"] else "")
    return WAYS.get(via, via)


PAGES = [
    page(
        "/ui/activity",
        show,
        entry=MenuEntry(
            "Activity",
            (3, 3),
            '<path d="M2 8.3h2.7l1.7-4.6 3 8.6 1.7-4H14"/>',
        ),
    )
]
