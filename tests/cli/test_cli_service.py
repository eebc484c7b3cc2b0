"""payagent under a service manager: told when it serves, locked in, and an image that runs as a user."""

import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from cli.cli_kit import Shop, invoke, spawn

from payagent.secretfile import require_out_of_reach

CONFIG = Path(__file__).parents[2] / "config"
UNIT, IMAGE = CONFIG / "payagent.service", CONFIG / "Dockerfile"
EXPOSURE_MAX_TENTHS = 15


@pytest.mark.parametrize("prefix", ["", "\0"], ids=["a path", "abstract"])
def test_a_service_manager_is_told_when_the_daemon_listens(closed_shop: Shop, tmp_path: Path, prefix: str) -> None:
    name = f"{prefix}{tmp_path / 'notify'}"
    environ = {"NOTIFY_SOCKET": name.replace("\0", "@")}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(60)
        manager.bind(name)
        daemon = spawn("serve", "--config", closed_shop.config, environ=environ, stderr=subprocess.DEVNULL)
        try:
            ready, status = manager.recv(4096).decode().split("\n")
        finally:
            daemon.terminate()
            assert daemon.wait(30) == 0
    assert ready == "READY=1"
    assert status.startswith("STATUS=payagent serves devnet on http://127.0.0.1:")


def test_a_manager_that_is_gone_harms_nothing(closed_shop: Shop) -> None:
    environ = {"NOTIFY_SOCKET": "/nowhere/notify"}
    with spawn("serve", "--config", closed_shop.config, environ=environ, stderr=subprocess.PIPE) as daemon:
        assert daemon.stderr is not None
        assert any("serves devnet" in line for line in daemon.stderr)
        daemon.terminate()
        assert daemon.wait(30) == 0


def test_the_unit_starts_what_there_is() -> None:
    (line,) = re.findall(r"^ExecStart=/opt/payagent/bin/payagent (.*)$", UNIT.read_text(), re.MULTILINE)
    assert invoke(*line.split(), "--help").code == 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_the_unit_is_locked_in() -> None:
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE_MAX_TENTHS}", UNIT],
        capture_output=True,
        text=True,
    )
    assert rated.returncode == 0, rated.stdout[-300:] + rated.stderr


def test_the_image_takes_what_is_locked_and_runs_as_a_user() -> None:
    text = IMAGE.read_text()
    assert "--require-hashes -r requirements.txt" in text
    user = re.findall(r"^USER (\d+):(\d+)$", text, re.MULTILINE)[-1]
    assert int(user[0]) > 0
    assert int(user[1]) > 0
    copied = [name for line in re.findall(r"^COPY ([^-].*) \S+$", text, re.MULTILINE) for name in line.split()]
    assert copied
    assert all((CONFIG.parent / name).exists() for name in copied)
    let_in = (CONFIG.parent / ".dockerignore").read_text().splitlines()
    assert sorted(line.removeprefix("!") for line in let_in if line.startswith("!")) == sorted(copied)
    assert "*" in let_in, "nothing else of a checkout, such as a wallet, gets near an image"


def test_the_images_config_lies_where_the_daemon_does_not_write() -> None:
    told = dict(re.findall(r"PAYAGENT_(CONFIG|DATA_DIR)=(\S+)", IMAGE.read_text()))
    require_out_of_reach([Path(told["CONFIG"])], [Path(told["DATA_DIR"])])
