"""Checks what counts against limits: each hold, and the stored counters against the holds.

`audit.payments` checks the holds against the entries.
May import: core, store, audit. Never: decides whether a limit was exceeded (the events record which limits were in
force).
"""

import json
from collections.abc import Iterator

from payagent.audit.finding import UNREADABLE, AuditFinding
from payagent.core.policy import Limit, Scope, Window
from payagent.store.audit import recount as counted
from payagent.store.db.unit import Connection
from payagent.store.rows import limit_counters as spending


def check_limits(conn: Connection) -> Iterator[AuditFinding]:
    for payment_id, asset, counts, expected in counted.miscounted(conn):
        what = f"{counts} of its hold count against limits, {expected} ought to"
        yield AuditFinding("holds", f"{payment_id} {asset}", what)
    for payment_id, asset in counted.counted_otherwise(conn):
        yield AuditFinding(
            "holds", f"{payment_id} {asset}", "it counts from another time on than its payment's end"
        )
    for payment_id, asset in counted.put_back_clocks(conn):
        yield AuditFinding(
            "holds", f"{payment_id} {asset}", "the limits' clock was put back before it was counted"
        )
    for app, merchant, asset, span_ms, start_ms in counted.misspent(conn):
        row = f"{app or 'any'} {merchant or 'any'} {asset} {span_ms} {start_ms}"
        yield AuditFinding("limit_counters", row, "it is not what the holds count")
    for payment_id, asset in counted.unlike_asked(conn):
        yield AuditFinding("holds", f"{payment_id} {asset}", "it ended at another time than its question")
    for pool, app, asset in counted.misshared(conn):
        yield AuditFinding(
            "prepaid_shares", f"{pool} {app} {asset}", "it is not what the app's payments and uses say"
        )
    yield from _set(conn)


def _set(conn: Connection) -> Iterator[AuditFinding]:
    """Check that the run-time limits are those that the events set."""
    told: dict[tuple[Scope, str, Window], int] = {}
    for detail in counted.limits_set(conn):
        try:
            event = json.loads(detail)
            key = (Scope(event["app"], event["merchant"]), event["asset"], Window(event["limit"]))
            told.pop(key, None)
            if event["most"] is not None:
                told[key] = int(event["most"])
        except UNREADABLE:
            continue  # the check of the events reports a row that we did not write
    kept = set(spending.limits(conn))
    for limit in sorted(kept ^ {Limit(*key, most) for key, most in told.items()}):
        row = " ".join((limit.scope.app or "any", limit.scope.merchant or "any", limit.asset, limit.window))
        yield AuditFinding("limits", row, "what is set is not what the events tell")
