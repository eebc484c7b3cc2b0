"""Which server of `store.url` is used: by the rules alone, and with a primary, a standby and an old primary."""

import shutil
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from kit.cli import until
from kit.fleet import Record
from kit.postgresql import Server, needs_postgresql
from kit.postgresql_pair import server_pair

from payagent.core.problems import Refused
from payagent.store.db.daemon_file import DaemonFile
from payagent.store.db.engine import copy_to_file, migrate_database, open_fleet_store, read_fleet_store
from payagent.store.db.fence import Seat
from payagent.store.db.lease import lease
from payagent.store.db.postgresql import hosts
from payagent.store.db.postgresql.committer import PostgresqlCommitter
from payagent.store.db.postgresql.connection import Database, PostgresqlConnection
from payagent.store.db.postgresql.hosts import HostAnswer, choose, hosts_of
from payagent.store.db.readers import Readers
from payagent.store.db.unit import Unit
from payagent.store.db.writer import Writer
from payagent.store.rows import writes

SYSTEM = "7301"

END_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
)

# --- the rules


def at(name: str) -> Database:
    return Database("", place={"host": name})


def primary(name: str, timeline: int, system: str = SYSTEM, started: str = "") -> HostAnswer:
    return HostAnswer(at(name), "writable", timeline, system, started or name)


def standby(name: str, timeline: int = 1, system: str = SYSTEM) -> HostAnswer:
    return HostAnswer(at(name), "standby", timeline, system, name, "it takes no writes")


def silent(name: str) -> HostAnswer:
    return HostAnswer(at(name), "silent", why="connection refused")


def refusing(name: str) -> HostAnswer:
    return HostAnswer(at(name), "refuses", why="password authentication failed")


def outcome(
    *answers: HostAnswer, recorded: int = 0, is_synchronous: bool = False, is_starting: bool = False
) -> str:
    """The host that is used, else the code of the refusal, and the host that it waits for."""
    known = {SYSTEM: recorded} if recorded else {}
    found = set()
    for order in (answers, answers[::-1]):
        try:
            best = choose(order, known, is_synchronous=is_synchronous, is_starting=is_starting)
            found.add(best.database.host)
        except Refused as refused:
            waits_for = refused.context.get("waits_for")
            found.add(f"waits for {waits_for}" if waits_for else refused.code)
        except sqlite3.OperationalError:
            found.add("none")
    assert len(found) == 1, "the order of the URL matters"
    return found.pop()


@pytest.mark.parametrize("is_starting", [True, False])
@pytest.mark.parametrize("is_synchronous", [True, False])
@pytest.mark.parametrize(
    ("answers", "recorded", "used"),
    [
        ([primary("a", 1)], 0, "a"),
        ([primary("a", 1)], 1, "a"),
        ([primary("a", 2)], 1, "a"),
        ([primary("a", 1), standby("b"), standby("c")], 0, "a"),
        ([primary("a", 1), standby("b")], 1, "a"),
        ([primary("old", 1), primary("new", 2)], 0, "new"),
        ([primary("old", 1), primary("new", 2)], 1, "new"),
        ([primary("old", 1), primary("new", 2)], 2, "new"),
        ([primary("old", 1), primary("older", 1), primary("new", 2)], 2, "new"),
        ([primary("a", 1), primary("b", 1)], 0, "config_invalid"),
        ([primary("old", 1), primary("a", 2), primary("b", 2)], 1, "config_invalid"),
        ([primary("a", 1), primary("b", 1), silent("c")], 1, "config_invalid"),
        ([primary("a", 3), primary("of other data", 1, system="7302")], 3, "config_invalid"),
        ([primary("old", 1)], 2, "config_invalid"),
        ([primary("old", 1), standby("b")], 2, "config_invalid"),
        ([primary("old", 1), standby("b", 2)], 0, "waits for b"),
        ([primary("old", 1), standby("b", 2)], 1, "waits for b"),
        ([primary("old", 1), standby("b", 2)], 2, "waits for b"),
        ([primary("old", 1), standby("b", 2), standby("c")], 3, "waits for b"),
        ([primary("a", 2), primary("old", 1), standby("b", 2)], 2, "a"),
        ([primary("a", 1), standby("of other data", 2, "7302")], 1, "a"),
        ([primary("old", 1), silent("b")], 2, "waits for b"),
        ([primary("old", 1), standby("c"), silent("b")], 2, "waits for b"),
        ([primary("new", 2), silent("b")], 1, "new"),
        ([primary("new", 2), primary("old", 1), silent("b")], 1, "new"),
        ([primary("of other data", 1, system="7302")], 5, "of other data"),
        ([standby("a"), standby("b")], 1, "none"),
    ],
)
def test_the_server_is_the_same_for_every_daemon(
    answers: list[HostAnswer], recorded: int, used: str, is_synchronous: bool, is_starting: bool
) -> None:
    assert outcome(*answers, recorded=recorded, is_synchronous=is_synchronous, is_starting=is_starting) == used


