"""Read-only connections to the ledger: one for each thread, one for long reads, and a copy in one file.

Never: writes to the ledger.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from tempfile import mkstemp
from typing import BinaryIO

from payagent.store.db.opening import open_read_only, room_problem

_CACHE_KIB = 65_536
"""The page cache of a snapshot. A full read visits each payment's rows in many places of the file, and would
otherwise read the same pages again and again.
"""

SCRATCH = ".scratch"
"""A private folder beside the ledger for the daemon's temporary files; emptied at each start."""


class _ThreadConnection(sqlite3.Connection):
    """Closes itself when no one references it: when its thread ends, or when its `Readers` is gone."""

    def __del__(self) -> None:
        with suppress(sqlite3.Error):  # it was never opened
            self.close()


class Readers:
    """Read-only connections, one for each thread that asks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()

    @property
    def conn(self) -> sqlite3.Connection:
        conn: sqlite3.Connection | None = getattr(self._local, "conn", None)
        if conn is None:
            # closed by the garbage collector, which may run on another thread
            conn = open_read_only(self._path, check_same_thread=False, factory=_ThreadConnection)
            conn.execute("PRAGMA query_only = ON")
            conn.execute("PRAGMA busy_timeout = 5000")
            self._local.conn = conn
        return conn

    def room_problem(self) -> str | None:
        """The problem with the ledger's disk, as text; None if there is none."""
        return room_problem(self._path.parent)

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """A separate connection in one read transaction, for long reads. For one thread at a time."""
        with closing(open_read_only(self._path, check_same_thread=False)) as conn:
            conn.execute("PRAGMA query_only = ON")
            conn.execute("PRAGMA busy_timeout = 5000")
            conn.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            conn.execute("BEGIN")
            conn.execute("SELECT 1 FROM entries LIMIT 1").fetchone()  # the snapshot begins here
            yield conn

    def audited(self) -> AbstractContextManager[sqlite3.Connection]:
        """A snapshot of a file, for checks of every row."""
        return self.snapshot()

    @contextmanager
    def copied(self) -> Iterator[BinaryIO]:
        """The ledger as it is now, in an open file in SCRATCH that is already unlinked and so leaves nothing
        behind.
        """
        handle, name = mkstemp(dir=scratch(self._path.parent))
        with os.fdopen(handle, "rb") as file:
            try:
                with closing(open_read_only(self._path)) as conn:
                    conn.execute("VACUUM INTO ?", (name,))
            finally:
                Path(name).unlink()
            yield file


def make_scratch(folder: Path) -> Path:
    """Create or empty the scratch folder. Call it only when nothing can be using it."""
    made = scratch(folder)
    for leftover in made.iterdir():
        leftover.unlink()
    return made


def scratch(folder: Path) -> Path:
    """The scratch folder beside a ledger; it is created if it is missing."""
    made = folder / SCRATCH
    made.mkdir(mode=0o700, exist_ok=True)
    return made
