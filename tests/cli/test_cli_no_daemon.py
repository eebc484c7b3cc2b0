"""The command when the daemon does not run, or cannot start."""

import json
import os
import socket
import subprocess
from pathlib import Path

import httpx
import pytest
from kit.cli import PASSPHRASE, Result, Shop, checks, invoke, readiness, running, spawn, until, write_private
from kit.effort import long_only, pick
from kit.http import NO_TLS
from kit.terminal import at_terminal


@pytest.mark.parametrize("command", [("wallet",), ("payments", "show", "pay_1"), ("ledger",), ("limits",)])
def test_without_a_daemon_the_command_says_how_to_start_it(closed_shop: Shop, command: tuple[str, ...]) -> None:
    result = closed_shop.payagent(*command)
    assert (result.code, result.out, result.problem) == (4, "", "daemon_not_running")
    said = closed_shop.payagent(*command, "--human").err
    for words in ("payagent is not running", "\n  money: ", "\n  next: "):
        assert words in said


def test_a_402_that_cannot_be_read_is_a_usage_error(
    closed_shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the file is named, and without asking the daemon."""
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    for file, said in (("empty", "empty"), (".", "directory"), ("none.json", "no such file")):
        result = closed_shop.payagent("pay", file, "--merchant", "t")
        assert (result.code, result.out, result.error["code"]) == (2, "", "usage")
        assert said in result.error["detail"].lower()


@pytest.mark.parametrize("stdin", ["<&-", "</dev/null"][: pick(1, 2)])
def test_a_402_from_an_empty_or_closed_standard_input_is_a_usage_error(closed_shop: Shop, stdin: str) -> None:
    started = spawn(
        *("pay", "-", "--merchant", "t", "--config", closed_shop.config),
        under=("sh", "-c", f'"$@" {stdin}', "sh"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = started.communicate(timeout=60)
    error = json.loads(err)
    assert (started.returncode, out, error["code"]) == (2, "", "usage")
    assert "empty" in error["detail"].lower()


def test_setting_no_limit_is_a_usage_error_before_the_daemon_is_asked(closed_shop: Shop) -> None:
    told = closed_shop.payagent("limits", "set", "--merchant", "t")
    assert (told.problem, told.error["detail"]) == ("usage", "name a limit, such as --per-day")


def test_status_of_an_empty_wallet_says_so_and_how_to_fund_it(closed_shop: Shop) -> None:
    with running(closed_shop):
        said = closed_shop.payagent("status", "--human").out
    assert said.startswith("ready, but the wallet is empty\n")
    assert f"The wallet is empty, so nothing can be paid. Send ADA to {closed_shop.made['address']}." in said
    assert f"  curl -s {closed_shop.devnet.origin}/devnet/faucet " in said


def test_doctor_works_without_a_daemon(closed_shop: Shop) -> None:
    result = closed_shop.payagent("doctor")
    assert result.code == 4
    wrong = [check for check in result.json["checks"] if not check["ok"]]
    assert [check["name"] for check in wrong] == ["daemon"]
    assert "payagent serve" in wrong[0]["fix"]


def test_doctor_reports_an_unreachable_provider(closed_shop: Shop, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        closed_shop.config.read_text().replace(closed_shop.devnet.chain_url, "http://127.0.0.1:9/api")
    )
    provider = checks(config)["provider 1"]
    assert not provider["ok"]
    assert "http://127.0.0.1:9/api" in provider["detail"]


def test_status_says_once_that_a_provider_is_dead_and_what_to_do(closed_shop: Shop, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    text = closed_shop.config.read_text().replace(closed_shop.devnet.chain_url, "http://127.0.0.1:9/api/v0")
    config.write_text(text.replace(str(closed_shop.folder / "s"), str(tmp_path / "s")))
    daemon = spawn("serve", "--config", config, stderr=subprocess.DEVNULL)
    try:
        until(lambda: "no connection" in str(readiness(tmp_path / "s").get("checks")), "it sees no dead provider")
        said = invoke("status", "--config", config, "--human").out
        checked = checks(config)
    finally:
        daemon.terminate()
        daemon.wait(60)
    assert said.count("no connection") == 1
    assert "\n  next: " in said
    assert "`payagent doctor`" in said
    assert "Wait" not in checked["daemon"]["fix"], "the provider's remedy is another"
    assert "base_url" in checked["provider 1"]["fix"]


def test_doctor_reports_a_provider_of_another_network(closed_shop: Shop, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(closed_shop.config.read_text().replace('network = "devnet"', 'network = "preprod"'))
    result = invoke("doctor", "--config", config)
    checks = {check["name"]: check for check in result.json["checks"]}
    assert "magic" in checks["provider 1"]["detail"]
    assert "serves another network than preprod" in checks["provider 1"]["fix"]
    assert checks["keystore"]["code"] == "keystore_invalid"
    assert result.code == 5


def test_a_missing_config_exits_with_2(tmp_path: Path) -> None:
    result = invoke("wallet", "--config", tmp_path / "none.toml")
    assert (result.code, result.problem) == (2, "config_invalid")


@long_only
def test_a_wrong_passphrase_keeps_the_daemon_from_starting(closed_shop: Shop, tmp_path: Path) -> None:
    wrong = write_private(tmp_path / "wrong", "not-the-passphrase")
    config = tmp_path / "config.toml"
    config.write_text(closed_shop.config.read_text().replace(str(closed_shop.folder / "passphrase"), str(wrong)))
    process = spawn("serve", "--config", config, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (5, "")
    assert "keystore_invalid" in err
    assert "not-the-passphrase" not in err


def test_a_stop_ends_an_event_stream_and_an_upload_and_logs_no_traceback(
    closed_shop: Shop, tmp_path: Path
) -> None:
    """The merchant does not read the upload."""
    config, log, door = tmp_path / "config.toml", tmp_path / "log", tmp_path / "s"
    with socket.create_server(("127.0.0.1", 0)) as merchant, log.open("w") as writes:
        origin = f'[merchants.silent]\norigin = "http://127.0.0.1:{merchant.getsockname()[1]}"\n'
        of_ours = closed_shop.config.read_text().replace(str(closed_shop.folder / "s"), str(door))
        config.write_text(of_ours + origin)
        daemon = spawn("serve", "--config", config, stderr=writes)
        until(lambda: "payagent serves" in log.read_text(), "the daemon does not serve")
        transport = httpx.HTTPTransport(uds=str(door), verify=NO_TLS)
        by_token = {"Authorization": f"Bearer {closed_shop.made['token']}"}
        with (
            httpx.Client(transport=transport, base_url="http://localhost", headers=by_token, timeout=60) as http,
            http.stream("GET", "/v1/events") as stream,
            socket.socket(socket.AF_UNIX) as client,
        ):
            events = stream.iter_lines()
            assert next(events) == ": from here on"
            client.settimeout(60)
            client.connect(str(door))
            head = (
                f"Host: localhost\r\nX-Payagent-Token: {closed_shop.made['token']}\r\nContent-Length: 9999999\r\n"
            )
            client.sendall(f"POST /proxy/silent/x HTTP/1.1\r\n{head}\r\n".encode() + b"x" * 100_000)
            with merchant.accept()[0], client.makefile("rb") as answers:
                daemon.terminate()
                answer = answers.read()
                assert [line for line in events if line] == [], "it ends by itself, before it is cut off"
        assert daemon.wait(60) == 0
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b'"code":"daemon_timeout"' in answer
    assert "Traceback" not in log.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_socket_of_another_user_is_never_connected_to(closed_shop: Shop, tmp_path: Path) -> None:
    path = tmp_path / "payagent.sock"
    config = tmp_path / "config.toml"
    config.write_text(closed_shop.config.read_text().replace(str(closed_shop.folder / "s"), str(path)))
    with socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(str(path))
        squatter.listen()
        squatter.setblocking(False)
        os.chown(path, 12_345, 12_345)
        result = invoke("wallet", "--config", config)
        assert (result.code, result.problem) == (2, "config_invalid")
        assert "belongs to another user" in result.error["detail"]
        assert "`runuser -u " in result.error["fix"]
        with pytest.raises(BlockingIOError):
            squatter.accept()


def test_a_socket_out_of_the_users_reach_is_not_called_a_stopped_daemon(closed_shop: Shop, tmp_path: Path) -> None:
    """Root goes anywhere, so as root the command runs without the capabilities for that."""
    folder, config = tmp_path / "api", tmp_path / "config.toml"
    folder.mkdir(mode=0)
    config.write_text(closed_shop.config.read_text().replace(str(closed_shop.folder / "s"), str(folder / "s")))
    lost = "--bounding-set=-dac_override,-dac_read_search"
    command = spawn(
        *("wallet", "--config", config),
        under=("setpriv", lost) if os.geteuid() == 0 else (),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = command.communicate(timeout=60)
    result = Result(command.returncode, out, err)
    assert (result.code, result.problem) == (2, "config_invalid")
    assert result.error["detail"].startswith(f"no permission to use api.socket {folder / 's'}")


def asking(shop: Shop, folder: Path) -> Path:
    """A config whose daemon asks for the passphrase, and whose socket has a folder of its own."""
    config = folder / "config.toml"
    text = shop.config.read_text().replace("passphrase_file", "# passphrase_file")
    config.write_text(text.replace(str(shop.folder / "s"), str(folder / "api/s")))
    return config


def test_a_daemon_stopped_at_the_passphrase_prompt_restores_the_terminals_echo(
    closed_shop: Shop, tmp_path: Path
) -> None:
    with at_terminal("serve", "--config", asking(closed_shop, tmp_path)) as session:
        session.expect("Passphrase of the keystore")
        assert not session.is_echoing()
        assert not (tmp_path / "api").exists(), "it listens too early"
        session.terminate()
        assert session.end() == 0
        assert session.is_echoing()


def test_ctrl_c_ends_the_daemon_and_removes_its_socket(closed_shop: Shop, tmp_path: Path) -> None:
    with at_terminal("serve", "--config", asking(closed_shop, tmp_path)) as session:
        session.expect("Passphrase of the keystore")
        session.type(PASSPHRASE)
        session.expect("payagent serves devnet")
        assert (tmp_path / "api/s").is_socket()
        session.interrupt()
        assert session.end() == 0
    assert not os.path.lexists(tmp_path / "api/s")


@long_only
def test_ctrl_c_at_the_passphrase_prompt_ends_the_daemon(closed_shop: Shop, tmp_path: Path) -> None:
    with at_terminal("serve", "--config", asking(closed_shop, tmp_path)) as session:
        session.expect("Passphrase of the keystore")
        session.interrupt()
        assert session.end() == 130
    assert "interrupted" in session.seen
    assert not (tmp_path / "api").exists()
