"""Checks what counts against limits: each hold, and the stored counters against the holds.

`audit.payments` checks the holds against the entries.
May import: store, audit. Never: decides whether a limit was exceeded (the events record which limits were in
force).
"""

from collections.abc import Iterator

from payagent.audit.finding import AuditFinding
from payagent.store.audit import recount
from payagent.store.db.unit import Connection


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
