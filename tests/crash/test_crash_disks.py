"""Full, failing and read-only disks, no file descriptors, and clock jumps: payagent refuses or recovers.

No transaction is ever submitted that is not in the ledger; the provider here looks each one up at once.
"""

import errno
import os
import resource
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest
from kit.agent import ADA, Run
from kit.crash import CountingSigner, CrashWorld, copy_files, crash_world, findings
from kit.effort import pick

from payagent.api.routes.health import find
from payagent.core.aggregate import PaymentRow
from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.store.db.writer import Writer
from payagent.store.rows import payments

DAY_MS = 86_400_000
ENDED = (State.CONFIRMED, State.REJECTED)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[CrashWorld]:
    with crash_world(tmp_path) as world:
        world.fund(*[50 * ADA] * 4)
        world.settings(price="2000000", splits=[])
        yield world


@asynccontextmanager
async def life(world: CrashWorld) -> AsyncIterator[tuple[Run, CountingSigner]]:
    signer = CountingSigner(world.account.signer)
    async with world.run(signer=signer, providers={"devnet": world.guard.url}) as run:
        await run.run_pass()
        yield run, signer


def signatures_kept(world: CrashWorld) -> int:
    with closing(sqlite3.connect(world.folder / "ledger.db")) as conn:
        return int(conn.execute("SELECT COUNT(*) FROM attempts").fetchone()[0])


def all_payments(run: Run) -> list[PaymentRow]:
    return payments.payments_in(run.context.conn, list(State))


async def pay_until_refused(run: Run, most: int = 200) -> Refused:
    """Pay one request after another until the ledger cannot be written."""
    for number in range(most):
        try:
            await run.pay(f"call {number}", key=f"key{number}")
        except Refused as refused:
            if refused.code == "store_failed":
                return refused
            if refused.code != "funds_pending":
                raise
            run.world.block()
            with allowed("store_failed"):
                await run.run_pass()
    raise AssertionError("the ledger could always be written")


def assert_nothing_left_unrecorded(world: CrashWorld) -> None:
    assert world.guard.undurable == []


async def assert_recovered(world: CrashWorld, run: Run) -> None:
    """Every payment ends and was made once, another one can be paid, and the books match the chain."""
    await run.settle_down(2)
    await run.pass_time(3)
    after = await run.pay("afterwards", key="afterwards")
    await run.pass_time(3)
    rows = all_payments(run)
    assert {row.state for row in rows} <= set(ENDED), [(row.id, row.state) for row in rows]
    assert run.state(after.id) is State.CONFIRMED
    paid = [row.attempt.tx_id or "" for row in rows if row.state is State.CONFIRMED]
    assert sorted(world.transactions()) == sorted(paid)
    assert run.owned() == world.on_chain()
    assert "held" not in run.books()
    assert findings(world) == []
    assert_nothing_left_unrecorded(world)


@contextmanager
def allowed(*codes: str) -> Iterator[None]:
    """Allow refusals with these codes."""
    try:
        yield
    except Refused as refused:
        if refused.code not in codes:
            raise


# --- ways to break a disk ----------------------------------------------------------------------------------------


@contextmanager
def no_more_pages(run: Run, spare: int) -> Iterator[None]:
    """SQLite's own "database or disk is full", after `spare` more pages."""

    def bound(pages: int | None) -> None:
        def job(unit: object) -> None:
            conn = unit.conn  # type: ignore[attr-defined]
            count = conn.execute("PRAGMA page_count").fetchone()[0]
            conn.execute(f"PRAGMA max_page_count = {count + spare if pages is None else pages}")

        run.context._writer.submit("bound", job).result()

    bound(None)
    try:
        yield
    finally:
        bound(2**30)


@contextmanager
def files_end_at(run: Run, spare: int) -> Iterator[None]:
    """Writes over `spare` pages beyond the log's end fail with EFBIG, which SQLite reports as an I/O error."""
    log = run.world.folder / "ledger.db-wal"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + spare * 4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def log_cannot_be_written(run: Run, _spare: int) -> Iterator[None]:
    """The log's descriptors become read-only: every write fails, every read works."""
    log = run.world.folder / "ledger.db-wal"
    mine = [fd for fd in descriptors() if _leads_to(fd, log)]
    assert mine
    kept = {fd: os.dup(fd) for fd in mine}
    read_only = os.open(log, os.O_RDONLY)
    try:
        for fd in mine:
            os.dup2(read_only, fd)
        yield
    finally:
        for fd, good in kept.items():
            os.dup2(good, fd)
            os.close(good)
        os.close(read_only)


