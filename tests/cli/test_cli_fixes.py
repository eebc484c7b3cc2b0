"""An error's fix is what to do in the case at hand: a command that can be pasted, or the word to change."""

import os
import pwd
import shlex
import socket
from pathlib import Path

import pytest
from kit.cli import Result, Shop, checks, invoke, write_private
from kit.daemon import SOMEBODY

from payagent.core.problems import Refused
from payagent.secret_file import read_secret_file


def fix(result: Result) -> str:
    assert result.code not in (0, 1), result.out + result.err
    return str(result.error["fix"])


def test_without_a_configuration_the_fix_is_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PAYAGENT_CONFIG", raising=False)
    assert "`payagent init`" in fix(invoke("status"))
    elsewhere = tmp_path / "it.toml"
    assert f"payagent init --config {elsewhere}" in fix(invoke("status", "--config", elsewhere))


def test_a_port_in_use_is_answered_with_the_setting_of_another(closed_shop: Shop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = closed_shop.payagent("serve", "--listen", f"127.0.0.1:{port}")
    assert str(port) in told.error["detail"]
    assert "api.listen" in fix(told)


def test_a_secret_that_others_can_read_is_answered_with_its_chmod(closed_shop: Shop) -> None:
    token = closed_shop.data_dir / "operator.token"
    token.chmod(0o644)
    closed = checks(closed_shop.config)["operator token"]["fix"]
    assert str(closed) == f"Run: chmod 600 {token}"
    os.chmod(token, int(shlex.split(closed)[2], 8))  # noqa: PTH101
    assert checks(closed_shop.config)["operator token"]["ok"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_root_at_another_users_wallet_is_told_to_run_the_command_as_that_user(closed_shop: Shop) -> None:
    token, nobody = closed_shop.data_dir / "operator.token", pwd.getpwnam("nobody").pw_uid
    os.chown(token, nobody, -1)
    try:
        for told in (fix(closed_shop.payagent("limits")), checks(closed_shop.config)["operator token"]["fix"]):
            assert "`runuser -u nobody -- " in told
    finally:
        os.chown(token, 0, -1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a second user for a moment")
def test_a_secret_that_the_daemons_user_cannot_read_is_answered_with_its_chown(tmp_path: Path) -> None:
    secret = write_private(tmp_path / "webhook-secret", "whsec_x")
    os.seteuid(SOMEBODY)
    try:
        with pytest.raises(Refused, match="Permission denied") as refused:
            read_secret_file(secret)
    finally:
        os.seteuid(0)
    assert f"`chown payagent {secret}`" in refused.value.problem.fix


def test_a_daemon_without_a_passphrase_is_answered_with_the_setting(closed_shop: Shop, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(closed_shop.config.read_text().replace("passphrase_file", "# passphrase_file"))
    told = invoke("serve", "--config", config)
    assert told.problem == "keystore_locked"
    assert "`passphrase_file` in `[keystore]`" in fix(told)


@pytest.mark.parametrize("wrong", ["/api/v1", ""])
def test_a_wrong_chain_url_is_called_wrong(closed_shop: Shop, tmp_path: Path, wrong: str) -> None:
    config = tmp_path / "config.toml"
    right = closed_shop.devnet.chain_url
    config.write_text(closed_shop.config.read_text().replace(right, right.removesuffix("/api/v0") + wrong))
    check = checks(config)["provider 1"]
    assert "base_url is wrong" in check["detail"]
    assert "/api/v0" in check["fix"]
    config.write_text(config.read_text().replace(f"{right.removesuffix('/api/v0')}{wrong}", "http://127.0.0.1:9"))
    assert "base_url" in checks(config)["provider 1"]["fix"], "nothing answers there"


def test_a_name_with_a_space_is_answered_with_a_name_without(shop: Shop) -> None:
    for command in (("app", "add", "my bot"), ("merchants", "add", "my shop", "--origin", "http://127.0.0.1:9")):
        assert "without spaces" in fix(shop.payagent(*command))


def test_a_plain_date_is_midnight_in_utc(shop: Shop) -> None:
    shop.payagent("limits", "set", "--per-week", "900 ADA")
    for date, is_there in (("2026-01-01", True), ("9999-01-01", False)):
        told = shop.payagent("log", "--since", date)
        assert (told.code, bool(told.json["log"])) == (0, is_there)
        assert told.json == shop.payagent("log", "--since", f"{date}T00:00:00Z").json
    assert "2026-11-24" in shop.payagent("log", "--since", "yesterday").error["detail"]


def test_an_origin_that_is_not_configured_is_answered_with_the_command_that_adds_it(shop: Shop) -> None:
    url = shop.devnet.merchant_url.replace("127.0.0.1", "localhost")
    told = fix(shop.payagent("fetch", f"{url}/chat"))
    command = told.split("`")[1]
    assert command == f"payagent merchants add localhost --origin {url}"
    assert shop.payagent(*shlex.split(command)[1:]).code == 0
    assert shop.payagent("fetch", f"{url}/chat", "-d", "{}", "--dry-run").code == 10
    assert command.replace(url, "http://127.0.0.1:9").replace("localhost", "127-0-0-1") in fix(
        shop.payagent("pay", shop.saved("x"), "--origin", "http://127.0.0.1:9")
    )


def test_what_max_refuses_names_the_option(shop: Shop) -> None:
    told = shop.payagent("pay", shop.saved("too dear"), "--merchant", "t", "--max", "1 ADA")
    assert told.problem == "limit_exceeded"
    assert told.error["detail"].startswith("the call's own limit leaves 1 ADA")
    assert "--max" in told.error["fix"]
