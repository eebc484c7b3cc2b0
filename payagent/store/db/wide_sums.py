"""Units that one column cannot hold, in two: `high` * 2^32 + `low`, of which `low` is below 2^32 and not below 0.

SUM() of SQLite raises above 2^63-1, which two deposits of a token can pass. Halves cannot pass it, below 2^31 of
them, and are put together as Python integers of any size.
May import: sqlite3. Never: commits.
"""

import sqlite3
from collections.abc import Sequence

_ADD = """ON CONFLICT DO UPDATE SET high = high + excluded.high + ((low + excluded.low) >> 32),
                          low = (low + excluded.low) & 4294967295"""
"""SQL, behind an INSERT of rows with `high` and `low`: where one is there, they are added to it."""

_ROWS_AT_ONCE = 64


def halves(units: int) -> tuple[int, int]:
    """(high, low): >> keeps the sign and & the rest, also of negative units."""
    return units >> 32, units & 4294967295


def add_halves(conn: sqlite3.Connection, into: str, rows: Sequence[tuple[object, ...]]) -> None:
    """Add rows of a table and its columns, which `into` names: what is there already grows by `high` and `low`.

    Several in one statement, as each gives way to every other thread.
    """
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[first : first + _ROWS_AT_ONCE]
        places = ", ".join(["(" + ", ".join("?" * len(some[0])) + ")"] * len(some))
        values = [value for row in some for value in row]
        conn.execute(f"INSERT INTO {into} VALUES {places} {_ADD}", values)  # noqa: S608  words of ours


def whole(high: int, low: int) -> int:
    """What was taken in halves; `low` may be a sum of many."""
    return (high << 32) + low


def sums(column: str) -> str:
    """SQL: the sum of a column, in halves."""
    return f"SUM({column} >> 32), SUM({column} & 4294967295)"
