"""Refused purchases, in one list: payments that were rejected or denied, and refusals that came before a payment.

Never: writes.
"""

import sqlite3
from dataclasses import dataclass

from payagent.core.payment.machine import NEVER_SIGNED
from payagent.store.db.sql import LATEST, find_all, sql_list
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


_BOUNDS = f"e.seq < COALESCE(?1, {LATEST}) AND e.at_ms >= COALESCE(?2, 0) AND e.at_ms < COALESCE(?3, {LATEST})"
_REFUSALS = f"""(
SELECT e.seq, e.at_ms, CAST(NULL AS TEXT) AS payment_id, CAST(e.detail ->> 'app' AS TEXT) AS app_id,
       CAST(e.detail ->> 'origin' AS TEXT) AS origin, CAST(e.detail ->> 'request' AS TEXT) AS request,
       CAST(e.detail ->> 'code' AS TEXT) AS code, CAST(e.detail ->> 'reason' AS TEXT) AS reason,
       CAST(e.detail ->> 'detail' AS TEXT) AS detail
FROM events e WHERE e.payment_id IS NULL AND e.event = 'refused' AND {_BOUNDS}
UNION ALL
SELECT e.seq, e.at_ms, p.id, p.app_id, p.origin, CAST(substr(i.request, 1, length(i.request) - 65) AS TEXT),
       p.code, p.reason, p.detail
FROM payments p JOIN events e ON e.payment_id = p.id AND e.event IN ('reject', 'deny')
JOIN intents i ON i.id = p.intent_id
WHERE p.state IN {sql_list(*NEVER_SIGNED)} AND {_BOUNDS}
) r LEFT JOIN apps a ON a.id = r.app_id"""  # noqa: S608
"""SQL: an intent's request ends with a space and the 64 digits of its body's hash.

With the casts both branches have the same types. SQLite then merges them by `seq` and stops at a page's end.
The view v_refusals is not used: it dates a refused payment by when it was requested, not by when it was refused.
"""

_WHERE = """
WHERE (CAST(?4 AS TEXT) IS NULL OR r.origin = ?4) AND (CAST(?5 AS TEXT) IS NULL OR ?5 IN (a.id, a.name))
  AND (CAST(?6 AS TEXT) IS NULL OR r.code = ?6)"""


def refusals_page(
    conn: sqlite3.Connection, only: Selection, *, code: str | None, before_seq: int | None, limit: int
) -> list[RefusalRow]:
    """Refusals, newest first. Of `only`, the period, the merchant and the app count."""
    return find_all(
        conn,
        RefusalRow,
        "SELECT r.seq, r.at_ms, r.payment_id, a.name, r.origin, r.request, r.code, r.reason, r.detail "  # noqa: S608
        f"FROM {_REFUSALS}{_WHERE} ORDER BY r.seq DESC LIMIT ?7",
        (before_seq, *_values(only), code, limit),
    )


def refusals_counted(conn: sqlite3.Connection, only: Selection) -> list[tuple[str | None, str | None, str, int]]:
    """(app, origin, code, count), the most frequent first. The selection is that of `refusals_page`."""
    return conn.execute(
        f"SELECT a.name, r.origin, r.code, COUNT(*) FROM {_REFUSALS}{_WHERE} "  # noqa: S608
        "GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1 NULLS FIRST, 2 NULLS FIRST, 3",
        (None, *_values(only), None),
    ).fetchall()


def _values(only: Selection) -> tuple[object, ...]:
    return only.since_ms, only.until_ms, only.origin, only.app
