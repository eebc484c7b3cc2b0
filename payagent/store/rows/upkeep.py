"""History for UTxO upkeep: the payments requested lately, and upkeep's own transactions.

May import: core, store. Never: commits; decides.
"""

import sqlite3
from typing import NamedTuple

from payagent.core.payment import State
from payagent.core.utxo_upkeep import RecentPayment
from payagent.store.db.sql_text import places
from payagent.store.db.unit import Unit
from payagent.store.rows import apps

UPKEEP_APP = "app_upkeep"
"""The app that owns upkeep's transactions. It has no token."""

BEGUN_MAX = 2_000
"""How many of the last payments are read: more than UTxOs are ever prepared for."""

_BEGUN = """
SELECT p.created_at_ms, h.units, v.merchant_submits FROM (SELECT * FROM payments ORDER BY seq DESC LIMIT ?) p
JOIN invoices v ON v.seq = p.first_invoice_seq
LEFT JOIN holds h ON h.payment_id = p.id AND h.stage = 'payment' AND h.asset = 'lovelace'
WHERE p.created_at_ms > ? AND (h.units IS NOT NULL OR p.code = 'funds_pending')
"""
_ORDERS = """
SELECT p.kind, p.state, h.units, h.counted_at_ms FROM payments p
JOIN holds h ON h.payment_id = p.id AND h.stage = 'payment' AND h.asset = 'lovelace'
WHERE p.app_id = ? ORDER BY p.seq DESC LIMIT ?
"""


class UpkeepTxRow(NamedTuple):
    """A transaction of upkeep, the fee held for it, and its time on the limits' clock."""

    kind: str
    state: State
    fee_lovelace: int
    counted_at_ms: int


def ensure_app(unit: Unit, now_ms: int) -> None:
    """Ensure that the app that owns upkeep's transactions exists."""
    apps.ensure_own(unit, UPKEEP_APP, "coin upkeep", now_ms)


def begun(conn: sqlite3.Connection, since_ms: int) -> list[RecentPayment]:
    """Recent invoice payments since then that took a UTxO, or were refused because none was available."""
    rows = conn.execute(_BEGUN, (BEGUN_MAX, since_ms))
    return [RecentPayment(at_ms, lovelace, bool(merchant_submits)) for at_ms, lovelace, merchant_submits in rows]


def orders(conn: sqlite3.Connection, count: int) -> list[UpkeepTxRow]:
    """Upkeep's last transactions, newest first."""
    rows = conn.execute(_ORDERS, (UPKEEP_APP, count))
    return [UpkeepTxRow(kind, State(state), fee_lovelace, at_ms) for kind, state, fee_lovelace, at_ms in rows]


def is_any_in(conn: sqlite3.Connection, states: frozenset[State]) -> bool:
    """Whether any payment is in one of these states."""
    sql = f"SELECT 1 FROM payments WHERE state IN ({places(len(states))}) LIMIT 1"  # noqa: S608  placeholders
    rows = conn.execute(sql, [*states])
    return rows.fetchone() is not None
