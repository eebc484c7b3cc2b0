"""Raises and clears alerts inside a commit, once per subject.

May import: store. Never: tells anybody (agent.operator.notifier does); commits.
"""

import hashlib
from collections.abc import Mapping

from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import alerts, events, writes

CLEARED = "cleared"


def is_raised(conn: Connection, subject: str) -> bool:
    return alerts.last_kind(conn, subject) not in (None, CLEARED)


def raise_alert(unit: Unit, kind: str, subject: str, facts: Mapping[str, str], now_ms: int) -> bool:
    """Raise an alert unless its subject has one already. Returns whether it was new.

    `facts` need a `detail` for people.
    """
    if is_raised(unit.conn, subject):
        return False
    _write(unit, kind, subject, facts, now_ms)
    return True


def raise_again(unit: Unit, kind: str, subject: str, facts: Mapping[str, str], now_ms: int) -> None:
    """Raise an alert even if its subject has one already, for news about the same subject."""
    _write(unit, kind, subject, facts, now_ms)


def clear_alert(unit: Unit, subject: str, facts: Mapping[str, str], now_ms: int) -> bool:
    """Clear a subject's alert. Returns whether there was one."""
    if not is_raised(unit.conn, subject):
        return False
    _write(unit, CLEARED, subject, facts, now_ms)
    return True


def _write(unit: Unit, kind: str, subject: str, facts: Mapping[str, str], now_ms: int) -> None:
    """Write an alert and its event. The id is a hash over the last event, so no other alert has it."""
    _, last_hash = events.last_event(unit.conn)
    digest = hashlib.sha256(f"{last_hash}\n{kind}\n{subject}\n{now_ms}".encode()).hexdigest()
    alert_id = f"alert_{digest[:24]}"
    alerts.add(unit, alert_id, kind, subject, facts, now_ms)
    writes.note(unit, None, "alert", None, now_ms, {"alert": alert_id, "kind": kind, "subject": subject, **facts})
