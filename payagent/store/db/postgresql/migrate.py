"""Makes the schema in an empty database, and refuses one of a newer payagent.

May import: core, store.db. Never: changes a database whose tables this role does not own.
"""

from typing import Any

from payagent.core.problems import Refused
from payagent.store.db.fence import make_gate
from payagent.store.db.opening import opening
from payagent.store.db.postgresql import schema
from payagent.store.db.postgresql.connection import PostgresqlConnection
from payagent.store.db.schema import known_migrations, newest_migration


def bring_up_to_date(conn: Any) -> bool:
    """Make the schema in an empty database. True if it was made. This role becomes the owner of the tables.

    Refused: `ledger_newer`; `store_failed` if this role may not make tables.
    """
    if is_empty := not _has_tables(conn):
        with opening("the database"):
            conn.execute("BEGIN")
            schema.create(conn)
            make_gate(conn, newest_migration(), conn.timeline())
            conn.execute("COMMIT")
            conn.execute("ANALYZE")  # a plan made for tables of unknown size stays cached
    require_known(conn)
    return is_empty


def require_known(conn: PostgresqlConnection) -> None:
    """Refused: `ledger_newer` if a newer payagent made or changed the tables; `tables_missing` without tables.

    A daemon makes no tables: an empty ledger knows of no earlier payment.
    """
    if not _has_tables(conn):
        raise Refused("tables_missing", "the database has no tables of payagent")
    for (name,) in conn.execute("SELECT schema FROM gate"):
        if name not in known_migrations():
            raise Refused("ledger_newer", f"the database was changed by a newer payagent: {name}")


def require_guards(conn: PostgresqlConnection) -> None:
    """Refused: `ledger_tampered`, with the names of the guards that are missing, altered or disabled."""
    if missing := schema.missing_guards(conn):
        raise Refused("ledger_tampered", f"the database lacks the triggers {', '.join(missing)}")


def owns_tables(conn: PostgresqlConnection) -> bool:
    """Whether this role owns tables of payagent, so it can switch their guards off."""
    return (
        conn.execute(
            "SELECT 1 FROM pg_tables WHERE schemaname = current_schema() AND tablename = 'gate' "
            "AND pg_has_role(tableowner, 'MEMBER')"
        ).fetchone()
        is not None
    )


def _has_tables(conn: PostgresqlConnection) -> bool:
    return conn.execute("SELECT to_regclass('gate') IS NOT NULL").fetchone() == (True,)
