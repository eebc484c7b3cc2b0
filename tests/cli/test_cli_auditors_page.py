"""The commands of the pages for auditors, run on the ledger of a wallet that paid, and receipts of it."""

import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from kit.cli import TOKEN, Shop, clean_environ, invoke, spawn, until
from kit.pages import ROOT, blocks

from payagent.cli.ledger import show_reconciled
from payagent.cli.terminal import Terminal
from payagent.core.money import NO_TOKENS, counted, show_amount
from payagent.wallet import tx_decode

OTHER = "b" * 64 + "#0"
BIN = Path(sys.executable).parent


@pytest.fixture
def paid(shop: Shop) -> Shop:
    assert shop.payagent("pay", shop.saved("audited"), "--merchant", "t").code == 0
    until(lambda: shop.payments()[0]["state"] == "confirmed", "it is not confirmed")
    return shop


def test_every_command_of_the_auditors_pages_works(paid: Shop, tmp_path: Path) -> None:
    verifying, reporting = "docs/how-to/verify-the-ledger.md", "docs/how-to/report-spending.md"
    parts = [
        blocks("Verify the ledger and receipts", verifying),
        blocks("Report what was spent", reporting)[:4],
        blocks("Export to an accounting program", reporting),
    ]
    assert [len(part) for part in parts] == [5, 4, 1]
    script = "set -e\n" + "".join(block for part in parts for block in part)
    environ = clean_environ() | {"PATH": f"{BIN}:{os.environ['PATH']}", "PAYAGENT_CONFIG": str(paid.config)}
    run = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=600, check=False, env=environ, cwd=tmp_path
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert '"clean": true' in run.stdout
    assert (tmp_path / "books.csv").read_text().startswith("entry,at,kind,")
    checks = [[BIN / "bean-check", "--no-cache", "books.beancount"]]
    if shutil.which("hledger"):
        checks.append(["hledger", "-f", "books.journal", "check", "--strict"])
    for check in checks:
        done = subprocess.run(check, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr + done.stdout


def in_words(line: str) -> str:
    """The summary with the number of tables, which is fixed, and without the others."""
    plural = line.strip().replace("payment with its entries", "payments with their entries")
    plural = plural.replace("entry without", "entries without")
    return re.sub(r"\d+ (?!tables)", "N ", plural)


def test_verify_summarizes_in_a_line_and_ledger_filters_apply(paid: Shop) -> None:
    verified = paid.payagent("ledger", "verify", "--human")
    assert verified.code == 0
    assert verified.out.startswith("clean: ")
    assert " entries without a payment, " in verified.out
    assert " 1 payment with its entries\n" in verified.out
    for page in ("how-to/verify-the-ledger.md", "tutorial/audit-a-month.md"):
        (shown,) = re.findall(r"^clean: .* seals, .*$", (ROOT / "docs" / page).read_text(), re.MULTILINE)
        assert in_words(shown) == in_words(verified.out.splitlines()[0]), page
    kinds = {row["kind"] for row in paid.payagent("ledger", "entries", "--kind", "post").json["entries"]}
    assert kinds == {"post"}
    assert paid.payagent("ledger", "balance", "--until", "2000-01-01T00:00:00Z").json["balances"] == []
    refused = paid.payagent("ledger", "export", "--merchant", "nobody")
    assert (refused.code, refused.out, refused.problem) == (2, "", "bad_request")


def test_the_second_reader_reads_every_transaction_again(paid: Shop) -> None:
    with closing(sqlite3.connect(paid.data_dir / "ledger.db")) as conn:
        (count,) = conn.execute("SELECT COUNT(*) FROM attempts").fetchone()
    verified = paid.payagent("ledger", "verify", "--second-reader", "--json")
    assert (verified.code, verified.json["clean"], verified.json["findings"]) == (0, True, [])
    assert verified.json["checked"]["second_reader"] == count > 0
    human = paid.payagent("ledger", "verify", "--second-reader", "--human")
    assert f", {counted(count, 'transaction')} read again by pycardano\n" in human.out


def test_what_the_second_reader_finds_is_reported_and_exits_1(
    paid: Shop, receipt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command's own decoder reads each fee wrongly. The daemon's does not, so nothing else finds it."""
    right = tx_decode._field

    def wrong(buf: bytes, at: int, key: int, name: str) -> tuple[int, int]:
        value, end = right(buf, at, key, name)
        return value + (key == 2), end

    monkeypatch.setattr(tx_decode, "_field", wrong)
    verified = paid.payagent("ledger", "verify", "--second-reader")
    assert (verified.code, verified.json["clean"]) == (1, False)
    found = verified.json["findings"]
    assert len(found) == verified.json["found"] == verified.json["checked"]["second_reader"]
    assert {one["table"] for one in found} == {"attempts"}
    assert all(one["what"].startswith("pycardano reads the fee ") for one in found)
    (tmp_path / "receipt.json").write_text(receipt)
    checked = invoke("ledger", "verify", "--receipt", tmp_path / "receipt.json")
    whats = [one["what"] for one in checked.json["findings"]]
    assert (checked.code, any(what.startswith("pycardano reads the fee ") for what in whats)) == (1, True)


def test_reconcile_exits_0_when_clean_and_4_when_the_chain_cannot_be_read(paid: Shop) -> None:
    compared = paid.payagent("ledger", "reconcile", "--human")
    assert compared.code == 0
    tip = paid.payagent("ledger", "reconcile").json["tip"]["height"]
    last = compared.out.splitlines()[-1]
    assert last.startswith("clean: ")
    assert re.search(r", as of block \d+, by \S+$", last), last
    assert int(re.findall(r"block (\d+)", last)[0]) <= tip
    assert paid.payagent("ledger", "reconcile", "--since-slot", "1").json["since_slot"] == 1
    paid.control("faults", on="/addresses", kind="server", count=1000)
    try:
        unread = paid.payagent("ledger", "reconcile", "--human")
        told = paid.payagent("ledger", "reconcile")
    finally:
        paid.control("faults", clear=True)
    assert (unread.code, told.code) == (4, 4)
    assert "could not tell: " in unread.out
    assert unread.out.splitlines()[-1] == "nothing found: nothing was compared"
    assert (told.json["clean"], told.json["complete"], told.json["found"]) == (False, False, 0)


def test_reconcile_shows_an_in_flight_transaction_with_each_of_its_assets() -> None:
    out = io.StringIO()
    terminal = Terminal(io.StringIO(), out, io.StringIO())
    terminal.forced_json = False
    units = {"lovelace": "-165633", TOKEN: "-7"}
    moved = {"payment": "pay_1", "tx_hash": "ab", "units": units}
    pool = {"merchant": "batches", "left": "1", "unit": "calls", "difference": None, "merchant_says": None}
    answer = {"findings": [], "could_not_tell": [], "in_flight": [moved], "balances": [], "prepaid": [pool]}
    checked = {"checked": {"transactions": 2, "utxos": 1}, "tip": {"height": 91}, "provider": "blockfrost-1"}
    show_reconciled(terminal, answer | checked | {"clean": True, "found": 0})
    amounts = f"-0.165633 ADA, -7 {TOKEN[:56]}.{TOKEN[56:]}"
    assert out.getvalue().splitlines() == [
        f"in flight: pay_1, transaction ab: {amounts}",
        "prepaid at batches: 1 call left; the merchant reported nothing",
        "clean: 2 transactions, 1 utxo, as of block 91, by blockfrost-1",
    ]


def test_reconcile_exits_1_when_a_deposit_in_the_ledger_is_not_the_one_on_chain(paid: Shop) -> None:
    with closing(sqlite3.connect(paid.data_dir / "ledger.db", isolation_level=None, timeout=60)) as conn:
        (guard,) = conn.execute("SELECT sql FROM sqlite_master WHERE name = 'entries_update'").fetchone()
        conn.execute("DROP TRIGGER entries_update")
        (ref,) = conn.execute("SELECT ref FROM entries WHERE kind = 'deposit' ORDER BY id").fetchone()
        conn.execute("UPDATE entries SET ref = ? WHERE ref = ?", (OTHER, ref))
        told = paid.payagent("ledger", "reconcile", "--human")
        conn.execute("UPDATE entries SET ref = ? WHERE ref = ?", (ref, OTHER))
        conn.execute(guard)
    assert told.code == 1
    lines = told.out.splitlines()
    assert any(line.startswith(f"foreign: utxos {ref}, transaction {ref[:64]}: a deposit of ") for line in lines)
    assert any(line.startswith(f"missing: entries 1, transaction {OTHER[:64]}: ") for line in lines)
    assert lines[-1].startswith("2 findings: ")


def test_verify_shows_a_finding_and_exits_1(paid: Shop) -> None:
    with closing(sqlite3.connect(paid.data_dir / "ledger.db", isolation_level=None, timeout=60)) as conn:
        (guard,) = conn.execute("SELECT sql FROM sqlite_master WHERE name = 'invoices_delete'").fetchone()
        conn.execute("DROP TRIGGER invoices_delete")
        told = paid.payagent("ledger", "verify", "--human")
        conn.execute(guard)
    assert told.code == 1
    assert "invoices_delete" in told.out
    assert "1 finding:" in told.out
    assert "Keep the file unchanged, and find out who changed it." in told.out


@pytest.fixture(scope="module")
def receipt(shop: Shop) -> str:
    assert shop.payagent("pay", shop.saved("receipt"), "--merchant", "t").code == 0
    until(lambda: shop.payments()[0]["state"] == "confirmed", "it is not confirmed")
    taken = shop.payagent("payments", "show", shop.payments()[0]["id"], "--receipt")
    assert (taken.code, taken.err) == (0, "")
    return taken.out


def test_a_receipt_is_checked_without_a_daemon_a_config_or_a_network(receipt: str, tmp_path: Path) -> None:
    (tmp_path / "receipt.json").write_text(receipt)
    started = spawn(
        *("ledger", "verify", "--receipt", tmp_path / "receipt.json", "--human"),
        environ={"HOME": str(tmp_path)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = started.communicate(timeout=60)
    assert (started.returncode, err) == (0, "")
    told = json.loads(receipt)
    paid = {
        output["address"]: show_amount("lovelace", int(output["units"]), NO_TOKENS)
        for output in told["invoice"]["outputs"]
    }
    block = f"in block {told['payment']['block']['height']}, transaction {told['payment']['tx_hash']}"
    lines = [f"paid {amount} to {address}, {block}" for address, amount in paid.items()]
    assert out.startswith("\n".join((f"clean: {told['payment']['id']}", *lines, "Checked:\n")))
    assert told["payment"]["block"]["hash"] in out
    assert f"payagent ledger verify --head {told['ledger']['head']}" in out


def test_a_changed_receipt_is_reported_and_exits_1(receipt: str, tmp_path: Path) -> None:
    changed = json.loads(receipt)
    changed["invoice"]["outputs"][0]["units"] = "1"
    file = tmp_path / "receipt.json"
    file.write_text(json.dumps(changed))
    found = invoke("ledger", "verify", "--receipt", file)
    assert found.code == 1
    assert not found.json["clean"]
    assert "its terms hash does not match its terms" in [one["what"] for one in found.json["findings"]]
    human = invoke("ledger", "verify", "--receipt", file, "--human")
    assert (human.code, f"invoices {changed['invoice']['invoice_id']}: " in human.out) == (1, True)
    assert "\n  whether the 402 as received asks for these outputs" in human.out, "it claims what does not hold"
    assert "\npaid " not in human.out


def test_the_head_in_a_receipt_is_still_in_the_ledger(shop: Shop, receipt: str) -> None:
    head = json.loads(receipt)["ledger"]["head"]
    assert shop.payagent("ledger", "verify", "--head", head).code == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "payagent-receipt/1"}', "[" * 100_000])
def test_a_file_that_is_not_a_receipt_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "receipt.json"
    file.write_text(text)
    refused = invoke("ledger", "verify", "--receipt", file)
    assert (refused.code, refused.out, refused.problem) == (2, "", "file_invalid/receipt")


def test_a_missing_file_or_two_sources_are_usage_errors(tmp_path: Path) -> None:
    assert invoke("ledger", "verify", "--receipt", tmp_path / "none").problem == "usage"
    (tmp_path / "r").write_text("{}")
    both = invoke("ledger", "verify", "--receipt", tmp_path / "r", "--head", f"1:{'0' * 64}")
    assert (both.code, both.problem) == (2, "usage")
