"""Pieces of SQL that both engines read, SQLite and PostgreSQL (CONTRIBUTING.md has the rules for SQL texts).

Never: runs a statement.
"""

NOTHING = "SELECT NULL WHERE FALSE"
"""SQL for an empty list inside `IN (...)`."""

LATEST = 1 << 62
"""Later than any time in a row, and higher than any row's number."""


def places(count: int) -> str:
    """SQL inside `IN (...)`: a placeholder for each value."""
    return ", ".join("?" * count) or NOTHING


def sql_list(*states: str) -> str:
    """Two states or more as an SQL list. An index serves a query only if its own list has the same order."""
    return str(tuple(map(str, states)))
