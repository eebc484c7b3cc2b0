"""The command when the daemon does not run, or cannot start."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from cli_kit import Shop, invoke, running, spawn, write_private


@pytest.mark.parametrize("command", [("wallet",), ("payments", "show", "pay_1"), ("ledger",), ("limits",)])
def test_without_a_daemon_it_says_how_to_start_it(closed_shop: Shop, command: tuple[str, ...]) -> None:
    result = closed_shop.payagent(*command)
    assert (result.code, result.out, result.error["code"]) == (4, "", "daemon_not_running")
    assert (
        "payagent is not running: start it with `payagent serve`" in closed_shop.payagent(*command, "--human").err
    )


def test_doctor_works_without_a_daemon(closed_shop: Shop) -> None:
    result = closed_shop.payagent("doctor")
    assert result.code == 4
    wrong = [check for check in result.json["checks"] if not check["ok"]]
    assert [check["name"] for check in wrong] == ["daemon"]
    assert "payagent serve" in wrong[0]["fix"]


def test_doctor_tells_a_provider_that_is_not_there(closed_shop: Shop, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        closed_shop.config.read_text().replace(closed_shop.devnet.chain_url, "http://127.0.0.1:9/api")
    )
    checks = {check["name"]: check for check in invoke("doctor", "--config", config).json["checks"]}
    assert not checks["provider 1"]["ok"]
    assert "http://127.0.0.1:9/api" in checks["provider 1"]["detail"]


def test_doctor_tells_a_provider_of_another_network(closed_shop: Shop, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(closed_shop.config.read_text().replace('network = "devnet"', 'network = "preprod"'))
    result = invoke("doctor", "--config", config)
    checks = {check["name"]: check for check in result.json["checks"]}
    assert "magic" in checks["provider 1"]["detail"]
    assert checks["keystore"]["code"] == "keystore_invalid"
    assert result.code == 5


def test_no_config_is_said_with_where_it_was_looked_for(tmp_path: Path) -> None:
    result = invoke("wallet", "--config", tmp_path / "none.toml")
    assert (result.code, result.error["code"]) == (2, "config_invalid")


def test_a_wrong_passphrase_keeps_the_daemon_from_starting(closed_shop: Shop, tmp_path: Path) -> None:
    wrong = write_private(tmp_path / "wrong", "not-the-passphrase")
    config = tmp_path / "config.toml"
    config.write_text(closed_shop.config.read_text().replace(str(closed_shop.folder / "passphrase"), str(wrong)))
    process = spawn("serve", "--config", config, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (5, "")
    assert "keystore_invalid" in err
    assert "not-the-passphrase" not in err


def test_the_daemon_stops_cleanly_on_ctrl_c(closed_shop: Shop) -> None:
    with running(closed_shop) as process:
        assert (closed_shop.folder / "s").is_socket()
        second = spawn("serve", "--config", closed_shop.config, stderr=subprocess.PIPE)
        assert "another payagent runs" in second.communicate(timeout=30)[1]
        assert second.returncode == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert not os.path.lexists(closed_shop.folder / "s")
