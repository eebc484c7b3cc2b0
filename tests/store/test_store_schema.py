"""What SQL itself holds, whatever the Python above it does: each row of the table breaks one rule."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from payagent.store.schema import APPEND_ONLY
from payagent.store.writer import migrate, open_database

WORLD = """
INSERT INTO apps VALUES ('app', 'a', 'hash', 'pay', 1);
INSERT INTO intents VALUES ('int1', 'app', 'k1', 0, 'f', 'o', NULL, 'r', 1, NULL);
INSERT INTO intents VALUES ('int2', 'app', 'k2', 0, 'f', 'o', NULL, 'r', 1, NULL);
INSERT INTO invoices VALUES (1, 'o', 'inv1', 'int1', 'flux', 't', '[]', NULL, 1, NULL, '{}');
INSERT INTO invoices VALUES (2, 'o', 'inv2', 'int2', 'flux', 't', '[]', NULL, 1, NULL, '{}');
INSERT INTO payments(id, kind, app_id, intent_id, invoice, outputs, state, delivery, anchor, created_at_ms,
  changed_at_ms)
  VALUES ('pay1', 'invoice', 'app', 'int1', 1, '[]', 'reserved', 'not_presented', 'aa#0', 1, 1);
INSERT INTO coins VALUES ('aa#0', 'aa', 0, 5000000, '{}', 'deposit', 'free', NULL);
INSERT INTO coins VALUES ('bb#1', 'bb', 1, 5000000, '{}', 'deposit', 'free', NULL);
INSERT INTO reservations VALUES ('aa#0', 'pay1');
INSERT INTO attempts VALUES ('cc', 'pay1', 'aa#0', 1, 'bb#1 aa#0', x'84', 170000, 9, 1);
INSERT INTO submissions(tx_id, provider, at_ms) VALUES ('cc', 'p', 1);
INSERT INTO sightings(tx_id, block_hash, block_height, block_slot, provider, at_ms)
  VALUES ('cc', 'h', 1, 1, 'p', 1);
INSERT INTO events(payment_id, event, state, detail, at_ms) VALUES ('pay1', 'hold', 'reserved', '{}', 1);
INSERT INTO postings(entry, account, asset, units)
  VALUES (1, 'external', 'lovelace', -5), (1, 'wallet', 'lovelace', 5);
