"""The schema of ledger.db: creates it, migrates it, and compares it with the expected one.

May import: store.db, sqlite3, sqlite-utils. Never: reads or writes a row.
"""

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from functools import cache

from sqlite_utils import Database, Migrations

from payagent.store.db.tables import TABLES, VIEWS
from payagent.store.db.triggers import GUARDS

migrations = Migrations("payagent")


@migrations()
def m001_first_tables(db: Database) -> None:
    for statement in (*_statements(TABLES), *_statements(VIEWS), *(guard.sql for guard in GUARDS)):
        db.execute(statement)


@migrations()
def m002_a_payment_follows_an_invoice_of_its_origin(db: Database) -> None:
    """Before, the invoice had to have come first for the same intent. New ledgers have the rule from the start."""
    for guard in GUARDS:
        if guard.name == "payments_invoice_follows":
            db.execute(f"DROP TRIGGER {guard.name}")
            db.execute(guard.sql)


@migrations()
def m003_a_merchants_word_stands_beside_its_own_unit_alone(db: Database) -> None:
    """Before, the view showed the merchant's calls beside a balance in lovelace, as if they were comparable."""
    db.execute("DROP VIEW v_prepaid")
    (made,) = (view for view in _statements(VIEWS) if "CREATE VIEW v_prepaid" in view)
    db.execute(made)


@migrations()
def m004_what_pays_a_balance_is_found_past_what_was_refused(db: Database) -> None:
    """Before, the index also held refused payments, and a query read all of them since the last purchase."""
    db.execute("DROP INDEX IF EXISTS payments_by_pool")
    db.execute("DROP INDEX IF EXISTS payments_paying")
    (made,) = (statement for statement in _statements(TABLES) if "CREATE INDEX payments_paying" in statement)
    db.execute(made)


@migrations()
def m005_merchants_have_a_readiness(db: Database) -> None:
    """Before, nothing recorded when a merchant accepts a proof."""
    if not db["readiness"].exists():
        (made,) = (statement for statement in _statements(TABLES) if "CREATE TABLE readiness" in statement)
        db.execute(made)


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
        migrations.apply(Database(empty))
        return dict(empty.execute(_VIEWS_MADE).fetchall())


def newer_migrations(conn: sqlite3.Connection) -> list[str]:
    """Names of migrations that a newer payagent applied to this database and this one does not know."""
    return [one.name for one in migrations.applied(Database(conn)) if one.name not in _known_migrations()]


def lacking_migrations(conn: sqlite3.Connection) -> list[str]:
    """Names of migrations that this payagent will apply when it first opens the database for writing."""
    return sorted(_known_migrations() - {one.name for one in migrations.applied(Database(conn))})


@cache
def _known_migrations() -> frozenset[str]:
    with closing(sqlite3.connect(":memory:")) as empty:
        return frozenset(migration.name for migration in migrations.pending(Database(empty)))
