"""Intents, and the invoices that merchants issued for them.

Never: writes.
"""

import sqlite3
from dataclasses import dataclass
from typing import Any

from payagent.store.db.sql import find_one


@dataclass(frozen=True, slots=True)
class IntentRow:
    id: str
    app_id: str
    idempotency_key: str
    is_key_derived: bool
    fingerprint: str


@dataclass(frozen=True, slots=True)
class InvoiceRow:
    seq: int
    terms_hash: str
    proof: str
    merchant_submits: int  # 0 or 1
    expires_at_ms: int | None


_INTENT = "SELECT id, app_id, idempotency_key, is_key_derived, fingerprint FROM intents"


def live_intent(conn: sqlite3.Connection, app_id: str, key: str) -> IntentRow | None:
    where = "WHERE app_id = ? AND idempotency_key = ? AND ended_at_ms IS NULL"
    return find_one(conn, _intent, f"{_INTENT} {where}", (app_id, key))


def invoice(conn: sqlite3.Connection, origin: str, invoice_id: str) -> InvoiceRow | None:
    return find_one(
        conn,
        InvoiceRow,
        "SELECT seq, terms_hash, proof, merchant_submits, expires_at_ms FROM invoices "
        "WHERE origin = ? AND invoice_id = ?",
        (origin, invoice_id),
    )


def intent(conn: sqlite3.Connection, intent_id: str) -> IntentRow:
    return _intent(*conn.execute(f"{_INTENT} WHERE id = ?", (intent_id,)).fetchone())


def intent_of(conn: sqlite3.Connection, payment_id: str) -> IntentRow:
    """The intent of a payment."""
    of = "(SELECT intent_id FROM payments WHERE id = ?)"
    return _intent(*conn.execute(f"{_INTENT} WHERE id = {of}", (payment_id,)).fetchone())


def _intent(intent_id: str, app_id: str, key: str, is_key_derived: int, *others: Any) -> IntentRow:
    return IntentRow(intent_id, app_id, key, bool(is_key_derived), *others)


def request_id_of(conn: sqlite3.Connection, intent_id: str) -> str:
    """The X-Request-Id of an intent's requests."""
    return str(conn.execute("SELECT request_id FROM intents WHERE id = ?", (intent_id,)).fetchone()[0])


def request_of(conn: sqlite3.Connection, intent_id: str) -> str | None:
    """The request that an intent buys: method, path and body hash, separated by spaces."""
    return find_one(conn, str, "SELECT request FROM intents WHERE id = ?", (intent_id,))
