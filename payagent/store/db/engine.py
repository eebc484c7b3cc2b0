"""Opens a ledger on PostgreSQL, for a daemon of a fleet or a command beside it. Moves it to a file and back.

Never: imports psycopg for a file.
"""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from payagent.store.db.committer import Checkpoint
from payagent.store.db.fence import Seat
from payagent.store.db.opening import opening
from payagent.store.db.readers import Readers
from payagent.store.db.writer import Writer


def open_fleet_store(
    url: str, folder: Path, *, checkpoint: Checkpoint, seat: Seat, password: str | None = None
) -> tuple[Writer, Readers]:
    """The ledger on PostgreSQL, for a daemon of a fleet. `folder`: its data folder.

    Refused: `store_failed` if the database cannot be reached; `ledger_tampered` if guards are missing.
    """
    from payagent.store.db.postgresql.committer import PostgresqlCommitter  # the extra `postgresql`
    from payagent.store.db.postgresql.connection import Database
    from payagent.store.db.postgresql.readers import PostgresqlReaders

    committer = PostgresqlCommitter(Database(url, password), seat=seat, checkpoint=checkpoint)
    return Writer(committer), PostgresqlReaders(committer.hosts, folder)


def read_fleet_store(url: str, folder: Path, password: str | None) -> Readers:
    """Reads of a ledger on PostgreSQL, for a command beside the daemons. `folder`: the wallet's data folder.

    Refused: `store_failed` without the database.
    """
    from payagent.store.db.postgresql.hosts import newest
    from payagent.store.db.postgresql.readers import PostgresqlReaders

    with opening(url):
        return PostgresqlReaders(newest(url, password, folder, is_copy=False), folder)


def copy_to_file(url: str, path: Path, password: str | None, folder: Path | None = None) -> None:
    """Write a consistent snapshot of a PostgreSQL ledger into an empty file. `folder`: the wallet's data folder.

    Refused: `tables_missing`, `ledger_newer`, `ledger_tampered`; `store_failed` without the database.
    """
    from payagent.store.db.postgresql.hosts import newest
    from payagent.store.db.postgresql.move import write_file

    with opening(url):
        write_file(newest(url, password, folder, is_copy=True), path)


def copy_to_database(
    path: Path, url: str, password: str | None, host: str, noted: Mapping[int, int], folder: Path | None = None
) -> None:
    """Fill an empty database, of whose tables this role is the owner, with a ledger of today's form.

    `noted`: for each account of which `host` has the signer's record, the attempt in it; the ledger has it.
    `folder`: the wallet's data folder.
    Refused: `already_exists/ledger`, `ledger_newer`, `store_failed`.
    """
    from payagent.store.db.postgresql.hosts import newest
    from payagent.store.db.postgresql.move import fill

    with opening(url):
        fill(newest(url, password, folder, is_copy=True), path, host, noted)


def migrate_database(url: str, daemon_role: str | None = None) -> bool:
    """Make the tables in an empty database, or run the migrations that they lack. True if any were lacking.

    `daemon_role` gets the rights of a daemon.
    Refused: `ledger_newer`, `store_failed`; `already_running` if a living daemon does not know a migration.
    """
    from payagent.store.db.postgresql.connection import PostgresqlConnection
    from payagent.store.db.postgresql.hosts import newest
    from payagent.store.db.postgresql.migrate import bring_up_to_date

    with opening(url), closing(PostgresqlConnection(newest(url, None, None, is_copy=True))) as conn:
        return bring_up_to_date(conn, daemon_role)


def look_at_tables(url: str, password: str | None, folder: Path) -> tuple[bool, tuple[str, ...]]:
    """Whether the URL's role owns the tables, and the migrations that they lack.

    `folder`: the wallet's data folder.
    Refused: as `copy_to_file`.
    """
    from payagent.store.db.postgresql import migrate
    from payagent.store.db.postgresql.connection import PostgresqlConnection
    from payagent.store.db.postgresql.hosts import newest

    with (
        opening(url),
        closing(PostgresqlConnection(newest(url, password, folder, is_copy=False))) as conn,
    ):
        migrate.require_guards(conn)
        return migrate.owns_tables(conn), migrate.lacking(conn)
