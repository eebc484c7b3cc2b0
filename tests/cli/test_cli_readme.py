"""The README, the tutorial and the clients' pages: their commands are run, on other ports and folders."""

import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tarfile
import time
from contextlib import closing
from pathlib import Path

import pytest
from kit.cli import Shop, clean_environ, until
from kit.pages import blocks

TIMEOUT_S = 90
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="NOT RUN: curl is missing (package curl)")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@needs_curl
def test_the_readme_walkthrough_ends_with_a_served_request(tmp_path: Path) -> None:
    parts = [blocks(heading) for heading in ("Quickstart", "Clients", "By hand")]
    assert [len(part) for part in parts] == [6, 1, 6]
    walk = [block for part in parts for block in part]
    out = walked(walk, tmp_path, ":8402")
    assert "data: [DONE]\n" in out
    assert "402\n" in out
    assert "\n200\n" in out
    assert '"delivery":"accepted"' in out.replace(" ", "")
    assert '"state": "confirmed"' in out


@needs_curl
def test_the_tutorial_ends_with_a_paid_request(tmp_path: Path) -> None:
    (*walk, _stop) = blocks("Your first paid call", "docs/tutorial/first-paid-call.md")
    out = walked(walk, tmp_path, ":8402", ":8490")
    assert "\n402\n" in out
    assert "HTTP/1.1 200 OK" in out
    assert "x-payagent-cost: " in out
    assert "\nclean: " in out


def walked(walk: list[str], tmp_path: Path, *ports: str) -> str:
    """What the blocks of a page print, in another folder and on other ports."""
    script = "set -e\ntrap 'kill $(jobs -p); wait' EXIT\n" + "".join(walk)
    for said, here in {
        "/tmp/payagent-walk": str(tmp_path / "walk"),
        ". .venv/bin/activate": f"export PATH={Path(sys.executable).parent}:$PATH",
        **{port: f":{free_port()}" for port in ports},
    }.items():
        assert said in script
        script = script.replace(said, here)
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    ("title", "language", "said"),
    [
        pytest.param("Pay through the proxy", "sh", "data: [DONE]", marks=needs_curl),
        ("Pay from Python", "python", " lovelace\n"),
        ("Pay with the official x402 SDK", "python", "This answer was paid for."),
        ("Pay from the shell", "sh", '"within_limits": true'),
        ("Pay through the API", "python", "200 served accepted\n"),
    ],
)
def test_every_documented_way_to_pay_from_a_program_is_served(
    shop: Shop, tmp_path: Path, title: str, language: str, said: str
) -> None:
    name = title.lower().replace("official ", "").replace(" ", "-")
    (block,) = blocks(title, f"docs/how-to/{name}.md", language)
    assert block.count("\n") <= 22
    log = (shop.folder / "daemon.log").read_text()
    (port,) = re.findall(r"serves devnet on http://127\.0\.0\.1(:[0-9]+)", log)
    environ = clean_environ() | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PAYAGENT_CONFIG": str(shop.config),
        "PAYAGENT_TOKEN": shop.made["token"],
        "MERCHANT": shop.devnet.merchant_url,
    }
    before = len(shop.payments())
    run = subprocess.run(
        [sys.executable if language == "python" else "bash", "-c", block.replace(":8402", port)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env=environ,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert said in run.stdout
    deadline_s = time.monotonic() + TIMEOUT_S
    while (news := shop.payments()[: len(shop.payments()) - before]) and time.monotonic() < deadline_s:
        # the client has its last byte a moment before the delivery is recorded
        if [payment["delivery"] for payment in news] == ["accepted"]:
            return
    raise AssertionError(news)


def test_the_documented_copy_of_a_running_ledger_is_complete(shop: Shop, tmp_path: Path) -> None:
    """The newest entries are still in ledger.db-wal; a copy of ledger.db alone would lose them."""
    assert shop.payagent("pay", shop.saved("to be copied"), "--merchant", "t").code == 0
    until(lambda: shop.payments()[0]["state"] == "confirmed", "it is not confirmed")
    assert (shop.data_dir / "ledger.db-wal").stat().st_size > 0
    newest = shop.payagent("ledger", "entries", "--limit", "1").json["entries"][0]
    (command,) = blocks("Copies of the ledger")
    environ = clean_environ() | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PAYAGENT_CONFIG": str(shop.config),
    }
    run = ["bash", "-c", command]
    made = subprocess.run(run, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert made.returncode == 0, made.stderr
    (copy,) = tmp_path.iterdir()
    assert copy.stat().st_mode & 0o777 == 0o600
    with tarfile.open(copy) as archive:
        archive.extract("ledger.db", tmp_path, filter="data")
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as conn:
        assert conn.execute("SELECT max(id) FROM entries").fetchone() == (newest["id"],)
