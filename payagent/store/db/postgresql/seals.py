"""Seals on PostgreSQL: the text of a row is made here, to the same bytes that SQLite makes by SQL.

So a ledger that moves from one engine to the other keeps its seals.

Never: seals a row that it did not see being added.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from payagent.store.db.postgresql.schema import tables
from payagent.store.db.seals import SEALED, Sealer, with_account_last
from payagent.store.db.triggers import KEPT

if TYPE_CHECKING:
    from payagent.store.db.postgresql.connection import PostgresqlConnection

_SHOWN = {"BLOB": "'X''' || upper(encode({0}, 'hex')) || ''''", "TEXT": "{0}::text", "INTEGER": "{0}"}
"""SQL of a value by SQLite's type of its column; text includes JSON, which would be nested otherwise."""


def sealed_text(values: str) -> bytes:
    """The bytes of a row that go into its seal (store.db.seals), from its values as a JSON array."""
    return json.dumps(json.loads(values), separators=(",", ":"), ensure_ascii=False).encode()


def row_texts(conn: "PostgresqlConnection", table: str) -> Iterator[tuple[int, bytes]]:
    """(row number, the bytes that are sealed) for every row, in order."""
    number = tables()[table].number
    rows = conn.execute(f"SELECT {number}, {_values(table)} FROM {table} ORDER BY 1")  # noqa: S608  our own names
    return ((number, sealed_text(values)) for number, values in rows)


def event_texts(conn: "PostgresqlConnection") -> Iterator[tuple[int, str, str, bytes]]:
    """(seq, prev_hash, hash, the bytes that the hash covers) for every event, in order."""
    rows = conn.execute(
        "SELECT seq, prev_hash, hash, json_array(prev_hash, seq, payment_id, event, state, detail::text, at_ms) "
        "FROM events ORDER BY seq"
    )
    return ((seq, prev_hash, own, sealed_text(values)) for seq, prev_hash, own, values in rows)


class PostgresqlSealer(Sealer):
    """The last step of every commit, as on SQLite."""

    def _selected(self, _conn: object) -> list[tuple[str, str]]:
        return [(_number(table), f"{_values(table)}::text") for table in SEALED]

    def _text_of(self, selected: str) -> bytes:
        return sealed_text(selected)


def _number(table: str) -> str:
    return str(tables()[table].number)


def _values(table: str) -> str:
    """SQL: the number and the fixed columns of a row as a JSON array; its account stands last, if it is not 0."""
    fixed = KEPT[table].fixed
    columns = [
        (name, _SHOWN[kind].format(f'"{name}"'), kind)
        for name, kind in tables()[table].columns
        if fixed is None or name in fixed
    ]
    return with_account_last(_number(table), columns)
