"""The schema of ledger.db: creates it, migrates an older one, and compares it with the expected one.

The migrations build every ledger, a new one too. The current tables, views and guards define the result.

May import: core, store.db, sqlite3, sqlite-utils. Never: reads or writes a row.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path

from sqlite_utils import Database, Migrations

from payagent.core.problems import Refused
from payagent.store.db.tables import VIEWS
from payagent.store.db.triggers import TRIGGERS

RELEASE_0_1_0 = Path(__file__).with_name("release_0_1_0.sql").read_text()

NOTIFICATIONS = Path(__file__).with_name("m002_notifications.sql").read_text()
APPROVAL_MESSAGES = Path(__file__).with_name("m003_approval_messages.sql").read_text()
ACCOUNTS = Path(__file__).with_name("m005_accounts.sql").read_text()
TRIGGERS_M004 = Path(__file__).with_name("m004_triggers.sql").read_text()

migrations = Migrations("payagent")
"""One function for each change, oldest first. Its SQL is frozen: it uses nothing of today's schema."""


@migrations()
def m001_release_0_1_0(db: Database) -> None:
    for statement in RELEASE_0_1_0.split(";\n"):  # sqlite-utils' executescript is eight times slower
        db.execute(statement)


@migrations()
def m002_notifications(db: Database) -> None:
    for statement in NOTIFICATIONS.split(";\n"):
        db.execute(statement)


@migrations()
def m003_approval_messages(db: Database) -> None:
    for statement in APPROVAL_MESSAGES.split(";\n"):
        db.execute(statement)


@migrations()
def m004_one_trigger_for_each_change(db: Database) -> None:
    for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        db.execute(f"DROP TRIGGER {name}")
    for line in TRIGGERS_M004.splitlines():
        db.execute(line)


@migrations()
def m005_accounts(db: Database) -> None:
    for statement in ACCOUNTS.split(";\n"):
        db.execute(statement)


def lacking_migrations(conn: sqlite3.Connection) -> list[str]:
    """Names of migrations that this payagent will apply when it first opens the ledger for writing."""
    return [one.name for one in migrations.pending(_database(conn))]


def known_migrations() -> tuple[str, ...]:
    """The names of the migrations that this payagent knows, oldest first."""
    return _names(migrations)


@cache
def _names(known: Migrations) -> tuple[str, ...]:
    with closing(sqlite3.connect(":memory:")) as empty:
        return tuple(one.name for one in known.pending(_database(empty)))


def newest_migration() -> str:
    """The name of the last migration that this payagent knows."""
    return known_migrations()[-1]


def migrations_after(name: str) -> tuple[str, ...]:
    """The migrations that a ledger lacks whose newest one is this. Refused: `ledger_newer` if it is unknown."""
    known = known_migrations()
    if name not in known:
        raise Refused("ledger_newer", f"the ledger was changed by a newer payagent: {name}")
    return known[known.index(name) + 1 :]


def require_known(conn: sqlite3.Connection) -> None:
    """Refused: `ledger_newer` if a newer payagent applied a migration that this one does not know."""
    applied = [one.name for one in migrations.applied(_database(conn))]
    if newer := [name for name in applied if name not in known_migrations()]:
        raise Refused("ledger_newer", f"ledger.db was changed by a newer payagent: {', '.join(newer)}")


def bring_up_to_date(conn: sqlite3.Connection, without: Sequence[str] = ()) -> None:
    """Run the migrations that a ledger lacks; in a new file, all of them. Refused: as `require_known`.

    `without`: the last migrations, which are not run.
    """
    require_known(conn)
    if lacking_migrations(conn):
        migrations.apply(_database(conn), stop_before=without)


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
