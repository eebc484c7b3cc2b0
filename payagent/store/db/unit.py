"""A job's part of the open transaction: what every function that writes takes.

What a job changes in memory beside the database it registers with `undo`.
May import: sqlite3. Never: commits; opens a transaction.
"""

import sqlite3
from collections.abc import Callable

Connection = sqlite3.Connection


class Unit:
    """One job's part of the open transaction."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self.conn = conn
        self._undo: list[Callable[[], None]] = []

    def undo(self, step: Callable[[], None]) -> None:
        """Run `step` if this job, or the commit that it shares, does not take place. Last in, first out."""
        self._undo.append(step)

    def roll_back_memory(self) -> None:
        """Run the steps that are left; one that raises keeps none of the others from running."""
        try:
            while self._undo:
                self._undo.pop()()
        finally:
            if self._undo:
                self.roll_back_memory()
