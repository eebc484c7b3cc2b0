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
    origin: str
    request_id: str


@dataclass(frozen=True, slots=True)
class InvoiceRow:
    seq: int
    origin: str
    invoice_id: str
    intent_id: str
    dialect: str
    terms_hash: str
    batch_target: int | None
    proof: str
    merchant_submits: bool
    received_at_ms: int
    expires_at_ms: int | None


_INTENT = "SELECT id, app_id, idempotency_key, is_key_derived, fingerprint, origin, request_id FROM intents"


def live_intent(conn: sqlite3.Connection, app_id: str, key: str) -> IntentRow | None:
    where = "WHERE app_id = ? AND idempotency_key = ? AND ended_at_ms IS NULL"
    return find_one(conn, _intent, f"{_INTENT} {where}", (app_id, key))


def invoice(conn: sqlite3.Connection, origin: str, invoice_id: str) -> InvoiceRow | None:
    row = conn.execute(
        "SELECT seq, origin, invoice_id, intent_id, dialect, terms_hash, batch_target, proof, merchant_submits, "
        "received_at_ms, expires_at_ms FROM invoices WHERE origin = ? AND invoice_id = ?",
        (origin, invoice_id),
    ).fetchone()
    return InvoiceRow(*(*row[:8], bool(row[8]), *row[9:])) if row else None


def intent(conn: sqlite3.Connection, intent_id: str) -> IntentRow:
    return _intent(*conn.execute(f"{_INTENT} WHERE id = ?", (intent_id,)).fetchone())


def intent_of(conn: sqlite3.Connection, payment_id: str) -> IntentRow:
    """The intent of a payment."""
    of = "(SELECT intent_id FROM payments WHERE id = ?)"
    return _intent(*conn.execute(f"{_INTENT} WHERE id = {of}", (payment_id,)).fetchone())


def _intent(intent_id: str, app_id: str, key: str, is_key_derived: int, *others: Any) -> IntentRow:
    return IntentRow(intent_id, app_id, key, bool(is_key_derived), *others)


def request_of(conn: sqlite3.Connection, intent_id: str) -> str | None:
    """The request that an intent buys: method, path and body hash, separated by spaces."""
    return find_one(conn, str, "SELECT request FROM intents WHERE id = ?", (intent_id,))
