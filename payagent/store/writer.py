"""The writer: one thread, one connection, BEGIN IMMEDIATE; jobs that wait together share one commit.

A job is a function of a `Unit` (the open transaction). Each runs in a savepoint, so that one that raises
leaves no trace and does not touch its neighbours; when the commit itself fails, none of them happened.
What they add together to the tables of record is sealed in that commit (store.seals).
With an `Ownership`, a batch is committed only while no other daemon has opened the ledger since, and a batch that
added an attempt is answered only once the signer's own record has it (store.signer).
What a job changes in memory beside the database it must register with `unit.undo`. Whatever is raised, everybody
who waits is told and the thread goes on.

May import: core, store.room, .schema, .seals, .signer, sqlite3, sqlite-utils, structlog. Never: runs a job twice,
or answers before the commit is durable.
"""

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkstemp
from typing import Any, BinaryIO, TypeVar

import structlog
from sqlite_utils import Database

from payagent.core.problem import Refused
from payagent.store.room import room_problem
from payagent.store.schema import migrations, missing_guards, newer_migrations
from payagent.store.seals import Sealer
from payagent.store.signer import SIGNER_FILE, Signed, SignerRecord, caught_up_at, lacks, last_signed

log = structlog.get_logger("payagent.store")

T = TypeVar("T")
Checkpoint = Callable[[str], None]
"""Called with "before NAME" and "after NAME" of each job around the commit; where tests kill the process."""

Connection = sqlite3.Connection
DatabaseError = sqlite3.DatabaseError
"""What reading the ledger may raise, for those who must not know SQLite; `failure` says what it means."""

BATCH_MAX = 256

LOG_MAX_PAGES = 8_192
"""So long (32 MiB) the write-ahead log grows before a commit has to wait until it is in the ledger; longer while
somebody reads from a snapshot."""

QUIET_S = 0.02
QUIET_COMMITS = 32
"""When no job has come for so long, what so many commits or more have logged is brought into the ledger."""

_CACHE_KIB = 65_536
"""Of who reads everything: the rows of one payment lie together in no index, which are read page by page again."""

_STATEMENTS_KEPT = 512
"""So many are kept prepared by each connection. The daemon uses more than the 128 that sqlite3 keeps by itself,
and one that writes a guarded table takes longer to prepare, with its triggers, than to run."""

SCRATCH = ".scratch"
"""A private folder beside the ledger: what the daemon makes there is read again by it, and outlives no start."""


class Unit:
    """One job's part of the open transaction."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self.conn = conn
        self._undo: list[Callable[[], None]] = []

    def undo(self, step: Callable[[], None]) -> None:
        """Run `step` if this job, or the commit that it shares, does not take place. Last in, first out."""
        self._undo.append(step)

    def roll_back_memory(self) -> None:
        """Run the steps that are left; one that raises keeps none of the others from running."""
        try:
            while self._undo:
                self._undo.pop()()
        finally:
            if self._undo:
                self.roll_back_memory()


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


_Awaited = asyncio.Future[Any]
_Waiting = tuple[Job, Future[Any] | _Awaited]
"""A job, and what its caller waits for: from a thread, or on an event loop."""


class SealingError(Exception):
    """A bug of ours, and not the disk's: what a commit added could not be sealed. None of it happened."""


def is_no_text(error: DatabaseError) -> bool:
    """Whether a row has a text that is none, in a file that can be read otherwise: Python's sqlite3 has no class
    of its own for that.
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
    """What SQLite raises about a file that it cannot use, told as `store_failed`."""
    try:
        yield
    except DatabaseError as error:
        raise Refused("store_failed", f"{path} cannot be used: {error}") from None


def require_ledger(path: Path) -> None:
    """Refuse to go on with books that are not there (`ledger_missing`), unreadable or newer (`store_failed`).

    SQLite makes what it does not find, and an empty ledger knows nothing of what was paid. A file without tables
    is one too: so looks a copy of ledger.db that was made without its ledger.db-wal.
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

    What a job's savepoint would restore stays in memory: a payment's is large enough that SQLite would put it into
    a file, and make and remove that for each.
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
        refused.pop_all()
    return conn


