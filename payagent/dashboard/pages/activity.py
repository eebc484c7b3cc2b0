"""Who changed what, by which way. Never: SQL."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, get_args
from urllib.parse import urlencode

from starlette.responses import Response

from payagent.core.operator_log import LogKind, sentence, who
from payagent.dashboard.visit import MenuEntry, Visit, page

WAYS = {
    "token": "by its token",
    "link": "by a signed link",
    "telegram": "by Telegram",
    "clock": "because the time was over",
    "dashboard": "by the dashboard",
}
"""How a change was made, by `via` of its event."""


async def show(visit: Visit) -> Response:
    given = visit.request.query_params
    query = {name: value for name in ("kind", "since", "cursor") if (value := given.get(name))}
    since = query.get("since", "")
    if len(since) == len("2026-11-01"):
        query["since"] = f"{since}T00:00:00Z"
    found = await visit.api.get("/v1/log", **query)
    more = urlencode(query | {"cursor": found["cursor"]}) if found["cursor"] else None
    return await visit.page(
        "activity.html",
        days=by_day(found["log"]),
        kinds=get_args(LogKind),
        kind=query.get("kind", ""),
        since=since[:10],
        older=more,
        command="payagent log" + (f" --kind {query['kind']}" if "kind" in query else ""),
    )


def by_day(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Each day's first time, and its lines."""
    days = []
    for _, of_day in groupby(entries, key=lambda entry: str(entry["at"])[:10]):
        lines = [
            {
                "at": entry["at"],
                "who": who(entry),
                "sentence": sentence(entry),
                "way": _way(entry),
                "event": entry["event"],
                "payment": entry["payment"],
            }
            for entry in of_day
        ]
        days.append((lines[0]["at"], lines))
    return days


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
