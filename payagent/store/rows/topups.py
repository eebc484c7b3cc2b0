"""Top-ups, requests to raise a prepaid balance: their goals, how they ended, and what their payments cost.

Never: commits; counts what a top-up bought (its payments record that).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from payagent.core.problems import name_of
from payagent.store.db.sql import find_all, find_one, number, sums, whole
from payagent.store.db.tables import IS_SPEND
from payagent.store.db.unit import Connection, Unit

AUTO_APP = "app_auto_topup"
"""The app that owns automatic top-ups. It has no token."""


@dataclass(frozen=True, slots=True)
class TopupRow:
    """A request to buy `units` of `unit` (calls, or an asset that is paid) for a pool.

    `request`: the HTTP request whose 402 sells it, as JSON. `is_call`: an ordinary request, which uses one of what
    it buys.
    `code`: why it ended before its goal. `stop_code`: why it will end once its current payments are
    delivered. `clock_ms` and `ended_clock_ms` are on the limits' clock (store.rows.limit_counters).
    """

    seq: int
    id: str
    pool_id: int
    app_id: str
    trigger: str
    unit: str
    units: int
    request: str
    is_call: bool
    created_at_ms: int
    clock_ms: int
    stop_code: str | None
    stop_reason: str | None
    stop_detail: str | None
    ended_at_ms: int | None
    ended_clock_ms: int | None
    code: str | None
    reason: str | None
    detail: str | None

    @property
    def state(self) -> str:
        """`open`, `stopping` (nothing more is bought), `done` or `stopped` (see `code`).

        A top-up is also `done` if the merchant sells no more.
        """
        if self.ended_at_ms is None:
            return "open" if self.stop_code is None else "stopping"
        return "done" if self.problem in (None, "topup_stopped/nothing_sold") else "stopped"

    @property
    def problem(self) -> str | None:
        """Why it ended before its goal, as the name that `Refused` takes."""
        return name_of(self.code, self.reason)

    @property
    def stop_problem(self) -> str | None:
        return name_of(self.stop_code, self.stop_reason)


_TOPUP = (
    "SELECT seq, id, pool_id, app_id, trigger, unit, units, request, is_call, created_at_ms, clock_ms, "
    "stop_code, stop_reason, stop_detail, ended_at_ms, ended_clock_ms, code, reason, detail FROM topups"
)


def _topup(*columns: Any) -> TopupRow:
    return TopupRow(*columns[:8], bool(columns[8]), *columns[9:])  # type: ignore[call-arg]


def add(
    unit: Unit,
    *,
    topup_id: str,
    pool_id: int,
    app_id: str,
    key: str,
    trigger: str,
    unit_name: str,
    units: int,
    request: str,
    is_call: bool,
    now_ms: int,
    clock_ms: int,
) -> TopupRow:
    values = (topup_id, pool_id, app_id, trigger, unit_name, units, request, int(is_call), now_ms, clock_ms)
    (seq,) = unit.conn.execute(
        "INSERT INTO topups(key, id, pool_id, app_id, trigger, unit, units, request, is_call, created_at_ms, "
        "clock_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING seq",
        (key, *values),
    ).fetchone()
    return _topup(seq, *values, *(None,) * 8)


def stop(unit: Unit, topup_id: str, record: Mapping[str, object]) -> None:
    """Buy nothing more for a top-up, by a `Refused.record`. The first stop stays."""
    unit.conn.execute(
        "UPDATE topups SET stop_code = ?, stop_reason = ?, stop_detail = ? WHERE id = ? AND stop_code IS NULL",
        (record["code"], record["reason"], record["detail"], topup_id),
    )


def end(unit: Unit, topup_id: str, record: Mapping[str, object], now_ms: int, clock_ms: int) -> bool:
    """End a top-up, by a `Refused.record`. False if it had ended before."""
    return (
        unit.conn.execute(
            "UPDATE topups SET ended_at_ms = ?, ended_clock_ms = ?, code = ?, reason = ?, detail = ? "
            "WHERE id = ? AND ended_at_ms IS NULL",
            (now_ms, clock_ms, record["code"], record["reason"], record["detail"], topup_id),
        ).rowcount
        > 0
    )


def find(conn: Connection, topup_id: str) -> TopupRow | None:
    return find_one(conn, _topup, f"{_TOPUP} WHERE id = ?", (topup_id,))


def find_by_key(conn: Connection, app_id: str, key: str) -> TopupRow | None:
    return find_one(conn, _topup, f"{_TOPUP} WHERE app_id = ? AND key = ?", (app_id, key))


def open_of(conn: Connection, pool_id: int) -> TopupRow | None:
    return find_one(conn, _topup, f"{_TOPUP} WHERE pool_id = ? AND ended_at_ms IS NULL", (pool_id,))


def all_open(conn: Connection, account: int | None = None) -> list[TopupRow]:
    """The open top-ups, or those of an account's pools; oldest first."""
    # INDEXED BY: nearly all have ended, and a scan in order would read them all
    return find_all(
        conn,
        _topup,
        f"{_TOPUP} INDEXED BY topups_open WHERE ended_at_ms IS NULL "  # noqa: S608  our own names
        "AND COALESCE((SELECT account FROM prepaid_pools o WHERE o.id = pool_id) = ?, TRUE) ORDER BY seq",
        (account,),
    )