@contextmanager
def held_open(path: Path) -> Iterator[Callable[[Path], None]]:
    """The ledger's -wal and -shm files are there until the end: the last connection that closes removes them, and
    a process that may read only what was there (`fence`) could not open new ones.

    Gives the function that tells SQLite where to make temporary files from then on.
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


@dataclass(frozen=True, slots=True)
class Ownership:
    """That one process alone writes a ledger, and signs by it.

    `epoch` is random and new with each start. `record` is told of the last attempt after its commit and before
    anybody learns of it. `on_lost` is called on the writer's thread when another daemon has taken the ledger over.
    """

    epoch: str
    record: SignerRecord
    on_lost: Callable[[], None] = lambda: None


def _take_over(conn: sqlite3.Connection, epoch: str) -> None:
    """From here on, whoever opened the ledger before commits nothing more."""
    conn.execute(
        "INSERT INTO boot(one, epoch) VALUES (1, ?) ON CONFLICT DO UPDATE SET epoch = excluded.epoch", (epoch,)
    )


def migrate(conn: sqlite3.Connection) -> None:
    """Bring the schema up to date; refuse (`store_failed`) a newer one, and one whose guards were taken off."""
    _require_known(conn)
    database = Database(conn)
    if migrations.pending(database):
        migrations.apply(database)
    if missing := missing_guards(conn):
        raise Refused("store_failed", f"ledger.db lacks the triggers {', '.join(missing)}")


def _require_known(conn: sqlite3.Connection) -> None:
    if newer := newer_migrations(conn):
        told = (
            f"ledger.db was changed by a newer payagent ({', '.join(newer)}): run that one, or a newer one still"
        )
        raise Refused("store_failed", told)


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
        """Bring what is logged into the ledger. An error is none of a commit's: the log stands, and grows."""
        try:
            self.conn.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except Exception as error:  # noqa: BLE001  SQLite's lack of memory is a MemoryError; the thread goes on
            log.warning("ledger.log_grows", why=str(error) or type(error).__name__)

    def is_noted(self, attempt: int | None) -> bool:
        """Whether the signer's own record has the attempt of this number; where none is kept, all are."""
        return self._own is None or attempt is None or attempt <= self._noted

    def close(self) -> None:
        self.conn.close()

    def _not_to_be_noted(self, signed: Signed | None) -> int:
        """How many attempts of a ledger that lacks some are older than the signer's record: it stays as it is."""
        last = last_signed(self.conn)
        if last is None or not lacks(self.conn, signed):
            return 0
        caught_up = caught_up_at(self.conn, signed)
        return last.attempts if caught_up is None else caught_up

    def _note_signed(self) -> None:
        """What was signed is noted outside of the ledger too, before anybody can use it.

        Once more at the start, for what a process that was killed had no time to note.
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
        """Another daemon that opened this ledger since has left its epoch: it is the one that writes now."""
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


class Writer:
    """The committer's thread, and the queue of what waits for it. May be called from any thread or task."""

    def __init__(
        self, path: Path, *, checkpoint: Checkpoint = lambda _name: None, own: Ownership | None = None
    ) -> None:
        self._committer = Committer(path, checkpoint=checkpoint, own=own)
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._door = threading.Lock()
        self._closed = False
        self._tidied_at = 0
        self._thread = threading.Thread(target=self._loop, name="ledger-writer", daemon=True)
        self._thread.start()

    @property
    def commits(self) -> int:
        """How many commits were made."""
        return self._committer.commits

    def submit(self, name: str, job: Callable[[Unit], T]) -> "Future[T]":
        """Queue a job; its future ends after the commit and cannot be cancelled.

        `name` is the commit point, for checkpoints.
        """
        waiting: Future[T] = Future()
        waiting.set_running_or_notify_cancel()
        self._put(name, job, waiting)
        return waiting

    async def run(self, name: str, job: Callable[[Unit], T]) -> T:
        """As `submit`, awaited. A caller that is cancelled does not cancel the job."""
        waiting: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put(name, job, waiting)
        return await waiting

    def _put(self, name: str, job: Callable[[Unit], T], waiting: "Future[T] | asyncio.Future[T]") -> None:
        with self._door:  # what came behind the last that is run would wait for ever
            if self._closed:
                raise Refused("store_failed", "the ledger is closed")
            self._queue.put((Job(name, job, Unit(self._committer.conn)), waiting))

    def is_noted(self, attempt: int | None) -> bool:
        """Whether the attempt of this number may be shown: the signer's own record has it."""
        return self._committer.is_noted(attempt)

    def close(self) -> None:
        """Run what is queued, then close. Calling it again is harmless."""
        with self._door:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        self._committer.close()

    def _loop(self) -> None:
        while True:
            batch, is_last = self._next_batch()
            if batch:
                self._committer.commit([job for job, _ in batch])
                _tell(batch)
            if is_last:
                return

    def _next_batch(self) -> tuple[list[_Waiting], bool]:
        batch: list[_Waiting] = []
        entry = self._next()
        while entry is not None:
            batch.append(entry)
            if len(batch) == BATCH_MAX:
                return batch, False
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _next(self) -> _Waiting | None:
        """Wait for a job; the log is tidied up in a quiet moment, so that hardly a job has to wait for that."""
        if self.commits - self._tidied_at >= QUIET_COMMITS:
            with suppress(queue.Empty):
                return self._queue.get(timeout=QUIET_S)
            self._committer.tidy()
            self._tidied_at = self.commits
        return self._queue.get()


