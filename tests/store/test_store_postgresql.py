"""PostgreSQL has the tables, guards and seals of the file, and a connection that runs the same SQL."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.channel_rows import a_channel
from kit.effort import pick
from kit.guards import BREACHES, HASH, PAY2, TURNED_BREACHES, WORLD, turn
from kit.postgresql import Server, needs_postgresql

from payagent.core.problems import Refused
from payagent.store.audit import books
from payagent.store.db.opening import failure, migrate, open_database
from payagent.store.db.postgresql import schema
from payagent.store.db.postgresql.connection import PostgresqlConnection, postgresql_text
from payagent.store.db.postgresql.seals import event_texts, row_texts, sealed_text
from payagent.store.db.triggers import GUARDS, KEPT, TRIGGERS, Trigger
from payagent.store.db.unit import Unit
from payagent.store.rows import channels

pytestmark = needs_postgresql

ALONE = "alone"


def on_postgresql(statement: str) -> str:
    """A statement that was written for SQLite alone."""
    text = re.sub(r"\bx'([0-9a-f]*)'", r"'\\x\1'", statement)
    text = text.replace("REPLACE INTO", "INSERT INTO").replace("UPDATE OR REPLACE", "UPDATE")
    table = re.search(r"(?:INTO|UPDATE|FROM) (\w+)", text)
    return re.sub(r"\browid\b", str(schema.tables()[table[1]].number), text) if table else text


@pytest.fixture(scope="module")
def world(postgresql: Server) -> Iterator[PostgresqlConnection]:
    """A ledger with a row in each table of record."""
    with closing(PostgresqlConnection(postgresql.new_database(), {"payagent.holder": "daemon"})) as conn:
        conn.execute("BEGIN")
        conn.execute("INSERT INTO accounts(account, address, holder) VALUES (0, 'addr0', 'daemon')")
        for statement in filter(str.strip, WORLD.split(";\n")):
            conn.execute(on_postgresql(statement))
        conn.execute("COMMIT")
        yield conn


@contextmanager
def rolled_back(world: PostgresqlConnection) -> Iterator[None]:
    """What is changed inside is rolled back."""
    world.execute("BEGIN")
    try:
        yield
    finally:
        world.rollback()


@pytest.fixture
def conn(world: PostgresqlConnection) -> Iterator[PostgresqlConnection]:
    """The same ledger; what the test changes is rolled back."""
    with rolled_back(world):
        yield world


def refusal(conn: PostgresqlConnection, statement: str) -> str | None:
    """The message with which a rule of the tables refuses a statement."""
    try:
        conn.execute(statement)
    except sqlite3.IntegrityError as error:
        return str(error)
    return None


def test_the_tables_are_those_of_the_file(conn: PostgresqlConnection, tmp_path: Path) -> None:
    with closing(open_database(tmp_path / "ledger.db")) as file:
        migrate(file)
        names = [name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        names.remove("_sqlite_migrations")
        columns = {name: [row[1] for row in file.execute(f"PRAGMA table_info({name})")] for name in names}
        keys = sum(len({row[0] for row in file.execute(f"PRAGMA foreign_key_list({name})")}) for name in names)
        named = "SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        indexes = {name for (name,) in file.execute(named) if "_sqlite_migrations" not in name}
    found: dict[str, list[str]] = {}
    for table, column in conn.execute(
        "SELECT c.table_name::text, column_name::text FROM information_schema.columns c "
        "JOIN information_schema.tables t ON t.table_name = c.table_name AND t.table_type = 'BASE TABLE' "
        "WHERE c.table_schema = 'public' ORDER BY ordinal_position"
    ):
        found.setdefault(table, []).extend([column] * (column != "rowid"))
    assert found == columns
    assert conn.execute("SELECT COUNT(*) FROM pg_constraint WHERE contype = 'f'").fetchone() == (keys,)
    present = {
        name for (name,) in conn.execute("SELECT indexname::text FROM pg_indexes WHERE schemaname = 'public'")
    }
    assert indexes <= present


def test_each_breach_is_refused(world: PostgresqlConnection) -> None:
    for _, statement in BREACHES:
        with rolled_back(world):
            assert refusal(world, on_postgresql(statement)) is not None, statement


def test_each_guard_alone_refuses_its_breach(world: PostgresqlConnection) -> None:
    for guard, statement in [*BREACHES, *TURNED_BREACHES]:
        with rolled_back(world):
            if (guard, statement) in TURNED_BREACHES:
                turn(world)
                if "pay2" in statement:
                    world.execute(PAY2 + "'reserved', 'n', 'bb#1', 1, 1)")
            (one,) = (found for found in GUARDS if found.name == guard)
            trigger = Trigger(one.on, (one,))
            world.execute("SET CONSTRAINTS ALL IMMEDIATE")
            world.execute(f"ALTER TABLE {one.on.split(' ')[-1]} DISABLE TRIGGER USER")
            for made in schema.guard(trigger):
                world.execute(made.replace(trigger.name, ALONE))
            assert refusal(world, on_postgresql(statement)) == one.message, (guard, statement)


def test_no_table_of_record_can_be_emptied_at_once(world: PostgresqlConnection) -> None:
    for table in KEPT:
        with rolled_back(world):
            assert "rows are kept" in (refusal(world, f"TRUNCATE {table} CASCADE") or ""), table


def test_no_row_of_an_account_changes_in_a_session_that_does_not_hold_it(world: PostgresqlConnection) -> None:
    for table in schema.FENCED:
        (column, _), *_ = schema.tables()[table].columns
        of_the_wallet = " WHERE account = 'wallet'" if table == "postings" else ""
        change = f"UPDATE {table} SET {column} = {column}{of_the_wallet}"
        with rolled_back(world):
            if table == "channels":
                change = "INSERT INTO channels(account) VALUES (0)"
            elif table == "channel_steps":
                change = "INSERT INTO channel_steps(payment_id) SELECT id FROM payments LIMIT 1"
            elif table == "channel_calls":
                channels.put(Unit(world), a_channel(1, "o", "open"))
                change = "INSERT INTO channel_calls(channel_id) SELECT id FROM channels"
            world.execute("SET payagent.holder = 'another'")
            assert "this daemon does not hold the account" in (refusal(world, change) or ""), table


def test_a_missing_or_disabled_fence_is_noticed(world: PostgresqlConnection) -> None:
    for table in schema.FENCED:
        with rolled_back(world):
            world.execute(f"ALTER TABLE {table} DISABLE TRIGGER {table}_fence")
            assert schema.missing_guards(world) == [f"{table}_fence"]
            world.execute(f"DROP FUNCTION {table}_fence CASCADE")
            assert schema.missing_guards(world) == [f"{table}_fence"]


def test_a_missing_disabled_or_weakened_guard_is_noticed(world: PostgresqlConnection) -> None:
    for trigger in TRIGGERS:
        with rolled_back(world):
            _, _, table = trigger.on.partition(" ON ")
            world.execute(f"ALTER TABLE {table} DISABLE TRIGGER {trigger.name}")
            assert schema.missing_guards(world) == [trigger.name]
            world.execute(f"ALTER TABLE {table} ENABLE TRIGGER {trigger.name}")
            function, made = schema.guard(trigger)
            weakened = function.replace("IF ", "IF FALSE AND ", 1)
            world.execute(weakened.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
            assert schema.missing_guards(world) == [trigger.name]
            world.execute(f"DROP FUNCTION {trigger.name} CASCADE")
            assert schema.missing_guards(world) == [trigger.name]
            world.execute(function)
            world.execute(made)
            assert schema.missing_guards(world) == [], trigger.name


def test_a_guard_against_truncate_that_is_gone_is_noticed(conn: PostgresqlConnection) -> None:
    conn.execute("DROP TRIGGER events_truncate ON events")
    assert schema.missing_guards(conn) == ["events_truncate"]


# --- seals


def test_both_engines_seal_the_same_bytes(conn: PostgresqlConnection, tmp_path: Path) -> None:
    with closing(open_database(tmp_path / "ledger.db")) as file:
        migrate(file)
        file.execute("BEGIN")
        for statement in filter(str.strip, WORLD.split(";\n")):
            file.execute(statement)
        file.execute("COMMIT")
        for table in KEPT:
            rows = list(row_texts(conn, table))
            assert rows == list(books.row_texts(file, table)), table
            assert rows, table
        assert list(event_texts(conn)) == list(books.event_texts(file))


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@settings(max_examples=pick(50, 200), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT, data=st.binary(max_size=8), number=st.integers(-(2**63), 2**63 - 1), gap=st.none() | TEXT)
def test_any_value_is_sealed_as_the_same_bytes(
    conn: PostgresqlConnection, text: str, data: bytes, number: int, gap: str | None
) -> None:
    values = (text, gap, number, data)
    blob = "'X''' || upper(encode(?4, 'hex')) || ''''"
    (theirs,) = conn.execute(f"SELECT json_array(?1::text, ?2::text, ?3, {blob})", values).fetchone()
    with closing(sqlite3.connect(":memory:")) as file:
        (ours,) = file.execute("SELECT CAST(json_array(?1, ?2, ?3, quote(?4)) AS BLOB)", values).fetchone()
    assert sealed_text(theirs) == ours


# --- the connection


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("SELECT ? + ?, '?', 'it''s ?'", "SELECT $1 + $2, '?', 'it''s ?'"),
        ("SELECT ?2, ?1", "SELECT $2, $1"),
        ("SELECT 1 FROM a x INDEXED BY of_a WHERE b = ?", "SELECT 1 FROM a x WHERE b = $1"),
        ("SELECT 1 FROM a CROSS JOIN b ON b.c = a.c", "SELECT 1 FROM a JOIN b ON b.c = a.c"),
        ("BEGIN IMMEDIATE", "BEGIN"),
    ],
)
def test_a_text_for_sqlite_becomes_one_for_postgresql(sql: str, text: str) -> None:
    assert postgresql_text(sql) == text


def test_values_come_back_as_from_sqlite(conn: PostgresqlConnection) -> None:
    conn.execute(on_postgresql("INSERT INTO utxos VALUES ('cc#0', 'cc', 0, 9223372036854775807, '{}', 'deposit', "
                               "'available', NULL)"))  # fmt: skip
    total, count = conn.execute("SELECT SUM(lovelace), COUNT(*) FROM utxos").fetchone()
    assert (total, type(total), count) == (2**63 - 1 + 10_000_000, int, 3)
    assert conn.execute("SELECT cbor, inputs FROM attempts").fetchall() == [(b"\x84", "bb#1 aa#0")]
    assert conn.execute("SELECT detail, detail ->> 'no' FROM events").fetchall() == [("{}", None)]


def test_rows_are_numbered_without_a_gap(conn: PostgresqlConnection) -> None:
    conn.execute("SAVEPOINT before")
    conn.execute("INSERT INTO submissions(tx_id, provider, at_ms) VALUES ('cc', 'p', 2)")
    conn.execute("ROLLBACK TO before")
    added = "INSERT INTO submissions(tx_id, provider, at_ms) VALUES ('cc', 'p', 2), ('cc', 'q', 3) RETURNING seq"
    assert conn.execute(added).fetchall() == [(2,), (3,)]


@pytest.mark.parametrize("text", ['{"a":"\0"}', '{"a":"\\u0000"}', '{"a":"\\ud800"}'])
def test_a_text_that_postgresql_cannot_store_is_refused_by_name(conn: PostgresqlConnection, text: str) -> None:
    with pytest.raises(Refused, match="the character NUL"):
        conn.execute("INSERT INTO events VALUES (2, 'pay1', 'e', NULL, ?, 1, ?, ?)", (text, HASH, HASH))


def test_errors_are_those_that_the_store_knows(conn: PostgresqlConnection, postgresql: Server) -> None:
    with pytest.raises(sqlite3.DatabaseError) as bug:
        conn.execute("SELECT no_such_column FROM payments")
    assert failure(bug.value) is None
    with closing(PostgresqlConnection(postgresql.new_database())) as other:
        (own,) = other.execute("SELECT pg_backend_pid()").fetchone()
        with closing(PostgresqlConnection(postgresql.url("postgres"))) as operator:
            operator.execute("SELECT pg_terminate_backend(CAST(? AS INTEGER))", (own,))
        with pytest.raises(sqlite3.DatabaseError) as lost:
            other.execute("SELECT 1")
    assert getattr(failure(lost.value), "code", None) == "store_failed"