@pytest.mark.parametrize("is_starting", [True, False])
@pytest.mark.parametrize(
    ("answers", "recorded"),
    [
        ([primary("a", 1), silent("b")], 0),
        ([primary("a", 1), silent("b")], 1),
        ([primary("a", 2), primary("old", 1), silent("b")], 2),
        ([primary("a", 2), silent("b"), standby("c")], 0),
    ],
)
def test_without_a_silent_host_only_a_synchronous_daemon_goes_on(
    answers: list[HostAnswer], recorded: int, is_starting: bool
) -> None:
    assert outcome(*answers, recorded=recorded, is_starting=is_starting) == "waits for b"
    assert outcome(*answers, recorded=recorded, is_starting=is_starting, is_synchronous=True) == "a"


@pytest.mark.parametrize("recorded", [0, 1])
def test_a_daemon_that_starts_waits_for_a_primary_among_silent_hosts(recorded: int) -> None:
    for answers, awaited in (
        ([standby("a"), silent("b")], "b"),
        ([silent("a"), silent("b")], "a, b"),
        ([silent("a")], "a"),
    ):
        assert outcome(*answers, recorded=recorded, is_starting=True) == f"waits for {awaited}"
        assert outcome(*answers, recorded=recorded) == "none"


def test_each_host_that_is_waited_for_has_its_own_reason() -> None:
    away = [HostAnswer(at("b"), "silent", why="it said nothing"), HostAnswer(at("c"), "silent", why="no route")]
    with pytest.raises(Refused) as refused:
        choose([primary("a", 1), *away], {}, is_synchronous=False, is_starting=True)
    assert "b of store.url does not answer: it said nothing. c of store.url does not answer: no route." in (
        refused.value.detail
    )


def test_a_daemon_that_starts_ends_at_a_refusal_and_one_that_runs_takes_it_for_silence() -> None:
    for other in (primary("a", 1), primary("a", 2), standby("a"), silent("a")):
        for is_synchronous in (True, False):
            assert outcome(other, refusing("b"), recorded=1, is_synchronous=is_synchronous, is_starting=True) == (
                "store_failed"
            )
    assert outcome(primary("a", 1), refusing("b"), recorded=1) == "waits for b"
    assert outcome(primary("a", 1), refusing("b"), recorded=1, is_synchronous=True) == "a"
    assert outcome(primary("a", 2), refusing("b"), recorded=1) == "a"


def test_one_server_by_two_names_is_one() -> None:
    answers = [primary(name, 1, started="now") for name in ("db.example", "192.0.2.1")]
    assert choose(answers, {}, is_synchronous=False, is_starting=True) in answers


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("postgresql://u@a,b:6,c/d?sslmode=verify-full", ["a", "b:6", "c"]),
        ("postgresql://u@a,b/d?port=7", ["a:7", "b:7"]),
        ("postgresql://u@[::1]:5/d", ["::1:5"]),
        ("postgresql:///d?host=/run/a,/run/b&port=1,2", ["/run/a:1", "/run/b:2"]),
        ("postgresql://u@/d?hostaddr=192.0.2.1,192.0.2.2", ["192.0.2.1", "192.0.2.2"]),
        ("postgresql:///d", ["localhost"]),
    ],
)
def test_each_host_of_a_url_is_asked(url: str, named: list[str]) -> None:
    assert [one.host for one in hosts_of(Database(url))] == named


@pytest.mark.parametrize("url", ["postgresql://u@a,b:1,c/d?port=1,2", "postgresql://u@a/d?nothing=1"])
def test_a_url_that_names_no_hosts_is_refused(url: str) -> None:
    with pytest.raises(Refused) as refused:
        hosts_of(Database(url))
    assert refused.value.code == "config_invalid"


# --- the daemon's own file


def test_the_newest_timeline_of_each_database_survives_a_restart(tmp_path: Path) -> None:
    one = DaemonFile(tmp_path / "daemon.json")
    assert one.timelines == {}
    for system, timeline in (("1", 3), ("2", 1), ("1", 2), ("1", 4)):
        one.note_timeline(system, timeline)
    assert DaemonFile(tmp_path / "daemon.json").timelines == one.timelines == {"1": 4, "2": 1}
    assert (tmp_path / "daemon.json").stat().st_mode & 0o777 == 0o600


