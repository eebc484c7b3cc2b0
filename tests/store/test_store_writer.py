"""The writer: an answered job is durable; any other is done whole or not at all, in memory too."""

import asyncio
import sqlite3
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing, suppress
from pathlib import Path

import pytest
from kit.cli import until

from payagent.core.problems import Refused
from payagent.store.db.committer import Committer, Ownership
from payagent.store.db.opening import require_ledger
from payagent.store.db.readers import Readers
from payagent.store.db.signer_record import LastSigned, lacks
from payagent.store.db.unit import Unit
from payagent.store.db.writer import Writer
from payagent.store.rows import about

Job = Callable[[Unit], object]

ROUNDS = 60


def put(key: str) -> Job:
    return lambda unit: unit.conn.execute("INSERT INTO meta VALUES (?, 'x')", (key,))


def keys(path: Path) -> list[str]:
    return [row[0] for row in Readers(path).conn.execute("SELECT key FROM meta ORDER BY key")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


async def test_waiting_jobs_share_a_commit(path: Path) -> None:
    hold, let_go = threading.Event(), threading.Event()

    def wait(_unit: Unit) -> None:
        hold.set()
        let_go.wait(60)

    writer = Writer(path)
    first = asyncio.create_task(writer.run("wait", wait))
    await asyncio.to_thread(hold.wait, 60)
    others = [asyncio.create_task(writer.run("put", put(f"k{n:02}"))) for n in range(64)]
    await asyncio.sleep(0)
    let_go.set()
    await asyncio.gather(first, *others)
    assert writer.commits <= 3
    assert len(keys(path)) == 64
    writer.close()


def test_the_write_ahead_log_is_copied_into_the_ledger_when_idle(path: Path) -> None:
    """Otherwise a later commit would have to wait for it."""
    writer = Writer(path)
    for number in range(40):
        writer.submit("put", put(f"key-{number}")).result(60)
    until(lambda: b"key-39" in path.read_bytes(), "the log is not copied into the ledger")
    writer.close()


async def test_a_reader_can_tell_whether_anything_was_committed(path: Path) -> None:
    writer, readers = Writer(path), Readers(path)
    own = sqlite3.connect(path, isolation_level=None)
    seen = [about.version(readers.conn), about.version(readers.conn)]
    assert seen[0] == seen[1]
    for number in range(3):
        await writer.run("put", put(f"k{number}"))
        seen.append(about.version(readers.conn))
    assert len(set(seen)) == 4
    before = about.version(own)
    own.execute("INSERT INTO meta VALUES ('own', 'x')")
    assert about.version(own) != before
    own.close()
    writer.close()


async def test_a_failing_job_does_not_affect_other_jobs_of_its_commit(path: Path) -> None:
    writer = Writer(path)

    def break_after_write(unit: Unit) -> None:
        unit.conn.execute("INSERT INTO meta VALUES ('broken', 'x')")
        raise Refused("not_found", "on purpose")

    results = await asyncio.gather(
        writer.run("a", put("a")),
        writer.run("b", break_after_write),
        writer.run("c", put("c")),
        return_exceptions=True,
    )
    assert isinstance(results[1], Refused)
    assert keys(path) == ["a", "c"]
    writer.close()


async def test_a_failing_jobs_changes_in_memory_are_undone(path: Path) -> None:
    writer = Writer(path)
    utxos = {"x", "y"}

    def take(unit: Unit) -> None:
        for ref in ("x", "y"):
            utxos.discard(ref)
            unit.undo(lambda ref=ref: utxos.add(ref))
        raise Refused("not_found", "on purpose")

    with pytest.raises(Refused):
        await writer.run("take", take)
    assert utxos == {"x", "y"}
    writer.close()


async def test_a_failed_commit_fails_its_job_and_undoes_memory(path: Path) -> None:
    writer = Writer(path)
    memory: list[str] = []

    def defer_a_failure(unit: Unit) -> None:
        memory.append("taken")
        unit.undo(memory.clear)
        unit.conn.execute("INSERT INTO postings(entry_id, account, asset, units) VALUES (7, 'a', 'b', 1)")

    with pytest.raises(Refused, match="store_failed"):
        await writer.run("orphan", defer_a_failure)
    assert memory == []
    await writer.run("after", put("after"))
    assert keys(path) == ["after"]
    writer.close()


def together(writer: Writer, jobs: dict[str, Job]) -> dict[str, "Future[object]"]:
    """Run the jobs in one commit: the thread is kept busy until all are queued."""
    started, let_go = threading.Event(), threading.Event()

    def wait(_unit: Unit) -> None:
        started.set()
        let_go.wait(60)

    first = writer.submit("wait", wait)
    assert started.wait(60)
    futures = {name: writer.submit(name, job) for name, job in jobs.items()}
    let_go.set()
    first.result(60)
    return futures


def taking(memory: list[str], name: str) -> Job:
    """A job that changes memory and the database, with an undo for the memory."""

    def take(unit: Unit) -> str:
        memory.append(name)
        unit.undo(lambda: memory.remove(name))
        unit.conn.execute("INSERT INTO meta VALUES (?, 'x')", (name,))
        return name

    return take


def refused(future: "Future[object]") -> str:
    with pytest.raises(Refused) as raised:
        future.result(60)
    assert raised.value.name == "store_failed"
    return raised.value.detail


def test_a_failed_savepoint_release_undoes_every_job_of_the_commit(path: Path) -> None:
    memory: list[str] = []

    def release_it_itself(unit: Unit) -> None:
        taking(memory, "second")(unit)
        unit.conn.execute("RELEASE job")

    writer = Writer(path)
    futures = together(writer, {"a": taking(memory, "first"), "b": release_it_itself})
    for future in futures.values():
        assert "no such savepoint" in refused(future)
    assert memory == []
    assert writer.submit("after", put("after")).result(60)
    writer.close()
    assert keys(path) == ["after"]


def test_a_full_disk_fails_every_job_of_the_commit_and_says_so(path: Path) -> None:
    memory: list[str] = []

    def fill(unit: Unit) -> None:
        taking(memory, "second")(unit)
        unit.conn.execute("CREATE TABLE probe (x)")
        unit.conn.execute(f"PRAGMA max_page_count = {unit.conn.execute('PRAGMA page_count').fetchone()[0]}")
        unit.conn.execute("INSERT INTO probe VALUES (zeroblob(100000))")

    writer = Writer(path)
    futures = together(writer, {"a": taking(memory, "first"), "b": fill})
    for future in futures.values():
        assert "disk is full" in refused(future)
    assert memory == []
    assert writer.submit("after", put("after")).result(60)
    writer.close()
    assert keys(path) == ["after"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("port broke"), SystemExit(1), KeyboardInterrupt()])
