"""Opens a ledger on PostgreSQL for a daemon of a fleet.

May import: store.db. Never: imports psycopg for a file.
"""

from pathlib import Path

from payagent.store.db.committer import Checkpoint
from payagent.store.db.fence import Seat
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

    database = Database(url, password)
    writer = Writer(PostgresqlCommitter(database, seat=seat, checkpoint=checkpoint))
    return writer, PostgresqlReaders(database, folder)
