"""A connection to PostgreSQL with the part of `sqlite3.Connection` that the store uses.

It runs the store's SQL texts, which both engines read (`postgresql_text` has the rest), and raises the errors of
sqlite3 that the store catches. Like a connection to the file it begins no transaction by itself.
An integer goes as int8, whatever its size. Sums come back as int, and JSON as the text that was written.
A server that does not answer is given up after a few seconds. Only a server that takes writes is connected to, so
after a failover that is the new one.

Never: retries a statement; cancels one.
"""

import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_address
from typing import Any, TypeVar

import psycopg
from psycopg import RawCursor, pq
from psycopg.abc import PQGen
from psycopg.adapt import Loader
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import TextLoader

from payagent.core.problems import Refused

T = TypeVar("T")

PATIENCE_S = 30
"""How long an answer may take. A primary that lost its standbys answers no COMMIT for as long as it runs."""

_PREPARED_MAX = 512
"""Prepared statements that a connection keeps, as on SQLite."""

_STREAMED_ROWS = 1_000

_TOKENS = re.compile(
    r"(?P<kept>'(?:[^']|'')*')|\?(?P<number>\d*)|(?P<hint> INDEXED BY \w+)|\b(?P<word>CROSS JOIN|json_array\()"
)
_WORDS = {"CROSS JOIN": "JOIN", "json_array(": "json_build_array("}
"""CROSS JOIN with ON fixes the order of two tables, on SQLite alone."""

_STATEMENTS = {
    "BEGIN IMMEDIATE": "BEGIN",
    # every commit writes the gate, and this is the number of the last one
    "PRAGMA data_version": "SELECT xmin::text::bigint FROM gate",
}

_DEFAULTS: Mapping[str, Any] = {"hostaddr": "", "ssl_min_protocol_version": "TLSv1.2"}
"""For what the URL does not say. Without them the environment (PGHOSTADDR) would say it."""

_OPTIONS: Mapping[str, Any] = {
    "gssencmode": "disable",  # libpq would take it in place of TLS, whatever sslmode says
    "client_encoding": "utf8",
    "target_session_attrs": "read-write",
    "connect_timeout": 3,
    "keepalives": 1,
    "keepalives_idle": 1,
    "keepalives_interval": 1,
    "keepalives_count": 2,
    "tcp_user_timeout": 3_000,
}

_LOCK_TIMEOUT = "55P03"
_NO_RIGHT = "42501"

_NOT_TEXT = ("22021", "22P02", "22P05")
"""PostgreSQL's codes for a text or JSON with the character NUL, or with half of a surrogate pair."""


@cache
def postgresql_text(sql: str) -> str:
    """The text of a statement as PostgreSQL reads it: `?` and `?2` become `$1` and `$2`, SQLite's hints go."""
    count = 0

    def translated(found: re.Match[str]) -> str:
        nonlocal count
        if found["kept"] is not None or found["hint"] is not None:
            return found["kept"] or ""
        if found["word"] is not None:
            return _WORDS[found["word"]]
        count += 1
        return f"${found['number'] or count}"

    return _STATEMENTS.get(sql) or _TOKENS.sub(translated, sql)


class _WholeLoader(Loader):
    """SUM of int8 is a numeric on PostgreSQL; the store adds up integers alone."""

    def load(self, data: Any) -> int:
        return int(bytes(data))


@dataclass(frozen=True, slots=True)
class Database:
    """A database. `url` has no password. `place`: the parameters of one of its hosts, in place of all of them.

    `generation`: grows with each connection of a daemon's writer, so that its readers connect again as well.
    """

    url: str
    password: str | None = field(default=None, repr=False)
    place: Mapping[str, Any] = field(default_factory=dict)
    generation: int = 0

    def __str__(self) -> str:
        return self.url

    @property
    def host(self) -> str:
        """That host and its port, as the URL names them."""
        return ":".join(filter(None, self.place.values())) or "localhost"


def parameters_of(database: Database) -> dict[str, Any]:
    """What a connection is made with, but for the password.

    Refused: `config_invalid` if another host may answer in place of the server, and read the password.
    """
    given = {**_DEFAULTS, **psycopg.conninfo.conninfo_to_dict(database.url), **_OPTIONS, **database.place}
    given["require_auth"] = "none,scram-sha-256" if database.password is None else "scram-sha-256"
    address = str(given["hostaddr"] or given.get("host", ""))
    if not all(map(_is_here, address.split(","))) and given.get("sslmode") != "verify-full":
        raise Refused(
            "config_invalid",
            f"{address or 'the default host'} is not this machine, and the URL of the database does not have "
            "sslmode=verify-full: whoever answers there could read the password and the ledger. Nothing was sent. "
            "Add sslmode=verify-full to the URL, and sslrootcert with the file of the server's CA",
        )
    return given


def _is_here(host: str) -> bool:
    """Whether it is a Unix socket, or an address of this machine."""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost" or host.startswith(("/", "@"))


class _Session(psycopg.Connection[Any]):
    """Leaves a server that does not answer within `patience_s`: the connection is lost then. None: it waits."""

    patience_s: float | None = None

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        try:
            return super().wait(gen, interval, self.patience_s if timeout is None else timeout)
        except psycopg.OperationalError as error:
            if error.sqlstate is not None or self.info.transaction_status != pq.TransactionStatus.ACTIVE:
                raise
            self.close()
            raise psycopg.errors.LockNotAvailable(f"no answer in {self.patience_s} s") from error