def test_an_error_in_a_checkpoint_before_the_commit_fails_every_job(path: Path, error: BaseException) -> None:
    memory: list[str] = []

    def checkpoint(name: str) -> None:
        if name == "before b":
            raise error

    writer = Writer(path, checkpoint=checkpoint)
    futures = together(writer, {"a": taking(memory, "first"), "b": taking(memory, "second")})
    for future in futures.values():
        assert (str(error) or type(error).__name__) in refused(future)
    assert memory == []
    assert writer.submit("a", taking(memory, "third")).result(60) == "third"
    writer.close()
    assert (memory, keys(path)) == (["third"], ["third"])


@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk"), RuntimeError("port broke"), SystemExit(1)])
def test_an_error_in_a_checkpoint_after_the_commit_does_not_lose_results(path: Path, error: BaseException) -> None:
    memory: list[str] = []

    def checkpoint(name: str) -> None:
        if name == "after a":
            raise error

    writer = Writer(path, checkpoint=checkpoint)
    futures = together(writer, {"a": taking(memory, "first"), "b": taking(memory, "second")})
    assert [future.result(60) for future in futures.values()] == ["first", "second"]
    assert writer.submit("c", taking(memory, "third")).result(60) == "third"
    writer.close()
    assert memory == ["first", "second", "third"]
    assert keys(path) == ["first", "second", "third"]


def test_a_failing_undo_does_not_stop_the_other_undos(path: Path) -> None:
    memory: list[str] = []

    def broken_undo() -> None:
        raise RuntimeError("undo broke")

    def take(unit: Unit) -> None:
        taking(memory, "first")(unit)
        unit.undo(broken_undo)
        raise Refused("not_found", "on purpose")

    writer = Writer(path)
    futures = together(writer, {"a": taking(memory, "neighbour"), "b": take})
    for future in futures.values():
        assert "undo broke" in refused(future)
    assert memory == []
    assert writer.submit("after", put("after")).result(60)
    writer.close()
    assert keys(path) == ["after"]


async def test_a_cancelled_callers_job_is_still_written_once(path: Path) -> None:
    started, let_go = threading.Event(), threading.Event()

    def slow(unit: Unit) -> None:
        started.set()
        let_go.wait(60)
        unit.conn.execute("INSERT INTO meta VALUES ('once', 'x')")

    writer = Writer(path)
    task = asyncio.create_task(writer.run("slow", slow))
    await asyncio.to_thread(started.wait, 60)
    task.cancel()
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    writer.close()
    assert keys(path) == ["once"]


