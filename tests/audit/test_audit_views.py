"""The ledger's SQL views, as sqlite-utils and other SQLite programs show them."""

import csv
import io
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kit.audit import TOKEN, Past, fresh

from payagent.core.money import LOVELACE, format_units
from payagent.core.timestamps import iso_time
from payagent.store.db.opening import migrate, open_database
from payagent.store.rows import journal, payments
from payagent.store.rows.journal import EVERYTHING

SQLITE_UTILS = Path(sys.executable).with_name("sqlite-utils")
PAGE = Path(__file__).parents[2] / "docs/reference/ledger-views.md"
MOST = 2**63 - 1


def sqlite_utils(*arguments: str | Path) -> str:
    run = subprocess.run([SQLITE_UTILS, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def rows(path: Path, view: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(sqlite_utils("rows", path, view, "--csv"))))


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A ledger in which rows may refer to nothing."""
    with closing(open_database(tmp_path / "ledger.db")) as conn:
        migrate(conn)
        conn.execute("PRAGMA foreign_keys = OFF")
        conn.execute("INSERT INTO apps VALUES ('app', 'shop', 'pay', NULL, NULL, 1)")
        yield conn


def test_v_payments_has_one_complete_row_per_payment(lived: Past) -> None:
    with closing(sqlite3.connect(lived.path)) as conn:
        ids = [payment for (payment,) in conn.execute("SELECT id FROM payments ORDER BY seq")]
        kept = [row for payment in ids if (row := payments.payment(conn, payment)) is not None]
    told = rows(lived.path, "v_payments")
    assert len(told) == len(kept)
    for row, view in zip(kept, told, strict=True):
        asset = row.outputs[0].asset
        units = sum(o.units for o in row.outputs if o.role != "change" and o.asset == asset)
        assert view == {
            "payment": row.id,
            "kind": row.kind,
            "state": row.state,
            "delivery": row.delivery,
            "merchant": row.invoice.origin or "",
            "app": "test",
            "invoice_id": row.invoice.id or "",
            "asset": asset,
            "units": str(units),
            "ada": format_units(units, 6) if asset == LOVELACE else "",
            "fee_lovelace": str(row.attempt.fee_lovelace or ""),
            "tx_id": row.attempt.tx_id or "",
            "block_height": str(row.block.height or ""),
            "created_at": iso_time(row.created_at_ms),
            "updated_at": iso_time(row.updated_at_ms),
            "code": row.problem.code or "",
            "reason": row.problem.reason or "",
        }
    assert {row["asset"] for row in told} == {LOVELACE, TOKEN}


def test_v_spend_lists_what_left_the_wallet_and_adds_up_to_the_total(lived: Past) -> None:
    told = rows(lived.path, "v_spend")
    assert {row["kind"] for row in told} == {"post", "post_reversed", "release"}
    assert any(row["units"].startswith("-") for row in told)
    sums: dict[str, int] = {}
    for row in told:
        sums[row["asset"]] = sums.get(row["asset"], 0) + int(row["units"])
        is_lovelace = row["asset"] == LOVELACE
        assert row["ada"] == (format_units(int(row["units"]), 6) if is_lovelace else "")
        assert row["at"].startswith(row["day"])
        assert (row["merchant"] != "") == (lived.origin in row["account"]) or row["account"] == "fees"
    with closing(sqlite3.connect(lived.path)) as conn:
        assert sums == {row.asset: row.total for row in journal.spend(conn, (), EVERYTHING)}


def test_the_ada_column_is_exact_for_negative_amounts_too(empty: sqlite3.Connection) -> None:
    many = [1, -1, 999_999, -999_999, 1_000_000, -1_000_001, 45 * 10**15, -45 * 10**15, MOST, -MOST, -(2**63)]
    empty.execute(
        "INSERT INTO payments(id, kind, app_id, intent_id, outputs, state, delivery, created_at_ms, "
        "updated_at_ms) VALUES ('pay', 'send', 'app', 'int', '[]', 'received', 'not_presented', 0, 0)"
    )
    empty.execute("DROP TRIGGER entries_insert")
    empty.executemany(
        "INSERT INTO postings(entry_id, account, asset, units) VALUES (1, 'fees', 'lovelace', ?)",
        [(units,) for units in many],
    )
    empty.execute("INSERT INTO entries(id, kind, payment_id, at_ms) VALUES (1, 'post', 'pay', 1795527498003)")
    told = empty.execute("SELECT units, ada, at, day FROM v_spend").fetchall()
    assert {(units, ada) for units, ada, *_ in told} == {(units, format_units(units, 6)) for units in many}
    assert {(at, day) for *_, at, day in told} == {("2026-11-24T13:38:18.003Z", "2026-11-24")}


def test_an_amount_too_big_for_a_column_is_null_and_hides_no_other_row(empty: sqlite3.Connection) -> None:
    """A merchant may ask for any amount, and a refused payment is a row too."""
    output = '{{"role": "{}", "address": "a", "asset": "token", "units": "{}"}}'
    for name, units in (("most", (MOST - 1, 1)), ("above", (MOST, 1)), ("far above", (MOST,) * 16)):
        outputs = ",".join(output.format("split", n) for n in units)
        empty.execute(
            "INSERT INTO payments(id, kind, app_id, intent_id, outputs, state, delivery, created_at_ms, "
            "updated_at_ms) VALUES (?, 'send', 'app', ?, ?, 'rejected', 'not_presented', 0, 0)",
            (name, name, f"[{outputs}]"),
        )
    told = empty.execute("SELECT payment, units FROM v_payments").fetchall()
    assert told == [("most", MOST), ("above", None), ("far above", None)]


def test_v_prepaid_shows_a_merchants_report_only_beside_the_balance_in_that_unit(
    empty: sqlite3.Connection,
) -> None:
    """A report without a unit counts as calls, as it does everywhere."""
    empty.execute("INSERT INTO prepaid_pools VALUES (1, 'https://m.example', '', 'addr', 1, 0)")
    for unit in ("calls", LOVELACE):
        empty.execute("INSERT INTO prepaid_totals VALUES (1, ?, 9, 0, 0)", (unit,))
    for unit, told in ((None, (7, None)), ("calls", (7, None)), (LOVELACE, (None, 7))):
        empty.execute(
            "INSERT INTO merchant_reports(pool_id, source, http_status, body, remaining, unit, at_ms) "
            "VALUES (1, 'balance', 200, '', 7, ?, 1)",
            (unit,),
        )
        by_unit = dict(empty.execute("SELECT unit, merchant_says FROM v_prepaid").fetchall())
        assert (by_unit["calls"], by_unit[LOVELACE]) == told, unit


def test_sqlite_utils_lists_and_queries_the_views(lived: Past, tmp_path: Path) -> None:
    path = fresh(lived.path, tmp_path)
    listed = sqlite_utils("views", path, "--counts")
    assert '"view": "v_payments"' in listed
    assert '"view": "v_spend"' in listed
    question = "select app, sum(units) as lovelace from v_spend where asset = 'lovelace' group by app"
    assert '"app": "test"' in sqlite_utils(path, question)


def test_the_docs_explain_every_column_of_every_view(empty: sqlite3.Connection) -> None:
    text = PAGE.read_text()
    views = [name for (name,) in empty.execute("SELECT name FROM sqlite_master WHERE type = 'view'")]
    assert set(views) >= {"v_payments", "v_spend"}
    for view in views:
        table = re.search(rf"^## `{view}`$(.*?)(?:^##|\Z)", text, re.M | re.S)
        assert table, view
        explained = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| ([^|]*) \|", table[1], re.M)))
        assert explained == [row[1] for row in empty.execute(f"PRAGMA table_info({view})")], view