def open_of_app(conn: Connection, app_id: str) -> list[TopupRow]:
    return find_all(conn, _topup, f"{_TOPUP} WHERE app_id = ? AND ended_at_ms IS NULL ORDER BY seq", (app_id,))


def page(conn: Connection, before_seq: int | None, limit: int) -> list[TopupRow]:
    """Top-ups, newest first."""
    below = 2**63 - 1 if before_seq is None else before_seq
    return find_all(conn, _topup, f"{_TOPUP} WHERE seq < ? ORDER BY seq DESC LIMIT ?", (below, limit))


_BOUGHT = f"""CAST(COALESCE(CASE WHEN t.unit = 'calls'
    THEN (SELECT SUM(m.bought) FROM payments p JOIN prepaid_moves m ON m.payment_id = p.id AND m.unit = t.unit
          WHERE p.topup_id = t.id)
    ELSE (SELECT SUM(q.units) FROM payments p JOIN entries j ON j.payment_id = p.id
          JOIN postings q ON q.entry_id = j.id AND q.asset = t.unit AND q.account <> 'fees' AND {IS_SPEND}
          WHERE p.topup_id = t.id) END, 0) AS BIGINT)"""  # noqa: S608  our own names
"""SQL: what the confirmed payments of a top-up bought: calls, or units of the asset paid, without fees."""


def counted(conn: Connection, since_ms: int, until_ms: int) -> list[tuple[str, str, str, str, int, int, int, int]]:
    """(origin, app, trigger, unit, top-ups, units ordered, units bought, ended with a code) of those ordered in a
    period."""
    rows = conn.execute(
        f"SELECT origin, name, trigger, unit, COUNT(*), {sums('units')}, {sums('bought')}, COUNT(code) FROM ("  # noqa: S608
        f"SELECT o.origin, a.name, t.trigger, t.unit, t.units, {_BOUGHT} AS bought, t.code FROM topups t "
        "JOIN prepaid_pools o ON o.id = t.pool_id JOIN apps a ON a.id = t.app_id "
        "WHERE t.created_at_ms >= ? AND t.created_at_ms < ?) ordered GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4",
        (since_ms, until_ms),
    )
    return [(*row[:5], whole(*row[5:7]), whole(*row[7:9]), row[9]) for row in rows]


def autos_of(conn: Connection, pool_id: int) -> list[TopupRow]:
    """The last 1000 automatic top-ups of a pool, newest first."""
    return find_all(
        conn, _topup, f"{_TOPUP} WHERE pool_id = ? AND trigger = 'auto' ORDER BY seq DESC LIMIT 1000", (pool_id,)
    )


def last_ended_ms(conn: Connection, pool_id: int) -> int:
    """When the last top-up of a pool ended; 0 if none did."""
    return number(conn, "SELECT COALESCE(MAX(ended_at_ms), 0) FROM topups WHERE pool_id = ?", (pool_id,))


def lovelace_since(conn: Connection, origin: str, since_ms: int) -> int:
    """Lovelace spent by top-ups at a merchant since then, fees included, released holds excluded.

    `since_ms` is on the limits' clock (store.rows.limit_counters). Open payments always count.
    """
    return number(
        conn,
        "SELECT COALESCE(SUM(h.counted_units), 0) FROM topups t JOIN prepaid_pools o ON o.id = t.pool_id AND "
        "o.origin = ? JOIN payments p ON p.topup_id = t.id JOIN holds h ON h.payment_id = p.id AND h.asset = "
        "'lovelace' WHERE COALESCE(h.counted_from_ms > ?, TRUE)",
        (origin, since_ms),
    )
