"""What upkeep decides by: the payments that were wanted lately, and what it ordered itself.

May import: core, store. Never: commits; decides.
"""

import sqlite3
from typing import NamedTuple

from payagent.core.payment import State
from payagent.core.utxo_upkeep import RecentPayment
from payagent.store.db.unit import Unit
from payagent.store.rows import apps

UPKEEP_APP = "app_upkeep"
"""The app to which orders of upkeep belong. It has no token."""

BEGUN_MAX = 2_000
"""How many of the last payments are looked at: more than coins are ever made for."""

_BEGUN = """
SELECT p.created_at_ms, h.units, v.handed_over FROM (SELECT * FROM payments ORDER BY seq DESC LIMIT ?) p
JOIN invoices v ON v.seq = p.first_invoice
LEFT JOIN holds h ON h.payment_id = p.id AND h.stage = 'pay' AND h.asset = 'lovelace'
WHERE p.created_at_ms > ? AND (h.units IS NOT NULL OR p.reason_code = 'funds_in_flight')
"""
_ORDERS = """
SELECT p.kind, p.state, h.units, h.counted_at_ms FROM payments p
JOIN holds h ON h.payment_id = p.id AND h.stage = 'pay' AND h.asset = 'lovelace'
WHERE p.app_id = ? ORDER BY p.seq DESC LIMIT ?
"""


class UpkeepTxRow(NamedTuple):
    """A transaction that upkeep ordered, with the fee that was held for it, and when by the limits' clock."""

    kind: str
    state: State
    fee_lovelace: int
    counted_at_ms: int


def ensure_app(unit: Unit, now_ms: int) -> None:
    """Whose payments the orders are."""
    apps.ensure_own(unit, UPKEEP_APP, "coin upkeep", now_ms)


def begun(conn: sqlite3.Connection, since_ms: int) -> list[RecentPayment]:
    """Of the last payments those of invoices that began since then, and took a coin or were refused for lack of
    a free one.
    """
    rows = conn.execute(_BEGUN, (BEGUN_MAX, since_ms))
    return [RecentPayment(at_ms, lovelace, bool(handed_over)) for at_ms, lovelace, handed_over in rows]


def orders(conn: sqlite3.Connection, count: int) -> list[UpkeepTxRow]:
    """The last of upkeep's own, newest first."""
    rows = conn.execute(_ORDERS, (UPKEEP_APP, count))
    return [UpkeepTxRow(kind, State(state), fee_lovelace, at_ms) for kind, state, fee_lovelace, at_ms in rows]


def is_any_in(conn: sqlite3.Connection, states: frozenset[State]) -> bool:
    """Whether a payment is in one of the states."""
    marks = ",".join("?" * len(states))
    found = conn.execute(f"SELECT 1 FROM payments WHERE state IN ({marks}) LIMIT 1", [*states])  # noqa: S608
    return found.fetchone() is not None
