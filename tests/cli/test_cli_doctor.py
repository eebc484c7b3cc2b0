"""What `payagent doctor` says of the books themselves, and of words that were left beside them."""

import json
import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from cli_kit import Shop, checks, invoke, spawn, write_private

from payagent.core import ledger
from payagent.core.payment import State
from payagent.store import apps, records
from payagent.store.writer import Unit, Writer


def write_history(unit: Unit) -> None:
    """A payment with three events, and two deposits whose sum no column of SQLite can hold."""
    apps.add_with_token(unit, "app", "a", "hash", ["pay"], 1)
    records.add_intent(
        unit,
        intent_id="int",
        app_id="app",
        key="k",
        derived=False,
        fingerprint="f",
        origin="o",
        request=None,
        request_id="r",
        now_ms=1,
    )
    records.add_payment(
        unit, payment_id="pay", kind="send", app_id="app", intent_id="int", invoice_seq=None, outputs=[], now_ms=1
    )
    for n in range(3):
        records.note(unit, "pay", "looked", State.RECEIVED, n)
    for _ in range(2):
        records.write_entry(unit, ledger.deposit({"token": 2**63 - 1}), 1)


@pytest.fixture
def data(closed_shop: Shop, tmp_path: Path) -> Path:
    """A data folder of its own, with the shop's keystore and a ledger with a history."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    write_private(folder / "keystore.json", (closed_shop.data_dir / "keystore.json").read_text())
    writer = Writer(folder / "ledger.db")
    writer.submit("history", write_history).result(10)
    writer.close()
    return folder


def test_it_says_that_the_chain_of_events_holds(closed_shop: Shop, data: Path) -> None:
    check = checks(closed_shop.config_of(data))["ledger"]
    assert check["ok"], check
    assert "its events are one unbroken chain" in str(check["detail"])


def test_it_says_that_the_words_lie_in_clear_beside_the_keystore(closed_shop: Shop, data: Path) -> None:
    config = closed_shop.config_of(data)
    assert "recovery words" not in checks(config)
    words = write_private(data / "recovery-words.txt", closed_shop.words)
    result = invoke("doctor", "--human", "--config", config)
    (line,) = [line for line in result.out.splitlines() if line.startswith("BAD  recovery words")]
    assert str(words) in line
    assert "delete" in line
    assert closed_shop.words not in result.out + result.err


def test_it_says_what_a_ledger_that_is_not_there_means(closed_shop: Shop, data: Path) -> None:
    (data / "ledger.db").unlink()
    found = checks(closed_shop.config_of(data))
    assert found["ledger file"]["code"] == found["ledger"]["code"] == "ledger_missing"
    assert not (data / "ledger.db").exists()


@pytest.mark.parametrize("name", ["keystore.json", "ledger.db"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(closed_shop: Shop, data: Path, name: str) -> None:
    path = data / name
    path.unlink()
    os.mkfifo(path, 0o600)
    process = spawn("doctor", "--json", "--config", closed_shop.config_of(data), stdout=subprocess.PIPE)
    try:
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    wrong = {check["name"] for check in json.loads(out)["checks"] if not check["ok"]}
    assert {"keystore.json": "keystore", "ledger.db": "ledger"}[name] in wrong


@pytest.mark.parametrize(
    ("tampering", "trigger", "first_bad"),
    [
        ("UPDATE events SET detail = '{\"n\":9}' WHERE seq = 2", "events_no_update", "event 2"),
        ("DELETE FROM events WHERE seq = 1", "events_no_delete", "event 2"),
    ],
)
def test_it_finds_history_that_was_changed_though_the_guards_are_back(
    closed_shop: Shop, data: Path, tampering: str, trigger: str, first_bad: str
) -> None:
    with closing(sqlite3.connect(data / "ledger.db")) as conn, conn:
        (guard,) = conn.execute("SELECT sql FROM sqlite_master WHERE name = ?", (trigger,)).fetchone()
        conn.execute(f"DROP TRIGGER {trigger}")
        conn.execute(tampering)
        conn.execute(guard)
    check = checks(closed_shop.config_of(data))["ledger"]
    assert not check["ok"]
    assert str(check["detail"]).endswith(f"are changed from {first_bad} on")