def _told_as(error: Exception) -> Exception:
    """What a job raised, as those learn of it who wait. A `StopIteration` is nothing that a task can wait for."""
    if isinstance(error, StopIteration):
        return RuntimeError(f"a job raised {error!r}")
    return (failure(error) if isinstance(error, DatabaseError) else None) or error


def _tell(batch: list[_Waiting]) -> None:
    """Each what came of its job; those of one event loop together, since each waking of it costs."""
    on_loops: dict[asyncio.AbstractEventLoop, list[tuple[Job, _Awaited]]] = {}
    for job, waiting in batch:
        if isinstance(waiting, Future):
            _end(job, waiting)
        else:
            on_loops.setdefault(waiting.get_loop(), []).append((job, waiting))
    for loop, told in on_loops.items():
        with suppress(RuntimeError):  # it is closed, and nobody waits on it any more
            loop.call_soon_threadsafe(_end_each, told)


def _end_each(told: list[tuple[Job, _Awaited]]) -> None:
    for job, waiting in told:
        if not waiting.done():
            _end(job, waiting)


def _end(job: Job, waiting: Future[Any] | _Awaited) -> None:
    if job.raised is None:
        waiting.set_result(job.result)
    else:
        waiting.set_exception(job.raised)


class _OfAThread(sqlite3.Connection):
    """Closed once nobody holds it: with its thread, or with the `Readers` that it is of."""

    def __del__(self) -> None:
        with suppress(sqlite3.Error):  # it was never opened
            self.close()


class Readers:
    """Read-only connections, one per thread that asks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()

    @property
    def conn(self) -> sqlite3.Connection:
        conn: sqlite3.Connection | None = getattr(self._local, "conn", None)
        if conn is None:
            # whoever collects what is left of a thread closes it
            conn = open_read_only(self._path, check_same_thread=False, factory=_OfAThread)
            conn.execute("PRAGMA query_only = ON")
            conn.execute("PRAGMA busy_timeout = 5000")
            self._local.conn = conn
        return conn

    def room_problem(self) -> str | None:
        """What is wrong with the disk that the ledger is on."""
        return room_problem(self._path.parent)

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own in one read transaction, for what takes long; one thread at a time."""
        with closing(open_read_only(self._path, check_same_thread=False)) as conn:
            conn.execute("PRAGMA query_only = ON")
            conn.execute("PRAGMA busy_timeout = 5000")
            conn.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            conn.execute("BEGIN")
            conn.execute("SELECT 1 FROM journal LIMIT 1").fetchone()  # from here on, this is what it sees
            yield conn

    @contextmanager
    def copied(self) -> Iterator[BinaryIO]:
        """The ledger as it is now in one file, which lies in SCRATCH and has no name: nothing is left of it."""
        handle, name = mkstemp(dir=_scratch(self._path.parent))
        with os.fdopen(handle, "rb") as file:
            try:
                with closing(open_read_only(self._path)) as conn:
                    conn.execute("VACUUM INTO ?", (name,))
            finally:
                Path(name).unlink()
            yield file


def make_scratch(folder: Path) -> Path:
    """The folder for what does not last, empty. Only for who knows that nobody uses it now."""
    scratch = _scratch(folder)
    for left in scratch.iterdir():
        left.unlink()
    return scratch


def _scratch(folder: Path) -> Path:
    scratch = folder / SCRATCH
    scratch.mkdir(mode=0o700, exist_ok=True)
    return scratch
