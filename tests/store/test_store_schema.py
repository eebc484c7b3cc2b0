"""Rules that SQL itself enforces, whatever Python does: each row of the tables here breaks one rule."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlite_utils import Database, Migrations

from payagent.store.db import schema
from payagent.store.db.opening import migrate, open_database
from payagent.store.db.schema import bring_up_to_date, lacking_migrations, missing_guards
from payagent.store.db.tables import GENESIS, TABLES, VIEWS
from payagent.store.db.triggers import GUARDS, KEPT, TRIGGERS, Trigger

HASH = "a" * 64
INVOICE = "'[]', NULL, 'tx_hash', 0, NULL, NULL, 1, NULL, '{}'"
"""The columns of an invoice after its terms."""

WORLD = f"""
INSERT INTO apps VALUES ('app', 'a', 'pay', NULL, NULL, 1);
INSERT INTO apps VALUES ('app2', 'a2', 'pay', NULL, NULL, 1);
INSERT INTO tokens VALUES ('hash', 'app', 1, NULL, NULL);
INSERT INTO tokens VALUES ('hash2', 'app2', 1, NULL, 2);
INSERT INTO intents VALUES ('int1', 'app', 'k1', 0, 'f', 'o', NULL, 'r', 1, NULL);
INSERT INTO intents VALUES ('int2', 'app', 'k2', 0, 'f', 'o', NULL, 'r', 1, NULL);
INSERT INTO invoices VALUES (1, 'o', 'inv1', 'int1', 'flux', 't', {INVOICE});
INSERT INTO invoices VALUES (2, 'o', 'inv2', 'int2', 'flux', 't', {INVOICE});
INSERT INTO intents VALUES ('int3', 'app', 'k3', 1, 'f', 'o', NULL, 'r', 1, 2);
INSERT INTO payments(id, kind, app_id, intent_id, first_invoice_seq, invoice_seq, origin, outputs, state,
delivery, nonce_utxo,
  created_at_ms, updated_at_ms)
  VALUES ('pay1', 'invoice', 'app', 'int1', 1, 1, 'o', '[]', 'reserved', 'not_presented', 'aa#0', 1, 1);
INSERT INTO payments(id, kind, app_id, intent_id, first_invoice_seq, invoice_seq, origin, outputs, state, delivery,
  created_at_ms, updated_at_ms)
  VALUES ('pay0', 'invoice', 'app', 'int1', 1, 1, 'o', '[]', 'rejected', 'not_presented', 1, 1);
INSERT INTO approvals VALUES ('pay0', 't', '[]', '{{}}', NULL, 1, 2);
INSERT INTO holds VALUES ('pay1', 'payment', 'lovelace', 5, 1, NULL, 5, 1, NULL);
INSERT INTO holds VALUES ('pay1', 'payment', 'token', 5, 1, 2, 0, 1, 1);
INSERT INTO utxos VALUES ('aa#0', 'aa', 0, 5000000, '{{}}', 'deposit', 'available', NULL, 0);
INSERT INTO utxos VALUES ('bb#1', 'bb', 1, 5000000, '{{}}', 'deposit', 'available', NULL, 0);
INSERT INTO reservations VALUES ('aa#0', 'pay1');
INSERT INTO attempts VALUES ('cc', 'pay1', 'pay', 'aa#0', 1, 'bb#1 aa#0', x'84', 170000, 9, 1, 0);
INSERT INTO submissions(tx_id, provider, at_ms) VALUES ('cc', 'p', 1);
INSERT INTO block_observations(tx_id, block_hash, block_height, block_slot, provider, at_ms)
  VALUES ('cc', 'h', 1, 1, 'p', 1);
INSERT INTO external_spends VALUES (1, 'dd', 1, 'bb#1', '{"lovelace":5}', 'h', 1, 1, 'p', 1, 0);
INSERT INTO events VALUES (1, 'pay1', 'reserve', 'reserved', '{{}}', 1, '{GENESIS}', '{HASH}');
INSERT INTO postings(entry_id, account, asset, units)
  VALUES (1, 'external', 'lovelace', -5), (1, 'wallet', 'lovelace', 5);
