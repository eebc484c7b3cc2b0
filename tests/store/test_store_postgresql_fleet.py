"""Several daemons on PostgreSQL: their races, and a daemon, a connection or a server that fails."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from kit.cli import until
from kit.effort import pick
from kit.fleet import Daemon, Record, daemon_on, pair_on
from kit.postgresql import Hasty, Impatient, Patient, Server, Unfenced, move_to_file, needs_postgresql

import payagent
from payagent.audit.finding import AuditFinding
from payagent.audit.seals import check_seals
from payagent.core.problems import Refused
from payagent.store.db.engine import open_fleet_store
from payagent.store.db.fence import Seat
from payagent.store.db.postgresql.connection import PostgresqlConnection
from payagent.store.db.postgresql.readers import PostgresqlReaders
from payagent.store.db.readers import Readers
from payagent.store.db.unit import Unit
from payagent.store.rows import fleet

pytestmark = needs_postgresql

Pair = tuple[Daemon, Daemon]

TESTS = Path(__file__).parents[1]
FAR_AHEAD_MS = 10**15


@pytest.fixture
def url(postgresql: Server) -> str:
    return postgresql.new_database()


@pytest.fixture
def pair(url: str) -> Iterator[Pair]:
    """Two daemons. The first holds the accounts 0 and 1."""
    with pair_on(url) as made:
        yield made


@contextmanager
def operator(url: str) -> Iterator[PostgresqlConnection]:
    """A session of a person at the database."""
    with closing(PostgresqlConnection(url)) as conn:
        yield conn


def session_of(daemon: Daemon) -> int:
    return int(daemon.conn.execute("SELECT pg_backend_pid()").fetchone()[0])


def until_waiting(conn: Any, session: int, *, standby: bool = False) -> None:
    """Wait until a session waits: in a commit for a standby, or else for a lock or in a sleep."""
    until(lambda: waits(conn, session, standby=standby), "the session does not wait")


def waits(conn: Any, session: int, *, standby: bool) -> bool:
    awaited = "wait_event = 'SyncRep'" if standby else "wait_event_type IN ('Timeout', 'Lock')"
    asked = f"SELECT 1 FROM pg_stat_activity WHERE {awaited} AND pid = ?"
    return conn.execute(asked, (session,)).fetchone() is not None


def started(module: str, *args: str) -> "subprocess.Popen[str]":
    """A daemon of the kit in a process of its own."""
    places = os.pathsep.join([str(TESTS), str(Path(payagent.__file__).parents[1])])
    return subprocess.Popen(
        [sys.executable, "-m", f"kit.{module}", *args],
        env={**os.environ, "PYTHONPATH": places},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# --- races

ASKS = pick(400, 10_000)
"""Admissions that are asked for, by three daemons together."""

SCOPES = ("wallet", "app", "merchant")[: pick(1, 3)]
"""Whose limit it is."""


@pytest.mark.timeout(pick(300, 3600))
@pytest.mark.parametrize("scope", SCOPES)
def test_racing_daemons_reach_a_limit_exactly_and_buy_each_purchase_once(url: str, scope: str) -> None:
    purchases = ASKS * 2 // 5
    limit_units = purchases // 2 * 3_200_000
    orders = ((0, purchases, 1), (purchases - 1, -1, -1), (0, purchases, 2))
    with ExitStack() as stack:
        racers = []
        for number, order in enumerate(orders):
            args = (scope, number, purchases // 2 + 20, limit_units, *order)
            racers.append(stack.enter_context(started("fleet_race", url, *map(str, args))))
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        told: Counter[str] = Counter()
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        for racer in racers:
            assert racer.stdout is not None
            for line in racer.stdout:
                name, count = line.rsplit(" ", 1)
                told[name] += int(count)
            assert racer.wait() == 0
    assert sum(told.values()) == ASKS
    with operator(url) as conn:
        held = conn.execute("SELECT counted_units FROM holds WHERE stage = 'payment'").fetchall()
        (cost,) = {units for (units,) in held}
        assert len(held) == limit_units // cost
        live = "SELECT intent_id FROM payments WHERE state = 'reserved'"
        keys = f"SELECT idempotency_key FROM intents WHERE id IN ({live})"
        bought = conn.execute(keys).fetchall()
        assert len(bought) == len(set(bought)) == len(held)
        assert len(set(conn.execute("SELECT account FROM payments WHERE state = 'reserved'").fetchall())) > 1
    with daemon_on(url, "judge") as judge:
        judge.require_whole()


# --- leases and the trigger


def test_a_daemon_waits_for_its_turn_as_long_as_others_commit(pair: Pair, url: str) -> None:
    one, two = pair
    hold = (
        "SELECT 1 FROM gate FOR UPDATE",
        "UPDATE gate SET timeline = timeline",
        "SELECT pg_sleep(1.8)",  # together longer than `Patient` waits for one of them
    )

    def held_by(conn: PostgresqlConnection) -> None:
        for statement in ("BEGIN", *hold, "COMMIT"):
            conn.execute(statement)

    with operator(url) as first, operator(url) as second, operator(url) as third, ThreadPoolExecutor(3) as pool:
        for conn in (first, second, third):
            pool.submit(held_by, conn)
            until_waiting(one.conn, conn._conn.info.backend_pid)
        with daemon_on(url, "patient", made=Patient) as patient:
            patient.note("its turn", account=None)
    assert two.notes() == ["its turn"]


def test_a_daemon_lets_others_commit_between_many_jobs_of_its_own(url: str, tmp_path: Path) -> None:
    seat, held = Seat("daemon", "host", {0: Record()}), Event()
    writer, _ = open_fleet_store(url, tmp_path, checkpoint=lambda _name: None, seat=seat)
    with closing(writer):
        waiting = [writer.submit("wait", lambda _unit: held.wait(60))]
        waiting += [writer.submit("job", lambda _unit: True) for _ in range(40)]
        held.set()
        assert all(one.result() for one in waiting)
        assert writer.commits >= 3


def test_leases_go_by_the_databases_clock(pair: Pair) -> None:
    _, two = pair
    assert two.take([0], FAR_AHEAD_MS) == {}


def test_a_trigger_refuses_a_daemon_without_a_fence(pair: Pair, url: str) -> None:
    one, _ = pair
    with daemon_on(url, "unfenced", made=Unfenced) as unfenced:
        with pytest.raises(sqlite3.IntegrityError, match="does not hold the account"):
            unfenced.attempt(0)
        one.attempt(0)
        with pytest.raises(sqlite3.IntegrityError, match="does not hold the account"):
            unfenced.run(lambda unit: unit.conn.execute("UPDATE payments SET state = 'in_flight'"))
        with pytest.raises(sqlite3.IntegrityError, match="does not hold the account"):
            unfenced.run(lambda unit: unit.conn.execute("INSERT INTO submissions VALUES (1, 'cc', 'p', 1)"))
        assert unfenced.take_over([0]) == {0: 2}
        unfenced.run(lambda unit: unit.conn.execute("UPDATE payments SET state = 'in_flight'"))


def test_any_daemon_reports_a_delivery(pair: Pair) -> None:
    one, two = pair
    one.attempt(0)
    two.run(lambda unit: unit.conn.execute("UPDATE payments SET delivery = 'presented', updated_at_ms = 2"))
    assert one.conn.execute("SELECT delivery FROM payments").fetchall() == [("presented",)]


# --- a daemon that stops


def test_a_daemon_that_is_paused_in_the_gate_holds_the_others_up_for_seconds_only(pair: Pair, url: str) -> None:
    one, two = pair
    one.give_back(0)
    with started("fleet_stopped", url) as stopped:
        _, status = os.waitpid(stopped.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        two.note("meanwhile", account=None)
        two.take_over([0])
        two.note("taken", account=0)
        os.kill(stopped.pid, signal.SIGCONT)
        assert stopped.stdout is not None
        assert stopped.stdout.read().splitlines() == ["store_failed", "lease_lost", "[0]"]
    assert two.notes() == ["meanwhile", "taken"]


# --- a connection or a server that fails


def lose(daemon: Daemon, text: str, error: str) -> None:
    """A commit of a lost connection: its caller is told, and every account must be taken again."""
    with pytest.raises(Refused, match=error) as refused:
        daemon.note(text, account=0)
    assert refused.value.code == "store_failed"
    assert (sorted(daemon.lost), daemon.seat.held) == ([0, 1], {})
    with pytest.raises(Refused, match="account 0") as fenced:
        daemon.note("before it is taken", account=0)
    assert fenced.value.code == "lease_lost"
    assert daemon.take([0, 1], 0) == {0: 2, 1: 2}
    daemon.note("again", account=0)


def test_after_a_restart_of_the_server_a_daemon_has_its_accounts_still(pair: Pair, postgresql: Server) -> None:
    one, _ = pair
    one.note("before", account=0)
    job = one.job("asked for before the loss", account=1)
    postgresql.restart()
    with pytest.raises(Refused, match="the database could not be written") as refused:
        one.note("lost", account=0)
    assert refused.value.code == "store_failed"
    one.committer.commit([job])
    one.note("goes on", account=0)
    assert one.notes() == ["before", "asked for before the loss", "goes on"]
    assert (one.lost, one.seat.held) == ([], {0: 1, 1: 1})


def test_a_connection_lost_before_the_commit_changes_nothing(pair: Pair, url: str) -> None:
    one, two = pair

    def cut(name: str) -> None:
        if name == "before cut":
            with operator(url) as conn:
                conn.execute("SELECT pg_terminate_backend(CAST(? AS INTEGER), 60000)", (session_of_cut,))

    one.give_back(0)
    one.give_back(1)
    with daemon_on(url, "cut", cut) as daemon:
        session_of_cut = session_of(daemon)
        assert daemon.take([0, 1], 0) == {0: 2, 1: 2}
        with pytest.raises(Refused, match="whether it took place is unknown"):
            daemon.note("cut", account=0)
        assert sorted(daemon.lost) == [0, 1]
        daemon.take([0], 0)
        daemon.note("again", account=0)
    assert two.notes() == ["again"]


@pytest.mark.parametrize(
    ("ends", "told"), [("pg_terminate_backend", "unknown"), ("pg_cancel_backend", "canceling wait")]
)
def test_a_commit_that_a_standby_may_lack_has_an_unknown_outcome(
    pair: Pair, url: str, ends: str, told: str
) -> None:
    """The server commits it all the same: terminated, it tells nothing; cancelled, it only warns.

    Also where somebody set the database so that nobody hears of warnings.
    """
    one, two = pair
    with operator(url) as conn:
        (name,) = conn.execute("SELECT current_database()::text").fetchone() or ("",)
        conn.execute(f"ALTER DATABASE {name} SET client_min_messages = error")
    one.conn.close()
    one.conn.connect()
    session = session_of(one)
    one.conn.execute("SET synchronous_commit = on")
    with ThreadPoolExecutor(1) as pool, operator(url) as conn:
        waiting = pool.submit(lose, one, "landed", told)
        until_waiting(conn, session, standby=True)
        conn.execute(f"SELECT {ends}(CAST(? AS INTEGER))", (session,))
        waiting.result()
    assert two.notes() == ["landed", "again"]
    two.require_whole()


def test_a_daemon_that_waits_for_a_standby_keeps_the_gate(pair: Pair, url: str) -> None:
    one, _ = pair
    session = session_of(one)
    with daemon_on(url, "impatient", made=Impatient) as impatient, ThreadPoolExecutor(1) as pool:
        one.conn.execute("SET synchronous_commit = on")
        with operator(url) as conn:
            waiting = pool.submit(lose, one, "landed", "canceling wait")
            until_waiting(conn, session, standby=True)
            with pytest.raises(Refused, match="another daemon has held the gate"):
                impatient.note("waits", account=None)
            assert waits(conn, session, standby=True)
            conn.execute("SELECT pg_cancel_backend(CAST(? AS INTEGER))", (session,))
            waiting.result()
        impatient.note("goes on", account=None)
        assert one.notes() == ["landed", "again", "goes on"]


def test_a_commit_that_is_never_answered_has_an_unknown_outcome(pair: Pair, url: str) -> None:
    """As on a primary that lost its standbys and still runs. The daemon goes on once that one is ended."""
    one, two = pair
    one.give_back(0)
    with daemon_on(url, "hasty", made=Hasty) as hasty, operator(url) as conn:
        assert hasty.take([0], 0) == {0: 2}
        session = session_of(hasty)
        hasty.conn.execute("SET synchronous_commit = on")
        with pytest.raises(Refused, match="whether it took place is unknown") as refused:
            hasty.note("landed", account=0)
        assert (refused.value.code, hasty.lost) == ("store_failed", [0])
        assert waits(conn, session, standby=True)
        conn.execute("SELECT pg_terminate_backend(CAST(? AS INTEGER), 60000)", (session,))
        assert hasty.take([0], 0) == {0: 3}
        hasty.note("again", account=0)
    assert two.notes() == ["landed", "again"]
    two.require_whole()


def test_a_daemon_that_waits_for_the_gate_ends_only_daemons(url: str) -> None:
    with operator(url) as reader, daemon_on(url, "impatient", made=Impatient) as impatient:
        reader.execute("CREATE ROLE someone SUPERUSER LOGIN")
        with operator(f"postgresql://someone@{url.partition('@')[2]}") as other:
            for conn, lock in ((reader, ""), (other, "FOR UPDATE")):
                conn.execute("BEGIN")
                conn.execute(f"SELECT 1 FROM gate {lock}")
            with pytest.raises(Refused, match="has held the gate"):
                impatient.note("waits", account=None)
            for conn in (reader, other):
                assert conn.execute("SELECT 1").fetchone() == (1,)


def test_after_a_failover_no_account_is_proven(pair: Pair, url: str) -> None:
    one, _ = pair
    one.prove(0)
    one.renew(0)
    assert one.seat.is_proven(0)
    with operator(url) as conn:
        conn.execute("UPDATE accounts SET proven_timeline = proven_timeline - 1")
    one.renew(0)
    assert not one.seat.is_proven(0)


# --- opening, and reading


def test_a_database_out_of_reach_is_refused_by_name(tmp_path: Path) -> None:
    seat = Seat("one", "host", {0: Record()})
    with pytest.raises(Refused, match=r"no host of store\.url takes writes") as refused:
        open_fleet_store(f"postgresql:///no?host={tmp_path}", tmp_path, checkpoint=lambda _name: None, seat=seat)
    assert refused.value.code == "store_failed"


def test_a_database_without_a_guard_is_refused_by_name(url: str) -> None:
    with operator(url) as conn:
        conn.execute("DROP TRIGGER payments_fence ON payments")
    with pytest.raises(Refused, match="payments_fence") as refused, daemon_on(url, "one"):
        pass
    assert refused.value.code == "ledger_tampered"


def test_readers_see_each_commit_write_nothing_and_survive_a_restart(
    pair: Pair, url: str, tmp_path: Path, postgresql: Server
) -> None:
    one, _ = pair
    readers = PostgresqlReaders(url, tmp_path)
    with readers.snapshot() as before:
        version = before.execute("PRAGMA data_version").fetchone()
        one.note("told", account=0)
        assert (fleet.event_seq(readers.conn), fleet.event_seq(before)) == (3, 2)
        assert before.execute("PRAGMA data_version").fetchone() == version
        assert readers.conn.execute("PRAGMA data_version").fetchone() != version
        for conn in (before, readers.conn):
            with pytest.raises(sqlite3.OperationalError, match="read-only"):
                conn.execute("DELETE FROM daemons")
    conn = readers.conn
    postgresql.restart()
    assert fleet.event_seq(conn) == 3


def test_no_commit_of_a_daemon_seals_the_rows_of_a_stranger(pair: Pair, url: str, tmp_path: Path) -> None:
    """Also where the stranger has the password of the daemons' role. Each daemon made the last commit once."""
    made = tmp_path / "moved.db"
    for number, daemon in enumerate(pair, 1):
        daemon.note("before", account=None)
        with operator(url) as stranger:
            stranger.execute(
                "INSERT INTO apps(id, name, scopes, created_at_ms) VALUES (?, ?, 'operate', 1)",
                [f"a{number}"] * 2,
            )
        daemon.note("after", account=None)
    move_to_file(url, made)
    with Readers(made).snapshot() as conn:
        found = [one for one in check_seals(conn, None) if isinstance(one, AuditFinding)]
    assert [(one.table, one.row) for one in found] == [("apps", "1"), ("apps", "2")]


def test_nobody_adds_a_row_while_a_daemon_commits(pair: Pair, url: str) -> None:
    """The commit would seal it."""

    def commit(unit: Unit) -> None:
        with operator(url) as stranger:
            stranger.execute("SET lock_timeout = '100ms'")
            with pytest.raises(sqlite3.OperationalError, match="lock timeout"):
                stranger.execute("INSERT INTO apps(id, name, scopes, created_at_ms) VALUES ('a', 'a', 'pay', 1)")

    pair[0].run(commit)
