"""History for UTxO upkeep: the payments requested lately, and upkeep's own transactions.

Never: commits; decides.
"""

import sqlite3
from typing import NamedTuple

from payagent.core.payment.machine import State
from payagent.core.utxo_upkeep import RecentPayment
from payagent.store.db.sql import exists, places

UPKEEP_APP = "app_upkeep"
"""The app that owns upkeep's transactions. It has no token."""

BEGUN_MAX = 2_000
"""How many of the last payments are read: more than UTxOs are ever prepared for."""

_BEGUN = """
SELECT p.created_at_ms, h.units, v.merchant_submits
FROM (SELECT * FROM payments WHERE account = ? ORDER BY seq DESC LIMIT ?) p
JOIN invoices v ON v.seq = p.first_invoice_seq
LEFT JOIN holds h ON h.payment_id = p.id AND h.stage = 'payment' AND h.asset = 'lovelace'
WHERE p.created_at_ms > ? AND (h.units IS NOT NULL OR p.code = 'funds_pending')
"""
_ORDERS = """
SELECT p.kind, p.state, h.units, h.counted_at_ms, p.account FROM payments p
JOIN holds h ON h.payment_id = p.id AND h.stage = 'payment' AND h.asset = 'lovelace'
WHERE p.app_id = ? ORDER BY p.seq DESC LIMIT ?
"""


class UpkeepTxRow(NamedTuple):
    """A transaction of upkeep, the fee held for it, its time on the limits' clock, and the account's number."""

    kind: str
    state: State
    fee_lovelace: int
    counted_at_ms: int
    account: int


def begun(conn: sqlite3.Connection, since_ms: int, account: int = 0) -> list[RecentPayment]:
    """An account's recent invoice payments that took a UTxO, or were refused because none was available."""
    rows = conn.execute(_BEGUN, (account, BEGUN_MAX, since_ms))
    return [RecentPayment(at_ms, lovelace, bool(merchant_submits)) for at_ms, lovelace, merchant_submits in rows]


def orders(conn: sqlite3.Connection, count: int) -> list[UpkeepTxRow]:
    """Upkeep's last transactions in all accounts, newest first."""
    rows = conn.execute(_ORDERS, (UPKEEP_APP, count))
    return [UpkeepTxRow(kind, State(state), *rest) for kind, state, *rest in rows]


def is_any_in(conn: sqlite3.Connection, states: frozenset[State], account: int = 0) -> bool:
    """Whether any payment of an account is in one of these states."""
    return exists(
        conn,
        f"SELECT 1 FROM payments WHERE state IN ({places(len(states))}) AND account = ? LIMIT 1",  # noqa: S608
        [*states, account],
    )