def test_a_daemons_id_is_that_of_its_folder_and_a_copy_gets_another(tmp_path: Path) -> None:
    def look(folder: Path) -> str:
        with lease(folder, ()):
            return DaemonFile(folder / "daemon.json").own_id(folder / "lock")

    one, copy, moved = (tmp_path / name for name in ("one", "copy", "moved"))
    one.mkdir(mode=0o700)
    own = look(one)
    DaemonFile(one / "daemon.json").note_timeline("1", 2)
    assert look(one) == own
    shutil.copytree(one, copy)
    copied = look(copy)
    assert copied not in (own, "")
    assert (look(copy), DaemonFile(copy / "daemon.json").timelines) == (copied, {"1": 2})
    one.rename(moved)
    assert look(moved) == own
    (moved / "daemon.json").unlink()
    assert look(moved) != own


@pytest.mark.parametrize("text", ["", "[]", '{"timelines": 1}', '{"timelines": {"1": "x"}}', "\x00"])
def test_a_file_that_payagent_did_not_write_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "daemon.json").write_text(text)
    with pytest.raises(Refused, match=r"daemon\.json cannot be read") as refused:
        DaemonFile(tmp_path / "daemon.json")
    assert refused.value.code == "store_failed"


def test_a_timeline_that_cannot_be_kept_is_not_used(tmp_path: Path) -> None:
    one = DaemonFile(tmp_path / "missing/daemon.json")
    with pytest.raises(Refused, match="could not be written"):
        one.note_timeline("1", 1)
    assert one.timelines == {}


# --- real servers


def seat_of(name: str, recorded: Mapping[str, int] | None = None) -> Seat:
    file = DaemonFile()
    for system, timeline in (recorded or {}).items():
        file.note_timeline(system, timeline)
    return Seat(name, f"host of {name}", {0: Record()}, own_file=file)


def tell(writer: Writer, text: str) -> None:
    def job(unit: Unit) -> None:
        writes.note(unit, None, "told", None, 1, {"text": text})

    writer.submit("tell", job).result()


def texts(conn: Any) -> list[str]:
    rows = conn.execute("SELECT detail ->> 'text' FROM events WHERE event = 'told' ORDER BY seq")
    return [text for (text,) in rows]


@contextmanager
def store(url: str, folder: Path, seat: Seat) -> Iterator[tuple[Writer, Readers]]:
    writer, readers = open_fleet_store(url, folder, checkpoint=lambda _name: None, seat=seat)
    with closing(writer):
        yield writer, readers


def refusal(url: str, seat: Seat) -> Refused:
    """Why a daemon does not start."""
    with pytest.raises(Refused) as refused:
        PostgresqlCommitter(url, seat=seat)
    return refused.value


@needs_postgresql
def test_writer_and_readers_use_the_new_primary_once_the_old_one_is_back(tmp_path: Path) -> None:
    with server_pair(is_synchronous=False) as servers:
        seat = seat_of("one")
        with store(servers.tcp_url_in(0, 1), tmp_path, seat) as (writer, readers):
            tell(writer, "before")
            assert texts(readers.conn) == ["before"]
            until(lambda: texts_at(servers.url_of(1)) == ["before"], "the standby lags")
            servers.kill_primary()
            servers.promote(is_synchronous=False)
            with pytest.raises(Refused):
                tell(writer, "lost with the connection")
            tell(writer, "after")
            servers.start_again(0)
            assert texts(readers.conn) == ["before", "after"]
            with readers.snapshot() as conn:
                assert texts(conn) == ["before", "after"]
        assert list(seat.own_file.timelines.values()) == [2]
        for order in ((0, 1), (1, 0)):
            url, name = servers.tcp_url_in(*order), f"restarted with {order}"
            # one that was down during the failover, the one that was not, and a new machine
            for recorded in (dict.fromkeys(seat.own_file.timelines, 1), seat.own_file.timelines, {}):
                with store(url, tmp_path, seat_of(name, recorded)) as (writer, readers):
                    tell(writer, name)
                    assert texts(readers.conn)[-1] == name
            with closing(read_fleet_store(url, tmp_path, None).conn) as conn:
                assert texts(conn)[-1] == name
            assert not migrate_database(url)
        assert texts_at(servers.url_of(0)) == ["before"]


def texts_at(url: str) -> list[str]:
    """What one server has, whether or not it takes writes."""
    with psycopg.connect(url, autocommit=True) as conn:
        return texts(conn)


