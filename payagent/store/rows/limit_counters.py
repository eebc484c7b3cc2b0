"""Counters of spend per limit window, on the chain's clock. A check against a limit costs the same for any
history.

The transaction that places a payment's hold also counts it for each of its scopes (core.policy). While the payment
is open, the hold counts at `OPEN_MS`, the latest time possible, so it counts in every window however long that
takes. Once the payment ends, the hold counts in the spans of the time it ended. So each row of
`limit_counters` is the sum of its scope's holds in its span, and an audit compares them.

A use of a prepaid balance counts for its app only, from the time the request was admitted
(store.rows.prepaid_uses). For the wallet it counted when the balance was bought.

A payment ends when it is posted, and never before its block. A transaction that landed within a window therefore
counts until that window is over. The time of signing would be too early, by as long as the transaction took to
land.

The clock shows the time of the newest block, and never an earlier time than the last count. It never goes back
after a rollback or a restart, and no other clock moves it, so a clock jump frees no limit.

Never: reads a clock; decides.
"""

from collections.abc import Iterable, Mapping

from payagent.core.policy import ANY, SPAN_MS, Limit, Scope, SpendSpan, Window, counts_from_ms, scopes_of
from payagent.store.db.sql import add_halves, find_all, halves, places, whole
from payagent.store.db.unit import Connection, Unit

SPANS_MS = (*sorted(set(SPAN_MS.values())), 0)
"""Span lengths that are stored; 0 is the span that never ends."""

OPEN_MS = max(SPANS_MS) << 30
"""The time at which holds of open payments count: later than any time of the clock."""

_COUNTERS = "limit_counters(app, merchant, asset, span_ms, start_ms, kind, units_high, units_low)"
_LIMIT = 'SELECT app, merchant, asset, "window", most_units FROM limits'
_OF = "WHERE app = ? AND merchant = ? AND asset = ? AND span_ms = ? AND start_ms >= ?"


def clock_ms(conn: Connection, block_ms: int | None) -> int:
    """The limits' clock, given the time of the newest block; None if no block is trusted."""
    (last_ms,) = conn.execute(
        "SELECT COALESCE((SELECT counted_at_ms FROM holds ORDER BY rowid DESC LIMIT 1), 0)"
    ).fetchone()
    return max(int(last_ms), min(block_ms or 0, OPEN_MS - 1))


def count(unit: Unit, app: str, merchant: str, units: Mapping[str, int], at_ms: int) -> None:
    """Add to the spend at this time of the limits' clock. Negative units take spend back."""
    _count(unit, scopes_of(app, merchant), "paid", units, at_ms)


def recount(
    unit: Unit, app: str, merchant: str, asset: str, before: int, before_ms: int, units: int, at_ms: int
) -> None:
    """Move a spend to another time and amount, in one statement."""
    rows = [
        *_rows(scopes_of(app, merchant), "paid", {asset: -before}, before_ms),
        *_rows(scopes_of(app, merchant), "paid", {asset: units}, at_ms),
    ]
    add_halves(unit.conn, _COUNTERS, rows)


def count_use(unit: Unit, app: str, merchant: str, units: Mapping[str, int], at_ms: int) -> None:
    """Like `count`, for a use of units that were bought before: counts for the app only."""
    scopes = (scope for scope in scopes_of(app, merchant) if scope.app != ANY)
    _count(unit, scopes, "used", units, at_ms)


def _count(unit: Unit, scopes: Iterable[Scope], kind: str, units: Mapping[str, int], at_ms: int) -> None:
    add_halves(unit.conn, _COUNTERS, _rows(scopes, kind, units, at_ms))


