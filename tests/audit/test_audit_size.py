"""Verify and export: more payments need no more memory, and no more work for each payment.

By hand, with times: `python tests/audit/test_audit_size.py 50000`, or with a file that scripts/make_ledger made;
with `verify`, or the name of a form, behind it for that alone.
"""

import os
import resource
import select
import sqlite3
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import get_args

import pytest

from payagent.audit.export import Format, export
from payagent.audit.finding import AuditFinding, Progress
from payagent.audit.payment_shares import shared_out
from payagent.audit.signed_bytes import Owner
from payagent.audit.statement import statement
from payagent.audit.verify import verify
from payagent.core.address import parse_address
from payagent.core.network import NETWORKS
from payagent.store.db.readers import Readers
from payagent.store.db.unit import Connection
from payagent.store.rows import about
from payagent.store.rows.journal import EVERYTHING

MAKER = Path(__file__).resolve().parents[2] / "scripts" / "make_ledger"
FEW = 300 if os.environ.get("LONG_TESTS") == "1" else 150  # without `kit`, since this file also runs by hand
MANY = 2 * FEW
PEAK_MAX_BYTES = 4_000_000
GROWTH_MAX_BYTES = 500_000 * FEW // 300
PROCESSES = {resource.RUSAGE_SELF: "the first process", resource.RUSAGE_CHILDREN: "its helpers"}


def make(path: Path, count: int) -> Path:
    subprocess.run([sys.executable, MAKER, path, str(count)], check=True)
    return path


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A ledger with a few payments, and one with twice as many."""
    folder = tmp_path_factory.mktemp("ledgers")
    return make(folder / "few.db", FEW), make(folder / "many.db", MANY)


def owner_of(conn: Connection) -> Owner:
    network = NETWORKS[about.meta(conn, "network") or ""]
    return Owner(parse_address(about.meta(conn, "address"), network), network)


def chars_of(path: Path, form: Format) -> int:
    with Readers(path).snapshot() as conn:
        return sum(len(piece) for piece in export(statement(conn, EVERYTHING, "devnet"), form))


def found_in(path: Path) -> list[AuditFinding]:
    with Readers(path).snapshot() as conn:
        return [told for told in verify(conn, owner_of(conn)) if isinstance(told, AuditFinding)]


def peak_bytes(act: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@contextmanager
def counted(conn: Connection) -> Iterator[dict[str, int]]:
    """Count the statements run meanwhile, and SQLite's steps for them in hundreds."""
    counts = {"statements": 0, "steps": 0}

    def count(what: str) -> None:
        counts[what] += 1

    conn.set_trace_callback(lambda _sql: count("statements"))
    conn.set_progress_handler(lambda: count("steps"), 100)
    yield counts
    conn.set_trace_callback(None)
    conn.set_progress_handler(None, 0)


@pytest.mark.parametrize("form", get_args(Format))
def test_an_export_does_not_hold_the_whole_ledger_in_memory(ledgers: tuple[Path, Path], form: Format) -> None:
    few, many = (peak_bytes(lambda path=path: chars_of(path, form)) for path in ledgers)
    assert chars_of(ledgers[1], form) > 500 * MANY
    assert many < PEAK_MAX_BYTES
    assert many < few + GROWTH_MAX_BYTES


def test_verify_does_not_hold_the_whole_ledger_in_memory(ledgers: tuple[Path, Path]) -> None:
    assert [found_in(path) for path in ledgers] == [[], []]
    few, many = (peak_bytes(lambda path=path: found_in(path)) for path in ledgers)
    assert many < PEAK_MAX_BYTES
    assert many < few + GROWTH_MAX_BYTES


def test_verify_takes_twice_the_work_for_twice_the_payments_and_few_more_queries(
    ledgers: tuple[Path, Path],
) -> None:
    work = []
    for path in ledgers:
        with Readers(path).snapshot() as conn:
            owner = owner_of(conn)
            with counted(conn) as counts:
                assert list(verify(conn, owner))
        work.append(counts)
    few, many = work
    assert many["steps"] < 2.2 * few["steps"]
    assert many["statements"] < few["statements"] + FEW / 5


def test_verify_split_over_processes_finds_the_changed_payments(
    ledgers: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(ledgers[1].read_bytes())
    changed = (1, MANY // 2, MANY)
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("UPDATE payments SET ttl_slot = ttl_slot + 1 WHERE seq IN (?, ?, ?)", changed)
        ids = {row[0] for row in conn.execute("SELECT id FROM payments WHERE seq IN (?, ?, ?)", changed)}
    with Readers(path).snapshot() as conn, shared_out(conn, owner_of(conn), share=MANY // 20) as payments:
        told = list(payments)
    found = {(one.table, one.row) for one in told if isinstance(one, AuditFinding)}
    assert found == {("payments", one) for one in ids}
    assert told[-1] == Progress("payments", MANY)


SHARED_OUT = """
import multiprocessing, sys
from pathlib import Path
from typing import get_args
sys.path[:0] = sys.argv[2:]
from test_audit_size import owner_of
from payagent.audit.payment_shares import shared_out
from payagent.store.db.readers import Readers

with Readers(Path(sys.argv[1])).snapshot() as conn, shared_out(conn, owner_of(conn), share=10) as payments:
    list(payments)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor has no helpers")
def test_helper_processes_end_when_the_daemon_is_killed(ledgers: tuple[Path, Path]) -> None:
    command = [sys.executable, "-c", SHARED_OUT, str(ledgers[0]), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        helpers = [os.pidfd_open(int(pid)) for pid in first.stdout.readline().split()]
        first.kill()
    assert helpers
    for helper in helpers:
        waiting = select.poll()
        waiting.register(helper, select.POLLIN)
        ended = waiting.poll(60_000)
        os.close(helper)
        assert ended


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        given = sys.argv[1]
        file = make(Path(folder) / "ledger.db", int(given)) if given.isdigit() else Path(given)
        actions: dict[str, Callable[[], object]] = {"verify": lambda: len(found_in(file))}
        actions |= {form: lambda form=form: chars_of(file, form) for form in get_args(Format)}
        for name in sys.argv[2:] or actions:
            began, before = time.perf_counter(), [resource.getrusage(who) for who in PROCESSES]
            result = actions[name]()
            print(f"{name}: {result} in {time.perf_counter() - began:.1f} s")
            for which, earlier, now in zip(
                PROCESSES.values(), before, [resource.getrusage(who) for who in PROCESSES], strict=True
            ):
                cpu_s = now.ru_utime + now.ru_stime - earlier.ru_utime - earlier.ru_stime
                system_s, read_mib = now.ru_stime - earlier.ru_stime, (now.ru_inblock - earlier.ru_inblock) // 2048
                print(
                    f"  {which}: {cpu_s:.1f} s of CPU ({system_s:.1f} s in the system), {read_mib} MiB read from "
                    f"the disk, {now.ru_maxrss // 1024} MiB at most"
                )