INSERT INTO journal VALUES (1, 'deposit', NULL, 'aa#0', 1);
"""

PAYMENT = (
    "INSERT INTO payments(id, kind, app_id, intent_id, invoice, outputs, state, delivery, anchor, created_at_ms, "
    "changed_at_ms) VALUES "
)


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    conn = open_database(tmp_path / "ledger.db")
    migrate(conn)
    conn.execute("BEGIN")
    for statement in WORLD.split(";\n"):
        conn.execute(statement)
    conn.execute("COMMIT")
    conn.execute("PRAGMA recursive_triggers = OFF")  # as any other program opens the file
    yield conn
    conn.close()


@pytest.mark.parametrize("table", APPEND_ONLY)
@pytest.mark.parametrize(
    "verb", ["UPDATE {0} SET rowid = rowid", "DELETE FROM {0}", "REPLACE INTO {0} SELECT * FROM {0}"]
)
def test_history_is_append_only(conn: sqlite3.Connection, table: str, verb: str) -> None:
    before = conn.execute(f"SELECT * FROM {table}").fetchall()
    assert before
    with pytest.raises(sqlite3.DatabaseError):
        conn.execute(verb.format(table))
    assert conn.execute(f"SELECT * FROM {table}").fetchall() == before


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        (PAYMENT + "('pay2', 'invoice', 'app', 'int1', 2, '[]', 'reserved', 'n', 'bb#1', 1, 1)", "intent_id"),
        (PAYMENT + "('pay2', 'invoice', 'app', 'int2', 1, '[]', 'void', 'n', 'bb#1', 1, 1)", "invoice"),
        (PAYMENT + "('pay2', 'invoice', 'app', 'int2', 2, '[]', 'reserved', 'n', 'aa#0', 1, 1)", "anchor"),
        (PAYMENT + "('pay2', 'invoice', 'app', 'int2', 2, '[]', 'reserved', 'n', NULL, 1, 1)", "CHECK"),
        (PAYMENT + "('pay2', 'invoice', 'app', 'int2', NULL, '[]', 'received', 'n', NULL, 1, 1)", "CHECK"),
        ("UPDATE payments SET anchor = 'bb#1'", "an anchor never changes"),
        ("UPDATE payments SET outputs = '[1]'", "never changes"),
        ("DELETE FROM payments", "never deleted"),
        ("UPDATE invoices SET terms_hash = 'other'", "an invoice never changes"),
        ("INSERT INTO invoices VALUES (3, 'o', 'inv1', 'int2', 'flux', 'u', '[]', NULL, 1, NULL, '{}')", "UNIQUE"),
        ("INSERT INTO intents VALUES ('int3', 'app', 'k1', 0, 'f', 'o', NULL, 'r', 1, NULL)", "UNIQUE"),
        ("INSERT INTO attempts VALUES ('dd', 'pay1', 'bb#1', 1, 'bb#1', x'84', 1, 9, 1)", "FOREIGN KEY"),
        ("INSERT INTO attempts VALUES ('dd', 'pay1', 'aa#0', 1, 'bb#1', x'84', 1, 9, 1)", "CHECK"),
        ("INSERT INTO attempts VALUES ('dd', 'pay1', 'aa#0', 1, 'aa#01', x'84', 1, 9, 1)", "CHECK"),
        ("INSERT INTO reservations VALUES ('aa#0', 'pay1')", "UNIQUE"),
        ("INSERT INTO postings(entry, account, asset, units) VALUES (1, 'wallet', 'lovelace', 1)", "sealed"),
        ("INSERT INTO journal VALUES (2, 'deposit', NULL, NULL, 1)", "does not balance"),
        (
            "INSERT INTO postings(entry, account, asset, units) VALUES (2, 'wallet', 'lovelace', 1.5)",
            "cannot store REAL",
        ),
        ("UPDATE coins SET state = 'spent' WHERE ref = 'bb#1'", "CHECK"),
        ("INSERT INTO holds VALUES ('pay1', 'lovelace', -1, 1, NULL)", "CHECK"),
    ],
)
def test_a_row_that_breaks_a_rule_is_refused(conn: sqlite3.Connection, statement: str, error: str) -> None:
    with pytest.raises(sqlite3.DatabaseError, match=error):
        conn.execute(statement)


def test_an_entry_must_balance_per_asset(conn: sqlite3.Connection) -> None:
    conn.execute("BEGIN")
    conn.execute(
        "INSERT INTO postings(entry, account, asset, units) "
        "VALUES (2, 'wallet', 'lovelace', 5), (2, 'held', 'token', -5)"
    )
    with pytest.raises(sqlite3.IntegrityError, match="does not balance"):
        conn.execute("INSERT INTO journal VALUES (2, 'post', NULL, NULL, 1)")
    conn.execute("ROLLBACK")


def test_the_intent_is_free_again_after_a_rejection_and_the_invoice_too(conn: sqlite3.Connection) -> None:
    conn.execute("UPDATE payments SET state = 'rejected' WHERE id = 'pay1'")
    conn.execute(PAYMENT + "('pay2', 'invoice', 'app', 'int1', 1, '[]', 'reserved', 'n', 'bb#1', 1, 1)")


def test_after_void_the_intent_is_free_but_the_invoice_is_not(conn: sqlite3.Connection) -> None:
    conn.execute("UPDATE payments SET state = 'void' WHERE id = 'pay1'")
    conn.execute(PAYMENT + "('pay2', 'invoice', 'app', 'int1', 2, '[]', 'reserved', 'n', 'bb#1', 1, 1)")
    with pytest.raises(sqlite3.IntegrityError):
        conn.execute(PAYMENT + "('pay3', 'invoice', 'app', 'int2', 1, '[]', 'reserved', 'n', 'dd#1', 1, 1)")
