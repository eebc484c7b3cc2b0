"""Checks prepaid balances against the merchants' own records: bought, used, left, and no call counted twice.

Never: changes anything; trusts the agent's counts.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

from payagent.core.prepaid_balance import CALLS
from payagent.store.db.unit import Connection
from sim.trace import Trace

_COUNTS = """
SELECT o.id, o.origin, o.partner, o.wallet, c.bought, c.used, c.unexplained,
       SUM(m.bought), SUM(m.used), SUM(m.unexplained)
FROM prepaid_totals c JOIN prepaid_pools o ON o.id = c.pool_id
JOIN prepaid_moves m ON m.pool_id = c.pool_id AND m.unit = c.unit WHERE c.unit = ? GROUP BY o.id
"""
_TWICE = """
SELECT app_id || ' ' || call_key FROM prepaid_moves WHERE call_key IS NOT NULL
GROUP BY app_id, call_key HAVING COUNT(*) > 1
UNION ALL
SELECT payment_id FROM prepaid_moves WHERE kind = 'use' AND payment_id IS NOT NULL
GROUP BY payment_id HAVING COUNT(*) > 1
"""


class Counters(Protocol):
    """The merchants' own counts."""

    def calls_served(self, origin: str, partner: str, wallet: str) -> int:
        """Calls that were truly served from a buyer's batches, including the first call of each."""

    def batch(self, origin: str, invoice_id: str | None) -> int:
        """How many calls an invoice sells; 0 if it sells no batch."""


class PrepaidJudge:
    """The prepaid judge of one run."""

    def __init__(self, story: Trace, counters: Counters) -> None:
        self._story = story
        self._counters = counters
        self._last_move = 0

    def committed(self, conn: Connection) -> None:
        """After a balance changed: bought - used = left, never negative, and nothing counted twice."""
        (last,) = conn.execute("SELECT COALESCE(MAX(seq), 0) FROM prepaid_moves").fetchone()
        if last == self._last_move:
            return
        self._last_move = last
        for row in conn.execute(_COUNTS, (CALLS,)).fetchall():
            served = self._counters.calls_served(*row[1:4])
            self._check_pool(row[0], served, counts=row[4:7], moved=row[7:10])
        for (name,) in conn.execute(_TWICE).fetchall():
            self._story.violate("PREPAID", f"{name} is used twice")

    def _check_pool(
        self, number: int, served: int, *, counts: tuple[int, int, int], moved: tuple[int, int, int]
    ) -> None:
        bought, used, unexplained = counts
        if counts != moved:
            self._story.violate("PREPAID", f"pool {number} counts {counts}, its moves come to {moved}")
        if min(used, bought - used, unexplained) < 0:
            self._story.violate("PREPAID", f"pool {number} has {bought} bought and {used} used")
        if used + unexplained > served:
            self._story.violate(
                "PREPAID", f"pool {number} counts {used + unexplained} calls as used, its shop served {served}"
            )

    def at_rest(self, conn: Connection, landed: Iterable[tuple[str, str | None]]) -> None:
        """Bought calls equal the calls that paid invoices sold. `landed`: (origin, invoice id) of each."""
        sold: dict[str, int] = {}
        for origin, invoice_id in landed:
            if count := self._counters.batch(origin, invoice_id):
                sold[origin] = sold.get(origin, 0) + count
        bought = _bought(conn)
        if bought != sold:
            self._story.violate("PREPAID", f"the books say that {bought} calls are bought, the chain that {sold}")


def _bought(conn: Connection) -> Mapping[str, int]:
    rows = conn.execute(
        "SELECT o.origin, SUM(c.bought) FROM prepaid_totals c JOIN prepaid_pools o ON o.id = c.pool_id "
        "WHERE c.unit = ? GROUP BY o.origin",
        (CALLS,),
    )
    return {origin: bought for origin, bought in rows if bought}
