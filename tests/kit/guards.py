"""A ledger with a row in each table of record, and the changes of it that the guards refuse."""

from typing import Any

from payagent.store.db.tables import GENESIS
from payagent.store.db.triggers import KEPT

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
    "outputs": "'[0]'",
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


def turn(conn: Any) -> None:
    """pay1 has an attempt for invoice 1 and now uses another one. Invoice 4 has another origin."""
    conn.execute(f"INSERT INTO invoices VALUES (3, 'o', 'inv3', 'int1', 'flux', 't', {INVOICE})")
    conn.execute(f"INSERT INTO invoices VALUES (4, 'elsewhere', 'inv4', 'int1', 'flux', 't', {INVOICE})")
    conn.execute("UPDATE payments SET invoice_seq = 3, state = 'replacing' WHERE id = 'pay1'")
