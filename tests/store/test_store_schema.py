"""Rules that SQL itself enforces, whatever Python does: each row of the tables here breaks one rule."""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.guards import ATTEMPT, BREACHES, INVOICE, PAY2, PAY3, PAYMENT, TURNED_BREACHES, WORLD, turn
from kit.next_release import CHANGE, NAME, upgraded

from payagent.core.problems import Refused
from payagent.store.db.opening import migrate, open_database, require_ledger
from payagent.store.db.schema import (
    Migration,
    bring_up_to_date,
    changed_views,
    lacking_migrations,
    missing_guards,
    newest_migration,
)
from payagent.store.db.tables import TABLES, VIEWS
from payagent.store.db.triggers import GUARDS, KEPT, TRIGGERS, Trigger
from payagent.store.db.writer import Writer


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    conn = open_database(tmp_path / "ledger.db")
    migrate(conn)
    conn.execute("BEGIN")
    for statement in WORLD.split(";\n"):
        conn.execute(statement)
    conn.execute("COMMIT")
    conn.execute("PRAGMA recursive_triggers = OFF")  # as in any other program
    yield conn
    conn.close()


@pytest.fixture
def plain(conn: sqlite3.Connection, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    plain = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    yield plain
    plain.close()


ALONE = "alone"


def only(conn: sqlite3.Connection, name: str) -> str:
    """Leave one guard, as the only trigger. Returns its message."""
    for trigger in TRIGGERS:
        conn.execute(f"DROP TRIGGER {trigger.name}")
    (guard,) = (one for one in GUARDS if one.name == name)
    alone = Trigger(guard.on, (guard,))
    conn.execute(alone.sql.replace(f"CREATE TRIGGER {alone.name} ", f"CREATE TRIGGER {ALONE} "))
    return guard.message


@pytest.mark.parametrize(("guard", "statement"), [*BREACHES])
def test_the_triggers_together_refuse_each_breach(plain: sqlite3.Connection, guard: str, statement: str) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        plain.execute(statement)


@pytest.mark.parametrize(("guard", "statement"), BREACHES)
def test_each_trigger_alone_refuses_its_breach_on_a_plain_connection(
    plain: sqlite3.Connection, guard: str, statement: str
) -> None:
    """As in the sqlite3 shell, without the other triggers; without this one the row would change."""
    table = next(found.on for found in GUARDS if found.name == guard).split(" ")[-1]
    message = only(plain, guard)
    before = plain.execute(f"SELECT rowid, * FROM {table}").fetchall()
    with pytest.raises(sqlite3.IntegrityError, match=f"^{message}$"):
        plain.execute(statement)
    assert plain.execute(f"SELECT rowid, * FROM {table}").fetchall() == before
    plain.execute(f"DROP TRIGGER {ALONE}")
    assert plain.execute(statement).rowcount > 0


def test_every_trigger_is_tested_with_a_breach() -> None:
    assert {guard for guard, _ in (*BREACHES, *TURNED_BREACHES)} == {guard.name for guard in GUARDS}


def test_only_the_listed_columns_may_change(conn: sqlite3.Connection) -> None:
    may_change = {
        "intents": {"ended_at_ms"},
        "holds": {"counted_units", "counted_from_ms", "released_at_ms"},
        "topups": {
            *("seq", "stop_code", "stop_reason", "stop_detail", "ended_at_ms", "ended_clock_ms"),
            *("code", "reason", "detail"),
        },
        "alerts": {"seq"},
        "payments": {
            *(
                "seq",
                "state",
                "delivery",
                "nonce_utxo",
                "ttl_slot",
                "tx_id",
                "block_hash",
                "block_height",
                "block_slot",
                "invoice_seq",
                "void_tx_id",
            ),
            *("merchant_status", "code", "reason", "detail", "updated_at_ms"),
        },
    }
    for table, columns in may_change.items():
        all_columns = {row[1] for row in conn.execute(f"PRAGMA table_info({table})")}
        assert all_columns - set(KEPT[table].fixed or ()) == columns, table


@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda trigger: trigger.name)
def test_a_missing_or_weakened_trigger_is_noticed(plain: sqlite3.Connection, trigger: Trigger) -> None:
    assert missing_guards(plain) == []
    plain.execute(f"DROP TRIGGER {trigger.name}")
    assert missing_guards(plain) == [trigger.name]
    plain.execute(trigger.sql.replace(" WHEN ", " WHEN 0 AND ", 1))
    assert missing_guards(plain) == [trigger.name]


