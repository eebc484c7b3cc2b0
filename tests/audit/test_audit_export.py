"""Ledger exports: they hold what was booked, and bean-check and hledger accept them."""

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from kit.audit import TOKEN, Past

from payagent.audit.export import Format, export
from payagent.audit.plain_text_accounting import account_name, commodity_name
from payagent.audit.statement import statement
from payagent.core.problems import Refused
from payagent.store.db.readers import Readers
from payagent.store.rows import journal
from payagent.store.rows.journal import EVERYTHING, Selection

BEAN_CHECK = Path(sys.executable).with_name("bean-check")
YEAR_1_MS, YEAR_9999_END_MS = -62_135_596_800_000, 253_402_300_799_999


def exported(past: Past, form: Format, only: Selection = EVERYTHING) -> str:
    with Readers(past.path).snapshot() as conn:
        return "".join(export(statement(conn, only, "devnet"), form))


def middle_ms(past: Past) -> int:
    """A time in the middle of the ledger's entries."""
    with Readers(past.path).snapshot() as conn:
        times = [entry.at_ms for entry, *_ in journal.booked(conn, EVERYTHING)]
    return sorted(times)[len(times) // 2]


def selections(past: Past) -> Iterator[Selection]:
    at_ms = middle_ms(past)
    yield from (EVERYTHING, Selection(since_ms=at_ms), Selection(until_ms=at_ms), Selection(asset=TOKEN))
    yield from (Selection(since_ms=at_ms, origin=past.origin), Selection(app="test"), Selection(app="nobody"))
    yield from (Selection(since_ms=YEAR_1_MS), Selection(since_ms=YEAR_9999_END_MS))


def test_the_csv_export_has_a_row_for_each_posting_and_the_closing_balances(lived: Past) -> None:
    rows = list(csv.DictReader(io.StringIO(exported(lived, "csv"))))
    with Readers(lived.path).snapshot() as conn:
        wanted = [(str(e.id), *line) for e, *_ in journal.booked(conn, EVERYTHING) for line in e.postings]
        closing = journal.turnover(conn, EVERYTHING)
    booked = [row for row in rows if row["entry"]]
    assert [(row["entry"], row["account"], row["asset"], int(row["units"])) for row in booked] == wanted
    last = [(row["account"], row["asset"], int(row["units"])) for row in rows if row["kind"] == "closing"]
    assert last == closing
    for row in rows:
        if row["asset"] == "lovelace":
            assert row["ada"].replace(".", "").lstrip("-0") == row["units"].lstrip("-0")
        else:
            assert row["ada"] == ""


def test_every_export_format_names_the_app_and_never_its_id(lived: Past) -> None:
    """A read-only token is never shown an app's id."""
    with Readers(lived.path).snapshot() as conn:
        wanted = conn.execute(
            "SELECT j.id, a.id, a.name FROM entries j JOIN payments p ON p.id = j.payment_id "
            "JOIN apps a ON a.id = p.app_id ORDER BY j.id"
        ).fetchall()
        assert all(name != app_id for _, app_id, name in wanted)
    rows = list(csv.DictReader(io.StringIO(exported(lived, "csv"))))
    told = {(int(row["entry"]), row["app"], row["app_name"]) for row in rows if row["payment"]}
    assert sorted(told) == wanted
    lines = [json.loads(line) for line in exported(lived, "jsonl").splitlines()]
    assert [(line["id"], line["app"], line["app_name"]) for line in lines if line.get("payment")] == wanted
    for form, mark in (("beancount", '  app: "test"'), ("hledger", "    ; app:test")):
        told_there = exported(lived, form).splitlines().count(mark)
        assert told_there == sum(line.get("app_name") == "test" for line in lines) > 0


def test_the_opening_balances_and_the_entries_add_up_to_the_closing_balances(lived: Past) -> None:
    at_ms = middle_ms(lived)
    lines = [json.loads(line) for line in exported(lived, "jsonl", Selection(since_ms=at_ms)).splitlines()]
    assert (lines[0]["type"], lines[-1]["type"]) == ("opening", "closing")
    assert lines[0]["balances"]
    assert len(lines) > 3
    sums: dict[tuple[str, str], int] = {}
    for part in (lines[0]["balances"], *(line["postings"] for line in lines[1:-1])):
        for row in part:
            key = row["account"], row["asset"]
            sums[key] = sums.get(key, 0) + int(row["units"])
    closing = {(row["account"], row["asset"]): int(row["units"]) for row in lines[-1]["balances"]}
    # an account whose balance was zero before is only in the closing balances
    assert {key: units for key, units in sums.items() if units} == {
        key: units for key, units in closing.items() if units
    }
    assert set(sums) <= set(closing)


def test_bean_check_accepts_every_selection_and_rejects_a_changed_amount(lived: Past, tmp_path: Path) -> None:
    file = tmp_path / "books.beancount"

    def check(text: str) -> int:
        file.write_text(text)
        return subprocess.run([BEAN_CHECK, "--no-cache", file], capture_output=True, check=False).returncode

    for only in selections(lived):
        assert check(exported(lived, "beancount", only)) == 0, only
    whole = exported(lived, "beancount")
    assert check(whole.replace("100.000000 ADA", "100.000001 ADA", 1)) != 0


def test_hledger_accepts_every_selection_and_rejects_a_changed_amount(lived: Past, tmp_path: Path) -> None:
    if shutil.which("hledger") is None:
        pytest.skip("NOT RUN: hledger is not installed (package hledger)")
    file = tmp_path / "books.journal"

    def run(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        file.write_text(text)
        command = ["hledger", "-f", str(file), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    for only in selections(lived):
        checked = run(exported(lived, "hledger", only), "check", "--strict")
        assert checked.returncode == 0, (only, checked.stderr)
    whole = exported(lived, "hledger")
    assert run(whole.replace("100.000000 ADA", "100.000001 ADA", 1), "check").returncode != 0
    with Readers(lived.path).snapshot() as conn:
        (lovelace,) = (
            n for account, asset, n in journal.balances(conn) if (account, asset) == ("wallet", "lovelace")
        )
    told = run(whole, "balance", "Assets:Payagent:Wallet", "cur:ADA", "--no-total", "-O", "csv").stdout
    assert f"{lovelace // 10**6}.{lovelace % 10**6:06d} ADA" in told


@pytest.mark.parametrize("form", get_args(Format))
def test_a_selection_without_entries_is_still_a_valid_export(lived: Past, form: Format) -> None:
    assert exported(lived, form, Selection(app="nobody")).endswith("\n")


def test_account_and_commodity_names_are_valid_and_unique(tmp_path: Path) -> None:
    origins = [
        "http://[::]",
        "http://a-b.example",
        "http://a.b.example",
        "https://a.b.example",
        "http://[::1]:80",
        "http://1.2.3.4",
    ]
    names = [account_name(f"{kind}:{origin}") for kind in ("merchant", "prepaid") for origin in origins]
    assert len(set(names)) == len(names)
    file = tmp_path / "names.beancount"
    file.write_text("".join(f"2026-11-01 open {name}\n" for name in names))
    assert subprocess.run([BEAN_CHECK, "--no-cache", file], check=False).returncode == 0
    assert len({commodity_name(asset) for asset in ("lovelace", TOKEN, TOKEN + "00", "ADA")}) == 4
    with pytest.raises(Refused, match="store_failed"):
        account_name("somewhere")
