"""Raising an alert inside a commit, and clearing it: each subject once, unless it is of something new.

May import: store. Never: sends an alert (agent.operator.alerts does); commits.
"""

import hashlib
from collections.abc import Mapping

from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import alerts, events
from payagent.store.rows import writes as records

CLEARED = "cleared"


def is_raised(conn: Connection, subject: str) -> bool:
    return alerts.last_kind(conn, subject) not in (None, CLEARED)


def raise_alert(unit: Unit, kind: str, subject: str, facts: Mapping[str, str], now_ms: int) -> bool:
    """Tell of it, unless its subject is raised already; True when that is news.

    `facts` have a `detail` for people, and are sent beside id, kind, subject, at, network and address.
    """
    if is_raised(unit.conn, subject):
        return False
    _write(unit, kind, subject, facts, now_ms)
    return True


def raise_again(unit: Unit, kind: str, subject: str, facts: Mapping[str, str], now_ms: int) -> None:
    """Tell of it though its subject may be raised already: of something that was not told yet."""
    _write(unit, kind, subject, facts, now_ms)


def clear_alert(unit: Unit, subject: str, facts: Mapping[str, str], now_ms: int) -> bool:
    """Tell that it is over, if its subject is raised; True when that is news."""
    if not is_raised(unit.conn, subject):
        return False
    _write(unit, CLEARED, subject, facts, now_ms)
    return True


def _write(unit: Unit, kind: str, subject: str, facts: Mapping[str, str], now_ms: int) -> None:
    """The id is made of the alert's place in the chain of events, which no other alert has."""
    _, last_hash = events.last_event(unit.conn)
    digest = hashlib.sha256(f"{last_hash}\n{kind}\n{subject}\n{now_ms}".encode()).hexdigest()
    alert_id = f"alert_{digest[:24]}"
    alerts.add(unit, alert_id, kind, subject, facts, now_ms)
    records.note(unit, None, "alert", None, now_ms, {"alert": alert_id, "kind": kind, "subject": subject, **facts})
