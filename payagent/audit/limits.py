"""Checks what counts against limits: each hold, and the stored counters against the holds.

`audit.payments` checks the holds against the entries.
May import: core, store, audit. Never: decides whether a limit was exceeded (the events record which limits were in
force).
"""

import json
from collections.abc import Iterator

from payagent.audit.finding import UNREADABLE, AuditFinding
from payagent.core.policy import Limit, Scope, Window
from payagent.store.audit import recount
from payagent.store.db.unit import Connection
from payagent.store.rows import limit_counters


def check_limits(conn: Connection) -> Iterator[AuditFinding]:
    for payment_id, asset, counted, expected in recount.miscounted_holds(conn):
        message = f"{counted} of its units count against limits, {expected} should"
        yield AuditFinding("holds", f"{payment_id} {asset}", message)
    for payment_id, asset in recount.misdated_holds(conn):
        yield AuditFinding(
            "holds", f"{payment_id} {asset}", "it does not count from the time when its payment ended"
        )
    for payment_id, asset in recount.holds_with_clock_back(conn):
        yield AuditFinding("holds", f"{payment_id} {asset}", "the limits' clock went back before it was counted")
    for app, merchant, asset, span_ms, start_ms in recount.wrong_counters(conn):
        row = f"{app or 'any'} {merchant or 'any'} {asset} {span_ms} {start_ms}"
        yield AuditFinding("limit_counters", row, "it differs from what the holds and uses count")
    for payment_id, asset in recount.unreleased_approval_holds(conn):
        yield AuditFinding("holds", f"{payment_id} {asset}", "it was not released when the approval was decided")
    for (payment_id,) in recount.approvals_without_hold(conn):
        yield AuditFinding("holds", payment_id, "it waited for a person, and nothing was held for it")
    for pool, app, asset in recount.wrong_shares(conn):
        yield AuditFinding(
            "prepaid_shares", f"{pool} {app} {asset}", "it differs from the app's payments and uses"
        )
    yield from _check_runtime_limits(conn)


def _check_runtime_limits(conn: Connection) -> Iterator[AuditFinding]:
    """Check that the run-time limits are those that the events set."""
    from_events: dict[tuple[Scope, str, Window], int] = {}
    for detail in recount.limit_set_details(conn):
        try:
            event = json.loads(detail)
            key = (Scope(event["app"], event["merchant"]), event["asset"], Window(event["limit"]))
            from_events.pop(key, None)
            if event["most"] is not None:
                from_events[key] = int(event["most"])
        except UNREADABLE:
            continue  # the check of the events reports a row that we did not write
    stored = set(limit_counters.limits(conn))
    for limit in sorted(stored ^ {Limit(*key, most_units) for key, most_units in from_events.items()}):
        row = " ".join((limit.scope.app or "any", limit.scope.merchant or "any", limit.asset, limit.window))
        yield AuditFinding("limits", row, "the stored limit differs from the events")
