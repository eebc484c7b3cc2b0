"""What is spent, counted in spans of the chain's time, so that limits cost the same however long the history is.

Each hold of a payment is counted for every scope that it is spent in (core.policy), in the transaction that places
it: as the newest there can be (`OPEN_MS`) while its payment is open, so that it counts in every window however
long that takes, and in the spans of the moment in which it ended from then on. So each row of `spent` is what the
holds of its scope and span count, and audits compare them.

What calls use of a prepaid balance counts for their app alone, from when they were let through
(store.rows.prepaid_uses): for the wallet it counted when it was bought.

That moment is when it was posted, and never before its block: what landed within a window counts until all of that
window is over. When it was signed would be too early, by as long as the transaction took to land.

The clock is that of the newest block, and goes on from where anything was last counted: it never goes back, with a
rollback, a restart or any clock, and no clock but the chain's moves it on. So a jump frees nothing.

May import: core, store.db. Never: reads a clock; decides.
"""

import sqlite3
from collections.abc import Iterable, Mapping

from payagent.core.policy import ANY, SPAN_MS, Limit, Scope, SpendSpan, Window, counts_from_ms, scopes_of
from payagent.store.db.unit import Unit
from payagent.store.db.wide_sums import add_halves, halves, whole

SPANS_MS = (*sorted(set(SPAN_MS.values())), 0)
"""The lengths of the spans that are kept; 0 stands for one that never ends."""

OPEN_MS = max(SPANS_MS) << 30
"""When what is held for an open payment counts as spent: later than any time of the clock."""

_SPENT = "spent(app, merchant, asset, span_ms, start_ms, what, high, low)"
_SUM = "SELECT COALESCE(SUM(high), 0), COALESCE(SUM(low), 0) FROM spent"
_LIMIT = "SELECT app, merchant, asset, kind, most_units FROM limits"
_OF = "WHERE app = ? AND merchant = ? AND asset = ? AND span_ms = ? AND start_ms >= ?"


def clock_ms(conn: sqlite3.Connection, block_ms: int | None) -> int:
    """The clock of the limits, when the newest block is of that time; None: when no block is to be believed."""
    (last_ms,) = conn.execute(
        "SELECT COALESCE((SELECT counted_at_ms FROM holds ORDER BY rowid DESC LIMIT 1), 0)"
    ).fetchone()
    return max(int(last_ms), min(block_ms or 0, OPEN_MS - 1))


def count(unit: Unit, app: str, merchant: str, units: Mapping[str, int], at_ms: int) -> None:
    """Add to what was spent at that time of the clock; what is less than nothing is taken back."""
    _count(unit, scopes_of(app, merchant), "paid", units, at_ms)


def count_use(unit: Unit, app: str, merchant: str, units: Mapping[str, int], at_ms: int) -> None:
    """As `count`, of what was bought before and is used now: for the app alone."""
    scopes = (scope for scope in scopes_of(app, merchant) if scope.app != ANY)
    _count(unit, scopes, "used", units, at_ms)


def _count(unit: Unit, scopes: Iterable[Scope], what: str, units: Mapping[str, int], at_ms: int) -> None:
    rows = [
        (*scope, asset, span_ms, at_ms // span_ms * span_ms if span_ms else 0, what, *halves(n))
        for scope in scopes
        for asset, n in units.items()
        if n
        for span_ms in SPANS_MS
    ]
    add_halves(unit.conn, _SPENT, rows)


def counted(conn: sqlite3.Connection, limit: Limit, clock_ms: int) -> int:
    """What counts against a limit at that time of the clock; nothing does against one for each payment."""
    if limit.window is Window.PAYMENT:
        return 0
    high, low = conn.execute(f"{_SUM} {_OF}", _span_key(limit, clock_ms)).fetchone()
    return whole(int(high), int(low))


def spans(conn: sqlite3.Connection, limit: Limit, clock_ms: int) -> list[SpendSpan]:
    """The spans that a rolling window counts, oldest first; what is open is as if it were spent now."""
    rows = conn.execute(
        f"SELECT start_ms, high, low FROM spent {_OF} ORDER BY start_ms",  # noqa: S608  our own names
        _span_key(limit, clock_ms),
    )
    span_ms = SPAN_MS[limit.window]
    now_ms = clock_ms // span_ms * span_ms
    found = [SpendSpan(start if start < OPEN_MS else now_ms, whole(high, low)) for start, high, low in rows]
    return sorted(span for span in found if span.units)


def totals(conn: sqlite3.Connection, scope: Scope) -> dict[str, int]:
    """What a scope ever spent and holds now, per asset; none of which it spent nothing."""
    rows = conn.execute(
        "SELECT asset, SUM(high), SUM(low) FROM spent WHERE app = ? AND merchant = ? AND span_ms = 0 "
        "GROUP BY asset",
        scope,
    )
    sums = {asset: whole(high, low) for asset, high, low in rows}
    return {asset: units for asset, units in sums.items() if units}


def limits(conn: sqlite3.Connection) -> list[Limit]:
    """The limits that were set at run time."""
    return [_limit(row) for row in conn.execute(_LIMIT)]


def limits_binding(conn: sqlite3.Connection, app: str, merchant: str) -> list[Limit]:
    """Those of the scopes that a payment of the app to the merchant is spent in."""
    return [
        _limit(row)
        for row in conn.execute(f"{_LIMIT} WHERE app IN (?, '') AND merchant IN (?, '')", (app, merchant))
    ]


def set_limit(unit: Unit, limit: Limit) -> None:
    """From now on it stands over what the config file says of the same scope, asset and window."""
    unit.conn.execute(
        "INSERT INTO limits(app, merchant, asset, kind, most_units) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET most_units = excluded.most_units",
        (*limit.scope, limit.asset, limit.window, limit.most_units),
    )


def drop_limit(unit: Unit, scope: Scope, asset: str, window: Window) -> None:
    """From now on what the config file says of it stands; for an app, which no file knows, none."""
    unit.conn.execute(
        "DELETE FROM limits WHERE app = ? AND merchant = ? AND asset = ? AND kind = ?", (*scope, asset, window)
    )


def _limit(row: tuple[str, str, str, str, int]) -> Limit:
    return Limit(Scope(*row[:2]), row[2], Window(row[3]), row[4])


def _span_key(limit: Limit, clock_ms: int) -> tuple[object, ...]:
    if limit.window is Window.TOTAL:
        return (*limit.scope, limit.asset, 0, 0)
    return (*limit.scope, limit.asset, SPAN_MS[limit.window], counts_from_ms(limit.window, clock_ms))
