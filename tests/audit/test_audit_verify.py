"""Verify: an intact ledger is clean, and every changed, added or removed row is found and named."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from kit.agent import ADA, DEVNET, World, with_terms, world_with_clock
from kit.audit import (
    Past,
    append,
    copy_of,
    findings,
    fresh,
    head_of,
    tamper,
    told,
    unguarded,
)
from kit.effort import pick
from kit.next_release import NAME, upgraded
from kit.pages import blocks
from kit.payments import replace_parent, wait_for_void

from payagent.audit.signed_bytes import Owner
from payagent.core.address import encode_address
from payagent.store.db.opening import migrate
from payagent.store.db.seals import SEALED
from payagent.store.db.triggers import KEPT, TRIGGERS
from payagent.store.db.unit import Unit
from payagent.store.db.writer import Writer
from payagent.store.rows import apps

A_POST = "(SELECT MIN(id) FROM entries WHERE kind = 'post')"
OTHER = "b" * 64


def test_verify_finds_nothing_in_an_intact_ledger(lived: Past) -> None:
    with closing(sqlite3.connect(lived.path)) as conn:
        states = {state for (state,) in conn.execute("SELECT state FROM payments")}
        kinds = {kind for (kind,) in conn.execute("SELECT kind FROM entries")}
    assert states >= {"settled", "rejected", "void", "in_flight"}
    assert kinds == {"deposit", "reserve", "post", "post_reversed", "release", "use"}
    assert findings(lived.path, lived.owner) == []


def test_the_documented_program_computes_the_head_and_detects_a_deleted_row(lived: Past, tmp_path: Path) -> None:
    (program,) = blocks("Compute the head without payagent", "docs/how-to/verify-the-ledger.md", "python")

    def run(path: Path) -> tuple[int, str]:
        command = [sys.executable, "-I", "-c", program, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    assert run(lived.path) == (0, f"head {head_of(lived.path, lived.owner)}\n")
    with unguarded(fresh(lived.path, tmp_path / "full")) as conn:
        for table in SEALED[:: pick(5, 1)]:
            copy = tmp_path / f"{table}.db"
            with closing(sqlite3.connect(copy, isolation_level=None)) as changed:
                conn.backup(changed)
                assert run(copy)[0] == 0
                changed.execute(f"DELETE FROM {table} WHERE rowid = (SELECT MAX(rowid) FROM {table})")
            assert run(copy) == (1, ""), table


CASES = [
    ("events", "UPDATE events SET detail = '[]' WHERE seq = 3", "3"),
    ("events", "DELETE FROM events WHERE seq = 4", "4"),
    ("events", "UPDATE events SET seq = seq + 1000 WHERE seq > 6", None),
    ("events", "DELETE FROM events WHERE seq = (SELECT MAX(seq) FROM events WHERE event = 'confirm')", None),
    ("entries", f"UPDATE entries SET kind = 'release' WHERE id = {A_POST}", None),
    ("entries", f"UPDATE entries SET ref = NULL WHERE id = {A_POST}", None),
    ("entries", "UPDATE entries SET at_ms = at_ms + 1 WHERE id = 7", "7"),
    ("entries", "DELETE FROM entries WHERE id = 7", "7"),
    ("entries", "UPDATE entries SET id = -id", None),
    ("entries", "UPDATE postings SET units = units + 1 WHERE seq = 1", "1"),
    ("entries", "UPDATE postings SET units = units * 2 WHERE entry_id = 1", "1"),
    ("entries", "UPDATE postings SET units = units * 2 WHERE entry_id = 7", "7"),
    ("entries", "UPDATE postings SET account = 'merchant:http://other' WHERE account LIKE 'merchant:%'", None),
    ("entries", "UPDATE postings SET asset = 'lovelace' WHERE asset <> 'lovelace'", None),
    ("postings", "DELETE FROM postings WHERE entry_id = 7", None),
    ("postings", "UPDATE postings SET seq = -seq WHERE entry_id = 7", None),
    ("postings", "INSERT INTO postings(entry_id, account, asset, units) VALUES (7, 'fees', 'lovelace', 1)", None),
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
    ("invoices", "UPDATE invoices SET batch_target = NULL WHERE batch_target > 1", None),
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
    ("holds", "UPDATE holds SET counted_units = counted_units - 1 WHERE rowid = 1", None),
    ("holds", "UPDATE holds SET counted_units = 5 WHERE counted_units IS NULL", None),
    ("holds", "UPDATE holds SET counted_at_ms = 1 WHERE rowid = 2", "2"),
    ("holds", "UPDATE holds SET released_at_ms = 5, counted_units = 0 WHERE stage = 'approval'", None),
    (
        "limit_counters",
        "UPDATE limit_counters SET units_low = units_low - 1 WHERE app = '' AND merchant = '' AND span_ms = 0",
        None,
    ),
    (
        "limit_counters",
        "UPDATE limit_counters SET units_high = units_high + 1 WHERE app <> '' AND merchant = '' AND span_ms "
        "= 21600000",
        None,
    ),
    (
        "limit_counters",
        "UPDATE limit_counters SET units_low = units_low + 1 WHERE app <> '' AND merchant <> '' AND span_ms "
        "= 300000",
        None,
    ),
    (
        "limit_counters",
        "UPDATE limit_counters SET start_ms = start_ms + 300000000 WHERE app = '' AND merchant <> ''",
        None,
    ),
    ("limit_counters", "DELETE FROM limit_counters WHERE asset <> 'lovelace' AND app <> ''", None),
    (
        "limit_counters",
        "INSERT INTO limit_counters VALUES ('', '', 'lovelace', 300000, 0, 'paid', 0, 5)",
        "any any lovelace 300000 0",
    ),
    ("limit_counters", "UPDATE limit_counters SET kind = 'used' WHERE app <> '' AND merchant <> ''", None),
    (
        "limit_counters",
        "UPDATE limit_counters SET units_low = units_low - 1 WHERE kind = 'used' AND span_ms = 0",
        None,
    ),
    ("prepaid_shares", "UPDATE prepaid_shares SET used = used - 1 WHERE used > 0", None),
    ("prepaid_shares", "UPDATE prepaid_shares SET paid = paid + 1", None),
    ("prepaid_shares", "UPDATE prepaid_shares SET counted = counted + 1", None),
    ("prepaid_shares", "DELETE FROM prepaid_shares", None),
    ("prepaid_uses", "UPDATE prepaid_uses SET counted_units = 0 WHERE counted_units > 0", None),
    ("prepaid_uses", "DELETE FROM prepaid_uses", None),
    ("limits", "UPDATE limits SET most_units = most_units + 1", "any any lovelace per_week"),
    ("limits", "DELETE FROM limits", "any any lovelace per_week"),
    ("limits", "INSERT INTO limits VALUES ('', '', 'lovelace', 'total', 5)", "any any lovelace total"),
    ("merchants", "INSERT INTO merchants VALUES ('x', 'https://x.example', '{}')", "x"),
    ("tokens", "UPDATE tokens SET revoked_at_ms = revoked_at_ms + 1 WHERE revoked_at_ms IS NOT NULL", None),
    ("tokens", "UPDATE tokens SET revoked_at_ms = 5 WHERE revoked_at_ms IS NULL", None),
    ("intents", "UPDATE intents SET origin = 'http://other' WHERE rowid = 1", None),
    ("intents", "DELETE FROM intents WHERE rowid = 1", "1"),
    ("block_observations", f"UPDATE block_observations SET block_hash = '{OTHER}' WHERE seq = 1", "1"),
    ("block_observations", "UPDATE block_observations SET at_ms = at_ms + 1 WHERE seq = 1", "1"),
    ("block_observations", "UPDATE block_observations SET seq = -seq WHERE seq <= 2", None),
    ("block_observations", "DELETE FROM block_observations WHERE seq = 2", "2"),
    ("submissions", "UPDATE submissions SET at_ms = at_ms - 1 WHERE seq = 1", None),
    ("submissions", "UPDATE submissions SET provider = 'another' WHERE seq = 1", None),
    ("submissions", "DELETE FROM submissions WHERE seq = 1", "1"),
    ("apps", "DELETE FROM apps", None),
    ("utxos", "UPDATE utxos SET lovelace = lovelace + 1 WHERE source = 'change' AND rowid % 2 = 0", None),
    ("utxos", "DELETE FROM utxos WHERE source = 'deposit' AND state = 'spent'", None),
    ("utxos", "UPDATE utxos SET state = 'available', spent_by = NULL WHERE state = 'spent'", None),
    ("utxos", f"UPDATE utxos SET spent_by = '{OTHER}' WHERE state = 'spent'", None),
    (
        "utxos",
        f"INSERT INTO utxos VALUES ('{OTHER}#0', '{OTHER}', 0, 5, '{{}}', 'change', 'available', NULL, 0)",
        None,
    ),
    ("utxos", "UPDATE utxos SET output_index = output_index + 1 WHERE source = 'deposit'", None),
]
MAY_REFER = {"apps": "payments", "intents": "payments"}


@pytest.mark.parametrize(("table", "statement", "row"), CASES, ids=[case[1][:70] for case in CASES])
def test_verify_names_the_row_that_was_changed(
    lived: Past, tmp_path: Path, table: str, statement: str, row: str | None
) -> None:
    path = fresh(lived.path, tmp_path)
    tamper(path, statement)
    found = findings(path, lived.owner)
    named = {finding.table for finding in found}
    # a row that refers to a missing row is named instead
    assert table in named or MAY_REFER.get(table) in named, found
    if row is not None:
        assert row in {finding.row for finding in found if finding.table == table}, found


def test_a_finding_on_a_limit_has_both_amounts(lived: Past, tmp_path: Path) -> None:
    path = fresh(lived.path, tmp_path)
    with closing(sqlite3.connect(path)) as conn:
        (units,) = conn.execute("SELECT most_units FROM limits").fetchone()
    tamper(path, "UPDATE limits SET most_units = 5")
    tamper(path, "INSERT INTO limits VALUES ('', '', 'lovelace', 'total', 7)")
    whats = {one.row: one.what for one in findings(path, lived.owner) if one.table == "limits"}
    assert whats["any any lovelace per_week"] == f"the stored row has 5, the events say {units}"
    assert whats["any any lovelace total"] == "the stored row has 7, the events say none"


def all_columns() -> list[tuple[str, str]]:
    """Every column of every table of record, as the schema has them."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        migrate(conn)
        return [(table, row[1]) for table in sorted(KEPT) for row in conn.execute(f"PRAGMA table_info({table})")]


