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
) -> list[LoggedEvent]:
    """Changes, refusals, and decisions on approvals, newest first. `kind`, `code`: only these.

    Of `only`, the period, the merchant and the app count.
    """
    listed = [event for one, events in KINDS.items() if kind in (None, one) for event in events]
    of_the_wallet = [event for event in listed if event not in OF_PAYMENTS]
    of_payments = [event for event in listed if event in OF_PAYMENTS]
    marks = [f"?{number}" for number in range(8, 8 + len(listed))]
    named, asked = marks[: len(of_the_wallet)], marks[len(of_the_wallet) :]
    log = _LOG.format(
        never_signed=sql_list(*NEVER_SIGNED),
        of_the_wallet=f"VALUES {', '.join(f'({mark})' for mark in named)}" if named else NOTHING,
        of_payments=", ".join(asked) or NOTHING,
    )
    before = LATEST if before_seq is None else before_seq
    until_ms = LATEST if only.until_ms is None else only.until_ms
    bounds = (before, only.since_ms or 0, limit, until_ms, only.app, only.origin, code)
    return find_all(conn, LoggedEvent, log, (*bounds, *of_the_wallet, *of_payments))