INSERT INTO entries(id, kind, ref, at_ms) VALUES (1, 'deposit', 'aa#0', 1);
INSERT INTO meta VALUES ('network', 'devnet');
INSERT INTO seals VALUES (1, '{{}}', x'00', '{HASH}');
INSERT INTO prepaid_pools VALUES (1, 'o', 'p', 'w', 1, 0);
INSERT INTO prepaid_pools VALUES (2, 'o', 'p2', 'w', 1, 0);
INSERT INTO prepaid_uses VALUES (1, 1, 1, 'app', 'calls', 1, 'lovelace', 5, 5, 1);
INSERT INTO prepaid_moves VALUES (1, 1, 'calls', 'use', 0, 1, 0, NULL, 'app', 'POST /chat', 'k1', NULL, 1);
INSERT INTO merchant_reports VALUES (1, 1, 'balance', 200, '{{}}', 1, NULL, NULL, NULL, NULL, NULL, 1);
INSERT INTO topups VALUES (1, 'top1', 1, 'app', 'k1', 'manual', 'lovelace', 5, '{{}}', 0, 1, 1,
  NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO topups VALUES (2, 'top2', 2, 'app', 'k2', 'auto', 'calls', 5, '{{}}', 1, 1, 1,
  'c', 'r', 'd', 2, 2, 'not_found', 'r', 'd');
INSERT INTO alerts VALUES (1, 'alert1', 'low', 'wallet', '{{}}', 1);
INSERT INTO homes VALUES ('o', 'p', 1);
INSERT INTO admission_requests VALUES ('ask1', 1, 'pay', 'boot1', '{{}}', 2, NULL, NULL);
INSERT INTO admission_requests VALUES ('ask2', 1, 'pay', 'boot1', '{{}}', 2, 3, '[]');
"""

PAYMENT = (
    "INSERT INTO payments(id, kind, app_id, intent_id, first_invoice_seq, invoice_seq, origin, outputs, "
    "state, delivery, "
    "nonce_utxo, created_at_ms, updated_at_ms) VALUES "
)
PAY2 = PAYMENT + "('pay2', 'invoice', 'app', 'int2', 2, 2, 'o', '[]', "
PAY3 = PAYMENT + "('pay3', "


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


NEW_EVENT = "INSERT INTO events VALUES ({}, 'pay1', 'reserve', 'reserved', '{{}}', 1, '{}', '" + "b" * 64 + "')"
NEW_ATTEMPT = (
    "REPLACE INTO attempts(rowid, tx_id, payment_id, kind, nonce_utxo, inputs, cbor, fee_lovelace, ttl_slot, "
    "signed_at_ms) "
)
NEW_APP = "REPLACE INTO apps(rowid, id, name, scopes, created_at_ms) VALUES "
NEW_TOKEN = "REPLACE INTO tokens VALUES "
NEW_INTENT = "REPLACE INTO intents VALUES "
NEW_PAYMENT = PAYMENT.replace("INSERT", "REPLACE")
NEW_TOPUP = "REPLACE INTO topups VALUES (9, {}, 'auto', 'calls', 5, '{{}}', 1, 1, 1" + ", NULL" * 8 + ")"
NEW_VALUES = {
    "account": "account + 1",
    "admission_requests.kind": "'approve'",
    "ends_at_ms": "9",
    "holds.stage": "'approval'",
    "alerts.kind": "'other'",
    "app_id": "'app2'",
    "asset": "asset || 'x'",
    "at_ms": "9",
    "counted_at_ms": "9",
    "clock_ms": "9",
    "created_at_ms": "9",
    "expires_at_ms": "9",
    "is_key_derived": "1 - is_key_derived",
    "id": "id || 'x'",
    "intent_id": "intent_id || 'x'",
    "invoice_seq": "2",
    "is_call": "1 - is_call",
    "key": "key || 'x'",
    "idempotency_key": "idempotency_key || 'x'",
    "trigger": "'auto'",
    "kind": "'send', invoice_seq = NULL, first_invoice_seq = NULL",
    "first_invoice_seq": "2",
    "hash": "hash || 'x'",
    "payment_id": "payment_id || 'x'",
    "pool_id": "2",
    "units": "units + 1",
}


def new_value(table: str, column: str) -> str:
    return NEW_VALUES.get(f"{table}.{column}") or NEW_VALUES.get(column) or "'other'"


ROWS = [
    breach
    for table, kept in KEPT.items()
    for breach in (
        (f"{table}_no_delete", f"DELETE FROM {table}"),
        (f"{table}_no_replace", f"REPLACE INTO {table} SELECT * FROM {table}"),
        (f"{table}_{'no_update' if kept.fixed is None else 'fixed'}", f"UPDATE {table} SET rowid = -rowid"),
    )
]
COLUMNS = [
    (f"{table}_fixed", f"UPDATE {table} SET {column} = {new_value(table, column)}")
    for table in ("intents", "holds", "payments", "tokens", "topups", "alerts", "homes", "admission_requests")
    for column in (KEPT[table].fixed or ())[1:]
]
BREACHES = [
    *ROWS,
    *COLUMNS,
    ("attempts_no_replace", NEW_ATTEMPT + "VALUES (1, 'dd', 'pay1', 'pay', 'aa#0', 'aa#0', x'', 1, 1, 1)"),
    (
        "invoices_no_replace",
        f"REPLACE INTO invoices VALUES (9, 'o', 'inv1', 'int2', 'flux', 'u', {INVOICE})",
    ),
    ("apps_no_update", "UPDATE OR REPLACE apps SET scopes = 'operate' WHERE id = 'app2'"),
    ("apps_no_replace", NEW_APP + "(9, 'app9', 'a', 'pay', 1)"),
    ("apps_no_replace", NEW_APP + "(9, 'app', 'a9', 'pay', 1)"),
    ("apps_no_replace", NEW_APP + "(1, 'app9', 'a9', 'pay', 1)"),
    ("tokens_no_replace", NEW_TOKEN + "('hash', 'app2', 1, NULL, NULL)"),
    ("tokens_no_replace", NEW_TOKEN + "('hash9', 'app', 1, NULL, NULL)"),
    ("tokens_revoked_at_ms_once", "UPDATE tokens SET revoked_at_ms = NULL WHERE hash = 'hash2'"),
    ("tokens_revoked_at_ms_once", "UPDATE tokens SET revoked_at_ms = 3 WHERE hash = 'hash2'"),
    ("intents_ended_at_ms_once", "UPDATE intents SET ended_at_ms = NULL WHERE id = 'int3'"),
    ("intents_ended_at_ms_once", "UPDATE intents SET ended_at_ms = 3 WHERE id = 'int3'"),
    ("intents_no_replace", NEW_INTENT + "('int9', 'app', 'k1', 0, 'other', 'o', NULL, 'r', 1, NULL)"),
    ("intents_no_replace", NEW_INTENT + "('int1', 'app', 'k9', 0, 'other', 'o', NULL, 'r', 1, NULL)"),
    ("holds_no_replace", "REPLACE INTO holds VALUES ('pay1', 'payment', 'lovelace', 1, 1, NULL, 1, 1, NULL)"),
    (
        "payments_no_replace",
        NEW_PAYMENT + "('pay1', 'send', 'app', 'int2', NULL, NULL, NULL, '[]', 'void', 'n', 'bb#1', 1, 1)",
    ),
    (
        "payments_one_per_intent",
        PAYMENT + "('p', 'invoice', 'app', 'int1', 2, 2, 'o', '[]', 'signed', 'n', 'bb#1', 1, 1)",
    ),
    (
        "payments_of_the_origin",
        PAYMENT + "('p', 'invoice', 'app', 'int2', 2, 2, 'other', '[]', 'signed', 'n', 'bb#1', 1, 1)",
    ),
    (
        "payments_of_the_origin",
        PAYMENT + "('p', 'send', 'app', 'int2', NULL, NULL, 'o', '[]', 'signed', 'n', 'bb#1', 1, 1)",
    ),
    ("approvals_no_replace", "REPLACE INTO approvals VALUES ('pay0', 'u', '[]', '{}', NULL, 1, 9)"),
    ("payments_asked", "UPDATE payments SET state = 'awaiting_approval', nonce_utxo = NULL WHERE id = 'pay1'"),
    ("payments_refused_for_good", "UPDATE payments SET state = 'denied' WHERE id = 'pay0'"),
    (
        "payments_no_replace",
        NEW_PAYMENT + "('p', 'invoice', 'app', 'int2', 1, 1, 'o', '[]', 'void', 'n', 'bb#1', 1, 1)",
    ),
    (
        "payments_no_replace",
        NEW_PAYMENT + "('p', 'invoice', 'app', 'int2', 2, 2, 'o', '[]', 'signed', 'n', 'aa#0', 1, 1)",
    ),
    (
        "payments_no_overwrite",
        "UPDATE OR REPLACE payments SET state = 'void', nonce_utxo = 'bb#1' WHERE id = 'pay0'",
    ),
    ("payments_nonce_utxo_once", "UPDATE payments SET nonce_utxo = 'bb#1' WHERE id = 'pay1'"),
    ("payments_nonce_utxo_once", "UPDATE payments SET nonce_utxo = NULL, state = 'rejected' WHERE id = 'pay1'"),
    (
        "postings_sealed",
        "INSERT INTO postings(entry_id, account, asset, units) VALUES (1, 'wallet', 'lovelace', 1)",
    ),
    ("entries_balance", "INSERT INTO entries(id, kind, at_ms) VALUES (2, 'deposit', 1)"),
    ("events_chained", NEW_EVENT.format(2, GENESIS)),
    ("events_chained", NEW_EVENT.format(3, HASH)),
    ("events_chained", NEW_EVENT.format(0, HASH)),
    ("events_chained", NEW_EVENT.format("NULL", HASH)),
    ("topups_no_replace", NEW_TOPUP.format("'top9', 1, 'app', 'k9'")),
    ("topups_no_replace", NEW_TOPUP.format("'top9', 2, 'app', 'k1'")),
    ("admission_requests_ended_at_ms_once", "UPDATE admission_requests SET ended_at_ms = 4 WHERE id = 'ask2'"),
    ("admission_requests_outcome_once", "UPDATE admission_requests SET outcome = '{}' WHERE id = 'ask2'"),
    ("topups_stop_code_once", "UPDATE topups SET stop_code = NULL WHERE id = 'top2'"),
    ("topups_stop_reason_once", "UPDATE topups SET stop_reason = NULL WHERE id = 'top2'"),
    ("topups_stop_detail_once", "UPDATE topups SET stop_detail = NULL WHERE id = 'top2'"),
    ("topups_ended_clock_ms_once", "UPDATE topups SET ended_clock_ms = NULL WHERE id = 'top2'"),
    ("topups_end_once", "UPDATE topups SET code = NULL WHERE id = 'top2'"),
    ("topups_ended_at_ms_once", "UPDATE topups SET ended_at_ms = NULL WHERE id = 'top2'"),
    ("topups_code_once", "UPDATE topups SET code = 'other' WHERE id = 'top2'"),
    ("topups_reason_once", "UPDATE topups SET reason = NULL WHERE id = 'top2'"),
    ("topups_detail_once", "UPDATE topups SET detail = NULL WHERE id = 'top2'"),
    ("meta_no_replace", "REPLACE INTO meta VALUES ('network', 'mainnet')"),
    ("seals_chained", f"INSERT INTO seals VALUES (3, '{{}}', x'', '{HASH}')"),
    ("seals_chained", f"INSERT INTO seals VALUES (NULL, '{{}}', x'', '{HASH}')"),
]
"""(trigger, statement that it alone refuses)"""


ATTEMPT = "INSERT INTO attempts VALUES ('dd', 'pay1', 'pay', 'aa#0', {}, 'aa#0', x'84', 1, 9, 1, 0)"
TURNED_BREACHES = [
    (
        "payments_invoice_unsigned",
        PAYMENT + "('p', 'invoice', 'app', 'int2', 1, 1, 'o', '[]', 'reserved', 'n', 'bb#1', 1, 1)",
    ),
    ("payments_invoice_not_signed", "UPDATE payments SET invoice_seq = 1, state = 'in_block' WHERE id = 'pay2'"),
    ("payments_invoice_follows", "UPDATE payments SET invoice_seq = 4 WHERE id = 'pay1'"),
    ("payments_invoice_follows", "UPDATE payments SET invoice_seq = 1, state = 'in_flight' WHERE id = 'pay1'"),
    ("attempts_of_the_invoice", ATTEMPT.format(1)),
    ("attempts_of_the_invoice", ATTEMPT.format(2)),
    ("attempts_of_the_invoice", ATTEMPT.format("NULL")),
]
"""(trigger, statement that it alone refuses in the ledger of `turned`)"""


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
    """pay1 has an attempt for invoice 1 and now uses another one. Invoice 4 has another origin."""
    plain.execute(f"INSERT INTO invoices VALUES (3, 'o', 'inv3', 'int1', 'flux', 't', {INVOICE})")
    plain.execute(f"INSERT INTO invoices VALUES (4, 'elsewhere', 'inv4', 'int1', 'flux', 't', {INVOICE})")
    plain.execute("UPDATE payments SET invoice_seq = 3, state = 'replacing' WHERE id = 'pay1'")
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


def test_the_migrations_build_the_current_schema() -> None:
    """Changed tables, views or triggers reach an existing ledger only by a migration."""
    with closing(memory()) as migrated, closing(memory()) as today:
        bring_up_to_date(migrated)
        today.executescript("\n".join((TABLES, VIEWS, *(trigger.sql for trigger in TRIGGERS))))
        assert built(migrated) == built(today)


def test_a_migration_runs_once_and_is_rolled_back_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    later, is_broken = Migrations("payagent"), True
    later()(schema.m001_release_0_1_0)
    later()(schema.m002_notifications)
    later()(schema.m003_approval_messages)
    later()(schema.m004_one_trigger_for_each_change)
    later()(schema.m005_accounts)

    @later()
    def m006_later(db: Database) -> None:
        db.execute("CREATE TABLE later (id INTEGER) STRICT")
        if is_broken:
            raise RuntimeError("half done")

    with closing(memory()) as conn:
        bring_up_to_date(conn)
        before = built(conn)
        monkeypatch.setattr(schema, "migrations", later)
        with pytest.raises(RuntimeError):
            bring_up_to_date(conn)
        assert (built(conn), lacking_migrations(conn), conn.in_transaction) == (before, ["m006_later"], False)
        is_broken = False
        for _ in range(2):
            bring_up_to_date(conn)
            assert (len(built(conn)), lacking_migrations(conn)) == (len(before) + 1, [])
