"""The README, the tutorial and the clients' pages: their commands are run, on other ports and folders."""

import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from kit.cli import Shop, clean_environ, until
from kit.effort import long_only
from kit.pages import ROOT, blocks
from kit.walk import ACTIVATE, walked
from kit.x402_examples import entry, required

TIMEOUT_S = 180
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="NOT RUN: curl is missing (package curl)")


ONE_CALL_MORE = """
import openai
try: client.chat.completions.create(model="devnet", messages=[{"role": "user", "content": "Once more"}])
except openai.APIStatusError as refused: print(refused.code)
"""


@needs_curl
def test_the_quickstart_pays_within_the_apps_limits_and_leaves_nothing_behind(tmp_path: Path) -> None:
    *walk, stop = blocks("Quickstart")
    (five_lines,) = blocks("Five lines", language="python")
    assert five_lines.count("\n") == 5
    python = f"python3 - <<'END'\n{five_lines}{ONE_CALL_MORE}END\n"
    out = walked_in(tmp_path, [*walk, python, 'echo "$(payagent limits)"\n', stop], ":8402")
    assert '"object":"chat.completion"' in out
    assert "\nCardano is a proof-of-stake chain, and this answer was paid for.\n" in out
    assert "\nlimit_exceeded\n" in out
    spent = {(row["app"], row["limit"]): row["spent"] for row in json.loads(out.splitlines()[-1])["limits"]}
    assert 26_000_000 < int(spent["agent", "per_day"]) < 27_000_000
    assert list(tmp_path.iterdir()) == []


@needs_curl
def test_a_port_in_use_is_told_and_not_taken_for_the_quickstarts_daemon(tmp_path: Path) -> None:
    """Whatever answers there, such as an earlier daemon, answers 200 to everything."""
    other = ThreadingHTTPServer(("127.0.0.1", 0), _Ready)
    thread = threading.Thread(target=other.serve_forever, args=(0.02,))
    thread.start()
    try:
        walk = blocks("Quickstart")[:4]
        out = walked(walk, {ACTIVATE: ":", ":8402": f":{other.server_port}"}, {"TMPDIR": str(tmp_path)})
    finally:
        other.shutdown()
        thread.join()
        other.server_close()
    assert f"127.0.0.1:{other.server_port}" in out
    assert "api.listen" in out


class _Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


CLAIMS = {
    "payagent fetch https://example.com/": "merchant_not_allowed",
    "payagent limits": "per_day",
    "payagent payments list": '"delivery"',
    "payagent doctor": "operator.token",
    "payagent pay 402.json --dry-run": "invoice_unsupported",
    "payagent merchants list": '"ready"',
    "payagent wallet utxos": "available",
    'payagent wallet split --count 3 --each "20 ADA"': "tx_hash",
}
"""What each command of the page's claims shows."""


