"""The schema of ledger.db: creates it, migrates an older one, and compares it with the expected one.

`MIGRATIONS` begins with the first schema and goes on with the changes since. A new ledger gets all of it, so each
change is written once. Triggers and views are made anew after a migration.

Never: reads or writes a row, except in a migration.
"""

import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache

from sqlite_utils import Database, Migrations

from payagent.core.problems import Refused
from payagent.store.db.tables import CHANNEL_TABLES, TABLES, VIEWS
from payagent.store.db.triggers import TRIGGERS


@dataclass(frozen=True, slots=True)
class Migration:
    """A change of the tables as SQL for each engine. A ";" at the end of a line separates statements.

    Empty if only triggers or views change.
    """

    sqlite: str
    postgresql: str


def _for_postgresql(tables: str) -> str:
    """New tables as PostgreSQL writes them."""
    sql = re.sub("--.*\\n", "", tables).replace(" INTEGER", " BIGINT").replace(" STRICT", "")
    return sql.replace(" TEXT", ' TEXT COLLATE "C"').strip().rstrip(";")


MIGRATIONS = {
    "m001_schema": Migration(TABLES, ""),
    "m002_guards": Migration("", ""),
    "m003_channels": Migration(CHANNEL_TABLES, _for_postgresql(CHANNEL_TABLES)),
}
"""The migrations by name, oldest first. One without SQL only makes the triggers anew.

PostgreSQL's tables are made from those of SQLite (`tables_now`).

Add no column to a table of `seals.SEALED`: it would change the bytes that earlier seals cover.
"""

_BEFORE_0_1_0 = {"m001_release_0_1_0", "m005_accounts"}
"""The first and the last migration before: a file names all of its migrations, a database the last."""


def lacking_migrations(conn: sqlite3.Connection) -> list[str]:
    """Names of migrations that this payagent will apply when it first opens the ledger for writing."""
    return [one.name for one in _migrations().pending(_database(conn))]


def newest_migration() -> str:
    """The name of the last migration that this payagent knows."""
    return list(MIGRATIONS)[-1]


def migrations_after(name: str) -> tuple[str, ...]:
    """The migrations after this one. Refused: as `require_known`."""
    _require_known("the database", [name])
    known = tuple(MIGRATIONS)
    return known[known.index(name) + 1 :]


def require_known(conn: sqlite3.Connection) -> None:
    """Refused: `ledger_newer` if a newer payagent applied a migration that this one does not know;
    `ledger_older` if the ledger is from before 0.1.0.
    """
    _require_known("ledger.db", [one.name for one in _migrations().applied(_database(conn))])


def _require_known(ledger: str, applied: Iterable[str]) -> None:
    unknown = [name for name in applied if name not in MIGRATIONS]
    if _BEFORE_0_1_0.intersection(unknown):
        raise Refused("ledger_older", f"a payagent from before 0.1.0 wrote {ledger}")
    if unknown:
        raise Refused("ledger_newer", f"a newer payagent changed {ledger}: {', '.join(unknown)}")


def bring_up_to_date(conn: sqlite3.Connection, without: Sequence[str] = ()) -> None:
    """Run the migrations that a ledger lacks; in a new file, all of them. Refused: as `require_known`.

    `without`: the last migrations, which are not run. If given, no triggers or views are created.
    """
    require_known(conn)
    if set(lacking_migrations(conn)) <= set(without):
        return
    db = _database(conn)
    with db.atomic():
        made = "SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'view')"
        for kind, name in conn.execute(made).fetchall():
            conn.execute(f'DROP {kind} "{name}"')
        _migrations().apply(db, stop_before=without)
        if not without:
            _run(db, VIEWS)
            for trigger in TRIGGERS:
                conn.execute(trigger.sql)


def _migrations() -> Migrations:
    """The migrations as sqlite-utils runs them and records that they ran."""
    found = Migrations("payagent")
    for name, migration in MIGRATIONS.items():
        found(name=name)(lambda db, sql=migration.sqlite: _run(db, sql))
    return found


def _run(db: Database, sql: str) -> None:
    for statement in sql.split(";\n"):  # sqlite-utils' executescript is eight times slower
        db.execute(statement)


def _database(conn: sqlite3.Connection) -> Database:
    """The connection as sqlite-utils takes it, without the plugins that other packages may install."""
    return Database(conn, execute_plugins=False)


def missing_guards(conn: sqlite3.Connection) -> list[str]:
    """Names of triggers that are missing or altered (`table.transform()` drops them)."""
    present = dict(conn.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall())
    return [one.name for one in TRIGGERS if present.get(one.name) != one.sql.rstrip(";")]


def changed_views(conn: sqlite3.Connection) -> list[str]:
    """Names of views that are missing or altered, and would show wrong data to people who read the file."""
    present = dict(conn.execute(_STORED_VIEWS).fetchall())
    return [name for name, sql in _views().items() if present.get(name) != sql]


_STORED_VIEWS = "SELECT name, sql FROM sqlite_master WHERE type = 'view'"


@cache
def _views() -> Mapping[str, str]:
    """The views as SQLite stores them."""
    with closing(sqlite3.connect(":memory:")) as empty:
        empty.executescript(VIEWS)
        return dict(empty.execute(_STORED_VIEWS).fetchall())


def tables_now() -> str:
    """The tables and indexes that all migrations make, as SQL without comments."""
    with closing(sqlite3.connect(":memory:")) as empty:
        for migration in MIGRATIONS.values():
            empty.executescript(migration.sqlite)
        made = empty.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")
        return re.sub("--.*", "", "\n".join(f"{sql};" for (sql,) in made))
