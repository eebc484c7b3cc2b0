"""`ledger spend`, `refusals`, `report`, `snapshot` and `--text`, as people and programs see them."""

import os
import re
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from kit.cli import Shop, clean_environ, invoke, until, write_private
from kit.pages import blocks

from payagent.core.money import format_ada, format_units

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def paid(shop: Shop) -> Shop:
    assert shop.payagent("pay", shop.saved("spent"), "--merchant", "t").code == 0
    until(lambda: shop.payments()[0]["state"] == "confirmed", "it is not confirmed")
    return shop


def lines(shop: Shop, *arguments: str) -> list[str]:
    """The table that people see."""
    shown = shop.payagent("ledger", "spend", "--human", *arguments).out
    return [line for line in shown.splitlines() if line.strip()]


def test_spend_shows_ada_and_a_total_to_people_and_units_to_programs(paid: Shop) -> None:
    told = paid.payagent("ledger", "spend", "--by", "merchant,day").json
    (row,), (total,) = told["spend"], told["totals"]
    assert (row["merchant"], row["payments"], row["total"]) == ("t", 1, total["total"])
    assert int(total["paid"]) + int(total["fees"]) == int(total["total"])
    shown = lines(paid, "--by", "merchant,day")
    assert shown[0].split() == ["merchant", "day", "asset", "paid", "fees", "sent", "total", "payments"]
    assert [line.split()[0] for line in shown[2:]] == ["t", "total"]
    for line in shown[2:]:
        assert line.split()[-3:] == [*format_ada(int(total["total"])).split(), "1"]
    alone = lines(paid, "--by", "asset")
    assert alone[0].split()[0] == "asset"
    assert len(alone) == 3
    assert paid.payagent("ledger", "spend", "--human", "--text", "nothing is so").out == "(none)\n"
    (by_path,) = paid.payagent("ledger", "spend", "--by", "path,hour,week").json["spend"]
    assert (by_path["path"], by_path["total"]) == (None, total["total"])
    refused = paid.payagent("ledger", "spend", "--by", "year")
    assert (refused.code, refused.problem) == (2, "usage")
    assert "'year' is not one of merchant, app, path, destination, hour, day" in refused.error["detail"]


def test_a_text_filter_finds_the_entries_of_a_payment_by_its_invoice_id(paid: Shop) -> None:
    (invoice_id,) = (row["invoice_id"] for row in paid.payments() if row["state"] == "confirmed")
    entries = paid.payagent("ledger", "entries", "--text", invoice_id).json["entries"]
    assert {entry["kind"] for entry in entries} == {"reserve", "post"}
    exported = paid.payagent("ledger", "export", "--text", invoice_id, "--format", "jsonl").out
    assert exported.count('"type":"entry"') == 2


def test_refusals_are_listed_for_people_and_programs_with_a_read_token(paid: Shop, tmp_path: Path) -> None:
    token = write_private(
        tmp_path / "token", paid.payagent("app", "add", "auditor", "--scope", "read").json["token"]
    )
    paid.settings(price="2000000000")
    assert paid.payagent("pay", paid.saved("too much", "dear.json"), "--merchant", "t").problem == "limit_exceeded"
    paid.settings(price="10000000")
    command = ("log", "--kind", "refusals", "--code", "limit_exceeded", "--token-file", token)
    (row,) = paid.payagent(*command).json["log"]
    assert (row["app"], row["merchant"]) == ("operator", "t")
    assert row["payment"] in paid.payagent(*command, "--human").out
    for narrowed, count in (
        (("--until", row["at"]), 0),
        (("--merchant", "t", "--app", "operator"), 1),
        (("--merchant", "https://another.example"), 0),
        (("--app", "auditor"), 0),
        (("--code", "not_enough_funds"), 0),
    ):
        assert len(paid.payagent(*command, *narrowed).json["log"]) == count


