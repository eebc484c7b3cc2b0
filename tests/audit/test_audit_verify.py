"""Books that are whole are found clean; whoever changes a row is found, with the row's name."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from audit.books_kit import Past, findings, fresh, tamper

from payagent.core.address import encode_address
from payagent.store.schema import GUARDS

A_POST = "(SELECT MIN(id) FROM journal WHERE kind = 'post')"
OTHER = "b" * 64


def test_a_past_with_everything_in_it_is_clean(lived: Past) -> None:
    with closing(sqlite3.connect(lived.path)) as conn:
        states = {state for (state,) in conn.execute("SELECT state FROM payments")}
        kinds = {kind for (kind,) in conn.execute("SELECT kind FROM journal")}
    assert states >= {"settled", "rejected", "void", "in_flight"}
    assert kinds == {"deposit", "reserve", "post", "reverse", "release"}
    assert findings(lived.path, lived.owner) == []


CASES = [
    ("events", "UPDATE events SET detail = '[]' WHERE seq = 3", "3"),
    ("events", "DELETE FROM events WHERE seq = 4", "4"),
    ("events", "UPDATE events SET seq = seq + 1000 WHERE seq > 6", None),
    ("events", "DELETE FROM events WHERE seq = (SELECT MAX(seq) FROM events WHERE event = 'confirm')", None),
    ("journal", f"UPDATE journal SET kind = 'release' WHERE id = {A_POST}", None),
    ("journal", f"UPDATE journal SET ref = NULL WHERE id = {A_POST}", None),
    ("journal", "UPDATE journal SET at_ms = at_ms + 1 WHERE id = 7", "7"),
    ("journal", "DELETE FROM journal WHERE id = 7", "7"),
    ("journal", "UPDATE journal SET id = -id", None),
    ("journal", "UPDATE postings SET units = units + 1 WHERE seq = 1", "1"),
    ("journal", "UPDATE postings SET units = units * 2 WHERE entry = 1", "1"),
    ("journal", "UPDATE postings SET units = units * 2 WHERE entry = 7", "7"),
    ("journal", "UPDATE postings SET account = 'merchant:http://other' WHERE account LIKE 'merchant:%'", None),
    ("journal", "UPDATE postings SET asset = 'lovelace' WHERE asset <> 'lovelace'", None),
    ("postings", "DELETE FROM postings WHERE entry = 7", None),
    ("postings", "UPDATE postings SET seq = -seq WHERE entry = 7", None),
    ("postings", "INSERT INTO postings(entry, account, asset, units) VALUES (7, 'fees', 'lovelace', 1)", None),
    ("attempts", "UPDATE attempts SET cbor = substr(cbor, 1, length(cbor) - 1)", None),
    ("attempts", "UPDATE attempts SET fee_lovelace = fee_lovelace + 1 WHERE rowid = 1", None),
    ("attempts", "UPDATE attempts SET ttl_slot = ttl_slot + 1 WHERE rowid = 2", None),
    ("attempts", "UPDATE attempts SET inputs = inputs || ' ' || tx_id || '#0' WHERE rowid = 1", None),
    ("attempts", "UPDATE attempts SET signed_at_ms = signed_at_ms + 1 WHERE rowid = 3", None),
    ("attempts", "UPDATE attempts SET kind = 'cancel' WHERE rowid = 1", None),
    ("attempts", "UPDATE attempts SET kind = 'pay' WHERE kind = 'cancel'", None),
    ("attempts", "DELETE FROM attempts WHERE rowid = (SELECT MAX(rowid) FROM attempts)", None),
    (
        "attempts",
        "UPDATE attempts SET cbor = (SELECT cbor FROM attempts WHERE rowid = 2) WHERE rowid = 1",
        None,
    ),
    ("invoices", 'UPDATE invoices SET outputs = replace(outputs, \'"units":"2\', \'"units":"3\')', None),
    ("invoices", "UPDATE invoices SET terms_hash = 'x' WHERE seq = 1", "1"),
    ("invoices", "UPDATE invoices SET dialect = 'flux' WHERE seq = 1", "1"),
    ("invoices", "DELETE FROM invoices WHERE seq = 2", "2"),
    ("journal", "UPDATE invoices SET batch_target = NULL WHERE batch_target > 1", None),
    ("payments", "UPDATE payments SET state = 'void' WHERE seq = 1", None),
    ("payments", "UPDATE payments SET delivery = 'not_presented' WHERE seq = 1", None),
    ("payments", 'UPDATE payments SET outputs = replace(outputs, \'"units":"2\', \'"units":"3\')', None),
    ("payments", "UPDATE payments SET tx_id = NULL WHERE state = 'settled'", None),
    ("payments", f"UPDATE payments SET block_hash = '{OTHER}' WHERE seq = 1", None),
    ("payments", "UPDATE payments SET app_id = 'app_other' WHERE seq = 2", None),
    ("payments", "UPDATE payments SET created_at_ms = 1 WHERE seq = 2", None),
    ("payments", "DELETE FROM payments WHERE seq = 2", "2"),
    ("holds", "UPDATE holds SET units = units - 1 WHERE rowid = 1", None),
    ("holds", "UPDATE holds SET released_at_ms = 5 WHERE rowid = 1", None),
    ("holds", "UPDATE holds SET released_at_ms = NULL", None),
    ("holds", "UPDATE holds SET at_ms = at_ms + 1 WHERE rowid = 2", None),
    ("holds", "DELETE FROM holds WHERE rowid = 2", "2"),
    ("intents", "UPDATE intents SET origin = 'http://other' WHERE rowid = 1", None),
    ("intents", "DELETE FROM intents WHERE rowid = 1", "1"),
    ("sightings", f"UPDATE sightings SET block_hash = '{OTHER}' WHERE seq = 1", "1"),
    ("sightings", "UPDATE sightings SET at_ms = at_ms + 1 WHERE seq = 1", "1"),
    ("sightings", "UPDATE sightings SET seq = -seq WHERE seq <= 2", None),
    ("sightings", "DELETE FROM sightings WHERE seq = 2", "2"),
    ("submissions", "UPDATE submissions SET at_ms = at_ms - 1 WHERE seq = 1", None),
    ("submissions", "UPDATE submissions SET provider = 'another' WHERE seq = 1", None),
    ("submissions", "DELETE FROM submissions WHERE seq = 1", "1"),
    ("apps", "DELETE FROM apps", None),
    ("coins", "UPDATE coins SET lovelace = lovelace + 1 WHERE source = 'change' AND rowid % 2 = 0", None),
    ("coins", "DELETE FROM coins WHERE source = 'deposit' AND state = 'spent'", None),
    ("coins", "UPDATE coins SET state = 'free', spent_by = NULL WHERE state = 'spent'", None),
    ("coins", f"UPDATE coins SET spent_by = '{OTHER}' WHERE state = 'spent'", None),
]
MAY_REFER = {"apps": "payments", "intents": "payments"}


@pytest.mark.parametrize(("table", "statement", "row"), CASES, ids=[case[1][:70] for case in CASES])
def test_what_was_changed_is_found_and_named(
    lived: Past, tmp_path: Path, table: str, statement: str, row: str | None
) -> None:
    path = fresh(lived.path, tmp_path)
    tamper(path, statement)
    found = findings(path, lived.owner)
    named = {finding.table for finding in found}
    # a row that refers to what is not there is named for it
    assert table in named or MAY_REFER.get(table) in named, found
    if row is not None:
        assert row in {finding.row for finding in found if finding.table == table}, found


def test_a_guard_that_is_missing_or_weaker_is_named(lived: Past, tmp_path: Path) -> None:
    path = fresh(lived.path, tmp_path)
    with closing(sqlite3.connect(path)) as conn:
        conn.execute(f"DROP TRIGGER {GUARDS[0].name}")
        conn.execute(f"DROP TRIGGER {GUARDS[1].name}")
        conn.execute(GUARDS[1].sql.replace("WHEN ", "WHEN 0 AND "))
    assert [finding.row for finding in findings(path, lived.owner)] == [GUARDS[0].name, GUARDS[1].name]


def test_another_wallets_books_are_not_these(lived: Past) -> None:
    """The bytes are signed by one key: with another owner every transaction is a finding."""
    other = lived.owner.address.raw
    owner = replace(lived.owner, address=encode_address(other[:1] + bytes(28) + other[29:]))
    assert {finding.table for finding in findings(lived.path, owner)} >= {"attempts", "holds"}
