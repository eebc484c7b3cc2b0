"""Messages with buttons that put an approval before a paired chat.

A message's id is what its buttons bring back. It finds the row here, and is worth nothing without it.

Never: commits; decides.
"""

import sqlite3
from dataclasses import dataclass

from payagent.store.db.sql import find_all, find_one
from payagent.store.db.unit import Unit


@dataclass(frozen=True, slots=True)
class ApprovalMessage:
    """A message. `terms_hash`: of the terms that it shows. `message_id`: None until the service has taken it."""

    id: str
    target: str
    chat_id: int
    payment_id: str
    terms_hash: str
    text: str
    message_id: int | None = None


_MESSAGE = "SELECT id, target, chat_id, payment_id, terms_hash, text, message_id FROM approval_messages"


def find(conn: sqlite3.Connection, message: str) -> ApprovalMessage | None:
    return find_one(conn, ApprovalMessage, f"{_MESSAGE} WHERE id = ?", (message,))


def decided(conn: sqlite3.Connection, target: str) -> list[ApprovalMessage]:
    """Messages whose buttons are still there although the payment awaits no decision any more."""
    return find_all(
        conn,
        ApprovalMessage,
        f"{_MESSAGE} m INDEXED BY approval_messages_open WHERE closed_at_ms IS NULL AND target = ? "  # noqa: S608
        "AND (SELECT state FROM payments WHERE id = m.payment_id) <> 'awaiting_approval'",
        (target,),
    )


def add(unit: Unit, message: ApprovalMessage) -> None:
    unit.conn.execute(
        "INSERT INTO approval_messages(id, target, chat_id, payment_id, terms_hash, text) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (
            *(message.id, message.target, message.chat_id),
            *(message.payment_id, message.terms_hash, message.text),
        ),
    )


def set_sent(unit: Unit, message: str, message_id: int) -> None:
    unit.conn.execute("UPDATE approval_messages SET message_id = ? WHERE id = ?", (message_id, message))


def close(unit: Unit, message: str, now_ms: int) -> None:
    unit.conn.execute("UPDATE approval_messages SET closed_at_ms = ? WHERE id = ?", (now_ms, message))
