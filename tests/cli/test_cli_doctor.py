"""`payagent doctor`: what it reports about the ledger, files, providers and risky settings."""

import os
import shlex
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from kit.agent import Relay
from kit.cli import Shop, checks, invoke, write_private
from kit.next_release import upgraded

from payagent.core import ledger
from payagent.core.money import LOVELACE
from payagent.core.payment.machine import State
from payagent.core.policy import Limit, Scope, Window
from payagent.core.problems import Refused
from payagent.daemon.compose import make_config
from payagent.devnet.merchant import role_address
from payagent.log import Redactor
from payagent.settings.loading import load_settings
from payagent.store import executor
from payagent.store.db.unit import Unit
from payagent.store.db.writer import Writer
from payagent.store.rows import apps, limit_counters, merchants
from payagent.store.rows import writes as records
from payagent.store.rows.merchants import MerchantRow


def write_history(unit: Unit) -> None:
    """A payment with three events, and two deposits whose sum no column of SQLite can hold."""
    apps.add_with_token(unit, "app", "a", "hash", ["pay"], 1)
    executor.open_intent(
        unit,
        intent_id="int",
        app_id="app",
        idempotency_key="k",
        is_key_derived=False,
        fingerprint="f",
        origin="o",
        request=None,
        request_id="r",
        now_ms=1,
    )
    executor.open_payment(
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
    writer.submit("history", write_history).result(60)
    writer.close()
    return folder


def test_doctor_says_that_the_event_chain_is_unbroken(closed_shop: Shop, data: Path) -> None:
    check = checks(closed_shop.config_of(data))["ledger"]
    assert check["ok"], check
    assert "the event chain is unbroken" in str(check["detail"])


def test_doctor_reports_recovery_words_in_clear_beside_the_keystore(closed_shop: Shop, data: Path) -> None:
    config = closed_shop.config_of(data)
    assert "recovery words" not in checks(config)
    words = write_private(data / "recovery-words.txt", closed_shop.words)
    assert checks(config)["recovery words"]["warning"], "on the devnet it is only a warning"
    config.write_text(config.read_text().replace('network = "devnet"', 'network = "preprod"'))
    result = invoke("doctor", "--human", "--config", config)
    (line,) = [line for line in result.out.splitlines() if line.startswith("FAIL recovery words")]
    assert str(words) in line
    (remedy,) = [line for line in result.out.splitlines() if line.startswith("  recovery words: ")]
    assert "delete" in remedy
    assert closed_shop.words not in result.out + result.err


def test_doctor_reports_a_missing_ledger_and_does_not_create_it(closed_shop: Shop, data: Path) -> None:
    (data / "ledger.db").unlink()
    found = checks(closed_shop.config_of(data))
    assert found["ledger file"]["code"] == found["ledger"]["code"] == "ledger_missing"
    assert not (data / "ledger.db").exists()


def test_doctor_says_each_remedy_once(closed_shop: Shop, data: Path) -> None:
    (data / "ledger.db").unlink()
    config = closed_shop.config_of(data)
    fix = str(checks(config)["ledger"]["fix"])
    lines = invoke("doctor", "--human", "--config", config).out.splitlines()
    assert [line for line in lines if fix in line] == [f"  ledger file, ledger, set at run time: {fix}"]


def test_doctor_names_a_missing_project_id(safe: Path) -> None:
    url = "https://cardano-preprod.blockfrost.io/api/v0"
    safe.write_text(safe.read_text().replace("http://127.0.0.1:9/api", url, 1))
    check = checks(safe)["provider 1"]
    assert (check["ok"], check["code"]) == (False, "project_id_missing")
    assert "https://blockfrost.io" in check["fix"]


def test_doctor_names_a_provider_of_an_unknown_kind(safe: Path) -> None:
    safe.write_text(safe.read_text().replace('kind = "blockfrost"', 'kind = "blockfrots"', 1))
    check = checks(safe)["provider 1"]
    assert (check["ok"], check["code"]) == (False, "config_invalid")
    assert "write one of blockfrost" in check["detail"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="NOT RUN: curl is missing (package curl)")
def test_doctor_names_an_empty_wallet_with_its_address_and_a_working_call_of_the_faucet(
    closed_shop: Shop, data: Path
) -> None:
    config, address = closed_shop.config_of(data), closed_shop.made["address"]
    check = checks(config)["wallet"]
    assert (check["ok"], check["warning"]) == (True, True)
    told, command = check["detail"].split(" is free:\n")
    assert f"Send ADA to {address}. Test ADA" in told
    subprocess.run(shlex.split(command), check=True, capture_output=True)
    closed_shop.control("blocks", count=1)
    check = checks(config)["wallet"]
    assert (check["ok"], check["warning"], check["detail"]) == (True, False, "500 ADA")


def test_doctor_says_that_no_merchant_is_configured(safe: Path, data: Path) -> None:
    safe.write_text(safe.read_text().replace('[merchants.t]\norigin = "https://shop.example"\n', ""))
    assert "payagent merchants add" in warned(safe)["merchants"]
    writer = Writer(data / "ledger.db")
    row = MerchantRow("t", "https://shop.example", {})
    writer.submit("merchant", lambda unit: merchants.add(unit, row)).result(60)
    writer.close()
    assert "merchants" not in warned(safe)


def test_doctor_warns_of_a_ledger_of_an_older_payagent(closed_shop: Shop, data: Path) -> None:
    with upgraded():
        found = checks(closed_shop.config_of(data))["ledger"]
    assert (found["ok"], found["warning"], found["fix"]) == (True, True, None), "the next start upgrades it"
    assert "from an older payagent" in found["detail"]


def test_doctor_reports_a_full_disk(closed_shop: Shop, small_disk: Path) -> None:
    folder = small_disk / "data"
    folder.mkdir(mode=0o700)
    found = checks(closed_shop.config_of(folder))["data folder"]
    assert found["code"] == "store_failed"
    assert "KiB of room" in found["detail"]
    assert "Free or repair the disk" in found["fix"]


def test_doctor_names_a_provider_like_readyz(safe: Path, data: Path) -> None:
    secret = write_private(data / "project-id", "ünprintable")
    safe.write_text(
        safe.read_text().replace('9/api"\n[merchants', f'9/api"\nproject_id_file = "{secret}"\n[merchants')
    )
    check = checks(safe)["provider 2"]
    assert check["code"] == "config_invalid"
    assert str(check["detail"]).startswith("https://localhost:9/api: provider blockfrost-2: ")


def test_doctor_reports_a_provider_that_accepts_no_transactions(closed_shop: Shop, data: Path) -> None:
    """Blockfrost's own backend serves the chain and leaves submitting to another program."""
    config = closed_shop.config_of(data)
    with Relay(closed_shop.devnet).serving() as relay:
        config.write_text(config.read_text().replace(closed_shop.devnet.chain_url, relay.url))
        assert checks(config)["provider 1"]["ok"]
        for status in (400, 404, 405):
            no_path = {"status_code": status, "message": "Invalid path. Please check https://docs.blockfrost.io/"}
            relay.tell("/tx/submit", status, no_path)
            check = checks(config)["provider 1"]
            assert not check["ok"], status
            assert "/tx/submit" in str(check["detail"])


@pytest.mark.parametrize("name", ["keystore.json", "ledger.db"])
def test_doctor_does_not_hang_on_a_named_pipe_in_place_of_a_file(closed_shop: Shop, data: Path, name: str) -> None:
    path = data / name
    path.unlink()
    os.mkfifo(path, 0o600)
    wrong = {check["name"] for check in checks(closed_shop.config_of(data)).values() if not check["ok"]}
    assert {"keystore.json": "keystore", "ledger.db": "ledger"}[name] in wrong


@pytest.mark.parametrize(
    ("tampering", "trigger", "first_bad"),
    [
        ("UPDATE events SET detail = '{\"n\":9}' WHERE seq = 2", "events_update", "event 2"),
        ("DELETE FROM events WHERE seq = 1", "events_delete", "event 2"),
    ],
)
def test_doctor_finds_changed_events_even_when_the_triggers_are_restored(
    closed_shop: Shop, data: Path, tampering: str, trigger: str, first_bad: str
) -> None:
    with closing(sqlite3.connect(data / "ledger.db")) as conn, conn:
        (guard,) = conn.execute("SELECT sql FROM sqlite_master WHERE name = ?", (trigger,)).fetchone()
        conn.execute(f"DROP TRIGGER {trigger}")
        conn.execute(tampering)
        conn.execute(guard)
    check = checks(closed_shop.config_of(data))["ledger"]
    assert (check["ok"], check["code"]) == (False, "ledger_tampered")
    assert str(check["detail"]).endswith(f"were changed from {first_bad} on")


SAFE = """network = "preprod"
data_dir = "{data}"
[api]
listen = "127.0.0.1:0"
socket = "{data}/s"
[[chain.providers]]
kind = "blockfrost"
base_url = "http://127.0.0.1:9/api"
[[chain.providers]]
kind = "blockfrost"
base_url = "https://localhost:9/api"
[merchants.t]
origin = "https://shop.example"
[limits]
per_day = "20 ADA"
[[limits.assets]]
asset = "{token}"
per_payment = "10"
per_day = "10"
[[notifications]]
name = "ops"
kind = "webhook"
url = "http://127.0.0.1:9/"
secret_file = "{data}/webhook"
[keystore]
passphrase_file = "{secrets}/passphrase"
"""
SECOND = '[[chain.providers]]\nkind = "blockfrost"\nbase_url = "https://localhost:9/api"\n'
OWN_NODE = '[[chain.providers]]\nkind = "ogmios-kupo"\nbase_url = "http://localhost:9"\nindex_url = "http://kupo.example"\n'
TARGET = SAFE[SAFE.index("[[notifications]]") : SAFE.index("[keystore]")]
REMOTE = 'listen = "0.0.0.0:1"\ntls_certificate_file = "/none/c"\ntls_key_file = "/none/k"'


PAGE = (Path(__file__).parents[2] / "docs/how-to/check-the-installation.md").read_text()
"""The page for operators about doctor's checks."""


def warned(config: Path) -> dict[str, str]:
    """The warnings, except the fence's, which depends on the machine."""
    found = checks(config)
    return {name: str(one["detail"]) for name, one in found.items() if one["warning"] and name != "fence"}


@pytest.fixture
def safe(data: Path, tmp_path: Path) -> Path:
    """A config for real money that gives no warning."""
    writer = Writer(data / "ledger.db")
    writer.submit("revoke", lambda unit: apps.revoke(unit, "app", "app", 2)).result(60)
    writer.close()
    secrets = tmp_path / "secrets"
    secrets.mkdir(mode=0o700)
    config = tmp_path / "config.toml"
    write_private(config, SAFE.format(data=data, secrets=secrets, token="aa" * 28))
    return config


@pytest.mark.parametrize(
    ("before", "after", "key", "fix"),
    [
        ("[limits]", 'pin = "off"\n[limits]', "merchants.t.pin", "first_use"),
        ("[limits]", 'price_rise_percent_max = "off"\n[limits]', "merchants.t.price_rise_percent_max", "set 25"),
        ("[limits]", 'payments_in_flight_max = "off"\n[limits]', "merchants.t.payments_in_flight_max", "set 100"),
        ("[limits]", 'stop_after_unserved = "off"\n[limits]', "merchants.t.stop_after_unserved", "set 3"),
        ("[limits]", "allow_private_network = true\n[limits]", "merchants.t.allow_private_network", "only if"),
        ("[limits]", '[limits]\nper_transaction = "21 ADA"', "limits.per_transaction", "lower it"),
        ("[limits]", '[limits]\nsigned_per_day = "41 ADA"', "limits.signed_per_day", "lower it"),
        ('per_day = "10"', 'per_day = "10"\nper_transaction = "11"', "limits.per_transaction of", "lower it"),
        (
            'listen = "127.0.0.1:0"',
            'listen = "127.0.0.1:0"\nallowed_hosts = ["pay.example"]',
            "api.allowed_hosts",
            "pay.example",
        ),
        ('listen = "127.0.0.1:0"', REMOTE, "api.listen", "tunnel"),
        (SECOND, "", "chain.providers", "add one of another operator"),
        ("https://localhost:9", "http://127.0.0.1:10", "chain.providers", "another operator"),
        ("https://localhost:9", "http://node.example", "chain.providers 2", "https://"),
        (SECOND, OWN_NODE, "chain.providers 2", "https://"),
        ("[limits]", "[payments]\nconfirm_depth = 2\n[limits]", "payments.confirm_depth", "remove the key"),
        ("[limits]", "[payments]\nsettle_depth = 2159\n[limits]", "payments.settle_depth", "remove the key"),
        ("[limits]", "[payments]\nvoid_depth = 14\n[limits]", "payments.void_depth", "remove the key"),
        ("[limits]", '[limits]\nsigned_per_day = "19 ADA"', "limits.per_day", "limits.signed_per_day"),
        ("[limits]", '[limits]\nper_transaction = "4 ADA"', "limits.per_payment", "limits.per_transaction"),
        (TARGET, "", "notifications", "add a [[notifications]] table"),
    ],
)
def test_doctor_warns_of_each_risky_setting_and_says_what_to_do(
    safe: Path, data: Path, before: str, after: str, key: str, fix: str
) -> None:
    text, before = safe.read_text(), before.format(data=data)
    assert text.count(before) == 1
    safe.write_text(text.replace(before, after))
    ((name, told),) = warned(safe).items()
    assert name.startswith(key)
    assert fix in told
    assert key.split(" ")[0].split(".")[-1] in PAGE


def test_doctor_warns_of_a_project_id_sent_over_plain_http(safe: Path, data: Path) -> None:
    text = safe.read_text().replace("https://localhost:9/api", "http://node.example/api")
    safe.write_text(text)
    assert "project id" not in warned(safe)["chain.providers 2"]
    secret = write_private(data / "project-id", "an id")
    safe.write_text(text.replace('e/api"\n', f'e/api"\nproject_id_file = "{secret}"\n'))
    assert "read its token" in warned(safe)["chain.providers 2"]


def test_doctor_warns_of_allowed_hosts_on_a_port_open_to_other_machines(safe: Path) -> None:
    text = safe.read_text().replace('listen = "127.0.0.1:0"', REMOTE + '\nallowed_hosts = ["pay.example"]')
    safe.write_text(text)
    assert warned(safe).keys() == {"api.listen", "api.allowed_hosts"}


def test_doctor_warns_of_a_run_time_limit_above_the_signers_limit(safe: Path, data: Path) -> None:
    writer = Writer(data / "ledger.db")
    for window, ada in ((Window.PAYMENT, 20), (Window.DAY, 41), (Window.MONTH, 900)):
        limit = Limit(Scope(), LOVELACE, window, ada * 1_000_000)
        writer.submit("limit", lambda unit, limit=limit: limit_counters.set_limit(unit, limit)).result(60)
    writer.close()
    ((name, told),) = warned(safe).items()
    assert name == "limits.per_day"
    assert told.startswith("the wallet's daily limit of 41 ADA has no effect: limits.signed_per_day is 40 ADA")


def test_doctor_names_the_app_whose_limit_another_limit_makes_void(safe: Path, data: Path) -> None:
    safe.write_text(safe.read_text().replace("[limits]", '[limits]\nper_week = "15 ADA"'))
    writer = Writer(data / "ledger.db")
    for window, ada in ((Window.DAY, 31), (Window.MONTH, 900)):
        limit = Limit(Scope("app"), LOVELACE, window, ada * 1_000_000)
        writer.submit("limit", lambda unit, limit=limit: limit_counters.set_limit(unit, limit)).result(60)
    writer.close()
    void = "'s daily limit of {} has no effect: the wallet's weekly limit is 15 ADA; raise that, or lower this one"
    assert warned(safe) == {
        "limits.per_day": "the wallet" + void.format("20 ADA"),
        "app a": "a" + void.format("31 ADA"),
    }


def test_doctor_tries_the_passphrase(closed_shop: Shop, tmp_path: Path) -> None:
    assert "opens the keystore" in checks(closed_shop.config)["passphrase"]["detail"]
    other, config = write_private(tmp_path / "passphrase", "another one"), tmp_path / "config.toml"
    text = closed_shop.config.read_text()
    config.write_text(text.replace(str(closed_shop.folder / "passphrase"), str(other)))
    check = checks(config)["passphrase"]
    assert (check["ok"], check["code"]) == (False, "keystore_invalid")
    assert "the passphrase is wrong" in check["detail"]


def test_doctor_reports_a_limit_for_an_origin_that_is_no_merchants(closed_shop: Shop, data: Path) -> None:
    """Otherwise an operator who changes an origin believes that the limit moved with it."""
    writer = Writer(data / "ledger.db")
    here = load_settings(closed_shop.config, {"HOME": str(data)}).merchants["t"].origin
    for origin in (here, "https://moved.example"):
        limit = Limit(Scope(merchant=origin), LOVELACE, Window.DAY, 5)
        writer.submit("limit", lambda unit, limit=limit: limit_counters.set_limit(unit, limit)).result(60)
    writer.close()
    told = checks(closed_shop.config_of(data))["set at run time"]
    assert "limits for https://moved.example" in told["detail"]
    assert here not in told["detail"]
    writer = Writer(data / "ledger.db")
    row = MerchantRow("t", "https://instead.example", {})
    writer.submit("merchant", lambda unit: merchants.add(unit, row)).result(60)
    writer.close()
    told = checks(closed_shop.config_of(data))["set at run time"]
    assert f"limits for {here}, which is no merchant's origin" in told["detail"]


def test_doctor_warns_of_files_that_other_users_can_reach(safe: Path, tmp_path: Path) -> None:
    assert warned(safe) == {}
    safe.chmod(0o644)
    (tmp_path / "secrets").chmod(0o1777)
    told = warned(safe)
    assert told.keys() == {"config", "keystore.passphrase_file"}
    assert f"chmod o-rwx {safe}" in told["config"]
    assert "a folder of its own" in told["keystore.passphrase_file"]


def test_doctor_warns_of_an_app_without_its_own_limits(safe: Path, data: Path) -> None:
    def write(unit: Unit) -> None:
        for name in ("bot", "bound", "gone"):
            apps.add_with_token(unit, f"app_{name}", name, name, ["pay"], 1)
        apps.add_with_token(unit, "app_me", "me", "me", ["operate", "pay"], 1)
        apps.revoke(unit, "app_gone", "app_me", 2)
        limit_counters.set_limit(unit, Limit(Scope("app_bound"), LOVELACE, Window.DAY, 5))

    writer = Writer(data / "ledger.db")
    writer.submit("apps", write).result(60)
    writer.close()
    ((name, told),) = warned(safe).items()
    assert name == "app bot"
    assert "payagent limits set --app bot" in told


def test_doctor_finds_api_and_tls_keys_that_the_daemon_would_refuse(safe: Path, data: Path) -> None:
    key = write_private(data / "key", "k")
    named = f'api_key_file = "{key}"\n[limits]'
    safe.write_text(safe.read_text().replace("[limits]", named).replace('listen = "127.0.0.1:0"', REMOTE))
    found, settings = checks(safe), load_settings(safe, os.environ)
    assert (found["key of t"]["ok"], found["TLS"]["ok"]) == (True, False)
    assert "/none/k" in str(found["TLS"]["detail"])
    key.chmod(0o644)
    assert "open to others" in str(checks(safe)["key of t"]["detail"])
    key.chmod(0o600)
    for text in ("k\u00e9y", "one\nand another", "k "):
        write_private(key, text)
        assert "visible ASCII" in str(checks(safe)["key of t"]["detail"])
        with pytest.raises(Refused, match="visible ASCII"):
            make_config(settings, role_address("wallet"), Redactor())


def test_an_unreadable_systemd_credential_does_not_stop_the_other_checks(
    safe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/" + "x" * 5000)
    found = checks(safe)
    assert (found["passphrase"]["ok"], found["data folder"]["ok"]) == (False, True)
    assert "cannot read the systemd credential" in str(found["passphrase"]["detail"])
    assert "cannot read the systemd credential" in str(found["fence"]["detail"])