def descriptors() -> list[int]:
    """The open file descriptors of this process."""
    return [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]


def _leads_to(fd: int, path: Path) -> bool:
    try:
        return Path(f"/proc/self/fd/{fd}").readlink() == path
    except OSError:
        return False


SAID = {"full": "disk is full", "io error": "I/O error", "no writes": "I/O error"}
BAD_DISKS = {"full": no_more_pages, "io error": files_end_at, "no writes": log_cannot_be_written}


SPARE = {"full": (4, 30, 0, 9, 14), "io error": (0, 14, 4, 9, 30)}
"""The pages that can still be written: other commits fail after more of them."""


@pytest.mark.parametrize(
    ("trouble", "spare"),
    [("no writes", 0), *((trouble, pages) for trouble in SPARE for pages in SPARE[trouble][: pick(2, 5)])],
)
async def test_a_full_or_failing_disk_is_reported_and_payments_recover_afterwards(
    world: CrashWorld, trouble: str, spare: int
) -> None:
    """Whichever commit fails, the caller is refused or has a payment that ends."""
    async with life(world) as (run, signer):
        with BAD_DISKS[trouble](run, spare):
            refused = await pay_until_refused(run)
            assert SAID[trouble] in refused.detail
            await run.agent.submitter.drain(10)
            left = len(world.guard.received)
            sent = set(world.guard.received)
            with allowed("store_failed"):
                await run.run_pass()
            await run.agent.submitter.drain(10)
            assert_nothing_left_unrecorded(world)
        assert len(sent) <= signatures_kept(world) <= signer.signed
        assert left <= signer.signed
        await assert_recovered(world, run)
    async with life(world) as (run, _):
        assert {row.state for row in all_payments(run)} <= set(ENDED)


@pytest.mark.parametrize("trouble", ["io error", "no writes"])
async def test_a_signature_lost_to_a_bad_disk_is_made_again_later(world: CrashWorld, trouble: str) -> None:
    """C3 fails, so the signature is lost and never submitted; the same UTxOs give the same bytes later."""
    async with life(world) as (run, signer):
        with ExitStack() as disk:
            signer.then = lambda: disk.enter_context(BAD_DISKS[trouble](run, 0))
            with pytest.raises(Refused, match="store_failed"):
                await run.pay("hello", key="key")
            await run.agent.submitter.drain(10)
            assert signer.signed == 1
            assert signatures_kept(world) == 0
            assert world.guard.received == []
        [row] = all_payments(run)
        assert row.state is State.RESERVED
        await run.settle_down(2)
        assert run.state(row.id) is State.CONFIRMED
        assert signer.signed == 2
        assert len(set(world.guard.received)) == 1
        await assert_recovered(world, run)


async def test_a_pass_that_could_not_be_recorded_is_repeated(world: CrashWorld) -> None:
    """Once the disk works again, the next pass records the block without waiting for a newer one."""
    async with life(world) as (run, _):
        row = await run.pay("hello", key="key")
        world.block()
        with log_cannot_be_written(run, 0):
            with allowed("store_failed"):
                assert not await run.chain_sync.run_once()
            with allowed("store_failed"):
                assert not await run.chain_sync.run_once()
        assert run.state(row.id) is State.IN_FLIGHT
        assert await run.chain_sync.run_once()
        assert run.state(row.id) is State.CONFIRMED
        await assert_recovered(world, run)


# --- a file system of its own ------------------------------------------------------------------------------------


async def test_a_full_file_system_is_reported_and_payments_recover_afterwards(
    world: CrashWorld, small_disk: Path
) -> None:
    world.in_folder(small_disk)
    ballast = small_disk / "ballast"
    async with life(world) as (run, signer):
        room = os.statvfs(small_disk)
        ballast.write_bytes(bytes(room.f_bavail * room.f_bsize - 8 * 4096))
        assert "KiB of room" in (find(run.fleet, lambda: (None, True), lambda: None)["ledger"] or "")
        refused = await pay_until_refused(run)
        assert SAID["full"] in refused.detail
        await run.agent.submitter.drain(10)
        assert_nothing_left_unrecorded(world)
        assert signatures_kept(world) <= signer.signed
    with allowed("store_failed"):
        async with life(world) as (run, _):  # a start on a full disk works or says why not
            await run.run_pass()
    ballast.unlink()
    async with life(world) as (run, _):
        await assert_recovered(world, run)


