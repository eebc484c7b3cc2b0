"""Records the statements that the code runs on SQLite, so that they can be tried on PostgreSQL."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest

Recorded = dict[tuple[str, tuple[str, ...]], None]
"""Each text with the types of its values as PostgreSQL is told them."""

_TYPES = {bool: "boolean", int: "bigint", bytes: "bytea"}


def _types_of(values: Sequence[object]) -> tuple[str, ...]:
    return tuple(_TYPES.get(type(value), "unknown") for value in values)


@contextmanager
def recorded_sql() -> Iterator[Recorded]:
    """What every connection that is opened inside runs."""
    found: Recorded = {}

    @cache
    def recording(base: type[sqlite3.Connection]) -> type[sqlite3.Connection]:
        class Recording(base):  # type: ignore[misc, valid-type]
            def execute(self, sql: str, values: Sequence[object] = (), /) -> sqlite3.Cursor:
                found[sql, _types_of(values)] = None
                return super().execute(sql, values)

            def executemany(self, sql: str, rows: Any, /) -> sqlite3.Cursor:
                rows = [tuple(row) for row in rows]
                found.update({(sql, _types_of(row)): None for row in rows})
                return super().executemany(sql, rows)

        return Recording

    connect = sqlite3.connect

    def connecting(*args: Any, factory: type[sqlite3.Connection] = sqlite3.Connection, **more: Any) -> Any:
        return connect(*args, factory=recording(factory), **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", connecting)
        yield found
