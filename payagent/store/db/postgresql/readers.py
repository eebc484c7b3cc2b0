"""Read-only connections to PostgreSQL: one for each thread, and one for long reads.

Reads are short, so the event loop makes them itself. One that is not answered in time leaves it: a thread of its
own asks again until there is an answer, and all reads are refused at once meanwhile. So a server that stands still
stops the loop once, for a moment, and `/healthz` answers.

Never: writes.
"""

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import mkstemp
from threading import Thread
from typing import Any, BinaryIO

import structlog

from payagent.core.problems import Refused
from payagent.store.db.postgresql.connection import PATIENCE_S, Database, PostgresqlConnection
from payagent.store.db.postgresql.hosts import Hosts
from payagent.store.db.postgresql.move import write_file
from payagent.store.db.readers import Readers, scratch

_READ_ONLY = {"default_transaction_read_only": "on", "lock_timeout": "1s"}
_SHORT = {**_READ_ONLY, "statement_timeout": "4s"}

_SHORT_S = 5
"""How long the answer to a short read may take. For a server that cannot even end a statement."""

_AGAIN_S, _TRIES = 0.2, 50
"""The pause before a read is asked again, and how often it is. Then a thread of the daemon tries once more."""

log = structlog.get_logger("payagent.store")


class _ThreadConnection(PostgresqlConnection):
    """Closes itself when no one references it."""

    def __init__(self, readers: "PostgresqlReaders") -> None:
        self._readers = readers
        super().__init__(readers.place, _SHORT, _SHORT_S)

    def connect(self, database: Database | None = None) -> None:
        with self._readers.leaving("SELECT 1", ()):
            super().connect(database)

    def execute(self, sql: str, values: Sequence[object] = ()) -> Any:
        """As of every connection. If it was lost since it was last used, it is made again and asked once more."""
        try:
            with self._readers.leaving(sql, values):
                return super().execute(sql, values)
        except sqlite3.OperationalError as error:
            if not self.is_lost or getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
                raise
        self.connect(self._readers.place)
        return super().execute(sql, values)

    def __del__(self) -> None:
        with suppress(AttributeError):  # it was never connected
            self.close()


class PostgresqlReaders(Readers):
    """Read-only connections. A thread whose connection was lost, or leads to another server, gets a new one."""

    def __init__(self, database: Database | Hosts | str, folder: Path) -> None:
        """`folder`: whose disk is watched; the database's is another's concern. `Hosts`: those of a writer."""
        super().__init__(folder / "ledger.db")
        self._place = Database(database) if isinstance(database, str) else database
        self._late: str | None = None

    @property
    def place(self) -> Database:
        """Where to read. Refused: `store_failed`, with the reason, while that is unknown."""
        return self._place.server if isinstance(self._place, Hosts) else self._place

    @property
    def conn(self) -> Any:
        """Refused: `store_failed`, also while a read without an answer is asked again."""
        if self._late is not None:
            raise Refused("store_failed", self._late)
        conn: _ThreadConnection | None = getattr(self._local, "conn", None)
        while conn is None or conn.is_lost or conn.database != self.place:
            conn = self._local.conn = _ThreadConnection(self)
        return conn

    @contextmanager
    def leaving(self, sql: str, values: Sequence[object]) -> Iterator[None]:
        """Inside this context a read without an answer in time leaves its thread. The error goes to who asked."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if self._late is None and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
                self._late = (
                    f"{self.place.host} did not answer a read: {error}. What was committed before is found. Ask "
                    "again with the same key; without a key, look at the payments first"
                )
                log.warning("store.read_unanswered", why=str(error), sql=sql)
                Thread(target=self._ask_again, args=(sql, values), daemon=True).start()
            raise

    def _ask_again(self, sql: str, values: Sequence[object]) -> None:
        for _ in range(_TRIES):
            time.sleep(_AGAIN_S)
            with (
                suppress(Refused, sqlite3.Error),
                closing(PostgresqlConnection(self.place, _READ_ONLY, PATIENCE_S)) as conn,
            ):
                conn.execute(sql, values)
                break
        self._late = None

    @contextmanager
    def snapshot(self) -> Iterator[Any]:
        with closing(PostgresqlConnection(self.place, _READ_ONLY, PATIENCE_S)) as conn:
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
            write_file(self.place, path)
            yield path
        finally:
            path.unlink()