OWN_NAMES = {
    "payments": "{id}",
    "attempts": "{tx_id}",
    "holds": "{payment_id} {asset}",
    "tokens": "{app_id}",
}


class Opened:
    """The ledger without triggers, and what verify finds in it before any change."""

    def __init__(self, conn: sqlite3.Connection, past: Past) -> None:
        self.conn = conn
        self.owner = past.owner
        self.before = told(conn, past.owner)

    @contextmanager
    def changed(self, *statements: str) -> Iterator[set[tuple[str, str]]]:
        """(table, row) of each new finding after the statements, which are rolled back."""
        self.conn.execute("BEGIN")
        try:
            for statement in statements:
                assert self.conn.execute(statement).rowcount == 1, statement
            yield {(one.table, one.row.partition(" to ")[0]) for one in told(self.conn, self.owner) - self.before}
        finally:
            self.conn.execute("ROLLBACK")

    def numbers(self, table: str) -> list[int]:
        """The first, a middle and the last row."""
        found = [number for (number,) in self.conn.execute(f"SELECT rowid FROM {table} ORDER BY rowid")]
        return [found[0], found[len(found) // 2], found[-1]]

    def sample(self, table: str) -> list[int]:
        """A middle row; the long run takes the first and the last too."""
        numbers = self.numbers(table)
        return pick(numbers[1:2], numbers)

    def names(self, table: str, number: int) -> set[tuple[str, str]]:
        """The names a finding may give the row."""
        columns = [row[1] for row in self.conn.execute(f"PRAGMA table_info({table})")]
        values = self.conn.execute(f"SELECT * FROM {table} WHERE rowid = ?", (number,)).fetchone()
        row = dict(zip(columns, values, strict=True))
        own = OWN_NAMES.get(table, "")
        return {(table, str(number)), (table, own.format(**row))}


@pytest.fixture(scope="module")
def opened(lived: Past, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    with unguarded(fresh(lived.path, tmp_path_factory.mktemp("opened"))) as conn:
        yield Opened(conn, lived)


OTHER_VALUE = (
    "CASE typeof({0}) WHEN 'null' THEN {1} WHEN 'integer' THEN {0} + 100000 WHEN 'blob' THEN {0} || x'00' "
    "ELSE {0} || 'x' END"
)


@pytest.mark.parametrize(("table", "column"), list(all_columns()))
def test_verify_names_the_row_when_any_column_is_changed(opened: Opened, table: str, column: str) -> None:
    kinds = {row[1]: row[2] for row in opened.conn.execute(f"PRAGMA table_info({table})")}
    value = OTHER_VALUE.format(column, "'x'" if kinds[column] == "TEXT" else "100000")
    if kinds[column] == "BLOB":
        value = f"CAST({value} AS BLOB)"
    for number in opened.sample(table):
        names = opened.names(table, number)
        with opened.changed(f"UPDATE {table} SET {column} = {value} WHERE rowid = {number}") as found:
            assert found & names, (names, found)


@pytest.mark.parametrize("table", sorted(KEPT))
def test_verify_names_a_row_that_was_removed(opened: Opened, table: str) -> None:
    numbers = opened.sample(table)
    for number in numbers if table != "seals" else numbers[:2]:
        with opened.changed(f"DELETE FROM {table} WHERE rowid = {number}") as found:
            assert (table, str(number)) in found, (number, found)


@pytest.mark.parametrize("table", sorted(KEPT))
def test_verify_names_two_rows_that_were_swapped(opened: Opened, table: str) -> None:
    first, _, last = opened.numbers(table)
    swap = [f"UPDATE {table} SET rowid = {new} WHERE rowid = {old}" for old, new in ((first, -9), (last, first))]
    with opened.changed(*swap, f"UPDATE {table} SET rowid = {last} WHERE rowid = -9") as found:
        assert found >= {(table, str(first)), (table, str(last))}


def test_removing_the_newest_seal_leaves_its_rows_unsealed(opened: Opened) -> None:
    last = opened.numbers("seals")[-1]
    (what,) = opened.conn.execute(f"SELECT what FROM seals WHERE seq = {last}").fetchone()
    with opened.changed(f"DELETE FROM seals WHERE seq = {last}") as found:
        assert found == {(table, str(n)) for table, (a, b) in json.loads(what).items() for n in range(a, b + 1)}


def test_a_row_added_without_the_daemon_is_in_no_seal(opened: Opened) -> None:
    last = opened.numbers("meta")[-1]
    with opened.changed("INSERT INTO meta VALUES ('mine', 'x')") as found:
        assert found == {("meta", str(last + 1))}


def test_an_earlier_copy_of_the_ledger_is_detected_with_a_noted_head(lived: Past, tmp_path: Path) -> None:
    """Without the newest rows and seals, what is left is the file of an earlier time."""
    early, late = copy_of(lived.early, tmp_path), lived.path
    noted = head_of(late, lived.owner)
    assert findings(early, lived.owner) == []
    assert findings(late, lived.owner, noted) == []
    assert findings(late, lived.owner, head_of(early, lived.owner)) == []
    (found,) = findings(early, lived.owner, noted)
    assert (found.table, found.row) == ("seals", str(noted.seq))
    (found,) = findings(late, lived.owner, replace(noted, hash=OTHER))
    assert (found.table, found.row) == ("seals", str(noted.seq))


def test_verify_names_a_trigger_that_is_missing_or_weakened(lived: Past, tmp_path: Path) -> None:
    path = fresh(lived.path, tmp_path)
    with closing(sqlite3.connect(path)) as conn:
        conn.execute(f"DROP TRIGGER {TRIGGERS[0].name}")
        conn.execute(f"DROP TRIGGER {TRIGGERS[1].name}")
        conn.execute(TRIGGERS[1].sql.replace("WHEN ", "WHEN 0 AND ", 1))
    assert [finding.row for finding in findings(path, lived.owner)] == [TRIGGERS[0].name, TRIGGERS[1].name]


def test_verify_names_a_trigger_that_payagent_did_not_create(lived: Past, tmp_path: Path) -> None:
    path = fresh(lived.path, tmp_path)
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TRIGGER mine AFTER INSERT ON holds BEGIN UPDATE holds SET released_at_ms = 1; END")
    assert [(one.table, one.row) for one in findings(path, lived.owner)] == [("sqlite_master", "mine")]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A separate world whose devnet follows the test's clock."""
    with world_with_clock(tmp_path) as apart:
        yield apart


async def test_a_void_by_another_payments_transaction_needs_a_block_that_holds_it(world: World) -> None:
    """Another attempt of the parent landed, so the child's input can never exist."""
    world.fund(300 * ADA)
    async with world.run(terms=with_terms(unconfirmed_ancestors_max=8, settle_depth=25)) as run:
        parent, child, _ = await replace_parent(world, run)
        await run.settle_down()
        await wait_for_void(world, run)
        await wait_for_void(world, run)
        void = run.context.payment(child.id)
        assert void.void_tx_id == run.context.payment(parent.id).attempt.tx_id
        ((number,),) = run.context.conn.execute(
            "SELECT seq FROM events WHERE payment_id = ? AND event = 'void'", (child.id,)
        ).fetchall()
    path, owner = world.folder / "ledger.db", Owner(world.account.address, DEVNET)
    assert findings(path, owner) == []
    tamper(path, f"UPDATE block_observations SET block_hash = '{OTHER}' WHERE tx_id = '{void.void_tx_id}'")
    assert ("events", str(number)) in {(one.table, one.row) for one in findings(path, owner)}


NO_JSON = ("{", '{"a":' + "[" * 10_000 + "]" * 10_000 + "}")
"""Not JSON, and JSON nested too deeply."""


@pytest.mark.parametrize("detail", NO_JSON, ids=["torn", "deep"])
def test_an_unreadable_event_is_named_and_hides_no_other_finding(lived: Past, tmp_path: Path, detail: str) -> None:
    with closing(sqlite3.connect(lived.path)) as conn:
        last = dict(conn.execute("SELECT event, MAX(seq) FROM events GROUP BY event"))
    path = fresh(lived.path, tmp_path)
    changed = ",".join(str(last[event]) for event in ("confirm", "void", "limit_set", "app_revoked"))
    tamper(
        path,
        f"UPDATE events SET detail = '{detail}' WHERE seq IN ({changed})",
        "UPDATE tokens SET revoked_at_ms = 5 WHERE revoked_at_ms IS NULL",
    )
    named = {(one.table, one.row) for one in findings(path, lived.owner)}
    assert named >= {("events", seq) for seq in changed.split(",")}
    assert "tokens" in {table for table, _ in named}


UNREADABLE = [
    ("merchants", "INSERT INTO merchants VALUES ('x', 'https://x.example', '{')"),
    ("limits", "UPDATE limits SET window = 'per_year'"),
    ("limits", "UPDATE limits SET most_units = 'much'"),
    ("balances", "UPDATE balances SET units_high = 0.5 WHERE account = 'fees'"),
    ("utxos", "UPDATE utxos SET lovelace = x'00' WHERE state = 'available'"),
    ("payments", "UPDATE holds SET units = 'much' WHERE rowid = 1"),
    ("payments", "UPDATE payments SET detail = CAST(x'41ff' AS TEXT) WHERE seq = 1"),
    ("seals", "UPDATE seals SET marks = 5 WHERE seq = 2"),
]


@pytest.mark.parametrize(("table", "statement"), UNREADABLE, ids=[one[1][:40] for one in UNREADABLE])
def test_an_invalid_column_value_is_found_and_hides_no_other_finding(
    lived: Past, tmp_path: Path, table: str, statement: str
) -> None:
    """Anyone who can write the file can also remove the column types."""
    path = fresh(lived.path, tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA writable_schema = ON")
        conn.execute(
            "UPDATE sqlite_master SET sql = replace(replace(sql, ') STRICT, ', ') '), ') STRICT', ')') "
            "WHERE type = 'table'"
        )
        conn.execute("PRAGMA writable_schema = RESET")
    tamper(
        path,
        "UPDATE tokens SET revoked_at_ms = 5 WHERE revoked_at_ms IS NULL",
        "UPDATE payments SET merchant_status = 'x' WHERE seq = 2",
        statement,
    )
    named = {one.table for one in findings(path, lived.owner)}
    assert named >= {table, "tokens", "payments"}
    assert head_of(path, lived.owner) == head_of(lived.path, lived.owner)


def test_an_unreadable_payment_hides_no_finding_about_other_payments(lived: Past, tmp_path: Path) -> None:
    path = fresh(lived.path, tmp_path)
    with closing(sqlite3.connect(path)) as conn:
        others = [payment_id for (payment_id,) in conn.execute("SELECT id FROM payments WHERE seq <> 3")]
    tamper(
        path,
        "UPDATE payments SET merchant_status = 'x' WHERE seq <> 3",
        "UPDATE payments SET detail = CAST(x'41ff' AS TEXT) WHERE seq = 3",
    )
    named = [one.row for one in findings(path, lived.owner) if one.table == "payments"]
    assert sorted(named) == sorted([*others, "3"])


TOO_DEEP = "[" * 100_000 + "]" * 100_000
DEEP = [
    ("utxos", f"UPDATE utxos SET assets = '{TOO_DEEP}' WHERE state = 'available'"),
    ("seals", f"UPDATE seals SET what = '{TOO_DEEP}' WHERE seq = 3"),
    ("payments", f"UPDATE payments SET outputs = '{TOO_DEEP}' WHERE seq = 1"),
    ("invoices", f"UPDATE invoices SET outputs = '{TOO_DEEP}' WHERE seq = 2"),
    ("merchants", f"INSERT INTO merchants VALUES ('x', 'https://x.example', '{TOO_DEEP}')"),
]


@pytest.mark.parametrize(("table", "statement"), DEEP, ids=[one[0] for one in DEEP])
def test_json_nested_too_deeply_is_found_and_hides_no_other_finding(
    lived: Past, tmp_path: Path, table: str, statement: str
) -> None:
    path = fresh(lived.path, tmp_path)
    tamper(path, "UPDATE tokens SET revoked_at_ms = 5 WHERE revoked_at_ms IS NULL", statement)
    assert {one.table for one in findings(path, lived.owner)} >= {table, "tokens"}
    assert head_of(path, lived.owner).seq == head_of(lived.path, lived.owner).seq


def test_verify_names_a_view_that_was_changed_or_removed(lived: Past, tmp_path: Path) -> None:
    """Auditors read the ledger through views, and no table row shows what a view leaves out."""
    path = fresh(lived.path, tmp_path)
    with closing(sqlite3.connect(path)) as conn:
        (made,) = conn.execute("SELECT sql FROM sqlite_master WHERE name = 'v_spend'").fetchone()
        conn.execute("DROP VIEW v_spend")
        conn.execute(f"{made} WHERE q.units < 5000000")
        conn.execute("DROP VIEW v_prepaid")
    assert [(one.table, one.row) for one in findings(path, lived.owner)] == [
        ("sqlite_master", "v_spend"),
        ("sqlite_master", "v_prepaid"),
    ]


def test_verify_names_an_approval_for_which_nothing_was_held(lived: Past, tmp_path: Path) -> None:
    path = fresh(lived.path, tmp_path)
    with closing(sqlite3.connect(path)) as conn:
        asked = [payment_id for (payment_id,) in conn.execute("SELECT payment_id FROM approvals ORDER BY rowid")]
    assert asked
    tamper(path, "DELETE FROM holds WHERE stage = 'approval'")
    named = [one.row for one in findings(path, lived.owner) if "nothing was held" in one.what]
    assert named == asked


def test_verify_says_when_the_ledger_is_from_an_older_payagent(lived: Past, tmp_path: Path) -> None:
    path = fresh(lived.path, tmp_path)
    with upgraded():
        (only,) = findings(path, lived.owner)
    assert (only.row, "of an older payagent" in only.what) == (NAME, True)


OF_NOTHING = [
    (
        "attempts",
        f"INSERT INTO attempts SELECT '{OTHER}', 'pay_x', kind, nonce_utxo, invoice_seq, inputs, cbor, "
        "fee_lovelace, "
        "ttl_slot, signed_at_ms, account FROM attempts LIMIT 1",
    ),
    ("holds", "INSERT INTO holds VALUES ('pay_x', 'payment', 'lovelace', 5, 1, NULL, 5, 1, NULL)"),
    ("reservations", "INSERT INTO reservations SELECT ref, 'pay_x' FROM utxos WHERE state = 'available' LIMIT 1"),
    (
        "prepaid_uses",
        "INSERT INTO prepaid_uses SELECT 99, 99, pool_id, 'app_x', unit, 1, asset, 5, 5, 1 FROM prepaid_uses "
        "LIMIT 1",
    ),
    ("block_observations", f"INSERT INTO block_observations VALUES (NULL, '{OTHER}', '{OTHER}', 1, 1, 'p', 1)"),
    ("submissions", f"INSERT INTO submissions(tx_id, provider, at_ms) VALUES ('{OTHER}', 'p', 1)"),
    (
        "postings",
        "INSERT INTO postings(entry_id, account, asset, units) VALUES (999, 'wallet', 'lovelace', -5), "
        "(999, 'fees', 'lovelace', 5)",
    ),
    (
        "merchant_reports",
        "INSERT INTO merchant_reports(pool_id, source, http_status, body, at_ms) "
        "VALUES (9, 'balance', 200, '', 1)",
    ),
]


@pytest.mark.parametrize(("table", "statement"), OF_NOTHING, ids=[table for table, _ in OF_NOTHING])
def test_verify_names_added_rows_that_belong_to_nothing(
    lived: Past, tmp_path: Path, table: str, statement: str
) -> None:
    path = fresh(lived.path, tmp_path)
    append(path, statement)
    assert table in {finding.table for finding in findings(path, lived.owner)}


WITHOUT_EVENT = [
    ("apps", "INSERT INTO apps VALUES ('app_x', 'x', 'operate pay', NULL, NULL, 1)"),
    ("tokens", "INSERT INTO tokens(hash, app_id, created_at_ms) VALUES ('x', 'app_own', 1)"),
    ("limits", "INSERT INTO limits VALUES ('', '', 'lovelace', 'per_day', 5000000)"),
    ("address_pins", "INSERT INTO address_pins VALUES ('https://m.example', 'pay_to', 'addr_x')"),
    ("merchants", "INSERT INTO merchants VALUES ('x', 'https://x.example', '{}')"),
]


@pytest.mark.parametrize(("table", "statement"), WITHOUT_EVENT, ids=[table for table, _ in WITHOUT_EVENT])
def test_verify_names_a_sealed_row_that_no_event_made(
    lived: Past, tmp_path: Path, table: str, statement: str
) -> None:
    path = tmp_path / "ledger.db"

    def job(unit: Unit) -> None:
        apps.add_with_token(unit, "app_op", "op", "h", ["operate"], 1)
        apps.ensure_own(unit, "app_own", "own", 1)

    with closing(Writer(path)) as writer:
        writer.submit("app", job).result()
    assert findings(path, lived.owner) == []
    append(path, statement)
    assert {finding.table for finding in findings(path, lived.owner)} == {table}


def test_verify_names_a_use_entry_without_a_prepaid_use(lived: Past, tmp_path: Path) -> None:
    path = fresh(lived.path, tmp_path)
    append(
        path,
        "INSERT INTO postings(entry_id, account, asset, units) VALUES (1000, 'external', 'lovelace', -5), "
        "(1000, 'fees', 'lovelace', 5)",
        "INSERT INTO entries(id, kind, at_ms) VALUES (1000, 'use', 5)",
    )
    assert ("entries", "1000") in {(finding.table, finding.row) for finding in findings(path, lived.owner)}


def test_verify_rejects_the_ledger_of_another_wallet(lived: Past) -> None:
    """One key signed all bytes: with another owner every transaction is a finding."""
    other = lived.owner.address.raw
    owner = replace(lived.owner, address=encode_address(other[:1] + bytes(28) + other[29:]))
    assert {finding.table for finding in findings(lived.path, owner)} >= {"attempts", "holds"}
