"""Which chats of a notification target are paired, and the messages that put an approval before one.

The wallet's events say which chats are paired, also after a restart.
Never: commits; pairs by itself; decides.
"""

import json
from dataclasses import dataclass

from payagent.store.db.sql import find_all, find_one
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import writes

PAIRED, UNPAIRED = "chat_paired", "chat_unpaired"


@dataclass(frozen=True, slots=True)
class PairedChat:
    """A chat that is told news. `user_id`: the person who paired it, the only one who decides there."""

    chat_id: int
    user_id: int
    paired_at_ms: int


def of_target(conn: Connection, target: str) -> list[PairedChat]:
    """The paired chats of a target, in the order of their pairing."""
    rows = conn.execute(
        "SELECT event, detail, at_ms FROM events INDEXED BY events_of_the_wallet "
        "WHERE payment_id IS NULL AND event IN (?, ?) AND detail ->> 'target' = ? ORDER BY seq",
        (PAIRED, UNPAIRED, target),
    )
    chats: dict[int, PairedChat] = {}
    for event, text, at_ms in rows:
        detail = json.loads(text)
        chats.pop(detail["chat"], None)
        if event == PAIRED:
            chats[detail["chat"]] = PairedChat(detail["chat"], detail["user"], at_ms)
    return list(chats.values())


def pair(unit: Unit, target: str, chat_id: int, user_id: int, by_app: str, now_ms: int) -> None:
    """Pair a chat. `by_app`: the app that ordered the code. A chat that is paired gets the new person."""
    detail = {"target": target, "chat": chat_id, "user": user_id, "by": by_app}
    writes.note(unit, None, PAIRED, None, now_ms, detail)


def unpair(unit: Unit, target: str, chat_id: int, by_app: str | None, now_ms: int) -> bool:
    """End a pairing. False, and no change, if there is none. `by_app`: None if the target left the config."""
    if chat_id not in {chat.chat_id for chat in of_target(unit.conn, target)}:
        return False
    writes.note(unit, None, UNPAIRED, None, now_ms, {"target": target, "chat": chat_id, "by": by_app})
    return True


@dataclass(frozen=True, slots=True)
class ApprovalMessage:
    """A message with buttons. What they bring back is its id, which is worth nothing without the row.

    `terms_hash`: of the terms that it shows. `message_id`: None until the service has taken it.
    """

    id: str
    target: str
    chat_id: int
    payment_id: str
    terms_hash: str
    text: str
    message_id: int | None = None


_MESSAGE = "SELECT id, target, chat_id, payment_id, terms_hash, text, message_id FROM approval_messages"


def find_message(conn: Connection, message: str) -> ApprovalMessage | None:
    return find_one(conn, ApprovalMessage, f"{_MESSAGE} WHERE id = ?", (message,))


def decided_messages(conn: Connection, target: str) -> list[ApprovalMessage]:
    """Messages whose buttons are still there although the payment awaits no decision any more."""
    return find_all(
        conn,
        ApprovalMessage,
        f"{_MESSAGE} m INDEXED BY approval_messages_open WHERE closed_at_ms IS NULL AND target = ? "  # noqa: S608
        "AND (SELECT state FROM payments WHERE id = m.payment_id) <> 'awaiting_approval'",
        (target,),
    )


def add_message(unit: Unit, message: ApprovalMessage) -> None:
    unit.conn.execute(
        "INSERT INTO approval_messages(id, target, chat_id, payment_id, terms_hash, text) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (
            *(message.id, message.target, message.chat_id),
            *(message.payment_id, message.terms_hash, message.text),
        ),
    )


def set_message_sent(unit: Unit, message: str, message_id: int) -> None:
    unit.conn.execute("UPDATE approval_messages SET message_id = ? WHERE id = ?", (message_id, message))


def close_message(unit: Unit, message: str, now_ms: int) -> None:
    unit.conn.execute("UPDATE approval_messages SET closed_at_ms = ? WHERE id = ?", (now_ms, message))
