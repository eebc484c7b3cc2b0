"""Checks the tables whose rows follow from the wallet's events: apps, tokens, limits, and all about merchants.

Never: sees a token; decides which merchant to trust (the ledger does not record past rules).
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
    for app, *times in books.rows_of(conn, "tokens"):
        tokens[app,].append(times)
    stored: dict[str, Rows] = {
        "apps": {(app,): columns for app, *columns in books.rows_of(conn, "apps")},
        "tokens": tokens,
        "limits": {tuple(key): most_units for *key, most_units in books.rows_of(conn, "limits")},
        "merchants": {(name,): tuple(columns) for name, *columns in books.rows_of(conn, "merchants")},
        "address_pins": dict.fromkeys(books.rows_of(conn, "address_pins"), True),
        "agreed_prices": {tuple(key): units for *key, units in books.rows_of(conn, "agreed_prices")},
        "unserved_streaks": {
            (origin,): tuple(columns) for origin, *columns in books.rows_of(conn, "unserved_streaks")
        },
        "readiness": {(origin,): tuple(columns) for origin, *columns in books.rows_of(conn, "readiness")},
    }
    from_events: dict[str, Rows] = {table: {} for table in stored}
    for event, detail, at_ms in books.wallet_events(conn, _APPLIED):
        try:
            table, key_of, columns_of = _APPLIED[event]
            rows, read = from_events[table], json.loads(detail)
            key = key_of(read)
            rows[key] = columns_of(rows.get(key), read, at_ms)
        except UNREADABLE:
            continue  # the check of the events reports a row that we did not write
    for table, rows in stored.items():
        yield from _compare(table, rows, from_events[table])


def _compare(table: str, stored: Rows, from_events: Rows) -> Iterator[AuditFinding]:
    for key in sorted(stored.keys() | from_events.keys(), key=str):
        row, said = ("none" if rows.get(key) is None else rows[key] for rows in (stored, from_events))
        if row != said:
            what = f"the stored row has {row}, the events say {said}"
            yield AuditFinding(table, " ".join(str(part) or "any" for part in key), what)


def _of(*names: str) -> Callable[[Detail], Key]:
    return lambda event: tuple(event[name] for name in names)


def _call(event: Detail) -> Key:
    method, _, path = event["call"].partition(" ")
    return event["merchant"], method, path, event["asset"], int(event["calls"])


def _token_ended(tokens: Any, _event: Detail, at_ms: int) -> Any:
    """The app's tokens, the last one ended. One that had ended keeps its time."""
    return tokens and [*tokens[:-1], [*tokens[-1][:2], at_ms if tokens[-1][2] is None else tokens[-1][2]]]


def _token_issued(tokens: Any, event: Detail, at_ms: int) -> Any:
    return [*(_token_ended(tokens, event, at_ms) or ()), [at_ms, event["expires_at_ms"], None]]


def _grants(event: Detail) -> list[str | None]:
    granted = (event.get(name) for name in ("scopes", "merchants", "assets"))
    return [None if names is None else " ".join(names) for names in granted]


def _gone(*_: object) -> None:
    return None


_APPLIED: Mapping[str, tuple[str, Callable[[Detail], Key], Callable[[Any, Detail, int], Any]]] = {
    "app_added": ("apps", _of("app"), lambda _, event, at_ms: [event["name"], *_grants(event), at_ms]),
    "app_revoked": ("tokens", _of("app"), _token_ended),
    "token_issued": ("tokens", _of("app"), _token_issued),
    "limit_set": (
        "limits",
        _of("app", "merchant", "asset", "limit"),
        lambda _, event, __: None if event["most"] is None else int(event["most"]),
    ),
    "merchant_added": (
        "merchants",
        _of("name"),
        lambda _, event, __: (
            event["origin"],
            json.dumps(event["settings"], separators=(",", ":"), sort_keys=True),
        ),
    ),
    "merchant_removed": ("merchants", _of("name"), _gone),
    "address_pinned": ("address_pins", _of("merchant", "role", "address"), lambda *_: True),
    "address_unpinned": ("address_pins", _of("merchant", "role", "address"), _gone),
    "price_agreed": ("agreed_prices", _call, lambda _, event, __: int(event["units"])),
    "unserved_counted": (
        "unserved_streaks",
        _of("merchant"),
        # a merchant that is stopped stays stopped
        lambda old, event, _: (int(event["unserved_streak"]), old and old[1]),
    ),
    "merchant_stopped": (
        "unserved_streaks",
        _of("merchant"),
        lambda _, event, at_ms: (int(event["unserved_streak"]), at_ms),
    ),
    "merchant_resumed": ("unserved_streaks", _of("merchant"), lambda *_: (0, None)),
    "accepted_depth_learned": (
        "readiness",
        _of("merchant"),
        lambda old, event, _: (int(event["depth"]), old[1] if old else 0),
    ),
    "proof_refused_early": ("readiness", _of("merchant"), lambda old, *_: (old and old[0], 1)),
    "readiness_reset": ("readiness", _of("merchant"), lambda *_: (None, 0)),
}
"""Every event that changes such a table: the table, the row's key, and its other columns after the event.

The columns are made of those before, the event and its time. None: there is no such row any more.
"""
