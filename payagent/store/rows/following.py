"""Reads events page by page, for clients that follow them from some event on.

May import: sqlite3, store.rows. Never: writes; reads more than one page at once, even if few of its events match.
"""

import sqlite3
from dataclasses import dataclass

from payagent.store.rows.events import last_event

PAGE_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class StreamedEvent:
    """One event; without a payment it is the wallet's own. `detail` is JSON."""

    seq: int
    payment_id: str | None
    event: str
    state: str | None
    detail: str
    at_ms: int


def events_after(conn: sqlite3.Connection, seq: int, app_id: str | None) -> tuple[list[StreamedEvent], int]:
    """Events after `seq`, of one app's payments or (None) all; and the number of the last event read.

    Nothing is left to read if that is the last event's number.
    """
    last_seq, _ = last_event(conn)
    until = min(seq + PAGE_ROWS, last_seq)
    rows = conn.execute(
        "SELECT e.seq, e.payment_id, e.event, e.state, e.detail, e.at_ms FROM events e "
        "LEFT JOIN payments p ON p.id = e.payment_id "
        "WHERE e.seq > ? AND e.seq <= ? AND (? IS NULL OR p.app_id = ?) ORDER BY e.seq",
        (seq, until, app_id, app_id),
    )
    return [StreamedEvent(*row) for row in rows], max(seq, until)
