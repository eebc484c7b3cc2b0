"""Which chats of a notification target are paired. The wallet's events decide, also after a restart.

Never: pairs by itself.
"""

import json
import sqlite3
from dataclasses import dataclass

from payagent.store.db.unit import Unit
from payagent.store.rows import writes

PAIRED, UNPAIRED = "chat_paired", "chat_unpaired"


@dataclass(frozen=True, slots=True)
class PairedChat:
    """A chat that is told news. `user_id`: the person who paired it, the only one who decides there."""

    chat_id: int
    user_id: int
    paired_at_ms: int


def of_target(conn: sqlite3.Connection, target: str) -> list[PairedChat]:
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
