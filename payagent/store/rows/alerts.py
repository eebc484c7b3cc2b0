"""Alerts in the ledger.

Never: commits; changes the text of an alert.
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AlertRow:
    seq: int
    id: str
    kind: str
    subject: str
    facts: Mapping[str, str]
    at_ms: int


_ALERT = "SELECT seq, id, kind, subject, body, at_ms FROM alerts"


def last_seq(conn: sqlite3.Connection) -> int:
    """The number of the newest alert; 0 before the first."""
    return int(conn.execute("SELECT COALESCE(MAX(seq), 0) FROM alerts").fetchone()[0])


def last_kind(conn: sqlite3.Connection, subject: str) -> str | None:
    """The kind of the newest alert about a subject; None if there is none."""
    row = conn.execute(
        "SELECT kind FROM alerts WHERE subject = ? ORDER BY seq DESC LIMIT 1", (subject,)
    ).fetchone()
    return row[0] if row else None


CLEARED = "cleared"
"""The kind of the alert that ends a subject's alert."""


def is_raised(conn: sqlite3.Connection, subject: str) -> bool:
    """Whether a subject has an alert that is not cleared."""
    return last_kind(conn, subject) not in (None, CLEARED)


def last_of_kind(conn: sqlite3.Connection, kind: str, subject: str) -> AlertRow | None:
    """The newest alert of this kind about a subject, cleared or not."""
    row = conn.execute(
        f"{_ALERT} WHERE subject = ? AND kind = ? ORDER BY seq DESC LIMIT 1", (subject, kind)
    ).fetchone()
    return None if row is None else _alert(row)


def raised(conn: sqlite3.Connection, kind: str) -> list[str]:
    """Subjects whose newest alert is of this kind."""
    rows = conn.execute(
        "SELECT subject FROM alerts a WHERE kind = ? "
        "AND seq = (SELECT MAX(seq) FROM alerts b WHERE b.subject = a.subject) ORDER BY seq",
        (kind,),
    )
    return [subject for (subject,) in rows]


def all_raised(conn: sqlite3.Connection) -> list[AlertRow]:
    """The newest alert of each subject that is not cleared, oldest first."""
    rows = conn.execute(
        f"{_ALERT} a WHERE kind <> 'cleared' "  # noqa: S608  our own names
        "AND seq = (SELECT MAX(seq) FROM alerts b WHERE b.subject = a.subject) ORDER BY seq"
    )
    return [_alert(row) for row in rows]


def counts_raised(conn: sqlite3.Connection) -> dict[str, int]:
    """Number of subjects with an alert that is not cleared, by kind."""
    rows = conn.execute(
        "SELECT kind, COUNT(*) FROM alerts a WHERE kind <> 'cleared' "
        "AND seq = (SELECT MAX(seq) FROM alerts b WHERE b.subject = a.subject) GROUP BY kind ORDER BY kind"
    )
    return dict(rows.fetchall())


def after(conn: sqlite3.Connection, seq: int) -> list[AlertRow]:
    """Alerts with a higher number, oldest first."""
    return [_alert(row) for row in conn.execute(f"{_ALERT} WHERE seq > ? ORDER BY seq", (seq,))]


def _alert(row: tuple[int, str, str, str, str, int]) -> AlertRow:
    return AlertRow(*row[:4], json.loads(row[4]), row[5])
