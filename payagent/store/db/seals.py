"""Seals: one hash over the rows that each commit added to the tables of record, chained to the seal before.

The number and hash of the newest seal, the head, therefore cover every earlier row. If some columns of a row may
change, only the fixed columns are sealed; the others follow from the events, which are sealed whole.
A row's text is the JSON array of its number and its columns in order, with bytes as X'..' in hex. Its account of
the wallet stands last, and only if it is not 0. Its mark is the CRC-32 of that text. A mark identifies the row but
proves nothing.

Never: seals a row that it did not see being added.
"""

import hashlib
import json
import sqlite3
import struct
from collections.abc import Iterable
from itertools import groupby
from typing import Any
from zlib import crc32

from payagent.store.db.tables import GENESIS
from payagent.store.db.triggers import KEPT

SEALED = tuple(sorted(KEPT.keys() - {"seals"}))
"""The tables whose rows are sealed."""


def row_text(conn: sqlite3.Connection, table: str) -> str:
    """SQL for the bytes of a row that go into its seal."""
    create_sql = conn.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    return _row_text(conn, table, create_sql[0] if create_sql else None)


def _row_text(conn: sqlite3.Connection, table: str, create_sql: str | None) -> str:
    if (text := _TEXTS.get((table, create_sql))) is None:
        text = _TEXTS[table, create_sql] = _read_row_text(conn, table)
    return text


_TEXTS: dict[tuple[str, str | None], str] = {}
"""Cache by table and its CREATE statement, which determines the columns."""


def _read_row_text(conn: sqlite3.Connection, table: str) -> str:
    fixed = KEPT[table].fixed
    columns = [
        (name, f"quote({name})" if kind == "BLOB" else name, kind)
        for _, name, kind, *_ in conn.execute(f"PRAGMA table_info({table})")
        if fixed is None or name in fixed
    ]
    return f"CAST({with_account_last('rowid', columns)} AS BLOB)"


def with_account_last(number: str, columns: list[tuple[str, str, str]]) -> str:
    """SQL of a row as a JSON array, from (name, SQL, SQLite's type) of each column.

    The account of the wallet is a number. The account of a posting is a name, and stands where it always stood.
    """
    is_of_account = any((name, kind) == ("account", "INTEGER") for name, _, kind in columns)
    others = ", ".join(sql for name, sql, kind in columns if (name, kind) != ("account", "INTEGER"))
    text = f"json_array({number}, {others}"
    return f"CASE account WHEN 0 THEN {text}) ELSE {text}, account) END" if is_of_account else f"{text})"


def marks_of(texts: Iterable[bytes]) -> bytes:
    """Four bytes for each row."""
    checksums = [crc32(text) for text in texts]
    return struct.pack(f">{len(checksums)}I", *checksums)


def seal_hash(prev_hash: str, seq: int, what: str, marks: bytes, texts: Iterable[bytes]) -> str:
    """SHA-256 in hex of these lines: the previous hash, the number, `what`, the marks in hex, each row's text."""
    head = f"{prev_hash}\n{seq}\n{what}\n{marks.hex()}\n".encode()
    return hashlib.sha256(head + b"\n".join(texts)).hexdigest()


_SELECT_HEAD = (
    "SELECT -1, COALESCE(MAX(seq), 0), "  # noqa: S608  our own names
    f"COALESCE((SELECT hash FROM seals ORDER BY seq DESC LIMIT 1), '{GENESIS}') FROM seals"
)
"""The newest seal, read with the rows to seal: a head from memory would follow a changed seal unnoticed."""


def last_seal(conn: sqlite3.Connection) -> tuple[int, str]:
    """(seq, hash) of the newest seal; (0, GENESIS) before the first."""
    row = conn.execute("SELECT seq, hash FROM seals ORDER BY seq DESC LIMIT 1").fetchone()
    return row or (0, GENESIS)


class Sealer:
    """The last step of every commit: seals the rows that its jobs added.

    Before a commit it reads each table's last row number. It skips this if `keep` confirmed the numbers after the
    previous commit and no other connection has written since. Rows that another connection adds are not sealed.
    """

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._conn = conn
        selected = self._selected(conn)
        last = ", ".join(
            f"(SELECT COALESCE(MAX({number}), 0) FROM {table})"  # noqa: S608  our own names
            for table, (number, _) in zip(SEALED, selected, strict=True)
        )
        self._select_last = f"SELECT {last}"
        self._confirmed: tuple[int, tuple[int, ...]] | None = None
        self._version = 0
        self.head = (0, GENESIS)
        """(seq, hash) of the newest seal, after `seal`."""
        self._select_added = _SELECT_HEAD + "".join(
            f" UNION ALL SELECT {place}, {number}, {text} FROM {SEALED[place]} WHERE {number} > ?{place + 1}"  # noqa: S608
            for place, (number, text) in enumerate(selected)
        )

    def _selected(self, conn: sqlite3.Connection) -> list[tuple[str, str]]:
        """SQL of a row's number and of its text, for each table of SEALED."""
        create_sqls = dict(conn.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall())
        return [("rowid", _row_text(conn, table, create_sqls.get(table))) for table in SEALED]

    def _text_of(self, selected: Any) -> bytes:
        """The bytes that are sealed, from a row's text as selected."""
        text: bytes = selected
        return text

    def last_rows(self, version: int = 0) -> tuple[int, ...]:
        """The number of each table's last row. Numbers confirmed by `keep` are used once.

        `version`: PRAGMA data_version, which changes when another connection has written.
        """
        confirmed, self._confirmed = self._confirmed, None
        self._version = version
        if confirmed is not None and confirmed[0] == version:
            return confirmed[1]
        rows: tuple[int, ...] = self._conn.execute(self._select_last).fetchone()
        return rows

    def keep(self, rows: tuple[int, ...]) -> None:
        """Confirm that the commit that began with `last_rows` took place and left these last rows.

        Not in a fleet: the other daemons write too, and no version of the database tells them from a stranger.
        """
        self._confirmed = (self._version, rows)

    def seal(self, after: tuple[int, ...]) -> tuple[int, ...]:
        """Seal the rows above these numbers, if any; return the new last row numbers."""
        (_, seq, prev_hash), *rows = sorted(self._conn.execute(self._select_added, after))
        self.head = seq, prev_hash
        if not rows:
            return after
        numbers = {
            place: [number for _, number, _ in added] for place, added in groupby(rows, key=lambda row: row[0])
        }
        spans = {SEALED[place]: [n[0], n[-1]] for place, n in numbers.items()}
        what = json.dumps(spans, separators=(",", ":"))
        texts = [self._text_of(text) for _, _, text in rows]
        marks = marks_of(texts)
        self.head = seq + 1, seal_hash(prev_hash, seq + 1, what, marks, texts)
        self._conn.execute(
            "INSERT INTO seals(seq, what, marks, hash) VALUES (?, ?, ?, ?)", (seq + 1, what, marks, self.head[1])
        )
        return tuple(numbers[place][-1] if place in numbers else n for place, n in enumerate(after))
