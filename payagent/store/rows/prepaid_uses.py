"""Counts prepaid uses against the limits of their apps, and records which app paid for a balance.

A batch counted when it was bought, for the wallet and for the app that bought it. A use therefore counts for its
app only, and only for the part beyond what that app has paid for the balance and not used. If a payment that
covered uses comes to nothing, they count from then on.
A use that was not served, or that no payment covers, is taken back by a row of its own.

Never: commits; decides.
"""

from collections.abc import Mapping

from payagent.core.prepaid_balance import CALLS
from payagent.store.db.sql import number
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import limit_counters

_SHARE = """
INSERT INTO prepaid_shares(pool_id, app_id, asset, paid, used, counted) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (pool_id, app_id, asset) DO UPDATE SET
  paid = prepaid_shares.paid + excluded.paid, used = prepaid_shares.used + excluded.used,
  counted = prepaid_shares.counted + excluded.counted
"""


def pay(unit: Unit, pool: int, app_id: str, units: Mapping[str, int]) -> None:
    """Add to what an app has paid for a balance: all that its payment holds or spent, fee included.

    Negative units take it back; uses that they covered count for the app from now on.
    """
    for asset, n in units.items():
        if n:
            unit.conn.execute(_SHARE, (pool, app_id, asset, n, 0, 0))
        if n < 0:
            _count_uncovered(unit, pool, app_id, asset)


def _count_uncovered(unit: Unit, pool: int, app_id: str, asset: str) -> None:
    (owed,) = unit.conn.execute(
        "SELECT used - paid - counted FROM prepaid_shares WHERE pool_id = ? AND app_id = ? AND asset = ?",
        (pool, app_id, asset),
    ).fetchone()
    if owed > 0:
        clock_ms = limit_counters.clock_ms(unit.conn, None)
        _write(unit, (_next_call(unit), pool, app_id, CALLS, 0, asset, 0, owed, clock_ms))


def counting(conn: Connection, pool: int, app_id: str, cost: Mapping[str, int]) -> dict[str, int]:
    """The part of a use's cost that would count against the app's own limits."""
    rows = conn.execute(
        "SELECT asset, paid - used FROM prepaid_shares WHERE pool_id = ? AND app_id = ?", (pool, app_id)
    )
    own = {asset: max(units, 0) for asset, units in rows}
    return {asset: max(units - own.get(asset, 0), 0) for asset, units in cost.items()}


def add(
    unit: Unit, pool: int, app_id: str, drawn: tuple[str, int], cost: Mapping[str, int], clock_ms: int
) -> int | None:
    """Record that a request of an app uses `drawn` (unit, count) of a balance, at this cost.

    Returns the number of the use; None if it costs nothing.
    """
    counted = counting(unit.conn, pool, app_id, cost)
    call = _next_call(unit)
    rows = [(call, pool, app_id, *drawn, asset, n, counted[asset], clock_ms) for asset, n in cost.items() if n]
    for row in rows:
        _write(unit, row)
    return call if rows else None


def take_back(unit: Unit, call: int) -> None:
    """Take back a use that was admitted and not served. Has no effect the second time."""
    _take_back(unit, call, is_served=False)


def take_back_newest(unit: Unit, pool: int, unit_name: str, count: int) -> None:
    """Take back the cost of the newest uses, `count` in total: they were served and no payment covers them.

    Uses that were taken back for this reason before are included in `count`.
    """
    if count <= 0:
        return
    rows = unit.conn.execute(
        "SELECT call, SUM(count), SUM(units) FROM prepaid_uses WHERE pool_id = ? AND unit = ? AND asset = "
        "(SELECT asset FROM prepaid_uses u WHERE u.call = prepaid_uses.call LIMIT 1) GROUP BY call HAVING "
        "SUM(count) > 0 ORDER BY call DESC",
        (pool, unit_name),
    )
    newest: list[int] = []
    for call, used, units in rows:
        if used > count:
            break
        count -= used
        if units > 0:
            newest.append(call)
    rows.close()
    for call in newest:
        _take_back(unit, call, is_served=True)


def _take_back(unit: Unit, call: int, *, is_served: bool) -> None:
    """Take back a use's cost from the counters. If it was served, its count stays on record."""
    rows = unit.conn.execute(
        "SELECT call, pool_id, app_id, unit, CASE WHEN ? THEN 0 ELSE -SUM(count) END, asset, -SUM(units), "
        "-SUM(counted_units), MIN(counted_at_ms) FROM prepaid_uses WHERE call = ? "
        "GROUP BY asset, call, pool_id, app_id, unit HAVING SUM(units) > 0",
        (is_served, call),
    ).fetchall()
    for row in rows:
        _write(unit, row)


def _next_call(unit: Unit) -> int:
    return number(unit.conn, "SELECT COALESCE(MAX(call), 0) + 1 FROM prepaid_uses")


def _write(unit: Unit, row: tuple[object, ...]) -> None:
    call, pool, app_id, unit_name, count, asset, units, counted, clock_ms = row
    unit.conn.execute(
        "INSERT INTO prepaid_uses(call, pool_id, app_id, unit, count, asset, units, counted_units, counted_at_ms) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (call, pool, app_id, unit_name, count, asset, units, counted, clock_ms),
    )
    unit.conn.execute(_SHARE, (pool, app_id, asset, 0, units, counted))
    (origin,) = unit.conn.execute("SELECT origin FROM prepaid_pools WHERE id = ?", (pool,)).fetchone()
    limit_counters.count_use(unit, str(app_id), origin, {str(asset): int(str(counted))}, int(str(clock_ms)))
