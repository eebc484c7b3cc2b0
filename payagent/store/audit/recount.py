"""Recomputes the counters of the limits from holds, promises and uses, and yields the rows that disagree.

`limit_counters` keeps sums to make decisions fast. An audit trusts none of them.
Never: writes; judges; holds a whole table in memory.
"""

import sqlite3
from collections.abc import Iterator

from payagent.store.rows.limit_counters import OPEN_MS, SPANS_MS

_EXPECTED = """CASE WHEN p.kind <> 'invoice' THEN NULL WHEN h.released_at_ms IS NULL THEN h.units
    WHEN p.state = 'void' AND h.asset = 'lovelace' AND h.stage = 'payment'
    THEN COALESCE((SELECT fee_lovelace FROM attempts WHERE tx_id = p.tx_id), 0) ELSE 0 END"""


def miscounted_holds(conn: sqlite3.Connection) -> Iterator[tuple[str, str, int | None, int | None]]:
    """(payment, asset, counted units, expected units) of every hold whose counted units are wrong."""
    return conn.execute(
        f"SELECT h.payment_id, h.asset, h.counted_units, {_EXPECTED} AS expected FROM holds h "  # noqa: S608
        f"JOIN payments p ON p.id = h.payment_id WHERE h.counted_units IS DISTINCT FROM {_EXPECTED} "
        "ORDER BY h.rowid"
    )


