"""Checks the tables whose rows follow from the wallet's events: apps, tokens, limits, and all about merchants.

May import: core, store, audit. Never: sees a token; decides which merchant to trust (the ledger does not record
past rules).
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from payagent.audit.finding import UNREADABLE, AuditFinding
from payagent.store.audit import books
from payagent.store.db.unit import Connection

Key = tuple[object, ...]
Rows = dict[Key, Any]
"""Rows of a table: the key of each, and its other columns."""

Detail = Mapping[str, Any]


def check_event_tables(conn: Connection) -> Iterator[AuditFinding]:
    """Check that each table has the rows that the events made, and no other."""
    tokens: Rows = defaultdict(list)
    for app, *times in books.tokens(conn):
        tokens[app,].append(times)
    stored: dict[str, Rows] = {
        "apps": {(app,): columns for app, *columns in books.apps(conn)},
        "tokens": tokens,
        "limits": {tuple(key): most_units for *key, most_units in books.limits(conn)},
        "merchants": {(name,): (origin, settings) for name, origin, settings in books.merchants(conn)},
        "address_pins": dict.fromkeys(books.pins(conn)),
        "agreed_prices": {tuple(key): units for *key, units in books.agreed_prices(conn)},
        "unserved_streaks": {
            (origin,): (count, since_ms) for origin, count, since_ms in books.unserved_streak(conn)
        },
        "readiness": {(origin,): (depth, refused) for origin, depth, refused in books.readiness(conn)},
    }
    from_events: dict[str, Rows] = {table: {} for table in stored}
    for event, detail, at_ms in books.wallet_events(conn, _APPLIED):
        try:
            table, apply = _APPLIED[event]
            apply(from_events[table], json.loads(detail), at_ms)
        except UNREADABLE:
            continue  # the check of the events reports a row that we did not write
    for table, rows in stored.items():
        yield from _compare(table, rows, from_events[table])


def _compare(table: str, stored: Rows, from_events: Rows) -> Iterator[AuditFinding]:
    missing = object()
    for key in sorted(stored.keys() | from_events.keys(), key=str):
        if stored.get(key, missing) != from_events.get(key, missing):
            yield AuditFinding(
                table, " ".join(str(part) or "any" for part in key), "the stored row differs from the events"
            )


def _app_added(rows: Rows, event: Detail, at_ms: int) -> None:
    grants = [None if names is None else " ".join(names) for names in map(event.get, _GRANTS)]
    rows[event["app"],] = [event["name"], *grants, at_ms]


def _token_issued(rows: Rows, event: Detail, at_ms: int) -> None:
    _token_ended(rows, event, at_ms)
    rows.setdefault((event["app"],), []).append([at_ms, event["expires_at_ms"], None])


def _token_ended(rows: Rows, event: Detail, at_ms: int) -> None:
    """End the app's token. One that had ended keeps its time."""
    for token in rows.get((event["app"],), [])[-1:]:
        token[2] = at_ms if token[2] is None else token[2]


def _limit_set(rows: Rows, event: Detail, _at_ms: int) -> None:
    key = (event["app"], event["merchant"], event["asset"], event["limit"])
    rows.pop(key, None)
    if event["most"] is not None:
        rows[key] = int(event["most"])


def _merchant_added(rows: Rows, event: Detail, _at_ms: int) -> None:
    rows[event["name"],] = (
        event["origin"],
        json.dumps(event["settings"], separators=(",", ":"), sort_keys=True),
    )


def _merchant_removed(rows: Rows, event: Detail, _at_ms: int) -> None:
    rows.pop((event["name"],), None)


def _pinned(rows: Rows, event: Detail, _at_ms: int) -> None:
    rows[event["merchant"], event["role"], event["address"]] = None


def _unpinned(rows: Rows, event: Detail, _at_ms: int) -> None:
    rows.pop((event["merchant"], event["role"], event["address"]), None)


def _agreed(rows: Rows, event: Detail, _at_ms: int) -> None:
    method, _, path = event["call"].partition(" ")
    rows[event["merchant"], method, path, event["asset"], int(event["calls"])] = int(event["units"])


def _counted(rows: Rows, event: Detail, _at_ms: int) -> None:
    """Set the unserved streak. A merchant that is stopped stays stopped."""
    _, since_ms = rows.get((event["merchant"],), (0, None))
    rows[event["merchant"],] = (int(event["unserved_streak"]), since_ms)


def _stopped(rows: Rows, event: Detail, at_ms: int) -> None:
    rows[event["merchant"],] = (int(event["unserved_streak"]), at_ms)


def _resumed(rows: Rows, event: Detail, _at_ms: int) -> None:
    rows[event["merchant"],] = (0, None)


def _accepted(rows: Rows, event: Detail, _at_ms: int) -> None:
    _, refused = rows.get((event["merchant"],), (None, 0))
    rows[event["merchant"],] = (int(event["depth"]), refused)


def _refused_early(rows: Rows, event: Detail, _at_ms: int) -> None:
    depth, _ = rows.get((event["merchant"],), (None, 0))
    rows[event["merchant"],] = (depth, 1)


def _readiness_reset(rows: Rows, event: Detail, _at_ms: int) -> None:
    rows[event["merchant"],] = (None, 0)


_APPLIED: Mapping[str, tuple[str, Callable[[Rows, Detail, int], None]]] = {
    "app_added": ("apps", _app_added),
    "app_revoked": ("tokens", _token_ended),
    "token_issued": ("tokens", _token_issued),
    "limit_set": ("limits", _limit_set),
    "merchant_added": ("merchants", _merchant_added),
    "merchant_removed": ("merchants", _merchant_removed),
    "address_pinned": ("address_pins", _pinned),
    "address_unpinned": ("address_pins", _unpinned),
    "price_agreed": ("agreed_prices", _agreed),
    "unserved_counted": ("unserved_streaks", _counted),
    "merchant_stopped": ("unserved_streaks", _stopped),
    "merchant_resumed": ("unserved_streaks", _resumed),
    "accepted_depth_learned": ("readiness", _accepted),
    "proof_refused_early": ("readiness", _refused_early),
    "readiness_reset": ("readiness", _readiness_reset),
}
"""Every event that changes such a table: the table, and how to apply the event."""

_GRANTS = ("scopes", "merchants", "assets")
