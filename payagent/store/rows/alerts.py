"""Alerts in the ledger.

Never: commits; changes the text of an alert.
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from payagent.store.db.sql import find_all, find_one, number


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
    return number(conn, "SELECT COALESCE(MAX(seq), 0) FROM alerts")


def last_kind(conn: sqlite3.Connection, subject: str) -> str | None:
    """The kind of the newest alert about a subject; None if there is none."""
    return find_one(conn, str, "SELECT kind FROM alerts WHERE subject = ? ORDER BY seq DESC LIMIT 1", (subject,))


CLEARED = "cleared"
"""The kind of the alert that ends a subject's alert."""


def is_raised(conn: sqlite3.Connection, subject: str) -> bool:
    """Whether a subject has an alert that is not cleared."""
    return last_kind(conn, subject) not in (None, CLEARED)


def last_of_kind(conn: sqlite3.Connection, kind: str, subject: str) -> AlertRow | None:
    """The newest alert of this kind about a subject, cleared or not."""
    return find_one(
        conn, _alert, f"{_ALERT} WHERE subject = ? AND kind = ? ORDER BY seq DESC LIMIT 1", (subject, kind)
    )


def raised(conn: sqlite3.Connection, kind: str) -> list[str]:
    """Subjects whose newest alert is of this kind."""
    return find_all(
        conn,
        str,
        "SELECT subject FROM alerts a WHERE kind = ? "
        "AND seq = (SELECT MAX(seq) FROM alerts b WHERE b.subject = a.subject) ORDER BY seq",
        (kind,),
    )


def all_raised(conn: sqlite3.Connection) -> list[AlertRow]:
    """The newest alert of each subject that is not cleared, oldest first."""
    return find_all(
        conn,
        _alert,
        f"{_ALERT} a WHERE kind <> 'cleared' "  # noqa: S608  our own names
        "AND seq = (SELECT MAX(seq) FROM alerts b WHERE b.subject = a.subject) ORDER BY seq",
    )


def counts_raised(conn: sqlite3.Connection) -> dict[str, int]:
    """Number of subjects with an alert that is not cleared, by kind."""
    return dict(
        conn.execute(
            "SELECT kind, COUNT(*) FROM alerts a WHERE kind <> 'cleared' "
            "AND seq = (SELECT MAX(seq) FROM alerts b WHERE b.subject = a.subject) GROUP BY kind ORDER BY kind"
        ).fetchall()
    )


def after(conn: sqlite3.Connection, seq: int) -> list[AlertRow]:
    """Alerts with a higher number, oldest first."""
    return find_all(conn, _alert, f"{_ALERT} WHERE seq > ? ORDER BY seq", (seq,))


def _alert(seq: int, alert_id: str, kind: str, subject: str, facts: str, at_ms: int) -> AlertRow:
    return AlertRow(seq, alert_id, kind, subject, json.loads(facts), at_ms)