@needs_postgresql
def test_a_daemon_waits_for_a_silent_host_by_name_and_then_goes_on(tmp_path: Path) -> None:
    with server_pair(is_synchronous=False) as servers:
        away = servers.host(1)
        with store(servers.tcp_url, tmp_path, seat_of("one")) as (writer, readers):
            tell(writer, "before")
            servers.kill_standby()
            tell(writer, "over the connection that it kept")
            with closing(PostgresqlConnection(servers.url_of(0))) as conn:
                conn.execute(END_SESSIONS)
            with pytest.raises(Refused):
                tell(writer, "lost with the connection")
            for _ in range(2):
                with pytest.raises(Refused, match=f"{away} of store.url does not answer") as refused:
                    tell(writer, "too early")
                assert (refused.value.code, refused.value.context) == ("store_failed", {"waits_for": away})
            with pytest.raises(Refused, match=away):
                texts(readers.conn)
            assert refusal(servers.tcp_url, seat_of("two")).context == {"waits_for": away}
            with store(servers.tcp_url_in(0), tmp_path, seat_of("without that host")):
                pass
            servers.start_again(1)
            tell(writer, "once it answers")
            assert texts(readers.conn) == ["before", "over the connection that it kept", "once it answers"]
            servers.turn_away(1)
            refused_start = refusal(servers.tcp_url, seat_of("three"))
            assert (refused_start.code, refused_start.context) == ("store_failed", {})
            assert f"{away} of store.url refuses this daemon" in refused_start.detail


@needs_postgresql
def test_a_frozen_primary_holds_nobody_up_who_used_it_before(tmp_path: Path) -> None:
    with server_pair(is_synchronous=False) as servers:
        seat = seat_of("one")
        with store(servers.tcp_url, tmp_path, seat) as (writer, _):
            tell(writer, "before")
            until(lambda: texts_at(servers.url_of(1)) == ["before"], "the standby lags")
        servers.freeze_primary()
        servers.promote(is_synchronous=False)
        for order in ((0, 1), (1, 0)):
            url, recorded = servers.tcp_url_in(*order), dict.fromkeys(seat.own_file.timelines, 1)
            assert refusal(url, seat_of("new")).context == {"waits_for": servers.host(0)}
            with store(url, tmp_path, seat_of("two", recorded)) as (writer, readers):
                tell(writer, f"{order}")
                assert texts(readers.conn)[-1] == f"{order}"


@needs_postgresql
@pytest.mark.parametrize(
    ("url", "why"),
    [("{}?sslmode=require", "SSL"), ("{}_missing", "does not exist"), ("postgresql://nobody@{}", "nobody")],
)
def test_a_server_that_refuses_is_not_waited_for(postgresql: Server, url: str, why: str) -> None:
    place = postgresql.tcp_url(postgresql.new_database())
    place = place.partition("@")[2] if url.startswith("postgresql://") else place
    refused = refusal(url.format(place), seat_of("one"))
    assert (refused.code, refused.context) == ("store_failed", {})
    assert "refuses this daemon" in refused.detail
    assert why in refused.detail


@needs_postgresql
def test_a_standby_of_the_new_primary_and_a_read_only_one_show_that_a_primary_is_old(tmp_path: Path) -> None:
    with server_pair(is_synchronous=False) as servers:
        with store(servers.tcp_url, tmp_path, seat_of("one")) as (writer, _):
            tell(writer, "before")
            until(lambda: texts_at(servers.url_of(1)) == ["before"], "the standby lags")
        servers.kill_primary()
        servers.promote(is_synchronous=False)
        with servers.standby_of_the_new_primary() as standby:
            servers.start_again(0)
            url = servers.tcp_url_in(0).replace(servers.host(0), f"{servers.host(0)},{standby}")
            refused = refusal(url, seat_of("without the new primary"))
            assert refused.context == {"waits_for": standby}
        with closing(PostgresqlConnection(servers.url_of(1))) as conn:
            conn.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            conn.execute("SELECT pg_reload_conf()")
        asked = "SHOW default_transaction_read_only"
        until(lambda: shown(servers.url_of(1), asked) == "on", "the new primary still takes writes")
        for order in ((0, 1), (1, 0)):
            context = refusal(servers.tcp_url_in(*order), seat_of("two")).context
            assert context == {"waits_for": servers.host(1)}


def shown(url: str, asked: str) -> str:
    with psycopg.connect(url, autocommit=True) as conn:
        (text,) = conn.execute(asked).fetchone() or ("",)
        return str(text)


