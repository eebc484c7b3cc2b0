"""A later payagent changes the tables of a fleet only when every living daemon knows the change."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from kit.fleet import daemon_on
from kit.next_release import NAME, OLDER, upgraded
from kit.postgresql import Server, move_to_file, needs_postgresql

import payagent.store
from payagent.core.problems import Refused
from payagent.store.db.postgresql import migrate, schema
from payagent.store.db.postgresql.connection import PostgresqlConnection
from payagent.store.db.schema import MIGRATIONS, Migration, lacking_migrations, missing_guards

pytestmark = needs_postgresql


@pytest.fixture
def url(postgresql: Server) -> str:
    return postgresql.new_database()


def migrated(url: str) -> bool:
    with closing(PostgresqlConnection(url)) as conn:
        return migrate.bring_up_to_date(conn)


def newest(url: str) -> str:
    with closing(PostgresqlConnection(url)) as conn:
        (name,) = conn.execute("SELECT schema FROM gate").fetchone()
        return str(name)


def test_tables_of_an_older_payagent_are_migrated_once_with_all_guards(url: str) -> None:
    with closing(PostgresqlConnection(url)) as conn:
        conn.execute("ALTER TABLE events DISABLE TRIGGER events_update")
        conn.execute("CREATE FUNCTION of_old() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'")
        conn.execute("CREATE TRIGGER of_old BEFORE UPDATE ON meta FOR EACH ROW EXECUTE FUNCTION of_old()")
    with upgraded():
        assert (migrated(url), migrated(url), newest(url)) == (True, False, NAME)
    with closing(PostgresqlConnection(url)) as conn:
        assert conn.execute("SELECT COUNT(*) FROM later").fetchone() == (0,)
        assert schema.missing_guards(conn) == []
        assert conn.execute("SELECT 1 FROM pg_trigger WHERE tgname = 'of_old'").fetchone() is None


def test_a_ledger_of_the_first_schema_opens_with_its_rows_and_todays_guards(url: str) -> None:
    with daemon_on(url, "before") as before:
        before.note("kept", account=None)
    with closing(PostgresqlConnection(url)) as conn:
        schema.drop_guards(conn)
        conn.execute("DROP TABLE channel_calls, channel_steps, channels")
        conn.execute("DROP INDEX entries_of_channels")
        conn.execute("UPDATE gate SET schema = ?", (next(iter(MIGRATIONS)),))
    with daemon_on(url, "today") as today:
        today.note("added", account=None)
        assert today.notes() == ["kept", "added"]
    with closing(PostgresqlConnection(url)) as conn:
        assert (schema.missing_guards(conn), newest(url)) == ([], OLDER)


def test_a_migration_waits_until_each_living_daemon_knows_it(url: str) -> None:
    with daemon_on(url, "old") as old:
        old.register(0)
        with upgraded():
            with pytest.raises(Refused, match=f"host runs payagent 1, which does not know {NAME}") as refused:
                migrated(url)
            assert (refused.value.code, newest(url)) == ("already_running", OLDER)
            with daemon_on(url, "new") as new:  # it runs on the older tables
                new.register(0)
                new.note("on older tables", account=None)
                old.note("beside it", account=None)
                old.conn.execute("UPDATE daemons SET seen_at_ms = 0 WHERE id = 'old'")
                assert migrated(url)
                new.note("on newer tables", account=None)
                assert new.notes() == ["on older tables", "beside it", "on newer tables"]


def test_a_daemon_that_owns_the_tables_migrates_them_at_its_start(url: str) -> None:
    with upgraded(), daemon_on(url, "new"):
        assert newest(url) == NAME


def test_a_migration_may_change_rows_that_triggers_guard(url: str) -> None:
    with closing(PostgresqlConnection(url)) as conn:
        conn.execute("INSERT INTO meta(key, value) VALUES ('address', 'one')")
        with upgraded(Migration("", "UPDATE meta SET value = 'two'")):
            assert migrated(url)
        assert conn.execute("SELECT value FROM meta WHERE key = 'address'").fetchone() == ("two",)
        assert schema.missing_guards(conn) == []


def test_a_migration_that_fails_changes_nothing(url: str) -> None:
    broken = Migration("", "CREATE TABLE later (one BIGINT PRIMARY KEY);\nCREATE TABLE meta (one BIGINT)")
    with upgraded(broken), pytest.raises(Refused, match='"meta" already exists'):
        migrated(url)
    with closing(PostgresqlConnection(url)) as conn:
        assert conn.execute("SELECT to_regclass('later')::text").fetchone() == (None,)
        assert (schema.missing_guards(conn), newest(url)) == ([], OLDER)


def test_a_migration_gives_way_to_a_long_read(url: str) -> None:
    with closing(PostgresqlConnection(url)) as export:
        export.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        export.execute("SELECT COUNT(*) FROM payments")
        with upgraded(), pytest.raises(Refused, match="lock timeout"):
            migrated(url)
        with daemon_on(url, "old") as old:
            old.note("goes on", account=None)
    with upgraded():
        assert migrated(url)


def test_a_newer_payagent_copies_older_tables_into_a_file_of_its_own_form(url: str, tmp_path: Path) -> None:
    with daemon_on(url, "old") as old:
        old.note("kept", account=None)
    with upgraded():
        move_to_file(url, tmp_path / "ledger.db")
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as file:
            assert lacking_migrations(file) == []
            assert file.execute("SELECT COUNT(*) FROM later").fetchone() == (0,)
            assert missing_guards(file) == []
            assert file.execute("SELECT event FROM events").fetchall() == [("told",)]


def test_tables_from_before_the_first_release_are_refused(url: str) -> None:
    with closing(PostgresqlConnection(url)) as conn:
        conn.execute("UPDATE gate SET schema = 'm005_accounts'")
    with pytest.raises(Refused, match=r"a payagent from before 0\.1\.0 wrote the database") as refused:
        migrated(url)
    assert refused.value.code == "ledger_older"


def test_new_tables_are_those_of_migrated_ones(postgresql: Server, url: str) -> None:
    columns = (
        "SELECT table_name::text, column_name::text, data_type::text, column_default::text, is_nullable::text "
        "FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2"
    )
    with upgraded(), closing(PostgresqlConnection(postgresql.new_database("template0"))) as new:
        assert migrate.bring_up_to_date(new)
        assert migrated(url)
        with closing(PostgresqlConnection(url)) as older:
            assert older.execute(columns).fetchall() == new.execute(columns).fetchall()
        assert (schema.missing_guards(new), "later" in schema.tables()["readiness"].body) == ([], True)


def test_a_daemon_may_delete_from_the_tables_that_the_store_deletes_from() -> None:
    sources = Path(payagent.store.__path__[0]).rglob("*.py")
    found = {name for path in sources for name in re.findall(r"DELETE FROM (\w+)", path.read_text())}
    assert found == set(migrate.EMPTIED)
