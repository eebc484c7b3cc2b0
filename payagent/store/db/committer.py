"""Commits several jobs (functions of a `Unit`) at once, and seals the rows that they added.

Jobs that share a commit run in savepoints: a job that raises changes nothing and does not affect the others. When
the commit itself fails, none of the jobs took place. Every job learns its result or its error.
The rows that the jobs add to the tables of record are sealed in the same commit (store.db.seals).
With an `Ownership`, a batch is committed only if no other daemon has opened the ledger since. With a `Seat` in a
fleet, each commit goes through the gate, and a job runs only if the fence says that the daemon holds its account
(store.db.fence). A batch that added an attempt is answered only after the signer's own record has that attempt
(store.db.signer_record).

Never: runs a job twice; reports a job as done before its commit is durable.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from payagent.core.problems import Refused
from payagent.store.db.fence import (
    SELECT_GATE,
    SIGNING,
    Gate,
    Seat,
    claims_of,
    fail_over,
    lease_lost,
    leave_gate,
    make_gate,
    publish_noted,
    unproven,
)
from payagent.store.db.opening import DatabaseError, failure, migrate, open_database, opening
from payagent.store.db.schema import migrations_after, newest_migration
from payagent.store.db.seals import SEALED, Sealer
from payagent.store.db.signer_record import (
    DatabaseMark,
    LastSigned,
    SignerRecord,
    caught_up_at,
    lacks,
    last_signed,
    signer_file,
)
from payagent.store.db.unit import SELECT_HEADS, Connection, Heads, Unit

log = structlog.get_logger("payagent.store")

Checkpoint = Callable[[str], None]
"""Called with "before NAME" and "after NAME" for each job around the commit. Tests kill the process here."""


_SELECT_BEGIN = (
    "SELECT (SELECT epoch FROM boot), "  # noqa: S608  our own names
    f"(SELECT data_version FROM pragma_data_version), {SELECT_HEADS}"
)
_ATTEMPTS = SEALED.index("attempts")
_ENTRIES = SEALED.index("entries")


@dataclass(slots=True)
class Job:
    """A job that waits for its commit; then its result, or the error that it or the commit raised.

    `account`: the account of the wallet that it works for, if it works for one. `epoch`: of that account, when the
    daemon asked for the job; None if it did not hold the account. `losses`: how often the seat had lost all
    accounts then. The epoch alone is not enough: if a failover loses a takeover, the next one gets the same epoch.
    """

    name: str
    run: Callable[[Unit], Any]
    unit: Unit
    account: int | None = None
    epoch: int | None = None
    losses: int = 0
    result: Any = None
    raised: BaseException | None = None

    def outcome(self) -> Any:
        """The result, or raise the error. Call it only after the commit."""
        if self.raised is not None:
            raise self.raised
        return self.result


class SealingError(Exception):
    """The rows that a commit added could not be sealed: our bug, not a disk error. Nothing was committed."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """One process's claim to be the only one that writes a ledger and signs for it.

    `epoch` is random and new at each start. `records`: of the wallet's accounts. Each gets its last attempt after
    the commit and before any caller learns of it. `on_lost` is called on the writer's thread when another daemon
    has taken over the ledger.
    """

    epoch: str
    records: Mapping[int, SignerRecord]
    on_lost: Callable[[], None] = lambda: None


def _take_over(conn: Connection, epoch: str) -> None:
    """Write our epoch. A process that opened the ledger earlier can commit nothing from now on."""
    conn.execute(
        "INSERT INTO boot(one, epoch) VALUES (1, ?) ON CONFLICT (one) DO UPDATE SET epoch = excluded.epoch",
        (epoch,),
    )


class Committer:
    """Owns the writing connection and makes one commit of several jobs. For one thread at a time."""

    _select_gate = SELECT_GATE
    _timeline = 0
    """Of the database; a file has none."""
    _ledger = "ledger.db"
    jobs_max = 256
    """How many jobs may share a commit."""

    def __init__(
        self,
        path: Path,
        *,
        checkpoint: Checkpoint = lambda _name: None,
        own: Ownership | None = None,
        seat: Seat | None = None,
    ) -> None:
        """`own` for a daemon alone on its ledger, `seat` for one of a fleet; neither for another program."""
        self._own, self._seat = own, seat
        self._gate: Gate | None = None
        self._known: dict[int, int] = {}
        """The epochs of the accounts whose signer's record was compared with the ledger."""
        self._signed_in = (0, "")
        """Number and hash of the event that ended the last commit, if that commit added an attempt."""
        with opening(path), ExitStack() as on_failure:
            self.conn, self._sealer = self._open(path, on_failure)
            if seat is not None:
                make_gate(self.conn, newest_migration(), self._timeline)
            self._records = {} if own is None else own.records
            self._noted = dict.fromkeys(self._records, 0)
            self._may_lack = own is not None
            if own is not None:
                _take_over(self.conn, own.epoch)
                for account, record in self._records.items():
                    self._noted[account] = self._initially_noted(account, record.read())
                with suppress(Refused):  # on failure it is retried before the first commit
                    self._note_signed()
            on_failure.pop_all()
        self._checkpoint = checkpoint
        self.commits = 0

    def _open(self, path: Path, on_failure: ExitStack) -> tuple[Connection, Sealer]:
        conn = open_database(path)
        on_failure.callback(conn.close)
        path.chmod(0o600)
        migrate(conn)
        return conn, Sealer(conn)

    def job(self, name: str, run: Callable[[Unit], Any], account: int | None = None) -> Job:
        """A job for a later `commit`. Make it in the task that asks for it."""
        if self._seat is None or account is None:
            return Job(name, run, Unit(self.conn), account)
        losses = self._seat.losses  # read first, since the writer's thread may be losing the account now
        return Job(name, run, Unit(self.conn), account, self._seat.held.get(account), losses)

    def commit(self, jobs: list[Job]) -> None:
        """Run the jobs and leave the result or the error in each. Never raises."""
        try:
            self._make_ready()
            self._note_signed()
            heads, before = self._begin()
            if self._seat is not None and self._seat.on_connect is not None and not self._seat.is_compared:
                first = self.job("connect", self._seat.on_connect)
                jobs = [first, *jobs]
                first.unit.begin(heads)
                first.run(first.unit)  # nothing is committed if it fails
            if len(jobs) == 1 and self._seat is None:
                before = self._run_alone(jobs[0], heads) or before
            else:
                for job in jobs:
                    self._run_one(job, heads)
            last = self._seal(before)
            self._leave(heads)
            for job in jobs:
                self._checkpoint(f"before {job.name}")
            if self._seat is not None:
                self._seat.is_in_doubt = True
            self._end()
        except BaseException as error:  # noqa: BLE001  a thread that ends here would leave its callers waiting
            self._fail(jobs, error)
            return
        self.commits += 1
        if self._seat is None:
            self._sealer.keep(last)
        else:
            self._seat.last_event = (heads.event_seq, heads.event_hash)
            self._seat.is_in_doubt = False
        has_signed = bool(self._records) and last[_ATTEMPTS] != before[_ATTEMPTS]
        self._may_lack |= has_signed
        self._signed_in = (heads.event_seq, heads.event_hash) if has_signed else (0, "")
        # the commit is durable: an error from a checkpoint must not reach the jobs' callers
        with suppress(BaseException):
            for job in jobs:
                self._checkpoint(f"after {job.name}")
        try:
            self._note_signed()
        except Exception as error:  # noqa: BLE001  the commit stays durable, but no attempt leaves before it is noted
            for job in jobs:
                job.raised = _for_caller(error)

    def _make_ready(self) -> None:
        """Before each commit. A file is always ready."""

    def tidy(self) -> None:
        """Move the write-ahead log into the ledger. An error fails no commit; the log only keeps growing."""
        try:
            self.conn.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except Exception as error:  # noqa: BLE001  SQLite out of memory is a MemoryError; the thread goes on
            log.warning("ledger.log_grows", why=str(error) or type(error).__name__)

    def is_noted(self, attempt: int | None, account: int = 0) -> bool:
        """Whether the signer's record of the account has the attempt of this number. True without a record.

        In a fleet, False for an account that this daemon does not hold (`store.rows.fleet.is_noted`).
        """
        if attempt is None or (self._own is None and self._seat is None):
            return True
        is_ours = self._seat is None or account in self._seat.held
        return is_ours and attempt <= self._noted.get(account, 0)

    def close(self) -> None:
        self.conn.close()

    def _initially_noted(self, account: int, signed: LastSigned | None) -> int:
        """The last attempt that counts as noted already: 0, unless the ledger is older than the signer's record.

        An older ledger leaves the record unchanged until a new attempt is signed.
        """
        last = last_signed(self.conn, account)
        if last is None or not lacks(self.conn, signed, account):
            return 0
        caught_up = caught_up_at(self.conn, signed, account)
        return last.attempts if caught_up is None else caught_up

    def _note_signed(self) -> None:
        """Write each account's last attempt to the signer's own record before any caller can use the attempt.

        Runs at the start too, for an attempt that a killed process had no time to note.
        """
        self._meet_accounts()
        if not self._may_lack:
            return
        for account, record in self._records.items():
            last = last_signed(self.conn, account)
            if last is not None and last.attempts > self._noted[account]:
                try:
                    record.write(replace(last, database=self._mark()))
                except OSError as error:
                    detail = f"{signer_file(account)}, the signer's own record, could not be written: {error}"
                    raise Refused("store_failed", detail) from error
                self._noted[account] = last.attempts
        self._may_lack = False

    def _mark(self) -> DatabaseMark | None:
        """Which database the ledger is in, for the signer's record. A file has none."""
        return None

    def _meet_accounts(self) -> None:
        """In a fleet: use the records of the accounts held now. Each is compared with the ledger at a takeover."""
        if self._seat is None or self._seat.held == self._known:
            return
        held = self._seat.held
        self._records = {account: self._seat.records[account] for account in held}
        for account in held:
            if self._known.get(account) != held[account]:
                self._noted[account] = self._initially_noted(account, self._records[account].read())
                self._may_lack = True
        self._known = dict(held)

    def _begin(self) -> tuple[Heads, tuple[int, ...]]:
        """Begin a commit: its heads, and each table's last row.

        Refused: `lease_lost`, if another daemon has written its epoch. It owns the ledger now.
        """
        if self._seat is not None:
            return self._enter(self._seat)
        self.conn.execute("BEGIN IMMEDIATE")
        epoch, version, *heads = self.conn.execute(_SELECT_BEGIN).fetchone()
        if self._own is not None and epoch != self._own.epoch:
            self._own.on_lost()
            raise Refused("lease_lost", "another daemon has opened this ledger, so this one stopped writing")
        return Heads(*heads), self._sealer.last_rows(version)

    def _enter(self, seat: Seat) -> tuple[Heads, tuple[int, ...]]:
        """Begin a commit of a fleet: lock the gate, then ask the fence. Each is a statement of its own.

        Refused: `ledger_newer`, if a newer payagent changed the tables. Its daemons take the accounts over.
        """
        self._gate = self._lock_gate()
        try:
            migrations_after(self._gate.schema)
        except Refused:
            seat.begin_anew()
            raise
        if self._gate.timeline != self._timeline:
            fail_over(self.conn, self._gate.timeline, self._timeline, is_synchronous=seat.is_synchronous)
        claims = claims_of(self.conn, seat.holder)
        seat.check(claims, self._timeline)
        is_known = seat.is_compared or seat.on_connect is None  # an older ledger in its place lacks the attempts
        for account in seat.held if is_known else ():
            noted = self._noted.get(account, 0)
            if account in self._known and noted > claims[account].noted:
                publish_noted(self.conn, seat.host, account, noted)
        rows = self._sealer.last_rows()
        return Heads(self._gate.event_seq, self._gate.event_hash, rows[_ENTRIES]), rows

    def _lock_gate(self) -> Gate:
        self.conn.execute("BEGIN IMMEDIATE")
        return Gate(*self.conn.execute(self._select_gate).fetchone())

    def _leave(self, heads: Heads) -> None:
        """The last write of a commit of a fleet."""
        if self._gate is not None:
            seal_seq, seal_hash = self._sealer.head
            chains = (heads.event_seq, heads.event_hash, seal_seq, seal_hash)
            leave_gate(self.conn, Gate(*chains, self._timeline, self._gate.schema))

    def _end(self) -> None:
        self.conn.execute("COMMIT")

    def _seal(self, before: tuple[int, ...]) -> tuple[int, ...]:
        try:
            return self._sealer.seal(before)
        except DatabaseError:
            raise
        except Exception as error:
            raise SealingError(repr(error)) from error

    def _run_alone(self, job: Job, heads: Heads) -> tuple[int, ...] | None:
        """Run the only job of a commit, without a savepoint.

        If it raises, the commit begins anew and stays empty. Returns each table's last row then.
        """
        job.unit.begin(heads)
        try:
            job.result = job.run(job.unit)
        except Exception as error:
            if not self.conn.in_transaction:
                raise  # a full or failing disk made SQLite roll back
            job.raised = _for_caller(error)
            job.unit.roll_back_memory()
            self.conn.execute("ROLLBACK")
            return self._begin()[1]
        return None

    def _run_one(self, job: Job, heads: Heads) -> None:
        if self._is_fenced_off(job):
            return
        job.unit.begin(heads)
        self.conn.execute("SAVEPOINT job")
        try:
            job.result = job.run(job.unit)
        except Exception as error:
            if not self.conn.in_transaction:
                raise  # a full or failing disk made SQLite roll back the whole batch
            job.raised = _for_caller(error)
            job.unit.roll_back_memory()
            self.conn.execute("ROLLBACK TO job")
        self.conn.execute("RELEASE job")

    def _is_fenced_off(self, job: Job) -> bool:
        """Refuse a job (`lease_lost`) whose account the daemon does not hold, or lost since it was asked for."""
        if self._seat is None or job.account is None:
            return False
        held = self._seat.held.get(job.account), self._seat.losses
        if job.epoch is None or held != (job.epoch, job.losses):
            job.raised = lease_lost(job.account)
        elif job.name in SIGNING and not self._seat.is_proven(job.account):
            job.raised = unproven(job.account)
        return job.raised is not None

    def _fail(self, jobs: list[Job], error: BaseException) -> None:
        """Undo the whole batch in memory, newest job first, and give every job the error."""
        problems = [error]
        for undo in (*(job.unit.roll_back_memory for job in reversed(jobs)), self.conn.rollback):
            try:
                undo()
            except BaseException as undo_error:  # noqa: BLE001  the rest must still be undone
                problems.append(undo_error)
        reported = error
        if not isinstance(error, (Refused, SealingError)) or len(problems) > 1:
            reasons = "; ".join(str(problem) or type(problem).__name__ for problem in problems)
            reported = Refused("store_failed", f"{self._ledger} could not be written: {reasons}")
        for job in jobs:
            job.raised = reported


def _for_caller(error: Exception) -> Exception:
    """The error that a job's caller gets. A future cannot hold a `StopIteration`."""
    if isinstance(error, StopIteration):
        return RuntimeError(f"a job raised {error!r}")
    return (failure(error) if isinstance(error, DatabaseError) else None) or error
