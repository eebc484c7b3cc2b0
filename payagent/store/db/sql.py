"""What the modules of rows share: reads of rows as values, sums past 64 bits, and pieces of SQL.

Both engines read all of it (CONTRIBUTING.md has the rules for SQL texts).
A sum is kept in two columns: units = `units_high` * 2^32 + `units_low`, with 0 <= `units_low` < 2^32. SQLite's
SUM() raises above 2^63-1, which two deposits of a token can exceed. Sums of fewer than 2^31 halves cannot exceed
it. Python combines the halves into an integer of any size.
Never: commits.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

NOTHING = "SELECT NULL WHERE FALSE"
"""SQL for an empty list inside `IN (...)`."""

LATEST = 1 << 62
"""Later than any time in a row, and higher than any row's number."""


def find_each(conn: sqlite3.Connection, of: Callable[..., T], sql: str, values: Sequence[Any] = ()) -> Iterator[T]:
    """As `find_all`, row by row: for a query of very many rows."""
    return (of(*row) for row in conn.execute(sql, values))


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


# --- sums past 64 bits

_ADD = """ON CONFLICT ({key}) DO UPDATE SET
units_high = {table}.units_high + excluded.units_high + (({table}.units_low + excluded.units_low) >> 32),
units_low = ({table}.units_low + excluded.units_low) & 4294967295"""
"""SQL after an INSERT of rows with `units_high` and `units_low`: adds them to an existing row."""

_ROWS_AT_ONCE = 64


def halves(units: int) -> tuple[int, int]:
    """(high, low) of units, also of negative ones: `high` carries the sign."""
    return units >> 32, units & 4294967295


def add_halves(conn: sqlite3.Connection, into: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows into the table and columns named by `into`, or add their halves to existing rows.

    The columns are the table's primary key, then the two halves.

    Many rows go into one statement, because each statement yields the GIL to other threads.
    """
    table, _, columns = into.partition("(")
    add = _ADD.format(table=table, key=columns.removesuffix(", units_high, units_low)"))
    totals: dict[tuple[object, ...], int] = {}  # PostgreSQL refuses a statement that changes a row twice
    for *key, high, low in rows:
        totals[*key,] = totals.get((*key,), 0) + whole(high, low)
    added = [(*key, *halves(units)) for key, units in totals.items()]
    for first in range(0, len(added), _ROWS_AT_ONCE):
        some = added[first : first + _ROWS_AT_ONCE]
        places = ", ".join(["(" + ", ".join("?" * len(some[0])) + ")"] * len(some))
        values = [value for row in some for value in row]
        conn.execute(f"INSERT INTO {into} VALUES {places} {add}", values)  # noqa: S608  our own names


def whole(high: int, low: int) -> int:
    """Units from their halves; `low` may be a sum of many."""
    return (high << 32) + low


def sums(column: str) -> str:
    """SQL: the sum of a column, in halves."""
    return f"SUM({column} >> 32), SUM({column} & 4294967295)"