class PostgresqlConnection:
    """One connection. For one thread at a time, unless it only reads."""

    total_changes = 0
    """Changes of its own that PRAGMA data_version does not show: none, unlike on SQLite."""

    def __init__(
        self,
        database: Database | str,
        settings: Mapping[str, str] | None = None,
        patience_s: float | None = None,
    ) -> None:
        """`settings`: of the session, by their names. `patience_s`: how long an answer may take; None: for ever.

        sqlite3.OperationalError if the server cannot be reached.
        """
        self.database = Database(database) if isinstance(database, str) else database
        self._settings = settings or {}
        self._patience_s = patience_s
        self.warnings: list[str] = []
        """What the server warned of. A warning at a COMMIT means that a standby may lack it."""
        self.connect()

    def connect(self, database: Database | None = None) -> None:
        """Connect, or connect again, to another server if one is given.

        sqlite3.OperationalError if the server cannot be reached. Refused: as `parameters_of`.
        """
        self.database = database or self.database
        try:
            self._conn = _Session.connect(
                autocommit=True,
                cursor_factory=RawCursor,
                password=self.database.password,
                **parameters_of(self.database),
            )
        except psycopg.Error as error:
            raise _for_the_store(error) from error
        self._conn.patience_s = self._patience_s
        self._role = self._conn.info.user
        self._conn.prepared_max = _PREPARED_MAX
        self._conn.add_notice_handler(self._take_notice)
        adapters = self._conn.adapters
        adapters.register_dumper(int, Int8Dumper)
        adapters.register_loader("numeric", _WholeLoader)
        adapters.register_loader("json", TextLoader)
        for name, value in self._settings.items():
            PostgresqlConnection.execute(self, "SELECT set_config(?, ?, FALSE)", (name, value))

    def _take_notice(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self.warnings.append(str(notice.message_primary))

    @property
    def is_lost(self) -> bool:
        """Whether the connection broke or was closed."""
        return self._conn.closed

    def clock_ms(self) -> int:
        """The time by the server's clock, in milliseconds since 1970 UTC."""
        (now_ms,) = self.execute("SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000)::bigint").fetchone() or (
            0,
        )
        return int(now_ms)

    @property
    def is_direct(self) -> bool:
        """Whether the session is the server's own. A pooler gives out numbers of its own for its sessions."""
        return self.execute("SELECT pg_backend_pid()").fetchone() == (self._conn.info.backend_pid,)

    def system(self) -> str:
        """The identifier of the server's data, which its standbys share."""
        (system,) = self.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone() or ("",)
        return str(system)

    def timeline(self) -> int:
        """The number of the server's history. It rises with each failover."""
        (file,) = self.execute("SELECT pg_walfile_name(pg_current_wal_lsn())").fetchone() or ("0",)
        return int(file[:8], 16)

    def execute(self, sql: str, values: Sequence[object] = ()) -> "psycopg.Cursor[Any]":
        """Run one statement of the store. Its rows are tuples.

        sqlite3.DatabaseError, or a subclass as SQLite raises it. Refused: `store_failed` for a text that
        PostgreSQL cannot hold.
        """
        try:
            return self._conn.execute(postgresql_text(sql), values)
        except psycopg.Error as error:
            raise _for_the_store(error, self._role) from error

    @contextmanager
    def without_limit(self) -> Iterator[None]:
        """Wait for the server as long as it takes, inside this context."""
        self._conn.patience_s = None
        try:
            yield
        finally:
            self._conn.patience_s = self._patience_s

    def executemany(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        with self._conn.cursor() as cursor:
            try:
                cursor.executemany(postgresql_text(sql), rows)
            except psycopg.Error as error:
                raise _for_the_store(error, self._role) from error

    def copy_in(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Add many rows to a table. Errors: as `execute`."""
        try:
            with (
                self._conn.cursor() as cursor,
                cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as to,
            ):
                for row in rows:
                    to.write_row(row)
        except psycopg.Error as error:
            raise _for_the_store(error, self._role) from error

    def stream(self, sql: str) -> Iterator[tuple[Any, ...]]:
        """The rows of a query without values, by a cursor on the server. Inside a transaction."""
        try:
            with self._conn.cursor("rows") as cursor:
                cursor.itersize = _STREAMED_ROWS
                cursor.execute(postgresql_text(sql))
                yield from cursor
        except psycopg.Error as error:
            raise _for_the_store(error, self._role) from error

    @property
    def in_transaction(self) -> bool:
        return self._conn.info.transaction_status != pq.TransactionStatus.IDLE

    def rollback(self) -> None:
        """Undo the open transaction. The server does so itself if the connection is lost."""
        if not self.is_lost:
            self._conn.rollback()

    def close(self) -> None:
        self._conn.close()


def _for_the_store(error: psycopg.Error, role: str = "") -> Exception:
    """The error as the store knows it: a rule that a row breaks, a bug in our SQL, or a database out of reach."""
    if error.sqlstate in _NOT_TEXT or (isinstance(error, psycopg.DataError) and "NUL" in str(error)):
        return Refused(
            "store_failed",
            "a text holds the character NUL or half of a character, which PostgreSQL cannot store: "
            "nothing was committed; send the text without it",
        )
    if isinstance(error, psycopg.IntegrityError):
        return sqlite3.IntegrityError(error.diag.message_primary)
    if error.sqlstate == _NO_RIGHT:
        return sqlite3.OperationalError(
            f"the role {role} lacks a right: {error.diag.message_primary}. As the owner of the tables, run "
            f"`payagent store migrate --daemon-role {role}`"
        )
    found = sqlite3.OperationalError(str(error))
    if error.sqlstate == _LOCK_TIMEOUT or isinstance(error, psycopg.errors.ConnectionTimeout):
        found.sqlite_errorcode = sqlite3.SQLITE_BUSY
    if isinstance(error, (psycopg.ProgrammingError, psycopg.DataError)):
        found.sqlite_errorcode = sqlite3.SQLITE_ERROR
    return found
