"""Opens the ledger's file, for writing and for reading; refuses one that is missing, damaged or newer.

What SQLite raises about the file becomes a refusal here, for those who must not know SQLite.
May import: core, store.db, sqlite3, sqlite-utils. Never: writes a row.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from sqlite_utils import Database

from payagent.core.problems import Refused
from payagent.store.db.schema import migrations, missing_guards, newer_migrations

DatabaseError = sqlite3.DatabaseError
"""What reading the ledger may raise, under a name for rooms that must not know SQLite; `failure` explains it."""

LOG_MAX_PAGES = 8_192
"""How long the write-ahead log grows (32 MiB) before a commit has to move it into the ledger. While somebody reads
from a snapshot it grows further; after that it gives back what is more than twice as much."""

_PAGE_BYTES = 4096

_STATEMENTS_KEPT = 512
"""How many prepared statements a connection keeps. The daemon uses more than sqlite3's default of 128, and one
that writes a guarded table takes longer to prepare, with its triggers, than to run."""


def is_no_text(error: DatabaseError) -> bool:
    """Whether the error is that a text column is not UTF-8; the file itself can be read.

    Python's sqlite3 has no class of its own for that.
    """
    return isinstance(error, sqlite3.OperationalError) and str(error).startswith("Could not decode to UTF-8")


def failure(error: DatabaseError) -> Refused | None:
    """`store_failed` when the file or its disk is to blame; None when it is our SQL, a bug."""
    is_ours = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
    if not is_ours and type(error) in (sqlite3.DatabaseError, sqlite3.OperationalError):
        return Refused("store_failed", f"ledger.db cannot be read or written: {error}")
    return None


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Within it, what SQLite raises about a file that it cannot use becomes `store_failed`."""
    try:
        yield
    except DatabaseError as error:
        raise Refused("store_failed", f"{path} cannot be used: {error}") from None


def require_ledger(path: Path) -> None:
    """Refuse to go on with books that are not there (`ledger_missing`), unreadable (`store_failed`) or newer
    (`ledger_newer`).

    SQLite creates what it does not find, and an empty ledger knows nothing of what was paid. A file without tables
    counts as missing: a copy of ledger.db that was made without its ledger.db-wal looks like that.
    """
    if not path.exists():
        raise Refused("ledger_missing", f"{path} is not there")
    if not path.is_file():
        raise Refused("store_failed", f"{path} is not a file")
    with opening(path), closing(open_read_only(path)) as conn:
        if conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'payments'").fetchone() is None:
            raise Refused("ledger_missing", f"{path} is empty")
        _require_known(conn)


def open_read_only(
    path: Path, *, check_same_thread: bool = True, factory: type[sqlite3.Connection] = sqlite3.Connection
) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(
        uri,
        uri=True,
        isolation_level=None,
        check_same_thread=check_same_thread,
        cached_statements=_STATEMENTS_KEPT,
        factory=factory,
    )


def open_database(path: Path) -> sqlite3.Connection:
    """The writing connection: WAL with synchronous=FULL, so that a commit survives the loss of power.

    Savepoints keep what they would restore in memory: a payment's is large enough that SQLite would otherwise make
    and remove a file for each.
    """
    conn = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=_STATEMENTS_KEPT)
    with ExitStack() as refused:
        refused.callback(conn.close)
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("PRAGMA synchronous = FULL")
        conn.execute("PRAGMA foreign_keys = ON")
        conn.execute("PRAGMA busy_timeout = 5000")
        conn.execute("PRAGMA temp_store = MEMORY")
        conn.execute(f"PRAGMA wal_autocheckpoint = {LOG_MAX_PAGES}")
        conn.execute(f"PRAGMA journal_size_limit = {2 * LOG_MAX_PAGES * _PAGE_BYTES}")
        refused.pop_all()
    return conn


@contextmanager
def held_open(path: Path) -> Iterator[Callable[[Path], None]]:
    """Keep the ledger's -wal and -shm files in place: the last connection that closes would remove them, and a
    process that may read only what was there at its start (`fence`) could not open new ones.

    Yields the function that tells SQLite where to make temporary files from then on.
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
            )  # of the whole process, not of the connection

        yield use_for_temporary


def bring_up_to_date(path: Path) -> None:
    """Give a ledger that nobody uses the schema of now; refuse (`ledger_newer`) one of a newer payagent."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        _bring_up_to_date(conn)


def _bring_up_to_date(conn: sqlite3.Connection) -> None:
    _require_known(conn)
    database = Database(conn)
    if migrations.pending(database):
        migrations.apply(database)


def migrate(conn: sqlite3.Connection) -> None:
    """Bring the schema up to date.

    Refused: `ledger_newer`; `ledger_changed` for one whose guards were taken off.
    """
    _bring_up_to_date(conn)
    if missing := missing_guards(conn):
        raise Refused("ledger_changed", f"ledger.db lacks the triggers {', '.join(missing)}")


def _require_known(conn: sqlite3.Connection) -> None:
    if newer := newer_migrations(conn):
        raise Refused("ledger_newer", f"ledger.db was changed by a newer payagent: {', '.join(newer)}")
