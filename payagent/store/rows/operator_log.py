"""What operators changed and which requests were refused, read from the events.

Never: writes.
"""

import sqlite3
from dataclasses import dataclass

from payagent.core.operator_log import KINDS, LogKind
from payagent.core.payment.machine import NEVER_SIGNED
from payagent.store.db.sql import LATEST, NOTHING, find_all, sql_list
from payagent.store.rows.journal import EVERYTHING, Selection

OF_PAYMENTS = ("reject", "deny", "reserve")
"""Events of a payment. Of these, `reserve` is listed if it was a decision on an approval."""

_LOG = """
WITH k(name) AS ({of_the_wallet})
SELECT e.seq, e.payment_id, e.event, e.detail, e.at_ms, p.app_id, p.origin, i.request
FROM (SELECT w.* FROM k JOIN events w ON w.seq IN (
        SELECT seq FROM events INDEXED BY events_of_the_wallet
        WHERE payment_id IS NULL AND event = k.name AND seq < ?1 AND at_ms >= ?2 AND at_ms < ?4
          AND (CAST(?5 AS TEXT) IS NULL OR CAST(detail ->> 'app' AS TEXT) = ?5)
          AND (CAST(?6 AS TEXT) IS NULL OR ?6 IN (detail ->> 'merchant', detail ->> 'origin'))
          AND (CAST(?7 AS TEXT) IS NULL OR CAST(detail ->> 'code' AS TEXT) = ?7)
          AND (CAST(?8 AS TEXT) IS NULL OR CAST(COALESCE(detail ->> 'by',
               CASE WHEN event IN ('refused', 'unfrozen') THEN detail ->> 'app' END) AS TEXT) = ?8)
        ORDER BY seq DESC LIMIT ?3)
      UNION ALL
      SELECT d.* FROM (SELECT id FROM payments WHERE state IN {never_signed}
                       UNION SELECT payment_id FROM approvals) q
      JOIN events d INDEXED BY events_by_payment ON d.payment_id = q.id
      WHERE d.event IN ({of_payments}) AND (d.event <> 'reserve' OR d.detail ->> 'via' IS NOT NULL)
        AND d.seq < ?1 AND d.at_ms >= ?2 AND d.at_ms < ?4
        AND (CAST(?7 AS TEXT) IS NULL OR CAST(d.detail ->> 'code' AS TEXT) = ?7)) e
LEFT JOIN payments p ON p.id = e.payment_id
LEFT JOIN intents i ON i.id = p.intent_id
WHERE (CAST(?5 AS TEXT) IS NULL OR p.id IS NULL OR p.app_id = ?5)
  AND (CAST(?6 AS TEXT) IS NULL OR p.id IS NULL OR p.origin = ?6)
  AND (CAST(?8 AS TEXT) IS NULL OR p.id IS NULL OR CAST(COALESCE(e.detail ->> 'by',
       CASE WHEN e.event = 'reject' THEN p.app_id END) AS TEXT) = ?8)
ORDER BY e.seq DESC LIMIT ?3
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
    conn: sqlite3.Connection,
    only: Selection = EVERYTHING,
    *,
    code: str | None = None,
    before_seq: int | None,
    limit: int,
    kind: LogKind | None = None,
    by: str | None = None,
) -> list[LoggedEvent]:
    """Changes, refusals, and decisions on approvals, newest first.

    `kind`, `code`: only these. `by`: only what this app changed, or what was refused to it.

    Of `only`, the period, the merchant and the app count.
    """
    listed = KINDS[kind] if kind else (*KINDS["changes"], *KINDS["refusals"])
    of_the_wallet = [event for event in listed if event not in OF_PAYMENTS]
    of_payments = [event for event in listed if event in OF_PAYMENTS]
    marks = [f"?{number}" for number in range(9, 9 + len(listed))]
    named, asked = marks[: len(of_the_wallet)], marks[len(of_the_wallet) :]
    log = _LOG.format(
        never_signed=sql_list(*NEVER_SIGNED),
        of_the_wallet=f"VALUES {', '.join(f'({mark})' for mark in named)}" if named else NOTHING,
        of_payments=", ".join(asked) or NOTHING,
    )
    before = LATEST if before_seq is None else before_seq
    until_ms = LATEST if only.until_ms is None else only.until_ms
    bounds = (before, only.since_ms or 0, limit, until_ms, only.app, only.origin, code, by)
    return find_all(conn, LoggedEvent, log, (*bounds, *of_the_wallet, *of_payments))


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
