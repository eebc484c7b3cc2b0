"""SIGHUP on a real daemon: the config file is reloaded as a whole or not at all; run-time settings win."""

import json
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from kit.cli import PATIENCE_S, Shop, checks, running, spawn, until
from kit.effort import pick


class Daemon:
    """The daemon of the file's shop. It runs on while it has read the plain config last."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.plain = shop.config.read_text()
        self.process: subprocess.Popen[str] | None = None
        self._stack = ExitStack()

    def start(self) -> None:
        self.process = self._stack.enter_context(running(self.shop))
        until(lambda: self.shop.payagent("wallet", "utxos").json["utxos"], "no deposit")

    def stop(self) -> None:
        self.process = None
        self._stack.close()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.stop()
        (self.shop.folder / "s").unlink()  # the socket that a killed daemon leaves

    def reset(self) -> None:
        """Let the next test find the plain config."""
        self.shop.config.write_text(self.plain)
        if self.process is not None:
            read_again(self, self.plain, "config.read")


@pytest.fixture(scope="module")
def only_daemon(closed_shop: Shop) -> Iterator[Daemon]:
    closed_shop.control("faucet", address=closed_shop.made["address"], lovelace="100000000")
    daemon = Daemon(closed_shop)
    yield daemon
    daemon.stop()


@pytest.fixture
def daemon(only_daemon: Daemon) -> Iterator[Daemon]:
    if only_daemon.process is None:
        only_daemon.start()
    yield only_daemon
    only_daemon.reset()


NAMED_TOKEN = f"""
[[limits.assets]]
asset = "{"ab" * 28}"
name = "USDM"
decimals = 2
per_payment = "5"
per_day = "5"
"""


def told(shop: Shop, event: str) -> list[dict[str, object]]:
    lines = (shop.folder / "daemon.log").read_text().splitlines()
    return [said for line in lines if line.startswith("{") and (said := json.loads(line))["event"] == event]


def read_again(daemon: Daemon, text: str, event: str) -> dict[str, object]:
    """Write the file and send SIGHUP; returns the daemon's log line."""
    daemon.shop.config.write_text(text)
    return reloaded(daemon, event)


def reloaded(daemon: Daemon, event: str) -> dict[str, object]:
    """Send SIGHUP; returns the daemon's log line."""
    assert daemon.process is not None
    count = len(told(daemon.shop, event))
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: len(told(daemon.shop, event)) > count, f"no {event}")
    return told(daemon.shop, event)[-1]


def recorded(shop: Shop) -> object:
    """The last config change, as its event records it."""
    with closing(sqlite3.connect(shop.data_dir / "ledger.db")) as conn:
        (detail,) = conn.execute(
            "SELECT detail FROM events WHERE event = 'config_read' ORDER BY seq DESC LIMIT 1"
        ).fetchone()
    return json.loads(detail)["changed"]


def most(shop: Shop, limit: str) -> tuple[str, str]:
    """The wallet's limit, and who set it."""
    rows = shop.payagent("limits", "show").json["limits"]
    (row,) = [row for row in rows if row["limit"] == limit and row["asset"] == "lovelace" and not row["merchant"]]
    return row["most"], row["set_by"]


def test_a_reload_applies_limits_thresholds_and_merchants(daemon: Daemon) -> None:
    shop = daemon.shop
    shop.settings(price="2000000", splits=[])
    text = shop.config.read_text() + '\n[limits]\nper_day = "50 ADA"\n[approvals]\nrequired_above = "1 ADA"\n'
    text = text.replace("[merchants.t]", "[merchants.renamed]")
    said = read_again(daemon, text, "config.read")
    changed = said["changed"]
    assert isinstance(changed, dict)
    assert sorted(changed) == ["approvals.required_above", "limits.per_day", "merchants.renamed", "merchants.t"]
    assert changed["approvals.required_above"] == {"from": None, "to": "1 ADA"}
    assert changed["limits.per_day"]["to"] == "50 ADA"
    assert changed["merchants.t"] == {"from": changed["merchants.renamed"]["to"], "to": None}
    assert changed["merchants.t"]["from"]["origin"] == shop.devnet.merchant_url
    assert recorded(shop) == changed
    assert most(shop, "per_day") == ("50000000", "config")
    assert [row["name"] for row in shop.payagent("merchants").json["merchants"]] == ["renamed"]
    assert shop.payagent("pay", shop.saved("asked now"), "--merchant", "renamed").code == 8
    shop.payagent("limits", "set", "--per-day", "40 ADA")
    read_again(daemon, text.replace("50 ADA", "60 ADA"), "config.read")
    assert most(shop, "per_day") == ("40000000", "operator")
    shop.payagent("limits", "set", "--per-day", "config")
    assert most(shop, "per_day") == ("60000000", "config")


