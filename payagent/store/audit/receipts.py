"""Reads everything that is recorded about one payment, row by row: the content of its receipt.

Never: writes; leaves out a row of the payment; reads another payment's.
"""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from payagent.store.db.seals import last_seal
from payagent.store.rows.events import last_event
from payagent.store.rows.journal import EntryRow, entries_page

Row = Mapping[str, Any]
ROWS_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class Recorded:
    """Rows by column name; each list is in the order of writing.

    `invoice` is the one that the payment pays now; `other_invoices` are those that other attempts were signed for.
    `last_event` and `last_seal` are the heads of both chains at the time of reading, each as (seq, hash).
    """

    payment: Row
    app: Row
    intent: Row
    invoice: Row | None
    other_invoices: list[Row]
    holds: list[Row]
    attempts: list[Row]
    block_observations: list[Row]
    events: list[Row]
    entries: list[EntryRow]
    last_event: tuple[int, str]
    last_seal: tuple[int, str]


def recorded(conn: sqlite3.Connection, payment_id: str) -> Recorded:
    """Everything recorded about an existing payment. `conn` must be in one read transaction."""

    def rows(sql: str, key: object) -> list[Row]:
        cursor = conn.execute(sql, (key,))
        names = [column[0] for column in cursor.description]
        # on PostgreSQL a row's number is a column
        return [{name: value for name, value in zip(names, row, strict=True) if name != "rowid"} for row in cursor]

    (payment,) = rows("SELECT * FROM payments WHERE id = ?", payment_id)
    (app,) = rows("SELECT id, name FROM apps WHERE id = ?", payment["app_id"])
    (intent,) = rows("SELECT * FROM intents WHERE id = ?", payment["intent_id"])
    entries = entries_page(conn, payment_id=payment_id, account=None, before_id=None, limit=ROWS_MAX)
    return Recorded(
        payment=payment,
        app=app,
        intent=intent,
        invoice=next(iter(rows("SELECT * FROM invoices WHERE seq = ?", payment["invoice_seq"])), None),
        other_invoices=rows(
            "SELECT * FROM invoices WHERE seq IN (SELECT a.invoice_seq FROM attempts a JOIN payments p ON "
            "p.id = a.payment_id WHERE p.id = ? AND a.invoice_seq <> p.invoice_seq) ORDER BY seq",
            payment_id,
        ),
        holds=rows("SELECT * FROM holds WHERE payment_id = ? AND stage = 'payment' ORDER BY rowid", payment_id),
        attempts=rows("SELECT * FROM attempts WHERE payment_id = ? ORDER BY rowid", payment_id),
        block_observations=rows(
            "SELECT s.* FROM block_observations s JOIN attempts a ON a.tx_id = s.tx_id WHERE a.payment_id = ? "
            "ORDER BY s.seq",
            payment_id,
        ),
        events=rows("SELECT * FROM events WHERE payment_id = ? ORDER BY seq", payment_id),
        entries=entries[::-1],
        last_event=last_event(conn),
        last_seal=last_seal(conn),
    )