def test_the_commands_beside_the_claims_show_them(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    resource = {"url": f"{shop.devnet.merchant_url}/x402/premium"}
    channel = required(entry(scheme="batch-settlement", network="cardano:devnet"), resource=resource)
    Path("402.json").write_text(json.dumps(channel))
    claims = (ROOT / "docs/explanation/what-to-expect.md").read_text()
    assert set(re.findall(r"`(payagent [^`]*)`", claims)) == set(CLAIMS)
    assert shop.payagent("pay", shop.saved("one to look at"), "--merchant", "t").code == 0
    for command, shows in CLAIMS.items():
        result = shop.payagent(*shlex.split(command)[1:])
        assert shows in result.out + result.err, command


@long_only
@needs_curl
def test_the_tutorial_ends_with_a_paid_request(tmp_path: Path) -> None:
    (*walk, _stop) = blocks("Your first paid call", "docs/tutorial/first-paid-call.md")
    out = walked_in(tmp_path, walk, ":8402", ":8490")
    assert "\n402\n" in out
    assert "HTTP/1.1 200 OK" in out
    assert "x-payagent-cost: " in out
    assert "\nclean: " in out


def walked_in(tmp_path: Path, walk: list[str], *ports: str) -> str:
    """What the blocks of a page print, in another folder and on other ports."""
    texts = [text.replace("/tmp/payagent-walk", str(tmp_path / "walk")) for text in walk]
    return walked(texts, {ACTIVATE: ":", **dict.fromkeys(ports, "")}, {"TMPDIR": str(tmp_path)})


@pytest.mark.parametrize(
    ("name", "section", "language", "said"),
    [
        pytest.param("pay-through-the-proxy", "Pay through the proxy", "sh", "data: [DONE]", marks=needs_curl),
        ("pay-through-the-proxy", "Pay through the proxy", "python", "and this answer was paid for."),
        ("pay-from-python", "With httpx", "python", " lovelace\n"),
        ("pay-from-python", "With the official x402 SDK", "python", "This answer was paid for."),
        ("pay-from-python", "From the shell", "sh", '"within_limits": true'),
        ("pay-through-the-api", "Pay through the API", "python", "200 served accepted\n"),
    ],
)
def test_every_documented_way_to_pay_from_a_program_is_served(
    shop: Shop, tmp_path: Path, name: str, section: str, language: str, said: str
) -> None:
    (block,) = blocks(section, f"docs/how-to/{name}.md", language)
    assert block.count("\n") <= 22
    before = len(shop.payments())
    out = run_in(shop, tmp_path, sys.executable if language == "python" else "bash", block)
    assert said in out

    def deliveries() -> list[str]:
        rows = shop.payments()
        return [payment["delivery"] for payment in rows[: len(rows) - before]]

    # the client has its last byte a moment before the delivery is recorded
    until(lambda: deliveries() == ["accepted"], "the delivery is not recorded")


def run_in(shop: Shop, folder: Path, program: str, block: str) -> str:
    """What a block prints, with the shop's daemon, config and token."""
    log = (shop.folder / "daemon.log").read_text()
    (port,) = re.findall(r"serves devnet on http://127\.0\.0\.1(:[0-9]+)", log)
    environ = clean_environ() | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PAYAGENT_CONFIG": str(shop.config),
        "PAYAGENT_TOKEN": shop.made["token"],
        "MERCHANT": shop.devnet.merchant_url,
    }
    run = subprocess.run(
        [program, "-c", block.replace(":8402", port)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env=environ,
        cwd=folder,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@needs_curl
def test_a_purchase_with_a_key_is_served_again_and_paid_once(shop: Shop, tmp_path: Path) -> None:
    (block,) = blocks("After a timeout or a crash", "docs/reference/clients.md")
    before = len(shop.payments())
    out = run_in(shop, tmp_path, "bash", block)
    assert out.count("and this answer was paid for") == 2
    assert len(shop.payments()) == before + 1


@needs_curl
def test_a_402_can_be_paid_by_hand_through_the_api(shop: Shop, tmp_path: Path) -> None:
    steps = blocks("Step by step, with curl", "docs/how-to/pay-through-the-api.md")
    assert len(steps) == 7
    out = run_in(shop, tmp_path, "bash", "set -e\n" + "".join(steps))
    assert "402\n" in out
    assert "\n200\n" in out
    assert '"delivery":"accepted"' in out.replace(" ", "")


def test_the_documented_copy_of_a_running_ledger_is_complete(shop: Shop, tmp_path: Path) -> None:
    """The newest entries are still in ledger.db-wal; a copy of ledger.db alone would lose them."""
    assert shop.payagent("pay", shop.saved("to be copied"), "--merchant", "t").code == 0
    until(lambda: shop.payments()[0]["state"] == "confirmed", "it is not confirmed")
    assert (shop.data_dir / "ledger.db-wal").stat().st_size > 0
    newest = shop.payagent("ledger", "entries", "--limit", "1").json["entries"][0]
    command, *_ = blocks("Back up the wallet", "docs/how-to/back-up.md")
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
