"""One job's part of the open transaction: the first argument of every function that writes.

A job registers the reversal of its in-memory changes with `undo`.
Never: commits; opens a transaction.
"""

import sqlite3
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from functools import cached_property

from payagent.store.db.heads import Heads, read_heads

Connection = sqlite3.Connection

VIA: ContextVar[str | None] = ContextVar("via", default=None)
"""How the request came in that a job works for, such as "dashboard". None: by a token, or no request."""


class Unit:
    """One job's part of the open transaction. It is made in the task that asks for the job, and has its `VIA`."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self.conn = conn
        self.via = VIA.get()
        self._undo: list[Callable[[], object]] = []

    @cached_property
    def heads(self) -> Heads:
        """The ends of the event chain and of the journal. The committer sets it for all jobs of a commit."""
        return read_heads(self.conn)

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
