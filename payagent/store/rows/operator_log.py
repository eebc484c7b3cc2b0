"""What operators changed and which requests were refused, read from the events.

May import: core, store.rows, store.db, sqlite3. Never: writes.
"""

import json
import sqlite3
from dataclasses import dataclass

from payagent.core.operator_log import KINDS, LogKind

OF_PAYMENTS = ("reject", "deny", "reserve")
"""Events of a payment. Of these, `reserve` is listed if it was a decision on an approval."""

_LOG = """
SELECT e.seq, e.payment_id, e.event, e.detail, e.at_ms, p.app_id, p.origin, i.request
FROM (SELECT w.* FROM json_each(:of_the_wallet) k JOIN events w ON w.seq IN (
        SELECT seq FROM events INDEXED BY events_of_the_wallet
        WHERE payment_id IS NULL AND event = k.value AND seq < IFNULL(:before_seq, 1 << 62) AND at_ms >= :since_ms
        ORDER BY seq DESC LIMIT :limit)
      UNION ALL
      SELECT d.* FROM (SELECT id FROM payments WHERE state IN ('rejected', 'denied')
                       UNION SELECT payment_id FROM approvals) q
      JOIN events d INDEXED BY events_by_payment ON d.payment_id = q.id
      WHERE d.event IN (SELECT value FROM json_each(:of_payments))
        AND (d.event <> 'reserve' OR d.detail ->> '$.via' IS NOT NULL)
        AND d.seq < IFNULL(:before_seq, 1 << 62) AND d.at_ms >= :since_ms) e
LEFT JOIN payments p ON p.id = e.payment_id
LEFT JOIN intents i ON i.id = p.intent_id
ORDER BY e.seq DESC LIMIT :limit
"""
"""Each branch has the bounds, so a page does not read all refused 402s."""


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event; `detail` is JSON. The last three belong to the payment, and are None without one.

    `request`: method, path and body hash, separated by spaces.
    """

    seq: int
    payment_id: str | None
    event: str
    detail: str
    at_ms: int
    app_id: str | None
    origin: str | None
    request: str | None


def page(
    conn: sqlite3.Connection, *, since_ms: int, before_seq: int | None, limit: int, kind: LogKind | None = None
) -> list[LoggedEvent]:
    """Changes, refusals, and decisions on approvals, newest first. `kind`: only these."""
    listed = [event for one, events in KINDS.items() if kind in (None, one) for event in events]
    values = {
        "of_the_wallet": json.dumps([event for event in listed if event not in OF_PAYMENTS]),
        "of_payments": json.dumps([event for event in listed if event in OF_PAYMENTS]),
        "since_ms": since_ms,
        "before_seq": before_seq,
        "limit": limit,
    }
    rows = conn.execute(_LOG, values)
    return [LoggedEvent(*row) for row in rows]
