"""Read-only connections to PostgreSQL: one for each thread, and one for long reads.

May import: core, store.db. Never: writes.
"""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import mkstemp
from typing import Any, BinaryIO

from payagent.store.db.postgresql.connection import Database, PostgresqlConnection
from payagent.store.db.postgresql.hosts import Hosts
from payagent.store.db.postgresql.move import write_file
from payagent.store.db.readers import Readers, scratch

_READ_ONLY = {"default_transaction_read_only": "on"}


class _ThreadConnection(PostgresqlConnection):
    """Closes itself when no one references it."""

    def __del__(self) -> None:
        with suppress(AttributeError):  # it was never connected
            self.close()


class PostgresqlReaders(Readers):
    """Read-only connections. A thread whose connection was lost, or leads to another server, gets a new one."""

    def __init__(self, database: Database | Hosts | str, folder: Path) -> None:
        """`folder`: whose disk is watched; the database's is another's concern. `Hosts`: those of a writer."""
        super().__init__(folder / "ledger.db")
        self._place = Database(database) if isinstance(database, str) else database

    @property
    def _database(self) -> Database:
        return self._place.server if isinstance(self._place, Hosts) else self._place

    @property
    def conn(self) -> Any:
        conn: _ThreadConnection | None = getattr(self._local, "conn", None)
        while conn is None or conn.is_lost or conn.database != self._database:
            conn = self._local.conn = _ThreadConnection(self._database, _READ_ONLY)
        return conn

    @contextmanager
    def snapshot(self) -> Iterator[Any]:
        with closing(PostgresqlConnection(self._database)) as conn:
            conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield conn

    @contextmanager
    def audited(self) -> Iterator[Any]:
        """As a file: the checks of every row read one, also in other processes."""
        with self._in_file() as path, Readers(path).snapshot() as conn:
            yield conn

    @contextmanager
    def copied(self) -> Iterator[BinaryIO]:
        """As on SQLite, written from a snapshot."""
        with self._in_file() as path, path.open("rb") as file:
            yield file

    @contextmanager
    def _in_file(self) -> Iterator[Path]:
        """The ledger as it is now, in a file in SCRATCH that is removed at the end."""
        handle, name = mkstemp(dir=scratch(self._path.parent))
        os.close(handle)
        path = Path(name)
        try:
            write_file(self._database, path)
            yield path
        finally:
            path.unlink()
