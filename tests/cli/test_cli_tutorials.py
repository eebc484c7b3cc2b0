"""The tutorials: their commands are run as they stand, on other ports, in other folders, and on a devnet."""

import os
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kit.cli import Shop, checks, until, write_private
from kit.effort import long_only
from kit.pages import blocks
from kit.walk import ACTIVATE, walked

from payagent.settings.loading import load_settings

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="NOT RUN: curl is missing (package curl)")
BUDGET = ("Give your agent a budget", "docs/tutorial/give-your-agent-a-budget.md")
PREPROD = ("Pay the T Backend on preprod", "docs/tutorial/pay-the-t-backend-on-preprod.md")
OPERATE = ("Operate it as a service", "docs/tutorial/operate-it-as-a-service.md")
AUDIT = ("Audit a month", "docs/tutorial/audit-a-month.md")
NEEDS_SYSTEMD = re.compile(r"systemctl|systemd-|useradd|runuser|pip install")


@long_only
@needs_curl
def test_the_agent_is_refused_when_its_budget_is_used_up(tmp_path: Path) -> None:
    (*walk, stop) = blocks(*BUDGET)
    assert stop == "kill %2 %1\n"
    here = {ACTIVATE: ":", "/tmp/payagent-budget": str(tmp_path / "walk"), ":8402": "", ":8490": ""}
    out = walked(walk, here)
    first, second = out.split("\n403\n")
    assert first.count(" Cost: ") == 2
    assert "refused: limit_exceeded - agent's daily limit leaves " in first
    assert '"code":"forbidden"' in first
    assert second.count(" Cost: ") == 2
    assert "refused: limit_exceeded - agent's daily limit leaves " in second
    assert second.count("\npaid_and_served 2.1") == 2
    assert "\nrefused limit_exceeded\n" in second


def test_init_for_preprod_writes_what_the_page_says(tmp_path: Path) -> None:
    until_funding = blocks(*PREPROD)[:7]
    out = walked(until_funding, {ACTIVATE: ":"}, {"HOME": str(tmp_path)}, stdin="preprodCanary\na-key\n")
    settings = load_settings(tmp_path / "payagent-preprod/config.toml", {"HOME": str(tmp_path)})
    assert settings.network == "preprod"
    assert settings.merchants["t"].split_mode == "additional"
    assert not (settings.data_dir / "recovery-words.txt").exists()
    words, address = out.splitlines()
    assert len(words.split()) == 24
    assert address.startswith("addr_test1")


@long_only
@needs_curl
def test_the_commands_for_preprod_pay_on_a_devnet(closed_shop: Shop, tmp_path: Path) -> None:
    (*walk, stop) = blocks(*PREPROD)
    assert stop == "kill %1\n"
    faucet = f"curl -s {closed_shop.devnet.origin}/devnet/faucet -H 'Content-Type: application/json' -d "
    funds = """'{"lovelace": "100000000", "address": "'$(grep -o 'addr_test1[a-z0-9]*' init.json)'"}'\n"""
    walk.insert(7, faucet + funds)
    here = {
        ACTIVATE: ":",
        "--network preprod": "--network devnet",
        "https://cardano-preprod.blockfrost.io/api/v0": closed_shop.devnet.chain_url,
        "https://api-v3.fluxpointstudios.com": closed_shop.devnet.merchant_url,
        ":8402": "",
    }
    out = walked(walk, here, {"HOME": str(tmp_path)}, stdin="preprodCanary\na-key\n")
    assert "FAIL" not in out
    assert '"within_limits":true' in out.replace(" ", "")
    assert "HTTP/1.1 200 OK" in out
    assert "x-payagent-cost: " in out
    assert "\nclean: " in out


def test_an_operator_can_follow_the_page_on_a_running_daemon(shop: Shop, tmp_path: Path) -> None:
    parts = blocks(*OPERATE)
    walk = [part for part in parts if not NEEDS_SYSTEMD.search(part)]
    assert (len(parts), len(walk)) == (13, 7)
    here = {
        "/etc/payagent": str(tmp_path),
        "chown payagent": f"chown {os.getuid()}",
        '--per-payment "5 ADA" --per-day "20 ADA"': '--per-payment "500 ADA" --per-day "900 ADA"',
    }
    out = walked(walk, here, {"PAYAGENT_CONFIG": str(shop.config), "HOME": str(tmp_path)})
    assert "FAIL" not in out
    assert out.count("\nclean: ") == 3
    assert '"reason": "a drill"' in out

    (added,) = blocks(*OPERATE, language="toml")
    config = tmp_path / "config.toml"
    text = shop.config.read_text().partition("[api]")[0] + added
    write_private(config, text.replace("/etc/payagent", str(tmp_path)))
    assert checks(config)["secret of ops"]["ok"]


def test_a_read_token_is_enough_for_a_months_statement(shop: Shop, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    month, last = f"{now:%Y-%m}", f"{now.replace(day=1) - timedelta(days=1):%Y-%m}"
    (tmp_path / f"audit-{last}").mkdir()
    head = shop.payagent("ledger", "verify").json["head"]
    (tmp_path / f"audit-{last}" / "head").write_text(head + "\n")
    assert shop.payagent("pay", shop.saved("audited"), "--merchant", "t").code == 0
    until(lambda: shop.payments()[0]["state"] == "confirmed", "it is not confirmed")

    walk = [part for part in blocks(*AUDIT) if "hledger -f" not in part or shutil.which("hledger")]
    (port,) = re.findall(
        r"serves devnet on http://127\.0\.0\.1(:[0-9]+)", (shop.folder / "daemon.log").read_text()
    )
    here = {"2026-11": month, ":8402": port}
    out = walked(walk, here, {"PAYAGENT_CONFIG": str(shop.config)}, cwd=tmp_path)
    folder = tmp_path / f"audit-{month}"
    assert re.search(r'"clean": ?true', out), "over the port, the token is enough"
    assert out.count("\n(none)\n") >= 3, "nothing was reversed, and nobody else spent"
    assert (folder / "report.html").stat().st_size > 10_000
    receipts = {path.stem for path in folder.glob("pay_*.json")}
    assert receipts == {payment["id"] for payment in shop.payments()}
    assert out.count("clean: ") == 3 + len(receipts)
    assert (folder / "head").read_text() != head
    (row,) = shop.payagent("ledger", "spend", "--by", "asset", "--asset", "lovelace").json["totals"]

    def owned(*only: str) -> int:
        rows = shop.payagent("ledger", "balance", "--asset", "lovelace", *only).json["balances"]
        return sum(int(row["units"]) for row in rows if row["account"] in ("wallet", "held"))

    kinds = ("deposit", "deposit_reversed", "external_spend", "external_spend_reversed")
    assert "for kind in " + " ".join(kinds) in "".join(walk)
    month_sums = sum(owned("--kind", kind) for kind in kinds)
    assert month_sums - int(row["total"]) == owned() > 0, "the wallet was empty before"
