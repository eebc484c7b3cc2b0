"""Makes the schema in an empty database, or migrates one of an older payagent; refuses one of a newer.

A migration runs inside the gate, so nobody commits meanwhile, and only when every living daemon knows it. Until
then newer daemons run on the older tables (docs/decisions/0030).

Never: changes a database whose tables this role does not own.
"""

from typing import Any

from payagent.core.problems import Refused
from payagent.store.db.fence import LEASE_MS, make_gate
from payagent.store.db.opening import opening
from payagent.store.db.postgresql import schema
from payagent.store.db.postgresql.connection import PostgresqlConnection
from payagent.store.db.schema import MIGRATIONS, migrations_after, newest_migration

EMPTIED = (
    "address_pins",
    "channel_steps",
    "daemons",
    "limits",
    "merchants",
    "notification_cursors",
    "reservations",
    "utxos",
)
"""The tables whose rows a daemon deletes."""


def bring_up_to_date(conn: Any, daemon_role: str | None = None) -> bool:
    """Make the schema in an empty database, or run the migrations that it lacks. True if it lacked anything.

    This role is the owner of the tables. `daemon_role` may then do what a daemon does, and no more.
    Refused: `ledger_newer`; `already_running` if a living daemon does not know a migration; `store_failed` if this
    role may not change tables.
    """
    with opening("the database"):
        conn.execute("BEGIN")
        if is_empty := not _has_tables(conn):
            schema.create(conn)
            make_gate(conn, newest_migration(), conn.timeline())
        is_changed = is_empty or _migrate(conn)
        if daemon_role is not None:
            _grant(conn, '"{}"'.format(daemon_role.replace('"', '""')))
        conn.execute("COMMIT")
        if is_changed:
            conn.execute("ANALYZE")  # a plan made for tables of unknown size stays cached
    return is_changed


def _migrate(conn: PostgresqlConnection) -> bool:
    """Run the migrations that the tables lack. True if there were any."""
    if not lacking(conn):
        return False
    conn.execute("SET LOCAL lock_timeout = '1s'")  # nobody commits while this waits for somebody's long read
    conn.execute("LOCK TABLE gate IN ACCESS EXCLUSIVE MODE")  # who waits for its row would hold a lock meanwhile
    names = lacking(conn)
    living = "SELECT host, version, schema FROM daemons WHERE seen_at_ms > ?"
    for host, version, known in conn.execute(living, (conn.clock_ms() - LEASE_MS,)):
        if known in list(MIGRATIONS)[:-1]:
            raise Refused(
                "already_running",
                f"the daemon on {host} runs payagent {version}, which does not know {names[-1]}. "
                "Nothing was changed. Upgrade it, then ask again",
            )
    if not names:
        return False
    schema.drop_guards(conn)
    for name in names:
        for statement in MIGRATIONS[name].postgresql.split(";\n"):
            conn.execute(statement)
        conn.execute("UPDATE gate SET schema = ?", (name,))
    for statement in schema.guards():
        conn.execute(statement)
    return True


def _grant(conn: PostgresqlConnection, role: str) -> None:
    conn.execute(f"GRANT SELECT, INSERT, UPDATE ON {', '.join(schema.tables())} TO {role}")
    conn.execute(f"GRANT DELETE ON {', '.join(EMPTIED)} TO {role}")


def lacking(conn: PostgresqlConnection) -> tuple[str, ...]:
    """The migrations that the tables lack.

    Refused: `ledger_newer` if a newer payagent made or changed the tables; `ledger_older` if one from before
    0.1.0 made them; `tables_missing` without tables. A daemon makes no tables: an empty ledger knows of no
    earlier payment.
    """
    if not _has_tables(conn):
        raise Refused("tables_missing", "the database has no tables of payagent")
    (newest,) = conn.execute("SELECT schema FROM gate").fetchone() or ("",)
    return migrations_after(newest)


def require_guards(conn: PostgresqlConnection) -> None:
    """Refused: `ledger_tampered`, with the names of the guards that are missing, altered or disabled.

    While the tables lack a migration, the daemons that it waits for check its older guards.
    """
    if not lacking(conn) and (missing := schema.missing_guards(conn)):
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