@needs_postgresql
def test_a_command_takes_no_old_primary_and_copies_nothing_while_a_host_is_silent(tmp_path: Path) -> None:
    with server_pair(is_synchronous=False) as servers:
        url, data = servers.tcp_url, tmp_path / "data"
        data.mkdir()
        servers.kill_standby()
        with closing(read_fleet_store(url, data, None).conn) as conn:
            assert texts(conn) == []
            system = conn.system()
        DaemonFile(data / "daemon.json").note_timeline(system, 1)
        for copy in (lambda: copy_to_file(url, tmp_path / "copy.db", None, data), lambda: migrate_database(url)):
            with pytest.raises(Refused, match=f"{servers.host(1)} of store.url does not answer"):
                copy()
        DaemonFile(data / "daemon.json").note_timeline(system, 2)
        with pytest.raises(Refused, match=f"{servers.host(1)} of store.url does not answer"):
            read_fleet_store(url, data, None)
        with pytest.raises(Refused, match="it is an old primary"):
            read_fleet_store(servers.tcp_url_in(0), data, None)


@needs_postgresql
def test_the_readers_connect_again_with_the_writer_although_the_name_is_the_same(
    postgresql: Server, tmp_path: Path
) -> None:
    url = postgresql.tcp_url(postgresql.new_database())
    with store(url, tmp_path, seat_of("one")) as (writer, readers), closing(PostgresqlConnection(url)) as conn:
        tell(writer, "before")
        before = readers.conn
        assert readers.conn is before
        own = before.execute("SELECT pg_backend_pid()").fetchone()
        conn.execute(f"{END_SESSIONS} AND pid <> ?", own)
        with pytest.raises(Refused):
            tell(writer, "lost with the connection")
        tell(writer, "after")
        assert readers.conn is not before
        assert texts(readers.conn) == ["before", "after"]


@needs_postgresql
def test_readers_get_the_reason_for_which_the_writer_refuses_a_server(postgresql: Server, tmp_path: Path) -> None:
    url = postgresql.tcp_url(postgresql.new_database())
    with store(url, tmp_path, seat_of("one")) as (writer, readers):
        tell(writer, "before")
        with closing(PostgresqlConnection(url)) as conn:
            conn.execute("UPDATE gate SET system = '1'")
            conn.execute(END_SESSIONS)
        for _ in range(2):
            with pytest.raises(Refused):
                tell(writer, "to the ledger of another server")
        with pytest.raises(Refused, match="belongs to the database server 1") as refused:
            _ = readers.conn
        assert refused.value.code == "store_failed"


@needs_postgresql
def test_a_server_whose_timeline_cannot_be_kept_is_not_changed(postgresql: Server, tmp_path: Path) -> None:
    url = postgresql.tcp_url(postgresql.new_database())
    seat = Seat("one", "host", {0: Record()}, own_file=DaemonFile(tmp_path / "missing/daemon.json"))
    assert "could not be written" in refusal(url, seat).detail
    assert shown(url, "SELECT system FROM gate") == ""


HANGING = """
CREATE FUNCTION public.pg_postmaster_start_time() RETURNS timestamptz LANGUAGE sql
AS 'SELECT pg_catalog.now() FROM pg_catalog.pg_sleep(3600)';
ALTER DATABASE {0} SET search_path = public, pg_catalog;
ALTER DATABASE {0} SET client_connection_check_interval = 100
"""


@needs_postgresql
def test_a_question_that_hangs_leaves_no_thread_and_no_session(
    postgresql: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "ANSWER_S", 3)
    url = postgresql.tcp_url(postgresql.new_database())
    name = url.rpartition("/")[2]
    with closing(PostgresqlConnection(url)) as conn:
        for statement in HANGING.format(name).split(";\n"):
            conn.execute(statement)
        before = set(threading.enumerate())
        (answer,) = hosts._ask_all(Database(url))
        assert (answer.kind, answer.why) == ("silent", "no answer in 3 s")
        left = set(threading.enumerate()) - before
        assert all(thread.daemon for thread in left), "it keeps the process alive"
        until(lambda: not any(thread.is_alive() for thread in left), "a thread still waits")
        asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = ? AND pid <> pg_backend_pid()"
        until(lambda: conn.execute(asked, (name,)).fetchone() == (0,), "a session still runs")


def test_a_name_in_an_error_says_nothing_of_the_host() -> None:
    for text, kind in (
        (
            'connection to server at "geoff" (192.0.2.1), port 5432 failed: FATAL:  role "eof" does not exist',
            "refuses",
        ),
        ("Multiple connection attempts failed. - host: 'geoff', port: '1': SSL is required", "refuses"),
        ('connection to server at "geoff" (192.0.2.1), port 5432 failed: Connection timed out', "silent"),
    ):
        assert hosts.failure_kind(text) == kind
