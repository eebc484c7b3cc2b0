"""What operators changed and which calls were refused, read from the events.

May import: store.rows, store.db, sqlite3. Never: writes.
"""

import sqlite3
from dataclasses import dataclass

_OF_THE_WALLET = (
    "limit_set", "app_added", "token_issued", "app_revoked", "merchant_added", "merchant_removed",
    "merchant_stopped", "merchant_resumed", "address_pinned", "address_unpinned", "paused", "resumed", "unfrozen",
    "config_read", "topup_stopped", "refused",
)  # fmt: skip
_MARKS = ",".join("?" * len(_OF_THE_WALLET))

_LOG = f"""
SELECT e.seq, e.payment_id, e.event, e.detail, e.at_ms, p.app_id, p.origin, i.request
FROM (SELECT * FROM events INDEXED BY events_of_the_wallet WHERE payment_id IS NULL AND event IN ({_MARKS})
      UNION ALL
      SELECT d.* FROM (SELECT id FROM payments WHERE state IN ('rejected', 'denied')
                       UNION SELECT payment_id FROM approvals) q
      JOIN events d INDEXED BY events_by_payment ON d.payment_id = q.id
      WHERE d.event IN ('reject', 'deny') OR (d.event = 'reserve' AND d.detail ->> '$.via' IS NOT NULL)) e
LEFT JOIN payments p ON p.id = e.payment_id
LEFT JOIN intents i ON i.id = p.intent_id
WHERE e.at_ms >= ? AND (? IS NULL OR e.seq < ?)
ORDER BY e.seq DESC LIMIT ?
"""  # noqa: S608  our own names


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


def page(conn: sqlite3.Connection, *, since_ms: int, before_seq: int | None, limit: int) -> list[LoggedEvent]:
    """Changes, refusals, and decisions on approvals, newest first."""
    rows = conn.execute(_LOG, (*_OF_THE_WALLET, since_ms, before_seq, before_seq, limit))
    return [LoggedEvent(*row) for row in rows]
