"""A daemon commits only to its own ledger on a server that keeps what the config claims."""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from kit.fleet import Daemon, Record, daemon_on
from kit.postgresql import Server, needs_postgresql
from kit.postgresql_pair import server_pair
from kit.postgresql_pooler import needs_pooler, pooler

from payagent.core.problems import Refused
from payagent.store.db.engine import copy_to_database, copy_to_file
from payagent.store.db.fence import Seat
from payagent.store.db.postgresql import committer
from payagent.store.db.postgresql.committer import PostgresqlCommitter
from payagent.store.db.postgresql.connection import PostgresqlConnection
from payagent.store.db.signer_record import DatabaseMark, lacks

pytestmark = needs_postgresql


@pytest.fixture
def url(postgresql: Server) -> str:
    return postgresql.new_database()


def execute(url: str, statement: str) -> None:
    with closing(PostgresqlConnection(url)) as conn:
        conn.execute(statement)


def refusal(url: str, record: Record | None = None, *, is_synchronous: bool = False) -> str:
    """Why a daemon with this signer's record does not start."""
    seat = Seat("daemon", "host", {0: record or Record()}, is_synchronous=is_synchronous)
    with pytest.raises(Refused) as refused:
        PostgresqlCommitter(url, seat=seat)
    assert refused.value.code == "config_invalid"
    return str(refused.value.detail)


@contextmanager
def signed_on(url: str) -> Iterator[tuple[Daemon, Record]]:
    """A daemon that has signed, and its record."""
    with daemon_on(url, "one") as one:
        one.add_accounts()
        one.take([0], 0)
        one.attempt(0)
        record = one.seat.records[0]
        assert isinstance(record, Record)
        yield one, record


def test_a_session_whose_commits_do_not_wait_for_the_standby_is_refused(url: str) -> None:
    assert "synchronous_commit is local" in refusal(url, is_synchronous=True)


def test_nothing_is_committed_once_the_primary_waits_for_no_standby_any_more() -> None:
    with server_pair(is_synchronous=True) as servers:
        seat = Seat("one", "host of one", {}, is_synchronous=True)
        with closing(PostgresqlCommitter(servers.url, seat=seat)) as made:
            one = Daemon("one", seat, made)
            one.note("on both", account=None)
            servers.stop_waiting_for_standbys()
            with pytest.raises(Refused, match="waits for no standby") as refused:
                one.note("on the primary alone", account=None)
            assert (refused.value.code, one.notes()) == ("store_failed", ["on both"])


@needs_pooler
def test_a_pooler_is_refused(postgresql: Server, url: str) -> None:
    with pooler(postgresql.tcp_url(url)) as through:
        assert "leads to a pooler" in refusal(through)


def test_the_record_has_the_database_and_the_end_of_its_chain(url: str) -> None:
    with signed_on(url) as (one, record):
        mark = record.last and record.last.database
        assert mark is not None
        assert (mark.system, mark.timeline) == (one.conn.system(), one.conn.timeline())
        asked = "SELECT hash FROM events WHERE seq = ?"
        assert one.conn.execute(asked, (mark.event_seq,)).fetchone() == (mark.event_hash,)


def test_the_ledger_of_another_server_is_refused(url: str) -> None:
    with signed_on(url) as (_, record):
        pass
    execute(url, "UPDATE gate SET system = '1'")
    assert "belongs to the database server 1" in refusal(url, record)


def test_a_second_database_for_one_wallet_is_refused(url: str, postgresql: Server) -> None:
    with signed_on(url) as (_, record):
        pass
    assert record.last is not None
    assert record.last.database is not None
    elsewhere = replace(record.last, database=replace(record.last.database, system="1"))
    second = postgresql.new_database()
    assert "signed for account 0 on the database server 1" in refusal(second, Record(elsewhere))
    with daemon_on(second, "new"):
        pass  # a host that never signed


def test_a_ledger_that_was_moved_is_used_with_the_record_of_its_old_server(
    url: str, postgresql: Server, tmp_path: Path
) -> None:
    with signed_on(url) as (_, record):
        pass
    assert record.last is not None
    assert record.last.database is not None
    record.last = replace(record.last, database=replace(record.last.database, system="1"))
    execute(url, "UPDATE gate SET system = '1'")
    moved = postgresql.new_database("template0")
    copy_to_file(url, tmp_path / "ledger.db", None)
    copy_to_database(tmp_path / "ledger.db", moved, None, "host of one", {0: 1})
    with closing(PostgresqlCommitter(moved, seat=Seat("one", "host of one", {0: record}))):
        pass


def test_an_old_primary_is_refused(url: str) -> None:
    with signed_on(url) as (one, record):
        mark = DatabaseMark(one.conn.system(), one.conn.timeline() + 1, 0, "")
    assert record.last is not None
    assert "it is an old primary" in refusal(url, Record(replace(record.last, database=mark)))


def test_a_daemon_that_is_led_to_an_old_primary_commits_nothing(url: str) -> None:
    with daemon_on(url, "one") as one:
        one.committer._timeline += 1  # as if it had come back from the new primary
        one.conn.close()
        with pytest.raises(Refused, match="it is an old primary") as refused:
            one.note("lost", account=None)
        assert refused.value.code == "store_failed"
        with pytest.raises(Refused, match="it is an old primary"):
            one.note("lost", account=None)
    with daemon_on(url, "two") as two:
        assert two.notes() == []


def test_a_record_with_another_past_than_the_ledger_is_ahead(url: str) -> None:
    with signed_on(url) as (one, record):
        assert record.last is not None
        assert not lacks(one.conn, record.last)
        assert record.last.database is not None
        other = replace(record.last, database=replace(record.last.database, event_hash="0" * 64))
        assert lacks(one.conn, other)


def test_a_server_that_does_not_show_its_identifier_gets_no_commit(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "_DELAYS_S", (0.0, 0.0))
    execute(url, "DO $$ BEGIN CREATE ROLE lowly LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    execute(url, "GRANT ALL ON ALL TABLES IN SCHEMA public TO lowly")
    with daemon_on(re.sub(r"//\w+@", "//lowly@", url), "one") as one:
        one.note("before", account=None)
        execute(url, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        one.conn.close()
        with pytest.raises(Refused, match="permission denied"):
            one.note("after", account=None)
    with daemon_on(url, "two") as two:
        assert two.notes() == ["before"]
