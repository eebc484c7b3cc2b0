"""The schema of ledger.db: creates it, migrates an older one, and compares it with the expected one.

A new ledger gets today's tables, views and guards. A ledger of an earlier release gets the migrations since then.
`PRAGMA user_version` holds the version: 1 is the schema of payagent 0.1.0, and each migration adds 1.

May import: core, store.db, sqlite3. Never: reads or writes a row.
"""

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from functools import cache

from payagent.core.problems import Refused
from payagent.store.db.tables import TABLES, VIEWS
from payagent.store.db.triggers import GUARDS

Migration = Callable[[sqlite3.Connection], None]

MIGRATIONS: tuple[Migration, ...] = ()
"""One function for each change since 0.1.0, oldest first. Its SQL is frozen: it uses nothing of today's schema."""

VERSION = 1 + len(MIGRATIONS)
"""The version that this payagent writes."""


def version(conn: sqlite3.Connection) -> int:
    """The version of a ledger's schema; 0 for a new file."""
    return int(conn.execute("PRAGMA user_version").fetchone()[0])


def require_known(conn: sqlite3.Connection, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Refused: `ledger_newer`; `ledger_tampered` if the file has tables, but no version of ours."""
    found, newest = version(conn), 1 + len(migrations)
    if found > newest:
        raise Refused("ledger_newer", f"ledger.db has version {found}, and this payagent knows {newest}")
    if found < 1 and conn.execute("SELECT 1 FROM sqlite_master").fetchone() is not None:
        raise Refused("ledger_tampered", f"ledger.db has version {found}, which no release of payagent wrote")


def bring_up_to_date(conn: sqlite3.Connection, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Create the schema in a new file, or run the migrations that a ledger lacks. Refused: as `require_known`."""
    require_known(conn, migrations)
    newest = 1 + len(migrations)
    if version(conn) == newest:
        return
    with conn:
        conn.execute("BEGIN IMMEDIATE")
        if (found := version(conn)) == 0:
            for statement in (*_statements(TABLES), *_statements(VIEWS), *(guard.sql for guard in GUARDS)):
                conn.execute(statement)
        for migrate in migrations[found - 1 :] if found else ():
            migrate(conn)
        conn.execute(f"PRAGMA user_version = {newest}")


def _statements(script: str) -> Iterable[str]:
    """Split at semicolons that end a line (executescript would commit)."""
    current = ""
    for line in script.splitlines():
        current += line + "\n"
        if line.rstrip().endswith(";"):
            yield current
            current = ""


def missing_guards(conn: sqlite3.Connection) -> list[str]:
    """Names of guards that are missing or altered (`table.transform()` drops them)."""
    present = dict(conn.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall())
    return [guard.name for guard in GUARDS if present.get(guard.name) != guard.sql.rstrip(";")]


def changed_views(conn: sqlite3.Connection) -> list[str]:
    """Names of views that are missing or altered, and would show wrong data to people who read the file."""
    present = dict(conn.execute(_VIEWS_MADE).fetchall())
    return [name for name, sql in _views().items() if present.get(name) != sql]


_VIEWS_MADE = "SELECT name, sql FROM sqlite_master WHERE type = 'view'"


@cache
def _views() -> Mapping[str, str]:
    """The views of a new ledger."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as empty:
        bring_up_to_date(empty)
        return dict(empty.execute(_VIEWS_MADE).fetchall())