async def test_each_caller_of_a_shared_commit_gets_its_own_jobs_result(path: Path) -> None:
    started, let_go = threading.Event(), threading.Event()

    def wait(_unit: Unit) -> None:
        started.set()
        let_go.wait(60)

    def refuse(_unit: Unit) -> None:
        raise Refused("not_found", "on purpose")

    def run_out(_unit: Unit) -> None:
        next(iter(()))

    writer = Writer(path)
    first = asyncio.create_task(writer.run("wait", wait))
    await asyncio.to_thread(started.wait, 60)
    jobs = (taking([], "a"), refuse, run_out, put("given up"), taking([], "b"))
    tasks = [asyncio.create_task(writer.run("job", job)) for job in jobs]
    await asyncio.sleep(0)
    tasks[3].cancel()
    let_go.set()
    told = await asyncio.wait_for(asyncio.gather(first, *tasks, return_exceptions=True), 60)
    writer.close()
    assert [type(one).__name__ for one in told[2:5]] == ["Refused", "RuntimeError", "CancelledError"]
    assert [told[1], told[5]] == ["a", "b"]
    assert (keys(path), writer.commits) == (["a", "b", "given up"], 2)


def test_a_caller_whose_event_loop_is_gone_does_not_block_others(path: Path) -> None:
    started, let_go = threading.Event(), threading.Event()

    def wait(_unit: Unit) -> None:
        started.set()
        let_go.wait(60)

    async def begin_and_go() -> None:
        task = asyncio.create_task(writer.run("gone", put("gone")))
        await asyncio.sleep(0)
        task.cancel()

    writer = Writer(path)
    first = writer.submit("wait", wait)
    assert started.wait(60)
    asyncio.run(begin_and_go())
    other = writer.submit("other", put("other"))
    let_go.set()
    first.result(60)
    other.result(60)
    assert writer.submit("after", put("after")).result(60)
    writer.close()
    assert keys(path) == ["after", "gone", "other"]


def test_a_queued_job_cannot_be_cancelled(path: Path) -> None:
    writer = Writer(path)
    future = writer.submit("put", put("k"))
    assert not future.cancel()
    future.result(60)
    writer.close()
    assert keys(path) == ["k"]