async def test_the_daemon_refuses_to_start_on_a_read_only_file_system(world: CrashWorld, small_disk: Path) -> None:
    async with life(world) as (run, _):
        await run.pay("hello", key="key")
    copy_files(world.folder, small_disk / "data")
    world.in_folder(small_disk / "data")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    sent = len(world.guard.received)
    with pytest.raises(Refused, match="store_failed"):
        async with life(world) as (run, _):
            await run.run_pass()
    assert len(world.guard.received) == sent
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    async with life(world) as (run, _):
        await assert_recovered(world, run)


def test_a_read_only_ledger_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Writer(path).close()
    path.chmod(0o400)
    if os.access(path, os.W_OK):
        pytest.skip("root can write read-only files")
    with pytest.raises(Refused, match="store_failed"):
        Writer(path)


# --- descriptors, and time ---------------------------------------------------------------------------------------


def every_descriptor() -> Iterator[int]:
    """Open files until no descriptor is left."""
    try:
        while True:
            yield os.open("/dev/null", os.O_RDONLY)
    except OSError as error:
        assert error.errno == errno.EMFILE  # noqa: PT017


async def test_running_out_of_file_descriptors_loses_no_payment(world: CrashWorld) -> None:
    """Work that needs a descriptor is refused or waits; afterwards everything completes."""
    async with life(world) as (run, signer):
        asks = [world.ask(f"call {number}", key=f"key{number}") for number in range(3)]
        await run.agent.pay(asks[0])
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(descriptors())
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, before[1]))
        plugs = list(every_descriptor())
        try:
            for ask in asks[1:]:
                with allowed("store_failed"):
                    await run.agent.pay(ask)
            await run.agent.submitter.drain(10)
            await run.chain_sync.run_once()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for plug in plugs:
                os.close(plug)
        assert_nothing_left_unrecorded(world)
        assert signatures_kept(world) <= signer.signed
        await assert_recovered(world, run)


@pytest.mark.parametrize(
    ("when", "jump_ms"),
    [
        *(("before", DAY_MS), ("signed", -DAY_MS), ("sent", DAY_MS), ("in block", -DAY_MS)),
        *(("before", -DAY_MS), ("signed", DAY_MS), ("sent", -DAY_MS), ("in block", DAY_MS)),
    ][: pick(4, 8)],
)
async def test_a_clock_that_jumps_a_day_and_returns_pays_once(world: CrashWorld, when: str, jump_ms: int) -> None:
    """Only the agent's clock jumps, not the chain's."""
    steady = world.clock
    jumping = Jumping(steady)
    world.clock = jumping  # type: ignore[assignment]
    async with life(world) as (run, signer):
        row = None
        if when != "before":
            if when == "signed":
                world.fault("submit", "drop", count=1)
            row = await run.pay("hello", key="key")
            if when == "in block":
                world.block()
                await run.run_pass()
        ask = world.ask("hello", key="key") if row is None else None
        jumping.jump_ms = jump_ms
        if ask is not None:
            with allowed("chain_not_ready", "clock_skew", "invoice_expired"):
                row, _ = await run.agent.pay(ask)
        for _ in range(2):
            await run.run_pass()
            world.block()
        await run.run_pass()
        assert signer.signed <= 1
        jumping.jump_ms = 0
        again, _ = await run.agent.pay(ask or world.ask("hello", key="key"))
        assert row is None or again.id == row.id
        await run.agent.submitter.drain(10)
        await run.pass_time(4)
        assert run.state(again.id) is State.CONFIRMED
        assert signer.signed == 1
        await assert_recovered(world, run)


class Jumping:
    """The agent's clock, and how far it is wrong."""

    def __init__(self, steady: object) -> None:
        self._steady = steady
        self.jump_ms = 0

    @property
    def ahead_ms(self) -> int:
        return int(self._steady.ahead_ms)  # type: ignore[attr-defined]

    @ahead_ms.setter
    def ahead_ms(self, value: int) -> None:
        self._steady.ahead_ms = value  # type: ignore[attr-defined]

    def now_ms(self) -> int:
        return int(self._steady.now_ms()) + self.jump_ms  # type: ignore[attr-defined]
