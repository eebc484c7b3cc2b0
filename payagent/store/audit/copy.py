"""Takes a consistent snapshot of the ledger while the daemon keeps writing; describes the contents of a copy.

Never: writes to the ledger that it copies.
"""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from payagent.core.problems import Refused
from payagent.store.db.opening import DatabaseError, open_read_only
from payagent.store.rows import about, payments


@dataclass(frozen=True, slots=True)
class Contents:
    """The network and address of a ledger (None before its first start), and its number of payments."""

    network: str | None
    address: str | None
    payments: int
    open_payments: int


def copy_ledger(path: Path, target: Path) -> None:
    """Copy the ledger page by page in one read transaction. The copy needs no -wal file beside it.

    Refused: `write_failed/backup`.
    """
    try:
        with (
            closing(open_read_only(path)) as source,
            closing(sqlite3.connect(target, isolation_level=None)) as copy,
        ):
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
    except DatabaseError as error:
        raise Refused("write_failed/backup", f"{path} cannot be copied: {error}") from None


def contents(conn: sqlite3.Connection) -> Contents:
    count, open_count = payments.payment_counts(conn)
    network, address = about.meta(conn, "network"), about.meta(conn, "address")
    return Contents(network, address, count, open_count)
