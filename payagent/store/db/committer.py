"""Makes one commit of several jobs (functions of a `Unit`), and seals what they added.

Each job runs in a savepoint of its own, so one that raises leaves no trace and does not touch its neighbours. When
the commit itself fails, none of them happened. Whatever is raised, each job is told what came of it.
What the jobs add together to the tables of record is sealed in the same commit (store.db.seals).
With an `Ownership`, a batch is committed only while no other daemon has opened the ledger since, and a batch that
added an attempt is answered only once the signer's own record has it (store.db.signer_record).

May import: core, store.db, sqlite3, structlog. Never: runs a job twice; says that a job is done before its commit
is durable.
"""

import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from payagent.core.problems import Refused
from payagent.store.db.opening import DatabaseError, failure, migrate, open_database, opening
from payagent.store.db.seals import Sealer
from payagent.store.db.signer_record import SIGNER_FILE, LastSigned, SignerRecord, caught_up_at, lacks, last_signed
from payagent.store.db.unit import Unit

log = structlog.get_logger("payagent.store")

Checkpoint = Callable[[str], None]
"""Called with "before NAME" and "after NAME" of each job around the commit; where tests kill the process."""


@dataclass(slots=True)
class Job:
    """A job that waits for its commit, and what came of it: its result, or what it or the commit raised."""

    name: str
    run: Callable[[Unit], Any]
    unit: Unit
    result: Any = None
    raised: BaseException | None = None

    def outcome(self) -> Any:
        """The result; once the commit was made, and not before."""
        if self.raised is not None:
            raise self.raised
        return self.result


class SealingError(Exception):
    """A bug of ours, and not the disk's: what a commit added could not be sealed. None of it happened."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """One process's claim to be the only one that writes a ledger and signs by it.

    `epoch` is random and new with each start. `record` is told of the last attempt after its commit and before
    anybody learns of it. `on_lost` is called on the writer's thread when another daemon has taken the ledger over.
    """

    epoch: str
    record: SignerRecord
    on_lost: Callable[[], None] = lambda: None


def _take_over(conn: sqlite3.Connection, epoch: str) -> None:
    """From here on, a process that opened the ledger earlier commits nothing more."""
    conn.execute(
        "INSERT INTO boot(one, epoch) VALUES (1, ?) ON CONFLICT DO UPDATE SET epoch = excluded.epoch", (epoch,)
    )


class Committer:
    """Owns the writing connection: makes one commit of several jobs. One thread at a time."""

    def __init__(
        self, path: Path, *, checkpoint: Checkpoint = lambda _name: None, own: Ownership | None = None
    ) -> None:
        with opening(path), ExitStack() as refused:
            self.conn = open_database(path)
            refused.callback(self.conn.close)
            path.chmod(0o600)
            migrate(self.conn)
            self._sealer = Sealer(self.conn)
            self._own = own
            self._noted = 0
            if own is not None:
                _take_over(self.conn, own.epoch)
                self._noted = self._not_to_be_noted(own.record.read())
                with suppress(Refused):  # else before the first commit
                    self._note_signed()
            refused.pop_all()
        self._checkpoint = checkpoint
        self.commits = 0

    def commit(self, jobs: list[Job]) -> None:
        """Run the jobs and leave in each what came of it, whatever is raised."""
        try:
            self._note_signed()
            self.conn.execute("BEGIN IMMEDIATE")
            self._require_ours()
            before = self._sealer.last_rows()
            for job in jobs:
                self._run_one(job)
            last = self._seal(before)
            for job in jobs:
                self._checkpoint(f"before {job.name}")
            self.conn.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001  a thread that ends here would leave its callers waiting
            self._fail(jobs, error)
            return
        self._sealer.keep(last)
        self.commits += 1
        # the commit is durable: nothing that a checkpoint raises makes it an error to those who wait for it
        with suppress(BaseException):
            for job in jobs:
                self._checkpoint(f"after {job.name}")
        try:
            self._note_signed()
        except Exception as error:  # noqa: BLE001  what is durable stays so, and leaves only once it is noted
            for job in jobs:
                job.raised = error

    def tidy(self) -> None:
        """Move the write-ahead log into the ledger. An error fails no commit: the log just goes on growing."""
        try:
            self.conn.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except Exception as error:  # noqa: BLE001  SQLite's lack of memory is a MemoryError; the thread goes on
            log.warning("ledger.log_grows", why=str(error) or type(error).__name__)

    def is_noted(self, attempt: int | None) -> bool:
        """Whether the signer's own record has the attempt of this number; where none is kept, all are."""
        return self._own is None or attempt is None or attempt <= self._noted

    def close(self) -> None:
        self.conn.close()

    def _not_to_be_noted(self, signed: LastSigned | None) -> int:
        """How many attempts of a ledger that lacks some are older than the signer's record: it stays as it is."""
        last = last_signed(self.conn)
        if last is None or not lacks(self.conn, signed):
            return 0
        caught_up = caught_up_at(self.conn, signed)
        return last.attempts if caught_up is None else caught_up

    def _note_signed(self) -> None:
        """Note what was signed outside the ledger too, before anybody can use it.

        Done at the start as well, for what a killed process had no time to note.
        """
        if self._own is None:
            return
        last = last_signed(self.conn)
        if last is not None and last.attempts > self._noted:
            try:
                self._own.record.write(last)
            except OSError as error:
                told = f"{SIGNER_FILE}, the signer's own record, could not be written: {error}"
                raise Refused("store_failed", told) from error
            self._noted = last.attempts

    def _require_ours(self) -> None:
        """Refuse to write (`lease_lost`) when another daemon has left its epoch: it owns the ledger now."""
        if self._own is None:
            return
        row = self.conn.execute("SELECT epoch FROM boot").fetchone()
        if row != (self._own.epoch,):
            self._own.on_lost()
            raise Refused("lease_lost", "another daemon has opened this ledger since: this one writes no more")

    def _seal(self, before: tuple[int, ...]) -> tuple[int, ...]:
        try:
            return self._sealer.seal(before)
        except DatabaseError:
            raise
        except Exception as error:
            raise SealingError(repr(error)) from error

    def _run_one(self, job: Job) -> None:
        self.conn.execute("SAVEPOINT job")
        try:
            job.result = job.run(job.unit)
        except Exception as error:
            if not self.conn.in_transaction:
                raise  # a full or failing disk made SQLite give up the whole batch
            job.raised = _told_as(error)
            job.unit.roll_back_memory()
            self.conn.execute("ROLLBACK TO job")
        self.conn.execute("RELEASE job")

    def _fail(self, jobs: list[Job], error: BaseException) -> None:
        """Nothing of the batch happened: undo what it did in memory, newest first, and tell every caller."""
        problems = [error]
        for undo in (*(job.unit.roll_back_memory for job in reversed(jobs)), self.conn.rollback):
            try:
                undo()
            except BaseException as another:  # noqa: BLE001  the rest is undone all the same
                problems.append(another)
        told = error
        if not isinstance(error, (Refused, SealingError)) or len(problems) > 1:
            reasons = "; ".join(str(problem) or type(problem).__name__ for problem in problems)
            told = Refused("store_failed", f"ledger.db could not be written: {reasons}")
        for job in jobs:
            job.raised = told


def _told_as(error: Exception) -> Exception:
    """What a job raised, as its caller is told. A future cannot hold a `StopIteration`."""
    if isinstance(error, StopIteration):
        return RuntimeError(f"a job raised {error!r}")
    return (failure(error) if isinstance(error, DatabaseError) else None) or error