def unreleased_approval_holds(conn: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    """(payment, asset) of approval holds that were not released at the time of the decision."""
    return conn.execute(
        "SELECT h.payment_id, h.asset FROM holds h WHERE h.stage = 'approval' AND h.released_at_ms "
        "IS DISTINCT FROM (SELECT e.at_ms FROM events e WHERE e.payment_id = h.payment_id "
        "AND e.event IN ('reserve', 'deny') ORDER BY e.seq LIMIT 1) ORDER BY h.rowid"
    )


def approvals_without_hold(conn: sqlite3.Connection) -> Iterator[tuple[str]]:
    """Payments that waited for a person and held nothing meanwhile."""
    return conn.execute(
        "SELECT payment_id FROM approvals WHERE payment_id NOT IN "
        "(SELECT payment_id FROM holds WHERE stage = 'approval') ORDER BY rowid"
    )


_EXPECTED_FROM = """CASE WHEN p.state IN ('confirmed', 'settled', 'void') AND h.counted_units > 0
    THEN (SELECT CASE WHEN json_valid(e.detail) THEN CAST(e.detail ->> 'counts_from_ms' AS BIGINT) END
          FROM events e WHERE e.payment_id = p.id AND e.event IN ('confirm', 'void')
          ORDER BY e.seq DESC LIMIT 1) END"""


def misdated_holds(conn: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    """(payment, asset) of holds whose `counted_from_ms` differs from the event that ended the payment."""
    return conn.execute(
        "SELECT h.payment_id, h.asset FROM holds h JOIN payments p ON p.id = h.payment_id "  # noqa: S608
        f"WHERE h.counted_from_ms IS DISTINCT FROM {_EXPECTED_FROM} ORDER BY h.rowid"
    )


def holds_with_clock_back(conn: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    """(payment, asset) of holds whose time on the limits' clock is earlier than that of the hold before."""
    return conn.execute(
        "SELECT payment_id, asset FROM (SELECT rowid, payment_id, asset, counted_at_ms, "
        "LAG(counted_at_ms, 1, 0) OVER (ORDER BY rowid) AS before_ms FROM holds) h "
        "WHERE counted_at_ms < before_ms ORDER BY rowid"
    )


def _carried(high: str, low: str) -> str:
    """SQL: the sums of halves, with what the low ones carry in the high one."""
    low_sum = f"CAST(SUM({low}) AS BIGINT)"  # PostgreSQL's sum is a numeric, which has no bits
    return f"SUM({high}) + ({low_sum} >> 32), {low_sum} & 4294967295"


_FINEST, *_COARSER, _EVER = SPANS_MS

_HALVES = _carried("s.units_high", "s.units_low")
_COUNTED = _carried("h.counted_units >> 32", "h.counted_units & 4294967295")
_FINE = f"s.span_ms = {_FINEST} AND s.app <> '' AND s.merchant <> ''"
"""SQL: counters of one app at one merchant in the shortest spans. All other counters are sums of these."""

_COLUMNS = "(app, merchant, asset, span_ms, start_ms, kind, units_high, units_low)"
_NONZERO = "WHERE units_high <> 0 OR units_low <> 0"

_Counters = Iterator[tuple[str, str, str, int, int]]
"""(app, merchant, asset, span, start of the span)."""


def wrong_counters(conn: sqlite3.Connection) -> _Counters:
    """Counters that differ from what holds, promises and uses add up to.

    Promises of channels count as payments do. Uses count against the limits of apps only.
    """
    yield from _wrong_finest(conn)
    yield from _wrong_longer(conn)
    yield from _wrong_wider(conn)


def _wrong_finest(conn: sqlite3.Connection) -> _Counters:
    """Compare the shortest spans of an app at a merchant with the holds, promises and uses themselves."""
    at_ms = f"COALESCE(h.counted_from_ms, {OPEN_MS})"
    paid = (
        f"SELECT h.app_id, h.origin, h.asset, {_FINEST}, h.at_ms / {_FINEST} * {_FINEST}, 'paid', {_COUNTED} "  # noqa: S608
        f"FROM (SELECT p.app_id, i.origin, h.asset, {at_ms} AS at_ms, h.counted_units "
        "FROM holds h JOIN payments p ON p.id = h.payment_id JOIN intents i ON i.id = p.intent_id "
        "WHERE h.counted_units IS NOT NULL UNION ALL "
        "SELECT n.app_id, c.origin, c.asset, n.counted_at_ms, n.promised "
        "FROM channel_calls n JOIN channels c ON c.id = n.channel_id) h GROUP BY 1, 2, 3, 5"
    )
    of_uses = (
        f"SELECT h.app_id, o.origin, h.asset, {_FINEST}, "  # noqa: S608
        f"h.counted_at_ms / {_FINEST} * {_FINEST}, 'used', {_COUNTED} "
        "FROM prepaid_uses h JOIN prepaid_pools o ON o.id = h.pool_id GROUP BY 1, 2, 3, 5"
    )
    yield from _differing(conn, f"{paid} UNION ALL {of_uses}", _FINE)


def _wrong_longer(conn: sqlite3.Connection) -> _Counters:
    """Compare the longer spans of an app at a merchant with the shortest."""
    for span_ms in (*_COARSER, _EVER):
        start_ms = "0" if span_ms == _EVER else f"s.start_ms / {span_ms} * {span_ms}"
        sums = (
            f"SELECT s.app, s.merchant, s.asset, {span_ms}, {start_ms}, s.kind, {_HALVES} FROM limit_counters s "  # noqa: S608
            f"WHERE {_FINE} GROUP BY 1, 2, 3, 5, 6"
        )
        yield from _differing(conn, sums, f"s.span_ms = {span_ms} AND s.app <> '' AND s.merchant <> ''")


def _wrong_wider(conn: sqlite3.Connection) -> _Counters:
    """Compare the counters of an app, a merchant and the wallet, in every span, with those of an app at a
    merchant.
    """
    for of_app, of_merchant in ((True, False), (False, True), (False, False)):
        app, is_app = ("s.app", "s.app <> ''") if of_app else ("''", "s.app = ''")
        merchant, is_merchant = ("s.merchant", "s.merchant <> ''") if of_merchant else ("''", "s.merchant = ''")
        kind = "" if of_app else "AND s.kind = 'paid'"
        sums = (
            f"SELECT {app}, {merchant}, s.asset, s.span_ms, s.start_ms, s.kind, {_HALVES} FROM limit_counters s "  # noqa: S608
            f"WHERE s.app <> '' AND s.merchant <> '' {kind} GROUP BY 1, 2, 3, 4, 5, 6"
        )
        yield from _differing(conn, sums, f"{is_app} AND {is_merchant}")


def wrong_shares(conn: sqlite3.Connection) -> Iterator[tuple[int, str, str]]:
    """(pool, app, asset) where the stored share of an app in a prepaid pool differs from its payments and uses."""
    computed = (
        "SELECT pool_id, app_id, asset, SUM(paid) AS paid, SUM(used) AS used, SUM(counted) AS counted FROM ("
        "SELECT p.pool_id, p.app_id, h.asset, h.counted_units AS paid, 0 AS used, 0 AS counted FROM holds h "
        "JOIN payments p ON p.id = h.payment_id WHERE p.pool_id IS NOT NULL AND h.stage = 'payment' "
        "UNION ALL SELECT pool_id, app_id, asset, 0, units, counted_units FROM prepaid_uses) shares "
        "GROUP BY 1, 2, 3"
    )
    nonzero = "WHERE paid <> 0 OR used <> 0 OR counted <> 0"
    rows = conn.execute(
        f"WITH told AS ({computed}), kept AS (SELECT * FROM prepaid_shares {nonzero}) "  # noqa: S608
        f"SELECT * FROM (SELECT * FROM told {nonzero} EXCEPT SELECT * FROM kept) a "
        "UNION SELECT * FROM (SELECT * FROM kept EXCEPT SELECT * FROM told) b"
    )
    return ((pool, app_id, asset) for pool, app_id, asset, *_ in rows)


def _differing(conn: sqlite3.Connection, expected: str, where: str) -> _Counters:
    """Rows that are only among the `expected` counters or only among the stored ones (`where`).

    A zero counter equals a missing one.
    """
    stored = f"SELECT s.* FROM limit_counters s WHERE {where}"  # noqa: S608
    rows = conn.execute(
        f"WITH wanted{_COLUMNS} AS ({expected}), kept{_COLUMNS} AS ({stored}) "  # noqa: S608
        f"SELECT * FROM (SELECT * FROM wanted {_NONZERO} EXCEPT SELECT * FROM kept) a "
        f"UNION SELECT * FROM (SELECT * FROM kept {_NONZERO} EXCEPT SELECT * FROM wanted) b"
    )
    return ((app, merchant, asset, span_ms, start_ms) for app, merchant, asset, span_ms, start_ms, *_ in rows)
