"""Opens the ledger file for writing and reading; refuses one that is missing, damaged or newer; looks at its disk.

SQLite's errors about the file become refusals here, for rooms that may not import sqlite3.
Never: writes a row.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from payagent.core.problems import Refused
from payagent.store.db import schema

DatabaseError = sqlite3.DatabaseError
"""The error that reading the ledger may raise, for rooms that may not import sqlite3; `failure` translates it."""

LOG_MAX_PAGES = 8_192
"""Size of the write-ahead log (32 MiB) at which a commit must move it into the ledger.

While a snapshot is being read, the log grows further. Afterwards it is cut back to twice this size.
"""

_PAGE_BYTES = 4096

_STATEMENTS_CACHED = 512
"""Prepared statements that a connection caches. The daemon uses more than sqlite3's default of 128. A statement
that writes a guarded table takes longer to prepare, with its triggers, than to run.
"""


def is_undecodable_text(error: DatabaseError) -> bool:
    """Whether the error means that a text column is not UTF-8, in a file that is otherwise readable.

    Python's sqlite3 has no class for this error.
    """
    return isinstance(error, sqlite3.OperationalError) and str(error).startswith("Could not decode to UTF-8")


def failure(error: DatabaseError) -> Refused | None:
    """`store_failed` if the file or its disk is to blame; None if it is a bug in our SQL."""
    is_ours = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
    if not is_ours and type(error) in (sqlite3.DatabaseError, sqlite3.OperationalError):
        return Refused("store_failed", f"the ledger cannot be read or written: {error}")
    return None


@contextmanager
def opening(path: Path | str) -> Iterator[None]:
    """Inside this context, SQLite's errors about an unusable file become `store_failed`."""
    try:
        yield
    except DatabaseError as error:
        raise Refused("store_failed", f"{path} cannot be used: {error}") from None


def require_ledger(path: Path) -> None:
    """Refuse a ledger that is missing (`ledger_missing`), unreadable (`store_failed`) or newer (`ledger_newer`).

    SQLite would create a missing file, and an empty ledger knows of no earlier payment. A file without tables
    counts as missing: a copy of ledger.db without its ledger.db-wal looks like that.
    """
    if not path.exists():
        raise Refused("ledger_missing", f"{path} is missing")
    if not path.is_file():
        raise Refused("store_failed", f"{path} is not a file")
    with opening(path), closing(open_read_only(path)) as conn:
        if conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'payments'").fetchone() is None:
            raise Refused("ledger_missing", f"{path} is empty")
        schema.require_known(conn)


def open_read_only(
    path: Path, *, check_same_thread: bool = True, factory: type[sqlite3.Connection] = sqlite3.Connection
) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(
        uri,
        uri=True,
        isolation_level=None,
        check_same_thread=check_same_thread,
        cached_statements=_STATEMENTS_CACHED,
        factory=factory,
    )


def open_database(path: Path, factory: type[sqlite3.Connection] = sqlite3.Connection) -> sqlite3.Connection:
    """The writing connection: WAL with synchronous=FULL, so a commit survives a power loss.

    Savepoint journals stay in memory. A payment's is large enough that SQLite would otherwise create and delete a
    temporary file for each.
    """
    conn = sqlite3.connect(
        path,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=_STATEMENTS_CACHED,
        factory=factory,
    )
    with ExitStack() as on_failure:
        on_failure.callback(conn.close)
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("PRAGMA synchronous = FULL")
        conn.execute("PRAGMA foreign_keys = ON")
        conn.execute("PRAGMA busy_timeout = 5000")
        conn.execute("PRAGMA temp_store = MEMORY")
        conn.execute(f"PRAGMA wal_autocheckpoint = {LOG_MAX_PAGES}")
        conn.execute(f"PRAGMA journal_size_limit = {2 * LOG_MAX_PAGES * _PAGE_BYTES}")
        on_failure.pop_all()
    return conn


@contextmanager
def held_open(path: Path) -> Iterator[Callable[[Path], None]]:
    """Keep the ledger's -wal and -shm files in place.

    The last connection to close would remove them. A sandboxed process (`payagent.sandbox`) may open only files
    that existed at its start, so it could not open new ones.
    Yields a function that sets SQLite's folder for temporary files from then on.
    """
    with opening(path):
        conn = open_database(path)
    with closing(conn):
        with opening(path):
            conn.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()

        def use_for_temporary(folder: Path) -> None:
            quoted = str(folder).replace("'", "''")
            conn.execute(
                f"PRAGMA temp_store_directory = '{quoted}'"
            )  # for the whole process, not only this connection

        yield use_for_temporary


def bring_up_to_date(path: Path, without: Sequence[str] = ()) -> None:
    """Migrate a ledger that is not in use. Refused: `ledger_newer`. `without`: the last migrations, not run."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        schema.bring_up_to_date(conn, without)


def migrate(conn: sqlite3.Connection) -> None:
    """Migrate the schema and check its guards.

    Refused: `ledger_newer`; `ledger_tampered` if guard triggers are missing.
    """
    schema.bring_up_to_date(conn)
    if missing := schema.missing_guards(conn):
        raise Refused("ledger_tampered", f"ledger.db lacks the triggers {', '.join(missing)}")


ROOM_MIN_BYTES = 4 * 1024**2
"""The ledger and its log will need at least this much soon."""


def room_problem(folder: Path, statvfs: Callable[[Path], os.statvfs_result] = os.statvfs) -> str | None:
    """The problem with the folder's disk, as text. None if it has room or does not report its free space."""
    try:
        disk = statvfs(folder)
    except OSError as error:
        return f"its disk cannot be checked: {error.strerror}"
    if disk.f_flag & os.ST_RDONLY:
        return "its disk is mounted read-only"
    free_bytes = disk.f_bavail * disk.f_frsize
    if disk.f_blocks and free_bytes < ROOM_MIN_BYTES:
        return f"its disk has only {free_bytes // 1024} KiB of room"
    return None