def test_a_months_report_is_one_private_file_that_a_read_token_may_make(paid: Shop, tmp_path: Path) -> None:
    token = write_private(
        tmp_path / "token", paid.payagent("app", "add", "reporter", "--scope", "read").json["token"]
    )
    (total,) = paid.payagent("ledger", "spend").json["totals"]
    (row,) = paid.payagent("ledger", "spend", "--by", "day").json["spend"]
    prices = tmp_path / "prices.csv"
    prices.write_text(f"date,price,currency\n{row['day']},0.5,EUR\n")
    file = tmp_path / "month.html"
    command = ("ledger", "report", "--month", row["day"][:7], "--token-file", token)
    written = paid.payagent(*command, "-o", file, "--prices", prices).json
    assert written == {"file": str(file), "bytes": file.stat().st_size}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    page = file.read_text()
    text = " ".join(re.sub(r"<[^>]*>", "", page).split())
    assert f"{format_units(int(total['total']), 6)} ADA" in text
    assert f"{format_units(round(int(total['total']) / 20_000), 2)} EUR" in text
    (head,) = set(re.findall(r"[0-9]+:[0-9a-f]{64}", page))
    assert paid.payagent("ledger", "verify", "--head", head).json["clean"]
    before = page
    again = paid.payagent(*command, "-o", file)
    assert (again.code, again.problem, file.read_text()) == (2, "already_exists/file", before)
    prices.write_text("date,price,currency\n2020-01-01,0.5,EUR\n")
    lacking = paid.payagent(*command, "-o", tmp_path / "other.html", "--prices", prices)
    assert (lacking.code, lacking.problem) == (2, "usage")
    assert f"no price for {row['day']}" in lacking.error["detail"]
    assert not (tmp_path / "other.html").exists()


def test_the_page_about_a_months_report_works(paid: Shop, tmp_path: Path) -> None:
    days = "".join(f"2026-11-{day:02d},0.45,EUR\n" for day in range(1, 31))
    (tmp_path / "prices.csv").write_text(f"date,price,currency\n{days}")
    script = "set -e\n" + "".join(blocks("Report a month", "docs/how-to/report-spending.md"))
    environ = clean_environ() | {"PATH": f"{BIN}:{os.environ['PATH']}", "PAYAGENT_CONFIG": str(paid.config)}
    run = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False, env=environ, cwd=tmp_path
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "payagent: November 2026 on devnet" in (tmp_path / "november.html").read_text()
    assert "EUR" in (tmp_path / "november-in-eur.html").read_text()


def test_a_snapshot_is_one_private_file_and_overwrites_nothing(paid: Shop, tmp_path: Path) -> None:
    file = tmp_path / "books.db"
    written = paid.payagent("ledger", "snapshot", file).json
    assert written == {"file": str(file), "bytes": file.stat().st_size}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(tmp_path.iterdir()) == [file]
    with closing(sqlite3.connect(file)) as conn:
        assert conn.execute("SELECT state FROM v_spend JOIN v_payments USING (payment)").fetchone() == (
            "confirmed",
        )
    before = file.read_bytes()
    again = paid.payagent("ledger", "snapshot", file)
    assert (again.code, again.out, again.problem) == (2, "", "already_exists/file")
    assert file.read_bytes() == before


def test_a_failed_snapshot_leaves_no_file(paid: Shop, tmp_path: Path) -> None:
    token = write_private(tmp_path / "token", "pa_of_nobody\n")
    for file, more, code in (
        (tmp_path / "books.db", ("--token-file", token), "unauthorized"),
        (tmp_path / "nowhere" / "books.db", (), "write_failed/backup"),
    ):
        refused = paid.payagent("ledger", "snapshot", file, *more)
        assert refused.problem == code
        assert sorted(tmp_path.iterdir()) == [token]


def test_an_incomplete_snapshot_is_not_kept(paid: Shop, tmp_path: Path) -> None:
    """The daemon dies while it sends."""
    part = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nSQLite\r\n"
    address = tmp_path / "socket"
    config = paid.config_of(paid.data_dir)
    config.write_text(config.read_text().replace(str(paid.folder / "s"), str(address)))

    def die(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(part)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(address))
        listening.listen()
        thread = threading.Thread(target=die, args=(listening,))
        thread.start()
        cut = invoke("ledger", "snapshot", tmp_path / "books.db", "--config", config)
        thread.join()
    assert (cut.code, cut.problem) == (4, "daemon_timeout")
    assert sorted(tmp_path.iterdir()) == [address]


def test_the_sql_page_for_auditors_works_on_a_snapshot(paid: Shop, tmp_path: Path) -> None:
    script = "set -e\n" + "".join(blocks("Query the ledger with SQL", "docs/how-to/report-spending.md"))
    environ = clean_environ() | {"PATH": f"{BIN}:{os.environ['PATH']}", "PAYAGENT_CONFIG": str(paid.config)}
    run = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False, env=environ, cwd=tmp_path
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert '"app": "operator"' in run.stdout
