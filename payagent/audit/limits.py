"""Checks what counts against limits: each hold, and the stored counters against the holds.

`audit.payments` checks the holds against the entries.
Never: decides whether a limit was exceeded (the events record which limits were in force).
"""

from collections.abc import Iterator

from payagent.audit.finding import AuditFinding, each_of
from payagent.store.audit import recount
from payagent.store.db.unit import Connection


def check_limits(conn: Connection) -> Iterator[AuditFinding]:
    for read, table, row, what in (
        (
            recount.miscounted_holds,
            "holds",
            "{0} {1}",
            "{2} of its units count against limits, {3} should",
        ),
        (recount.misdated_holds, "holds", "{} {}", "it does not count from the time when its payment ended"),
        (recount.holds_with_clock_back, "holds", "{} {}", "the limits' clock went back before it was counted"),
        (
            recount.wrong_counters,
            "limit_counters",
            "{} {} {} {} {}",
            "it differs from what the holds and uses count",
        ),
        (
            recount.unreleased_approval_holds,
            "holds",
            "{} {}",
            "it was not released when the approval was decided",
        ),
        (recount.approvals_without_hold, "holds", "{}", "it waited for a person, and nothing was held for it"),
        (recount.wrong_shares, "prepaid_shares", "{} {} {}", "it differs from the app's payments and uses"),
    ):
        yield from each_of(table, read(conn), row, what)
