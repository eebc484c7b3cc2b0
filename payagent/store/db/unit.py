"""One job's part of the open transaction: the first argument of every function that writes.

A job registers the reversal of its in-memory changes with `undo`.
May import: sqlite3. Never: commits; opens a transaction.
"""

import sqlite3
from collections.abc import Callable
from contextvars import ContextVar

Connection = sqlite3.Connection

VIA: ContextVar[str | None] = ContextVar("via", default=None)
"""How the request came in that a job works for, such as "dashboard". None: by a token, or no request."""


class Unit:
    """One job's part of the open transaction. It is made in the task that asks for the job, and has its `VIA`."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self.conn = conn
        self.via = VIA.get()
        self._undo: list[Callable[[], None]] = []

    def undo(self, step: Callable[[], None]) -> None:
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
