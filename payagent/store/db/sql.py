"""Reads of rows as values, and pieces of SQL that both engines read (CONTRIBUTING.md has the rules for SQL texts).

Never: writes.
"""

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

NOTHING = "SELECT NULL WHERE FALSE"
"""SQL for an empty list inside `IN (...)`."""

LATEST = 1 << 62
"""Later than any time in a row, and higher than any row's number."""


def find_all(conn: sqlite3.Connection, of: Callable[..., T], sql: str, values: Sequence[Any] = ()) -> list[T]:
    """The rows that a query finds. `of` makes each of its columns."""
    return [of(*row) for row in conn.execute(sql, values)]


def find_one(conn: sqlite3.Connection, of: Callable[..., T], sql: str, values: Sequence[Any] = ()) -> T | None:
    """The first row that a query finds, made by `of`; None if there is none, or if it is a single NULL."""
    row = conn.execute(sql, values).fetchone()
    return None if row is None or row == (None,) else of(*row)


def number(conn: sqlite3.Connection, sql: str, values: Sequence[Any] = ()) -> int:
    """The number that a query finds; 0 if there is none."""
    return find_one(conn, int, sql, values) or 0


def exists(conn: sqlite3.Connection, sql: str, values: Sequence[Any] = ()) -> bool:
    """Whether a query finds any row."""
    return conn.execute(sql, values).fetchone() is not None


def places(count: int) -> str:
    """SQL inside `IN (...)`: a placeholder for each value."""
    return ", ".join("?" * count) or NOTHING


def sql_list(*states: str) -> str:
    """Two states or more as an SQL list. An index serves a query only if its own list has the same order."""
    return str(tuple(map(str, states)))
