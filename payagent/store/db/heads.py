"""Where the event chain and the journal end. A commit reads it once, and its jobs count on from there.

Never: outlives its commit.
"""

import sqlite3
from dataclasses import dataclass

from payagent.store.db.tables import GENESIS

SELECT_HEADS = (
    "COALESCE((SELECT MAX(seq) FROM events), 0), "  # noqa: S608  our own names
    f"COALESCE((SELECT hash FROM events ORDER BY seq DESC LIMIT 1), '{GENESIS}'), "
    "COALESCE((SELECT MAX(id) FROM entries), 0)"
)


@dataclass(slots=True)
class Heads:
    """Number and hash of the last event, and the number of the last entry."""

    event_seq: int
    event_hash: str
    entry_id: int


def read_heads(conn: sqlite3.Connection) -> Heads:
    return Heads(*conn.execute(f"SELECT {SELECT_HEADS}").fetchone())
