"""One job's part of the open transaction: the first argument of every function that writes.

A job registers the reversal of its in-memory changes with `undo`.
Never: commits; opens a transaction.
"""

import sqlite3
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property

from payagent.store.db.tables import GENESIS

Connection = sqlite3.Connection

VIA: ContextVar[str | None] = ContextVar("via", default=None)
"""How the request came in that a job works for, such as "dashboard". None: by a token, or no request."""


SELECT_HEADS = (
    "COALESCE((SELECT MAX(seq) FROM events), 0), "  # noqa: S608  our own names
    f"COALESCE((SELECT hash FROM events ORDER BY seq DESC LIMIT 1), '{GENESIS}'), "
    "COALESCE((SELECT MAX(id) FROM entries), 0)"
)


@dataclass(slots=True)
class Heads:
    """The number and hash of the last event, and the number of the last entry.

    A commit reads them once, and its jobs count on from there. They do not outlive the commit.
    """

    event_seq: int
    event_hash: str
    entry_id: int


class Unit:
    """One job's part of the open transaction. It is made in the task that asks for the job, and has its `VIA`."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self.conn = conn
        self.via = VIA.get()
        self._undo: list[Callable[[], object]] = []

    @cached_property
    def heads(self) -> Heads:
        """The ends of the event chain and of the journal. The committer sets it for all jobs of a commit."""
        return Heads(*self.conn.execute(f"SELECT {SELECT_HEADS}").fetchone())

    def begin(self, heads: Heads) -> None:
        """Count on from the commit's heads, and back if this job is undone."""
        before = replace(heads)
        self.heads = heads
        self.undo(lambda: _set(heads, before))

    def undo(self, step: Callable[[], object]) -> None:
        """Run `step` if this job, or the commit that it shares, fails. Steps run in reverse order."""
        self._undo.append(step)

    def roll_back_memory(self) -> None:
        """Run the remaining steps. A step that raises does not stop the others."""
        try:
            while self._undo:
                self._undo.pop()()
        finally:
            if self._undo:
                self.roll_back_memory()


def _set(heads: Heads, to: Heads) -> None:
    heads.event_seq, heads.event_hash, heads.entry_id = to.event_seq, to.event_hash, to.entry_id