@pytest.fixture
def turned(plain: sqlite3.Connection) -> sqlite3.Connection:
    turn(plain)
    return plain


@pytest.mark.parametrize(("guard", "statement"), TURNED_BREACHES)
def test_an_invoice_with_a_signed_attempt_cannot_move_to_another_payment(
    turned: sqlite3.Connection, guard: str, statement: str
) -> None:
    if "pay2" in statement:
        turned.execute(PAY2 + "'reserved', 'n', 'bb#1', 1, 1)")
    message = only(turned, guard)
    with pytest.raises(sqlite3.IntegrityError, match=f"^{message}$"):
        turned.execute(statement)
    turned.execute(f"DROP TRIGGER {ALONE}")
    assert turned.execute(statement).rowcount > 0


def test_a_payment_may_return_to_an_invoice_it_has_a_signed_attempt_for(turned: sqlite3.Connection) -> None:
    turned.execute(ATTEMPT.format(3))
    turned.execute("UPDATE payments SET invoice_seq = 1, state = 'in_block' WHERE id = 'pay1'")


def test_a_payment_may_use_an_invoice_first_received_for_another_intent(turned: sqlite3.Connection) -> None:
    turned.execute("UPDATE payments SET invoice_seq = 2 WHERE id = 'pay1'")


def test_columns_that_may_change_can_be_updated(plain: sqlite3.Connection) -> None:
    plain.execute("UPDATE intents SET ended_at_ms = 5 WHERE id = 'int1'")
    plain.execute("UPDATE holds SET released_at_ms = 5 WHERE asset = 'lovelace'")
    plain.execute("UPDATE payments SET state = 'void', detail = 'r' WHERE id = 'pay1'")


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        (
            PAYMENT + "('pay2', 'invoice', 'app', 'int1', 2, 2, 'o', '[]', 'reserved', 'n', 'bb#1', 1, 1)",
            "has a payment",
        ),
        (PAYMENT + "('pay2', 'invoice', 'app', 'int2', 1, 1, 'o', '[]', 'void', 'n', 'bb#1', 1, 1)", "such a row"),
        (
            PAY2 + "'reserved', 'n', 'aa#0', 1, 1)",
            "such a row",
        ),
        (PAY2 + "'reserved', 'n', NULL, 1, 1)", "CHECK"),
        (
            PAYMENT + "('pay2', 'invoice', 'app', 'int2', NULL, NULL, NULL, '[]', 'received', 'n', NULL, 1, 1)",
            "CHECK",
        ),
        ("UPDATE payments SET nonce_utxo = 'bb#1'", "nonce_utxo of payments is set once"),
        ("UPDATE payments SET outputs = '[1]'", "never changes"),
        ("DELETE FROM payments", "never deleted"),
        ("UPDATE invoices SET terms_hash = 'other'", "invoices is append-only"),
        (
            f"INSERT INTO invoices VALUES (3, 'o', 'inv1', 'int2', 'flux', 'u', {INVOICE})",
            "append-only",
        ),
        ("INSERT INTO intents VALUES ('int9', 'app', 'k1', 0, 'f', 'o', NULL, 'r', 1, NULL)", "such a row"),
        ("INSERT INTO attempts VALUES ('dd', 'pay1', 'pay', 'bb#1', 1, 'bb#1', x'84', 1, 9, 1, 0)", "FOREIGN KEY"),
        ("INSERT INTO attempts VALUES ('dd', 'pay1', 'pay', 'aa#0', 1, 'bb#1', x'84', 1, 9, 1, 0)", "CHECK"),
        ("INSERT INTO attempts VALUES ('dd', 'pay1', 'pay', 'aa#0', 1, 'aa#01', x'84', 1, 9, 1, 0)", "CHECK"),
        ("INSERT INTO reservations VALUES ('aa#0', 'pay1')", "UNIQUE"),
        ("INSERT INTO postings(entry_id, account, asset, units) VALUES (1, 'wallet', 'lovelace', 1)", "sealed"),
        ("INSERT INTO entries(id, kind, at_ms) VALUES (2, 'deposit', 1)", "does not balance"),
        (
            "INSERT INTO postings(entry_id, account, asset, units) VALUES (2, 'wallet', 'lovelace', 1.5)",
            "cannot store REAL",
        ),
        ("UPDATE utxos SET state = 'spent' WHERE ref = 'bb#1'", "CHECK"),
        ("INSERT INTO holds VALUES ('pay1', 'payment', 'ada', -1, 1, NULL, 1, 1, NULL)", "CHECK"),
    ],
)
def test_a_row_that_breaks_a_rule_is_refused(conn: sqlite3.Connection, statement: str, error: str) -> None:
    with pytest.raises(sqlite3.DatabaseError, match=error):
        conn.execute(statement)


