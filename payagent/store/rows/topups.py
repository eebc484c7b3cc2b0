"""Orders to raise a prepaid balance: what was ordered, how it ended, and what its payments took.

May import: core, store. Never: commits; counts what an order bought (its payments say that).
"""

import sqlite3
from dataclasses import dataclass

from payagent.store.db.unit import Unit
from payagent.store.rows import apps

AUTO_APP = "app_auto_topup"
"""The app to which automatic orders belong. It has no token."""


@dataclass(frozen=True, slots=True)
class TopupRow:
    """An order to buy `units` of `unit` (calls, or an asset that is paid) for a pool.

    `request` is the call whose 402 sells it, as JSON; `is_call`: an ordinary one, which uses one of what it buys.
    `reason_code` says why it ended before it was reached; `stop_code` why it is to end, once what is under way is
    delivered. `clock_ms` and `ended_clock_ms` are times of the limits' clock (store.rows.limit_counters).
    """

    seq: int
    id: str
    pool: int
    app_id: str
    key: str
    cause: str
    unit: str
    units: int
    request: str
    is_call: bool
    created_at_ms: int
    clock_ms: int
    stop_code: str | None
    stop_reason: str | None
    ended_at_ms: int | None
    ended_clock_ms: int | None
    reason_code: str | None
    reason: str | None

    @property
    def state(self) -> str:
        """`open`; `stopping`, where nothing more is bought; `done`, also when the merchant sells nothing more; or
        `stopped`, for its reason.
        """
        if self.ended_at_ms is None:
            return "open" if self.stop_code is None else "stopping"
        return "done" if self.reason_code in (None, "merchant_sells_none") else "stopped"


_TOPUP = (
    "SELECT seq, id, pool, app_id, key, cause, unit, units, request, is_call, created_at_ms, clock_ms, stop_code, "
    "stop_reason, ended_at_ms, ended_clock_ms, reason_code, reason FROM topups"
)


def _row(values: tuple[object, ...]) -> TopupRow:
    return TopupRow(*values[:9], bool(values[9]), *values[10:])  # type: ignore[arg-type, call-arg]


def add(
    unit: Unit,
    *,
    topup_id: str,
    pool: int,
    app_id: str,
    key: str,
    cause: str,
    unit_name: str,
    units: int,
    request: str,
    is_call: bool,
    now_ms: int,
    clock_ms: int,
) -> TopupRow:
    values = (topup_id, pool, app_id, key, cause, unit_name, units, request, is_call, now_ms, clock_ms)
    cursor = unit.conn.execute(
        "INSERT INTO topups(id, pool, app_id, key, cause, unit, units, request, is_call, created_at_ms, clock_ms) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        values,
    )
    return TopupRow(int(cursor.lastrowid or 0), *values, None, None, None, None, None, None)


def stop(unit: Unit, topup_id: str, code: str, reason: str) -> None:
    """Nothing more is bought for an order; the first reason stands."""
    unit.conn.execute(
        "UPDATE topups SET stop_code = ?, stop_reason = ? WHERE id = ? AND stop_code IS NULL",
        (code, reason, topup_id),
    )


def end(
    unit: Unit, topup_id: str, reason_code: str | None, reason: str | None, now_ms: int, clock_ms: int
) -> bool:
    """An order ends once; False when it had."""
    ended = unit.conn.execute(
        "UPDATE topups SET ended_at_ms = ?, ended_clock_ms = ?, reason_code = ?, reason = ? "
        "WHERE id = ? AND ended_at_ms IS NULL",
        (now_ms, clock_ms, reason_code, reason, topup_id),
    )
    return ended.rowcount > 0


def ensure_auto_app(unit: Unit, now_ms: int) -> None:
    """Whose payments those of automatic orders are."""
    apps.ensure_own(unit, AUTO_APP, "auto top-up", now_ms)


def find(conn: sqlite3.Connection, topup_id: str) -> TopupRow | None:
    row = conn.execute(f"{_TOPUP} WHERE id = ?", (topup_id,)).fetchone()
    return _row(row) if row else None


def find_by_key(conn: sqlite3.Connection, app_id: str, key: str) -> TopupRow | None:
    row = conn.execute(f"{_TOPUP} WHERE app_id = ? AND key = ?", (app_id, key)).fetchone()
    return _row(row) if row else None


def open_of(conn: sqlite3.Connection, pool_id: int) -> TopupRow | None:
    row = conn.execute(f"{_TOPUP} WHERE pool = ? AND ended_at_ms IS NULL", (pool_id,)).fetchone()
    return _row(row) if row else None


def all_open(conn: sqlite3.Connection) -> list[TopupRow]:
    # INDEXED BY: nearly all have ended, and in their order they would all be read
    return [
        _row(row)
        for row in conn.execute(f"{_TOPUP} INDEXED BY topups_open WHERE ended_at_ms IS NULL ORDER BY seq")
    ]


def open_of_app(conn: sqlite3.Connection, app_id: str) -> list[TopupRow]:
    rows = conn.execute(f"{_TOPUP} WHERE app_id = ? AND ended_at_ms IS NULL ORDER BY seq", (app_id,))
    return [_row(row) for row in rows]


def page(conn: sqlite3.Connection, before_seq: int | None, limit: int) -> list[TopupRow]:
    """Newest first."""
    below = 2**63 - 1 if before_seq is None else before_seq
    return [_row(row) for row in conn.execute(f"{_TOPUP} WHERE seq < ? ORDER BY seq DESC LIMIT ?", (below, limit))]


def autos_of(conn: sqlite3.Connection, pool_id: int) -> list[TopupRow]:
    """The last automatic orders for a pool, newest first."""
    rows = conn.execute(f"{_TOPUP} WHERE pool = ? AND cause = 'auto' ORDER BY seq DESC LIMIT 1000", (pool_id,))
    return [_row(row) for row in rows]


def last_ended_ms(conn: sqlite3.Connection, pool_id: int) -> int:
    """When the last order for a pool ended; 0 when none did."""
    row = conn.execute("SELECT COALESCE(MAX(ended_at_ms), 0) FROM topups WHERE pool = ?", (pool_id,)).fetchone()
    return int(row[0])


def lovelace_since(conn: sqlite3.Connection, origin: str, since_ms: int) -> int:
    """Lovelace that orders at a merchant took since then and did not give back, fees included.

    By the clock of the limits (store.rows.limit_counters); what is under way counts whenever it was ordered.
    """
    row = conn.execute(
        "SELECT COALESCE(SUM(h.counted_units), 0) FROM topups t "
        "JOIN prepaid_pools o ON o.id = t.pool AND o.origin = ? "
        "JOIN payments p ON p.topup = t.id JOIN holds h ON h.payment_id = p.id AND h.asset = 'lovelace' "
        "WHERE COALESCE(h.counted_from_ms > ?, 1)",
        (origin, since_ms),
    ).fetchone()
    return int(row[0])