def test_checkpoints_run_before_and_after_the_commit(path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def checkpoint(name: str) -> None:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as conn, conn:
            seen.append((name, conn.execute("SELECT COUNT(*) FROM meta").fetchone()[0]))

    writer = Writer(path, checkpoint=checkpoint)
    writer.submit("C2", put("k")).result(60)
    writer.close()
    assert seen == [("before C2", 0), ("after C2", 1)]


def test_the_ledger_file_is_durable_and_private(path: Path) -> None:
    writer = Writer(path)
    modes = writer.submit(
        "read",
        lambda unit: (
            unit.conn.execute("PRAGMA journal_mode").fetchone()[0],
            unit.conn.execute("PRAGMA synchronous").fetchone()[0],
            unit.conn.execute("PRAGMA foreign_keys").fetchone()[0],
        ),
    ).result(60)
    assert modes == ("wal", 2, 1)
    assert path.stat().st_mode & 0o777 == 0o600
    writer.close()


def test_readers_cannot_write(path: Path) -> None:
    writer = Writer(path)
    with pytest.raises(sqlite3.OperationalError):
        Readers(path).conn.execute("INSERT INTO meta VALUES ('k', 'v')")
    writer.close()


def test_a_job_after_close_is_refused(path: Path) -> None:
    writer = Writer(path)
    writer.close()
    writer.close()
    with pytest.raises(Refused, match="closed"):
        writer.submit("late", put("k"))


def test_a_job_submitted_during_close_is_run_or_refused(path: Path) -> None:
    """A job queued after the last one to run would leave its caller waiting forever."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for round_ in range(ROUNDS):
            writer = Writer(path)
            last: list[Future[object]] = []
            started = threading.Event()

            def ask(writer: Writer, last: list[Future[object]], started: threading.Event) -> None:
                with suppress(Refused):
                    while True:
                        last[:] = [writer.submit("put", lambda _unit: None)]
                        started.set()

            asking = threading.Thread(target=ask, args=(writer, last, started))
            asking.start()
            assert started.wait(60)
            writer.close()
            asking.join(60)
            assert last[0].result(60) is None, round_
    finally:
        sys.setswitchinterval(before_s)


def test_a_ledger_with_a_missing_trigger_is_not_opened(path: Path) -> None:
    Writer(path).close()
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("DROP TRIGGER postings_delete")
    with pytest.raises(Refused, match="postings_delete") as caught:
        Writer(path)
    assert (caught.value.name, caught.value.problem.retryable) == ("ledger_tampered", False)


@pytest.mark.parametrize("opens", [Writer, require_ledger])
def test_a_ledger_of_a_newer_payagent_is_not_opened(path: Path, opens: Callable[[Path], object]) -> None:
    """The older payagent would ignore a rule or a payment it does not know."""
    Writer(path).close()
    require_ledger(path)
    with closing(sqlite3.connect(path)) as conn, conn:
        columns = "migration_set, name, applied_at"
        conn.execute(f"INSERT INTO _sqlite_migrations({columns}) VALUES ('payagent', 'm999_later', 't')")
    with pytest.raises(Refused, match=r"newer payagent changed ledger\.db: m999_later") as caught:
        opens(path)
    assert caught.value.name == "ledger_newer"
    assert caught.value.problem.exit_code == 2, "otherwise a service manager would restart it again and again"
    assert not caught.value.problem.retryable


class Noted:
    """A signer's record in memory."""

    def __init__(self) -> None:
        self.last: LastSigned | None = None
        self.is_broken = False

    def read(self) -> LastSigned | None:
        return self.last

    def write(self, signed: LastSigned) -> None:
        if self.is_broken:
            raise OSError("the disk is gone")
        self.last = signed


def sign(tx_id: str) -> Job:
    """Record an attempt; the rows it refers to do not matter here."""

    def job(unit: Unit) -> object:
        return unit.conn.execute(
            "INSERT INTO attempts VALUES (?, 'pay1', 'pay', 'aa#0', NULL, 'aa#0', x'84', 170000, 9, 1, 0)",
            (tx_id,),
        )

    return job


@pytest.fixture
def payment(path: Path) -> None:
    writer = Writer(path)

    def job(unit: Unit) -> None:
        unit.conn.execute("INSERT INTO apps VALUES ('app', 'a', 'pay', NULL, NULL, 1)")
        unit.conn.execute("INSERT INTO intents VALUES ('int', 'app', 'k', 0, 'f', 'o', NULL, 'r', 1, NULL)")
        unit.conn.execute(
            "INSERT INTO payments(id, kind, app_id, intent_id, outputs, state, delivery, nonce_utxo, "
            "created_at_ms, "
            "updated_at_ms) VALUES ('pay1', 'send', 'app', 'int', '[]', 'reserved', 'not_presented', 'aa#0', 1, 1)"
        )

    writer.submit("setup", job).result(60)
    writer.close()


async def test_only_the_last_process_to_open_the_ledger_may_write(path: Path) -> None:
    lost: list[str] = []
    first = Writer(path, own=Ownership("first", {0: Noted()}, lambda: lost.append("first")))
    await first.run("put", put("before"))
    second = Writer(path, own=Ownership("second", {0: Noted()}))
    with pytest.raises(Refused, match="lease_lost"):
        await first.run("put", put("after"))
    await second.run("put", put("second"))
    with pytest.raises(Refused, match="lease_lost"):
        await first.run("put", put("still"))
    assert (keys(path), lost[0]) == (["before", "second"], "first")
    first.close()
    second.close()


@pytest.mark.usefixtures("payment")
async def test_an_attempt_is_in_the_signers_record_before_its_job_is_answered(path: Path) -> None:
    record = Noted()
    writer = Writer(path, own=Ownership("one", {0: record}))
    await writer.run("put", put("no attempt"))
    assert record.last is None
    await writer.run("sign", sign("cc"))
    assert record.last == LastSigned(1, "cc", 9)
    record.is_broken = True
    with pytest.raises(Refused, match="store_failed"):
        await writer.run("sign", sign("dd"))
    with pytest.raises(Refused, match="store_failed"):
        await writer.run("put", put("nothing before it is noted"))
    assert keys(path) == ["no attempt"]
    record.is_broken = False
    await writer.run("put", put("after"))
    assert record.last == LastSigned(2, "dd", 9)
    writer.close()


@pytest.mark.usefixtures("payment")
@pytest.mark.parametrize(("noted", "is_older"), [(LastSigned(1, "cc", 9), False), (LastSigned(2, "dd", 9), True)])
async def test_a_start_fills_an_empty_signers_record_and_keeps_a_newer_one(
    path: Path, noted: LastSigned, is_older: bool
) -> None:
    writer = Writer(path)
    await writer.run("sign", sign("cc"))
    writer.close()
    record = Noted()
    record.last = noted
    writer = Writer(path, own=Ownership("one", {0: record}))
    await writer.run("put", put("first"))
    assert record.last == noted  # an older ledger does not overwrite the signer's record
    assert lacks(Readers(path).conn, record.last) is is_older
    record.last = None
    writer.close()
    writer = Writer(path, own=Ownership("two", {0: record}))
    await writer.run("put", put("second"))
    assert record.last == LastSigned(1, "cc", 9)
    writer.close()


@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("disk I/O error"), MemoryError(), sqlite3.InterfaceError()]
)
def test_a_failed_log_checkpoint_does_not_end_the_writer_thread(
    path: Path, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing:
        def execute(self, _sql: str) -> None:
            raise error

    committer = Committer(path)
    conn, committer.conn = committer.conn, Failing()  # type: ignore[assignment]
    committer.tidy()
    assert "ledger.log_grows" in capsys.readouterr().out
    conn.close()