def _rows(scopes: Iterable[Scope], kind: str, units: Mapping[str, int], at_ms: int) -> list[tuple[object, ...]]:
    return [
        (*scope, asset, span_ms, at_ms // span_ms * span_ms if span_ms else 0, kind, *halves(n))
        for scope in scopes
        for asset, n in units.items()
        if n
        for span_ms in SPANS_MS
    ]


def counted(conn: Connection, limit: Limit, clock_ms: int) -> int:
    """Units that count against a limit at this time of the clock; always 0 for a per-payment limit."""
    return counted_for_each(conn, (limit,), clock_ms)[limit]


def counted_for_each(conn: Connection, limits: Iterable[Limit], clock_ms: int) -> dict[Limit, int]:
    """As `counted`, for several limits in one statement: to a database it is one round trip."""
    found = dict.fromkeys(limits, 0)
    rolling = [limit for limit in found if limit.window is not Window.PAYMENT]
    sums = [
        f"SELECT {n}, COALESCE(SUM(units_high), 0), COALESCE(SUM(units_low), 0) FROM limit_counters {_OF}"  # noqa: S608  our own names
        for n in range(len(rolling))
    ]
    if sums:
        keys = [value for limit in rolling for value in _span_key(limit, clock_ms)]
        for n, high, low in conn.execute(" UNION ALL ".join(sums), keys):
            found[rolling[n]] = whole(high, low)
    return found


def spans(conn: Connection, limit: Limit, clock_ms: int) -> list[SpendSpan]:
    """The spans that a rolling window covers, oldest first. Open holds count as spent now."""
    rows = conn.execute(
        f"SELECT start_ms, units_high, units_low FROM limit_counters {_OF} ORDER BY start_ms",  # noqa: S608  our own names
        _span_key(limit, clock_ms),
    )
    span_ms = SPAN_MS[limit.window]
    now_ms = clock_ms // span_ms * span_ms
    window_spans = [SpendSpan(start if start < OPEN_MS else now_ms, whole(high, low)) for start, high, low in rows]
    return sorted(span for span in window_spans if span.units)


def totals(conn: Connection, scope: Scope) -> dict[str, int]:
    """Total spend and open holds of a scope, per asset; assets without any are left out."""
    rows = conn.execute(
        "SELECT asset, SUM(units_high), SUM(units_low) FROM limit_counters WHERE app = ? AND merchant = ? AND "
        "span_ms = 0 GROUP BY asset",
        scope,
    )
    sums = {asset: whole(high, low) for asset, high, low in rows}
    return {asset: units for asset, units in sums.items() if units}


def totals_by_app(
    conn: Connection, merchants: Iterable[str], assets: Iterable[str]
) -> list[tuple[str, str, str, int]]:
    """(app name, merchant, asset, units): total spend and open holds of every app at these merchants (or ANY).

    Each is one look-up, so the history's size does not matter.
    """
    of, paid_in = list(merchants), sorted(assets)
    rows = conn.execute(
        "SELECT a.name, c.merchant, c.asset, c.units_high, c.units_low "  # noqa: S608  placeholders
        f"FROM apps a CROSS JOIN limit_counters c ON c.app = a.id AND c.merchant IN ({places(len(of))}) "
        f"AND c.asset IN ({places(len(paid_in))}) AND c.span_ms = 0 AND c.start_ms = 0 AND c.kind = 'paid' "
        "ORDER BY a.name, c.merchant, c.asset",
        (*of, *paid_in),
    )
    return [(app, merchant, asset, whole(high, low)) for app, merchant, asset, high, low in rows]


def limits(conn: Connection) -> list[Limit]:
    """The limits set at run time."""
    return find_all(conn, _limit, f'{_LIMIT} ORDER BY app, merchant, asset, "window"')


def limits_binding(conn: Connection, app: str, merchant: str) -> list[Limit]:
    """Run-time limits of the scopes that bind a payment of the app to the merchant."""
    return find_all(conn, _limit, f"{_LIMIT} WHERE app IN (?, '') AND merchant IN (?, '')", (app, merchant))


def set_limit(unit: Unit, limit: Limit) -> None:
    """Set a run-time limit. It overrides the config file for the same scope, asset and window."""
    unit.conn.execute(
        'INSERT INTO limits(app, merchant, asset, "window", most_units) VALUES (?, ?, ?, ?, ?) '
        'ON CONFLICT (app, merchant, asset, "window") DO UPDATE SET most_units = excluded.most_units',
        (*limit.scope, limit.asset, limit.window, limit.most_units),
    )


def drop_limit(unit: Unit, scope: Scope, asset: str, window: Window) -> None:
    """Remove a run-time limit. The config file's applies again; it has none for apps."""
    unit.conn.execute(
        'DELETE FROM limits WHERE app = ? AND merchant = ? AND asset = ? AND "window" = ?', (*scope, asset, window)
    )


def _limit(app: str, merchant: str, asset: str, window: str, most_units: int) -> Limit:
    return Limit(Scope(app, merchant), asset, Window(window), most_units)


def _span_key(limit: Limit, clock_ms: int) -> tuple[object, ...]:
    if limit.window is Window.TOTAL:
        return (*limit.scope, limit.asset, 0, 0)
    return (*limit.scope, limit.asset, SPAN_MS[limit.window], counts_from_ms(limit.window, clock_ms))