@pytest.mark.parametrize(
    ("values", "index"),
    [
        ("('pay2', 'invoice', 'app', 'int2', 1, 1, 'o', '[]', 'void', 'n', 'bb#1', 1, 1)", "invoice"),
        ("('pay2', 'invoice', 'app', 'int2', 2, 2, 'o', '[]', 'reserved', 'n', 'aa#0', 1, 1)", "nonce_utxo"),
    ],
)
def test_the_unique_indexes_hold_without_the_triggers(plain: sqlite3.Connection, values: str, index: str) -> None:
    for trigger in TRIGGERS:
        plain.execute(f"DROP TRIGGER {trigger.name}")
    with pytest.raises(sqlite3.IntegrityError, match=f"UNIQUE.*{index}"):
        plain.execute(PAYMENT + values)


def test_an_entry_must_balance_for_each_asset(conn: sqlite3.Connection) -> None:
    conn.execute("BEGIN")
    conn.execute(
        "INSERT INTO postings(entry_id, account, asset, units) "
        "VALUES (2, 'wallet', 'lovelace', 5), (2, 'held', 'token', -5)"
    )
    with pytest.raises(sqlite3.IntegrityError, match="does not balance"):
        conn.execute("INSERT INTO entries(id, kind, at_ms) VALUES (2, 'post', 1)")
    conn.execute("ROLLBACK")


WIDE = 2**63
UNITS = st.one_of(
    st.integers(-WIDE, WIDE - 1),
    st.sampled_from([sign * 2**bits + off for sign in (1, -1) for bits in (31, 32, 33, 62) for off in (-1, 0, 1)]),
).filter(bool)
LINES = st.lists(st.tuples(st.sampled_from(["lovelace", "token"]), UNITS), min_size=1, max_size=20)