def test_a_config_that_is_invalid_or_needs_a_restart_changes_nothing(daemon: Daemon) -> None:
    shop, before = daemon.shop, most(daemon.shop, "per_day")
    plain = shop.config.read_text()
    for added, why in (
        ('\n[limits]\nper_day = "50 ADA"\nper_dya = "1 ADA"\n', "per_dya"),
        ('\n[limits]\nper_day = "50 ADA"\n[', "TOML"),
        ('\n[limits]\nper_day = "50 ADA"\nper_transaction = "7 ADA"\n', "limits.per_transaction"),
        (NAMED_TOKEN, "limits.assets.decimals"),
        ('\n[limits]\nper_day = "50 ADA"\n[payments]\nconfirm_depth = 9\n', "payments.confirm_depth"),
        ('\n[limits]\nper_day = "50 ADA"\n[proxy]\npayment_timeout_s = 9\n', "proxy.payment_timeout_s"),
    ):
        said = read_again(daemon, plain + added, "config.refused")
        assert why in str(said["why"]), said
        shop.config.write_text(plain)  # the command reads the file too
        assert most(shop, "per_day") == before
    read_again(daemon, plain + '\n[limits]\nper_day = "50 ADA"\n', "config.read")
    assert most(shop, "per_day")[0] == "50000000"
    assert daemon.process is not None
    assert daemon.process.poll() is None


def test_a_reload_changes_no_channel_because_the_signer_would_not_know(daemon: Daemon) -> None:
    channel = f'\n[channels]\nenabled = true\n[merchants.t.channel]\nprovider_keys = ["{"ab" * 28}"]\n'
    text = daemon.shop.config.read_text() + channel
    restart_with(daemon, text)
    said = read_again(daemon, text + 'locked_max = "6 ADA"\n', "config.refused")
    assert "merchants.NAME.channel" in str(said["why"])
    restart_with(daemon, daemon.plain)


def restart_with(daemon: Daemon, text: str) -> None:
    daemon.kill()
    daemon.shop.config.write_text(text)
    daemon.start()


def test_a_merchant_added_at_run_time_survives_a_kill_and_is_paid(daemon: Daemon) -> None:
    shop = daemon.shop
    shop.settings(price="2000000", splits=[])
    text = "\n".join(line for line in shop.config.read_text().splitlines() if "merchants.t" not in line)
    text = text.replace(f'origin = "{shop.devnet.merchant_url}"\n', "").replace('partner = "demo"\n', "")
    read_again(daemon, text, "config.read")
    assert shop.payagent("merchants").json["merchants"] == []
    inside = ["http://localhost:3000", "http://shop.internal"]
    resource_origins = [part for origin in inside for part in ("--resource-origin", origin)]
    origin = ("--origin", shop.devnet.merchant_url)
    added = shop.payagent("merchants", "add", "shop", *origin, "--partner", "demo", *resource_origins)
    assert (added.code, added.json["merchants"][0]["set_by"]) == (0, "operator"), added.err
    daemon.kill()
    daemon.start()
    assert shop.payagent("merchants").json["merchants"][0]["resource_origins"] == inside
    paid = shop.payagent("pay", shop.saved("from the added one"), "--merchant", "shop")
    assert paid.code == 0, paid.err
    assert "1 merchants" in checks(shop.config)["set at run time"]["detail"]
    again = shop.payagent("merchants", "add", "shop", "--origin", "https://x.example")
    assert (again.code, again.problem) == (2, "already_exists/merchant")
    assert shop.payagent("merchants", "remove", "shop").code == 0
    refused = shop.payagent("pay", shop.saved("gone"), "--origin", shop.devnet.merchant_url)
    assert (refused.code, refused.problem) == (6, "merchant_not_allowed")


def test_a_config_that_others_can_write_is_not_reloaded(daemon: Daemon) -> None:
    shop, before = daemon.shop, most(daemon.shop, "per_day")
    mode = shop.config.stat().st_mode
    shop.config.chmod(0o666)
    try:
        text = shop.config.read_text() + '\n[limits]\nper_day = "50 ADA"\n'
        assert "can be changed by others" in str(read_again(daemon, text, "config.refused")["why"])
        assert most(shop, "per_day") == before
    finally:
        shop.config.chmod(mode)


def test_a_config_replaced_beside_the_keystore_is_not_read_and_that_is_logged(daemon: Daemon) -> None:
    """The sandbox (`fence`) hides new files there: the daemon says so and keeps its config."""
    shop = daemon.shop
    new = shop.config.with_name("new.toml")
    new.write_text(shop.config.read_text() + '\n[limits]\nper_day = "50 ADA"\n')
    new.rename(shop.config)
    said = str(reloaded(daemon, "config.refused")["why"])
    assert str(shop.config) in said
    assert "start the daemon again" in said
    assert most(shop, "per_day")[1] == "config"
    daemon.stop()  # it can read its config no more


@pytest.mark.parametrize("moment", ["| payagent.cli.sd_notify", "signer.started"][: pick(1, 2)])
def test_a_sighup_during_the_start_is_not_lost(only_daemon: Daemon, moment: str) -> None:
    """Python logs each imported module: after the last one most of the start is over."""
    only_daemon.stop()
    shop, plain = only_daemon.shop, only_daemon.plain
    path = shop.folder / "daemon.log"
    with path.open("a") as log:
        read, before = len(told(shop, "config.read")), log.tell()
        environ = {"PYTHONPROFILEIMPORTTIME": "1"}
        process = spawn("serve", "--config", shop.config, environ=environ, stdout=log, stderr=log)
    try:
        until(lambda: moment.encode() in path.read_bytes()[before:], "it did not start")
        shop.config.write_text(plain + '\n[limits]\nper_day = "50 ADA"\n')
        process.send_signal(signal.SIGHUP)
        until(lambda: process.poll() is not None or len(told(shop, "config.read")) > read, "it was not read")
        assert process.poll() is None
        assert most(shop, "per_day") == ("50000000", "config")
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        shop.config.write_text(plain)
