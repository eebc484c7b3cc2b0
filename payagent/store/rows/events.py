"""Events in order: those of one payment, all of them as a hash chain, and pages for clients that follow them.

Each event holds the hash of the one before it.
Never: writes; reads more than one page for a client, even if few events match.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from payagent.store.db.sql import find_all, find_one, number
from payagent.store.db.tables import GENESIS

PURPOSE = "purpose"
"""The event with an app's reason to pay, for people."""

KEPT_AT_ONCE = 1_000
KEPT_EVERY_MS = 60_000
"""Rate limit for events that an app or a merchant can cause at will.

Once a payment has KEPT_AT_ONCE events, each of these is recorded once per KEPT_EVERY_MS. Every read of a payment
goes through all of its events.
"""


class EventRow(NamedTuple):
    """An event, the most frequent row. Without a payment it is the wallet's own. `detail` is JSON.

    The hashes are empty where nobody needs them.
    """

    seq: int
    payment_id: str | None
    event: str
    state: str | None
    detail: str
    at_ms: int
    prev_hash: str = ""
    hash: str = ""


COLUMNS = ", ".join(EventRow._fields)


def payments_after(conn: sqlite3.Connection, event_seq: int) -> set[str]:
    """Payments with events after this one. No other payment has changed its state since."""
    rows = conn.execute("SELECT payment_id FROM events WHERE seq > ?", (event_seq,))
    return {payment_id for (payment_id,) in rows if payment_id is not None}


def events(conn: sqlite3.Connection, payment_id: str) -> list[EventRow]:
    """The events of a payment, in order."""
    return find_all(
        conn,
        EventRow,
        "SELECT seq, payment_id, event, state, detail, at_ms FROM events WHERE payment_id = ? ORDER BY seq",
        (payment_id,),
    )


def has_room(conn: sqlite3.Connection, payment_id: str, event: str, now_ms: int) -> bool:
    """Whether one more event that changes no state may be recorded for a payment."""
    few = "SELECT COUNT(*) FROM (SELECT 1 FROM events WHERE payment_id = ? LIMIT ?) few"
    if number(conn, few, (payment_id, KEPT_AT_ONCE)) < KEPT_AT_ONCE:
        return True
    last = "SELECT at_ms FROM events WHERE payment_id = ? AND event = ? ORDER BY seq DESC LIMIT 1"
    last_ms = find_one(conn, int, last, (payment_id, event))
    return last_ms is None or not 0 <= now_ms - last_ms < KEPT_EVERY_MS


def last_note(conn: sqlite3.Connection, payment_id: str, event: str) -> dict[str, Any] | None:
    """The detail of a payment's last event of this name; None if there is none."""
    return find_one(
        conn,
        json.loads,
        "SELECT detail FROM events WHERE payment_id = ? AND event = ? ORDER BY seq DESC LIMIT 1",
        (payment_id, event),
    )


def purpose_of(conn: sqlite3.Connection, payment_id: str) -> str | None:
    """Why the app makes a payment, if it said so."""
    stated = last_note(conn, payment_id, PURPOSE)
    return None if stated is None else str(stated["purpose"])


def answers_to_retries(conn: sqlite3.Connection, payment_id: str) -> list[str]:
    """What the merchant's answer to each retry meant, in order (dialects.RetryVerdict)."""
    return find_all(
        conn,
        str,
        "SELECT detail ->> 'said' FROM events WHERE payment_id = ? AND event = 'merchant_answered' ORDER BY seq",
        (payment_id,),
    )


def last_pending_depth(conn: sqlite3.Connection, payment_id: str) -> int | None:
    """How deep a payment's transaction was when its merchant last answered "pending"; None if it never did."""
    return find_one(
        conn,
        int,
        "SELECT detail ->> 'depth' FROM events WHERE payment_id = ? AND event = 'merchant_answered' "
        "AND detail ->> 'said' = 'pending' ORDER BY seq DESC LIMIT 1",
        (payment_id,),
    )


def event_hash(
    prev_hash: str, seq: int, payment_id: str | None, event: str, state: str | None, detail: str, at_ms: int
) -> str:
    """SHA-256 in hex of an event and the hash before it, as a JSON array in ASCII without spaces."""
    row = [prev_hash, seq, payment_id, event, state, detail, at_ms]
    return hashlib.sha256(json.dumps(row, separators=(",", ":")).encode("ascii")).hexdigest()


def first_broken_link(rows: Iterable[EventRow]) -> int | None:
    """The seq of the first event that does not follow from the one before it; None if all do.

    A link breaks if a row was changed, removed, inserted or moved. Removing the newest events leaves no trace.
    """
    last = (0, GENESIS)
    for row in rows:
        if not follows(last, row):
            return row.seq
        last = row.seq, row.hash
    return None


def follows(last: tuple[int, str], row: EventRow) -> bool:
    """Whether an event is the next one after `last` (its seq and hash)."""
    seq, payment_id, event, state, detail, at_ms, prev_hash, own_hash = row
    expected_hash = event_hash(last[1], seq, payment_id, event, state, detail, at_ms)
    return (seq, prev_hash, own_hash) == (last[0] + 1, last[1], expected_hash)


def event_links(conn: sqlite3.Connection) -> Iterator[EventRow]:
    """Every event, in order and row by row."""
    return map(EventRow._make, conn.execute(f"SELECT {COLUMNS} FROM events ORDER BY seq"))  # noqa: S608


def broken_event(conn: sqlite3.Connection) -> int | None:
    """`first_broken_link` of this database's events, read row by row."""
    return first_broken_link(event_links(conn))


def last_event(conn: sqlite3.Connection) -> tuple[int, str]:
    """(seq, hash) of the newest event; (0, GENESIS) before the first."""
    row = conn.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    return row or (0, GENESIS)


PAGE_ROWS = 1_000


def events_after(conn: sqlite3.Connection, seq: int, app_id: str | None) -> tuple[list[EventRow], int]:
    """Events after `seq`, of one app's payments or (None) all; and the number of the last event read.

    Nothing is left to read if that is the last event's number.
    """
    last_seq, _ = last_event(conn)
    until = min(seq + PAGE_ROWS, last_seq)
    rows = conn.execute(
        "SELECT e.seq, e.payment_id, e.event, e.state, e.detail, e.at_ms FROM events e "
        "LEFT JOIN payments p ON p.id = e.payment_id "
        "WHERE e.seq > ?1 AND e.seq <= ?2 AND (CAST(?3 AS TEXT) IS NULL OR p.app_id = ?3) ORDER BY e.seq",
        (seq, until, app_id),
    )
    return [EventRow(*row) for row in rows], max(seq, until)
