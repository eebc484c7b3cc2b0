"""A ledger goes from a file to PostgreSQL and back, and stays as it is."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from kit.guards import WORLD, turn
from kit.postgresql import Server, needs_postgresql

from payagent.core.problems import Refused
from payagent.store.db.engine import copy_to_database, copy_to_file, migrate_database, read_fleet_store
from payagent.store.db.opening import migrate, open_database
from payagent.store.db.postgresql import schema
from payagent.store.db.postgresql.connection import PostgresqlConnection
from payagent.store.db.schema import missing_guards
from payagent.store.db.seals import last_seal

pytestmark = needs_postgresql

OF_A_RUN = {"accounts", "boot", "daemons", "gate"}


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A ledger with a row in each table of record, and with an attempt for an earlier invoice of its payment."""
    path = tmp_path / "ledger.db"
    with closing(open_database(path)) as conn:
        migrate(conn)
        conn.execute("BEGIN")
        for statement in WORLD.split(";\n"):
            conn.execute(statement)
        turn(conn)
        conn.execute("INSERT INTO meta(key, value) VALUES ('address', 'addr0')")
        conn.execute("COMMIT")
        yield path


@pytest.fixture
def url(postgresql: Server) -> str:
    """An empty database."""
    return postgresql.new_database("template0")


def rows(path: Path) -> dict[str, list[Any]]:
    with closing(sqlite3.connect(path)) as conn:
        return {
            name: conn.execute(f"SELECT {'rowid, ' * table.is_rowid}* FROM {name} ORDER BY 1, 2").fetchall()
            for name, table in schema.tables().items()
            if name not in OF_A_RUN
        }


def test_each_row_comes_back_as_it_was_under_its_number(file: Path, url: str, tmp_path: Path) -> None:
    copy_to_database(file, url, None, "host", {0: 1})
    copy_to_file(url, tmp_path / "back.db", None)
    assert rows(tmp_path / "back.db") == rows(file)
    with closing(sqlite3.connect(tmp_path / "back.db")) as back:
        assert missing_guards(back) == []
        row = "SELECT account, address, holder, noted, last_signer, proven_timeline FROM accounts"
        assert back.execute(row).fetchall() == [(0, "addr0", None, 1, "host", None)]


def test_a_filled_database_has_its_guards_and_goes_on_from_the_last_seal(file: Path, url: str) -> None:
    copy_to_database(file, url, None, "host", {0: 1})
    with closing(PostgresqlConnection(url)) as conn, closing(sqlite3.connect(file)) as source:
        assert schema.missing_guards(conn) == []
        gate = conn.execute("SELECT event_seq, seal_seq, seal_hash FROM gate").fetchone()
        assert gate == (*source.execute("SELECT MAX(seq) FROM events").fetchone(), *last_seal(source))
        proven = conn.execute("SELECT proven_timeline = timeline FROM accounts, gate").fetchone()
        assert proven == (True,)
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            conn.execute("DELETE FROM attempts")


def test_a_database_with_rows_is_refused_and_unchanged(file: Path, url: str) -> None:
    migrate_database(url)
    with closing(PostgresqlConnection(url)) as conn:
        conn.execute("INSERT INTO meta(key, value) VALUES ('network', 'devnet')")
        with pytest.raises(Refused, match="the table meta") as refused:
            copy_to_database(file, url, None, "host", {})
        assert refused.value.code == "already_exists"
        assert conn.execute("SELECT COUNT(*) FROM apps").fetchone() == (0,)
        assert schema.missing_guards(conn) == []


def test_a_copy_that_fails_leaves_the_database_empty(file: Path, url: str) -> None:
    with closing(sqlite3.connect(file)) as conn, conn:
        conn.execute("INSERT INTO meta(key, value) VALUES ('z', ?)", ("a\0b",))
    with pytest.raises(Refused, match="NUL"):
        copy_to_database(file, url, None, "host", {})
    with closing(PostgresqlConnection(url)) as conn:
        assert conn.execute("SELECT COUNT(*) FROM apps").fetchone() == (0,)
        assert schema.missing_guards(conn) == []


def test_a_database_with_a_guard_switched_off_is_neither_copied_nor_verified(
    file: Path, url: str, tmp_path: Path
) -> None:
    copy_to_database(file, url, None, "host", {})
    with closing(PostgresqlConnection(url)) as conn:
        conn.execute("ALTER TABLE events DISABLE TRIGGER events_update")
    with pytest.raises(Refused, match="events_update") as refused:
        copy_to_file(url, tmp_path / "back.db", None)
    assert refused.value.code == "ledger_tampered"
    with pytest.raises(Refused, match="events_update"), read_fleet_store(url, tmp_path, None).audited():
        pass


def test_tables_of_a_newer_payagent_are_refused(url: str, tmp_path: Path) -> None:
    assert migrate_database(url)
    with closing(PostgresqlConnection(url)) as conn:
        conn.execute("UPDATE gate SET schema = 'm999_later'")
    for use in (lambda: migrate_database(url), lambda: copy_to_file(url, tmp_path / "back.db", None)):
        with pytest.raises(Refused, match="m999_later") as refused:
            use()
        assert refused.value.code == "ledger_newer"


def test_a_database_without_tables_has_no_ledger(url: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no tables") as refused:
        copy_to_file(url, tmp_path / "back.db", None)
    assert refused.value.code == "tables_missing"
