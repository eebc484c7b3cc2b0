"""Commits on PostgreSQL, as one daemon of a fleet: through the gate, and connected again after a loss.

The outcome of a commit is unknown if the connection is lost in it, if the server does not answer in time, or if it
warns: then the commit may be missing on a standby. The callers get `store_failed`, and each account must be taken
again. After a loss between commits the accounts are held on, if nobody took them (`Seat.note_lost_connection`).

Never: cancels a statement; waits for a gate that no daemon gets through.
"""

import sqlite3
import time
from contextlib import ExitStack
from typing import Any

import structlog

from payagent.core.problems import Refused
from payagent.store.db.committer import Checkpoint, Committer, Job
from payagent.store.db.fence import SELECT_GATE, Gate, Seat
from payagent.store.db.postgresql import server
from payagent.store.db.postgresql.connection import PATIENCE_S, Database, PostgresqlConnection
from payagent.store.db.postgresql.hosts import Hosts
from payagent.store.db.postgresql.migrate import (
    bring_up_to_date,
    lacking,
    owns_tables,
    require_guards,
)
from payagent.store.db.postgresql.seals import PostgresqlSealer
from payagent.store.db.seals import Sealer
from payagent.store.db.signer_record import DatabaseMark
from payagent.store.db.unit import Heads

log = structlog.get_logger("payagent.store")

_GATE_WAIT_MS = 1_500
_DELAYS_S = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Pauses between attempts to connect again, before the jobs that wait are told."""

_END_IDLE = f"""
SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a JOIN pg_locks l ON l.pid = a.pid
WHERE l.relation = 'gate'::regclass AND l.granted AND l.mode IN ('RowShareLock', 'RowExclusiveLock')
AND a.datname = current_database() AND a.usename = current_user
AND a.state LIKE 'idle in transaction%' AND a.state_change < clock_timestamp() - INTERVAL '{_GATE_WAIT_MS} ms'
"""  # noqa: S608  our own number
"""Ends sessions of daemons that hold the gate and do nothing. One that waits for a standby is active."""

_UNKNOWN = (
    "the database did not confirm a commit, so whether it took place is unknown. Nothing was sent for it. "
    "Ask again with the same key: what was committed is found"
)


def _migrate(conn: Any) -> None:
    """Migrate the tables at the start of their owner. If that cannot be done yet, the older ones do."""
    try:
        bring_up_to_date(conn)
    except Refused as refused:
        conn.rollback()
        log.warning("ledger.not_migrated", why=refused.detail)


class PostgresqlCommitter(Committer):
    """The committer of a daemon of a fleet. For one thread at a time."""

    conn: Any
    _select_gate = f"{SELECT_GATE} FOR UPDATE".replace(" FROM", f", {server.IS_SYNCHRONOUS} FROM", 1)
    _ledger = "the database"
    _gate_tries = 4
    patience_s: float = PATIENCE_S
    jobs_max = 16
    """The other daemons wait meanwhile."""

    def __init__(
        self, database: Database | str, *, seat: Seat, checkpoint: Checkpoint = lambda _name: None
    ) -> None:
        self.hosts = Hosts(Database(database) if isinstance(database, str) else database, seat)
        """Which server the connection is to. The readers follow it."""
        place: Any = database
        super().__init__(place, checkpoint=checkpoint, seat=seat)

    def _open(self, _place: Any, on_failure: ExitStack) -> tuple[Any, Sealer]:
        holder = "" if self._seat is None else self._seat.holder
        settings = {
            "payagent.holder": holder,
            "lock_timeout": str(_GATE_WAIT_MS),
            "client_min_messages": "warning",  # a role may be set to hear no warning of a COMMIT
            "idle_in_transaction_session_timeout": "2s",
        }
        conn: Any = PostgresqlConnection(self.hosts.choose_server(), settings, self.patience_s)
        on_failure.callback(conn.close)
        is_older = bool(lacking(conn))
        self._meet(conn)  # before anything is changed on the server
        if is_older and owns_tables(conn):
            with conn.without_limit():
                _migrate(conn)
        require_guards(conn)
        return conn, PostgresqlSealer(conn)

    def _meet(self, conn: PostgresqlConnection) -> None:
        """Use a new connection. Refused: `config_invalid`, with what is wrong with the server."""
        server.require_direct(conn)
        if self._seat is not None and self._seat.is_synchronous:
            server.require_synchronous(conn)
        records = {} if self._seat is None else self._seat.records
        system, timeline = conn.system(), conn.timeline()
        is_claimed = server.require_own_ledger(conn, system, records)
        server.require_newest_timeline(timeline, max(self._timeline, self.hosts.timeline), system, records)
        self.hosts.use(system, timeline)
        if not is_claimed:
            server.claim(conn, system)
        self._system, self._timeline = system, timeline

    def _mark(self) -> DatabaseMark | None:
        return DatabaseMark(self._system, self._timeline, *self._signed_in)

    def tidy(self) -> None:
        """The server does so."""

    def _make_ready(self) -> None:
        """Connect again if the connection was lost."""
        self._notice_loss()
        for delay_s in (*_DELAYS_S, None):
            if not self.conn.is_lost:
                return
            try:
                self.conn.connect(self.hosts.choose_server())
                self._meet(self.conn)
            except (Refused, sqlite3.OperationalError) as error:
                self.conn.close()  # a server that was not looked at gets no commit
                refused = self.hosts.refuse(error)
                if isinstance(error, Refused):
                    raise refused from None
                if delay_s is None:
                    raise
                time.sleep(delay_s)

    def _enter(self, seat: Seat) -> tuple[Heads, tuple[int, ...]]:
        begun = super()._enter(seat)
        if seat.is_synchronous and not (self._gate and self._gate.is_synchronous):
            raise Refused(
                "store_failed",
                "the database waits for no standby any more, so a failover could lose payments. Nothing was "
                "committed. Set synchronous_standby_names and synchronous_commit again, then ask again",
            )
        return begun

    def _lock_gate(self) -> Gate:
        tries, version = 0, None
        while tries < self._gate_tries:
            try:
                return super()._lock_gate()
            except sqlite3.OperationalError as error:
                if self.conn.is_lost or getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY:
                    raise
            self.conn.rollback()
            self.conn.execute(_END_IDLE)
            before, version = version, self.conn.execute("PRAGMA data_version").fetchone()
            tries = tries + 1 if version == before else 1  # others commit: it is only their turn
        raise Refused(
            "store_failed",
            f"another daemon has held the gate of the database for {self._gate_tries * _GATE_WAIT_MS // 1000} s. "
            "Nothing was committed. Ask again with the same key, and check that a synchronous standby runs",
        )

    def _end(self) -> None:
        self.conn.warnings.clear()
        try:
            self.conn.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if self.conn.is_lost:
                raise Refused("store_failed", _UNKNOWN) from error
            raise
        if self.conn.warnings:
            self.conn.close()
            raise Refused("store_failed", f"{_UNKNOWN}. The database says: {self.conn.warnings[0]}")

    def _fail(self, jobs: list[Job], error: BaseException) -> None:
        super()._fail(jobs, error)
        self._notice_loss()

    def _notice_loss(self) -> None:
        if self._seat is not None and self.conn.is_lost:
            self._seat.note_lost_connection()
