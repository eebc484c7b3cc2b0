"""Refused purchases, in one list: payments that were rejected or denied, and refusals that came before a payment.

May import: store.rows, sqlite3. Never: writes.
"""

import sqlite3
from dataclasses import dataclass

from payagent.store.rows.journal import Selection


@dataclass(frozen=True, slots=True)
class RefusalRow:
    """A refused purchase. `seq`: of the event that recorded it. `origin`: as the app named it.

    `request`: its method and path, if the app gave them. `payment_id`: None if it was refused before a payment.
    """

    seq: int
    at_ms: int
    payment_id: str | None
    app: str | None
    origin: str | None
    request: str | None
    code: str
    reason: str | None
    detail: str | None


_BOUNDS = (
    "e.seq < IFNULL(:before_seq, 1 << 62) "
    "AND e.at_ms >= IFNULL(:since_ms, 0) AND e.at_ms < IFNULL(:until_ms, 1 << 62)"
)
_REFUSALS = f"""(
SELECT e.seq, e.at_ms, CAST(NULL AS TEXT) AS payment_id, CAST(e.detail ->> '$.app' AS TEXT) AS app_id,
       CAST(e.detail ->> '$.origin' AS TEXT) AS origin, CAST(e.detail ->> '$.request' AS TEXT) AS request,
       CAST(e.detail ->> '$.code' AS TEXT) AS code, CAST(e.detail ->> '$.reason' AS TEXT) AS reason,
       CAST(e.detail ->> '$.detail' AS TEXT) AS detail
FROM events e WHERE e.payment_id IS NULL AND e.event = 'refused' AND {_BOUNDS}
UNION ALL
SELECT e.seq, e.at_ms, p.id, p.app_id, p.origin, CAST(substr(i.request, 1, length(i.request) - 65) AS TEXT),
       p.code, p.reason, p.detail
FROM payments p JOIN events e ON e.payment_id = p.id AND e.event IN ('reject', 'deny')
JOIN intents i ON i.id = p.intent_id
WHERE p.state IN ('rejected', 'denied') AND {_BOUNDS}
) r LEFT JOIN apps a ON a.id = r.app_id"""  # noqa: S608
"""SQL: an intent's request ends with a space and the 64 digits of its body's hash.

With the casts both branches have the same types. SQLite then merges them by `seq` and stops at a page's end.
The view v_refusals is not used: it dates a refused payment by when it was requested, not by when it was refused.
"""

_WHERE = """
WHERE (:origin IS NULL OR r.origin = :origin) AND (:app IS NULL OR :app IN (a.id, a.name))
  AND (:code IS NULL OR r.code = :code)"""


def refusals_page(
    conn: sqlite3.Connection, only: Selection, *, code: str | None, before_seq: int | None, limit: int
) -> list[RefusalRow]:
    """Refusals, newest first. Of `only`, the period, the merchant and the app count."""
    rows = conn.execute(
        "SELECT r.seq, r.at_ms, r.payment_id, a.name, r.origin, r.request, r.code, r.reason, r.detail "  # noqa: S608
        f"FROM {_REFUSALS}{_WHERE} ORDER BY r.seq DESC LIMIT :limit",
        _values(only) | {"code": code, "before_seq": before_seq, "limit": limit},
    )
    return [RefusalRow(*row) for row in rows]


def refusals_counted(conn: sqlite3.Connection, only: Selection) -> list[tuple[str | None, str | None, str, int]]:
    """(app, origin, code, count), the most frequent first. The selection is that of `refusals_page`."""
    rows = conn.execute(
        f"SELECT a.name, r.origin, r.code, COUNT(*) FROM {_REFUSALS}{_WHERE} "  # noqa: S608
        "GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3",
        _values(only) | {"code": None, "before_seq": None},
    )
    return rows.fetchall()


def _values(only: Selection) -> dict[str, object]:
    return {"since_ms": only.since_ms, "until_ms": only.until_ms, "origin": only.origin, "app": only.app}
