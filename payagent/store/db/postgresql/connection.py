"""A connection to PostgreSQL with the part of `sqlite3.Connection` that the store uses.

It runs the store's SQL texts, which both engines read (`postgresql_text` has the rest), and raises the errors of
sqlite3 that the store catches. Like a connection to the file it begins no transaction by itself.
An integer goes as int8, whatever its size. Sums come back as int, and JSON as the text that was written.

May import: core, store.db, sqlite3, psycopg. Never: retries a statement; cancels one.
"""

import re
import sqlite3
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import psycopg
from psycopg import RawCursor, pq
from psycopg.adapt import Loader
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import TextLoader

from payagent.core.problems import Refused

_PREPARED_MAX = 512
"""Prepared statements that a connection keeps, as on SQLite."""

_TOKENS = re.compile(
    r"(?P<kept>'(?:[^']|'')*')|\?(?P<number>\d*)|(?P<hint> INDEXED BY \w+)|\b(?P<word>CROSS JOIN|json_array\()"
)
_WORDS = {"CROSS JOIN": "JOIN", "json_array(": "json_build_array("}
"""CROSS JOIN with ON fixes the order of two tables, on SQLite alone."""

_STATEMENTS = {
    "BEGIN IMMEDIATE": "BEGIN",
    "PRAGMA data_version": "SELECT data_version FROM pragma_data_version",
}

_NOT_TEXT = ("22021", "22P02", "22P05")
"""PostgreSQL's codes for a text or JSON with the character NUL, or with half of a surrogate pair."""


@cache
def postgresql_text(sql: str) -> str:
    """The text of a statement as PostgreSQL reads it: `?` and `?2` become `$1` and `$2`, SQLite's hints go."""
    count = 0

    def translated(found: re.Match[str]) -> str:
        nonlocal count
        if found["kept"] is not None or found["hint"] is not None:
            return found["kept"] or ""
        if found["word"] is not None:
            return _WORDS[found["word"]]
        count += 1
        return f"${found['number'] or count}"

    return _STATEMENTS.get(sql) or _TOKENS.sub(translated, sql)


class _WholeLoader(Loader):
    """SUM of int8 is a numeric on PostgreSQL; the store adds up integers alone."""

    def load(self, data: Any) -> int:
        return int(bytes(data))


class PostgresqlConnection:
    """One connection. For one thread at a time, unless it only reads."""

    total_changes = 0
    """Changes of its own that `pragma_data_version` does not show: none, unlike on SQLite."""

    def __init__(self, url: str) -> None:
        self._conn = psycopg.connect(url, autocommit=True, cursor_factory=RawCursor, client_encoding="utf8")
        self._conn.prepared_max = _PREPARED_MAX
        adapters = self._conn.adapters
        adapters.register_dumper(int, Int8Dumper)
        adapters.register_loader("numeric", _WholeLoader)
        adapters.register_loader("json", TextLoader)

    def execute(self, sql: str, values: Sequence[object] = ()) -> "psycopg.Cursor[Any]":
        """Run one statement of the store. Its rows are tuples.

        sqlite3.DatabaseError, or a subclass as SQLite raises it. Refused: `store_failed` for a text that
        PostgreSQL cannot hold.
        """
        try:
            return self._conn.execute(postgresql_text(sql), values)
        except psycopg.Error as error:
            raise _for_the_store(error) from error

    def executemany(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        with self._conn.cursor() as cursor:
            try:
                cursor.executemany(postgresql_text(sql), rows)
            except psycopg.Error as error:
                raise _for_the_store(error) from error

    @property
    def in_transaction(self) -> bool:
        return self._conn.info.transaction_status != pq.TransactionStatus.IDLE

    def rollback(self) -> None:
        self._conn.rollback()

    def close(self) -> None:
        self._conn.close()


def _for_the_store(error: psycopg.Error) -> Exception:
    """The error as the store knows it: a rule that a row breaks, a bug in our SQL, or a database out of reach."""
    if error.sqlstate in _NOT_TEXT or (isinstance(error, psycopg.DataError) and "NUL" in str(error)):
        return Refused(
            "store_failed",
            "a text holds the character NUL or half of a character, which PostgreSQL cannot store: "
            "nothing was committed; send the text without it",
        )
    if isinstance(error, psycopg.IntegrityError):
        return sqlite3.IntegrityError(error.diag.message_primary)
    found = sqlite3.OperationalError(str(error))
    if isinstance(error, (psycopg.ProgrammingError, psycopg.DataError)):
        found.sqlite_errorcode = sqlite3.SQLITE_ERROR
    return found