def balanced(lines: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The lines, with more lines so that every asset sums to zero."""
    lines = list(lines)
    for asset in ("lovelace", "token"):
        while left := -sum(units for name, units in lines if name == asset):
            lines.append((asset, max(-WIDE, min(WIDE - 1, left))))
    return lines


def sealed(conn: sqlite3.Connection, lines: list[tuple[str, int]]) -> str:
    """The result of writing an entry with these lines."""
    conn.execute("BEGIN")
    try:
        conn.executemany("INSERT INTO postings(entry_id, account, asset, units) VALUES (2, 'wallet', ?, ?)", lines)
        conn.execute("INSERT INTO entries(id, kind, at_ms) VALUES (2, 'deposit', 1)")
    except sqlite3.Error as error:
        return str(error)
    finally:
        conn.execute("ROLLBACK")
    return "sealed"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES, off=st.sampled_from([1, -1, 2**31, 2**32, -(2**32), 2**62]))
def test_the_balance_check_in_sql_agrees_with_python(
    conn: sqlite3.Connection, lines: list[tuple[str, int]], off: int
) -> None:
    even = balanced(lines)
    assert sealed(conn, even) == "sealed"
    assert sealed(conn, [*even, ("token", off)]) == "the entry does not balance"
    sums = {name: sum(units for asset, units in lines if asset == name) for name in ("lovelace", "token")}
    assert (sealed(conn, lines) == "sealed") == (not any(sums.values()))


def test_thousands_of_maximum_postings_balance_without_overflow(conn: sqlite3.Connection) -> None:
    lines = [("token", WIDE - 1)] * 3000 + [("token", 1 - WIDE)] * 3000
    assert sealed(conn, lines) == "sealed"
    assert sealed(conn, lines[:-1]) == "the entry does not balance"


def test_a_rejected_payment_frees_its_intent_and_its_invoice(conn: sqlite3.Connection) -> None:
    conn.execute(PAY2 + "'reserved', 'n', 'bb#1', 1, 1)")
    conn.execute("UPDATE payments SET state = 'rejected' WHERE id = 'pay2'")
    conn.execute(PAY3 + "'invoice', 'app', 'int2', 2, 2, 'o', '[]', 'reserved', 'n', 'bb#1', 1, 1)")


@pytest.mark.parametrize("state", ["cancelling", "in_block", "in_flight"])
def test_a_void_payment_may_come_back_beside_its_successor(conn: sqlite3.Connection, state: str) -> None:
    conn.execute("UPDATE payments SET state = 'void' WHERE id = 'pay1'")
    conn.execute(PAYMENT + "('pay2', 'invoice', 'app', 'int1', 2, 2, 'o', '[]', 'reserved', 'n', 'bb#1', 1, 1)")
    conn.execute("UPDATE payments SET state = ? WHERE id = 'pay1'", (state,))
    with pytest.raises(sqlite3.IntegrityError, match="has a payment"):
        conn.execute(PAY3 + "'send', 'app', 'int1', NULL, NULL, NULL, '[]', 'reserved', 'n', 'cc#1', 1, 1)")


def test_a_void_payment_frees_its_intent_but_not_its_invoice(conn: sqlite3.Connection) -> None:
    conn.execute("UPDATE payments SET state = 'void' WHERE id = 'pay1'")
    conn.execute(PAYMENT + "('pay2', 'invoice', 'app', 'int1', 2, 2, 'o', '[]', 'reserved', 'n', 'bb#1', 1, 1)")
    with pytest.raises(sqlite3.IntegrityError):
        conn.execute(PAY3 + "'invoice', 'app', 'int2', 1, 1, 'o', '[]', 'reserved', 'n', 'dd#1', 1, 1)")


def memory() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None)


def built(conn: sqlite3.Connection) -> list[tuple[str, ...]]:
    of_ours = "WHERE tbl_name <> '_sqlite_migrations' ORDER BY type, name"
    return conn.execute(f"SELECT type, name, tbl_name, sql FROM sqlite_master {of_ours}").fetchall()


def test_what_ledgers_have_changes_only_by_a_migration() -> None:
    """Each has the first tables for good, and the triggers and views of its newest migration."""
    later = "\n".join((VIEWS, *(trigger.sql for trigger in TRIGGERS)))
    found = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in (TABLES, later)]
    assert (newest_migration(), found) == (
        "m003_channels",
        ["a451045756c9aaac", "c973de9a40e6e0b8"],
    ), "add a migration, then change this line"


def test_a_migrated_ledger_equals_a_new_one_and_is_guarded() -> None:
    with closing(memory()) as older, closing(memory()) as new:
        bring_up_to_date(older)
        with upgraded():
            for conn in (older, new):
                bring_up_to_date(conn)
            assert built(older) == built(new)
            assert (missing_guards(older), changed_views(older), lacking_migrations(older)) == ([], [], [])
            bring_up_to_date(older)
            assert built(older) == built(new)


def test_a_migration_may_change_rows_that_triggers_guard() -> None:
    with closing(memory()) as conn:
        bring_up_to_date(conn)
        conn.execute("INSERT INTO meta VALUES ('address', 'one')")
        with upgraded(Migration("UPDATE meta SET value = 'two'", "")):
            bring_up_to_date(conn)
        assert conn.execute("SELECT value FROM meta").fetchone() == ("two",)


def test_a_migration_that_fails_changes_nothing_and_runs_at_the_next_start() -> None:
    with closing(memory()) as conn:
        bring_up_to_date(conn)
        before = built(conn)
        with upgraded(Migration(f"{CHANGE.sqlite};\nCREATE TABLE meta (one INTEGER)", "")):
            with pytest.raises(sqlite3.OperationalError, match="already exists"):
                bring_up_to_date(conn)
            assert (built(conn), lacking_migrations(conn), conn.in_transaction) == (before, [NAME], False)
        with upgraded():
            bring_up_to_date(conn)
            assert (len(built(conn)), lacking_migrations(conn)) == (len(before) + 1, [])


@pytest.mark.parametrize("opens", [Writer, require_ledger])
def test_a_ledger_from_before_the_first_release_is_refused_and_unchanged(
    tmp_path: Path, opens: Callable[[Path], object]
) -> None:
    path = tmp_path / "ledger.db"
    Writer(path).close()
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("UPDATE _sqlite_migrations SET name = 'm001_release_0_1_0' WHERE name = 'm001_schema'")
    before = path.read_bytes()
    with pytest.raises(Refused, match=r"a payagent from before 0\.1\.0 wrote ledger\.db") as caught:
        opens(path)
    assert caught.value.code == "ledger_older"
    assert path.read_bytes() == before
