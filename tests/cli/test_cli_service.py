"""payagent as a service: the notification and the hardened systemd unit."""

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cli import under_unit
from kit.cli import Shop, invoke, running, spawn, until
from kit.effort import long_only

from payagent.cli.sd_notify import service_manager

UNIT = Path(__file__).parents[2] / "config/payagent.service"
BACKUP_UNIT = UNIT.with_name("payagent-backup.service")
NOT_OF_A_BACKUP = re.compile(
    "Type|Exec|Restart|TimeoutStopSec|LoadCredential|StateDirectory=|RuntimeDirectory|LimitMEMLOCK"
)
"""The lines of the daemon's unit that start and stop it, or are about its folders and its key."""

EXPOSURE_MAX_TENTHS = 15


def test_a_service_manager_is_notified_at_a_path_and_at_an_abstract_name(tmp_path: Path) -> None:
    for name in (str(tmp_path / "notify"), f"\0{tmp_path / 'notify'}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.settimeout(60)
            manager.bind(name)
            with service_manager({"NOTIFY_SOCKET": name.replace("\0", "@")}) as tell_ready:
                tell_ready("serves")
            assert manager.recv(4096) == b"READY=1\nSTATUS=serves"


def test_a_service_manager_that_cannot_be_notified_is_no_error() -> None:
    for environ in ({}, {"NOTIFY_SOCKET": "/nowhere/notify"}):
        with service_manager(environ) as tell_ready:
            tell_ready("serves")


def test_the_service_manager_is_notified_when_the_daemon_listens(closed_shop: Shop, tmp_path: Path) -> None:
    name = f"\0{tmp_path / 'notify'}"
    environ = {"NOTIFY_SOCKET": name.replace("\0", "@")}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(60)
        manager.bind(name)
        daemon = spawn("serve", "--config", closed_shop.config, environ=environ, stderr=subprocess.DEVNULL)
        try:
            ready, status = manager.recv(4096).decode().split("\n")
        finally:
            daemon.terminate()
            assert daemon.wait(60) == 0
    assert ready == "READY=1"
    assert status.startswith("STATUS=payagent serves devnet on http://127.0.0.1:")


@long_only
def test_the_daemon_starts_when_the_service_manager_cannot_be_notified(closed_shop: Shop) -> None:
    environ = {"NOTIFY_SOCKET": "/nowhere/notify"}
    with spawn("serve", "--config", closed_shop.config, environ=environ, stderr=subprocess.PIPE) as daemon:
        assert daemon.stderr is not None
        assert any("serves devnet" in line for line in daemon.stderr)
        daemon.terminate()
        assert daemon.wait(60) == 0


def test_the_unit_starts_a_command_that_exists() -> None:
    (line,) = re.findall(r"^ExecStart=/opt/payagent/bin/payagent (.*)$", UNIT.read_text(), re.MULTILINE)
    assert invoke(*line.split(), "--help").code == 0


def test_the_unit_waits_for_the_network_and_clock_synchronization() -> None:
    """The daemon refuses to start if the clock is wrong, and systemd allows ten starts a day."""
    (line,) = re.findall(r"^After=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert {"network-online.target", "time-sync.target"} <= {*line.split()}


def test_systemd_starts_the_daemon_ten_times_a_day() -> None:
    """Each start resets the sums of the signer, and a compromised daemon could end itself."""
    unit = UNIT.read_text()
    assert [under_unit.said(unit, f"StartLimit{key}") for key in ("IntervalSec", "Burst")] == [["1d"], ["10"]]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
@pytest.mark.parametrize("unit", [UNIT, BACKUP_UNIT], ids=lambda unit: unit.stem)
def test_systemd_rates_the_units_exposure_as_low(unit: Path) -> None:
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE_MAX_TENTHS}", unit],
        capture_output=True,
        text=True,
    )
    assert rated.returncode == 0, rated.stdout[-300:] + rated.stderr


def test_the_backup_unit_is_confined_as_the_daemons_is() -> None:
    of_the_daemon, of_the_backup = (
        re.findall(r"^\w+=.*$", unit.read_text(), re.M) for unit in (UNIT, BACKUP_UNIT)
    )
    service = of_the_daemon[of_the_daemon.index("Type=notify") : of_the_daemon.index("WantedBy=multi-user.target")]
    wanted = [line for line in service if not NOT_OF_A_BACKUP.match(line)]
    assert len(wanted) > 30
    assert [line for line in wanted if line not in of_the_backup] == []


def under_the_unit() -> tuple[str, ...]:
    """What starts a command as the unit would, in memory and system calls; skips where it cannot be done."""
    under = (sys.executable, under_unit.__file__, str(UNIT))
    tried = subprocess.run([*under, sys.executable, "-c", TRIES], capture_output=True, text=True)
    if tried.returncode == under_unit.NOT_HERE:
        pytest.skip("this kernel, libseccomp or systemd-analyze cannot do as the unit says")
    assert tried.stdout.split() == ["PermissionError"] * 3, tried.stdout + tried.stderr
    return under


TRIES = """
import mmap, os, socket
for never in (
    lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
    lambda: os.chroot("/"),
    lambda: socket.socket(socket.AF_NETLINK),
):
    try:
        never()
        print("done")
    except OSError as error:
        print(type(error).__name__)
"""


def test_the_daemon_pays_under_the_units_system_call_and_memory_restrictions(closed_shop: Shop) -> None:
    under = under_the_unit()
    closed_shop.control("faucet", address=closed_shop.made["address"], lovelace="100000000")
    with running(closed_shop, under=under) as daemon:
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
        until(lambda: closed_shop.payagent("wallet", "utxos").json["utxos"], "no deposit")
        paid = closed_shop.payagent("pay", closed_shop.saved("a call"), "--merchant", "t")
        assert paid.code == 0, paid.err
        (row,) = closed_shop.payments()
    assert row["state"] in ("in_flight", "in_block", "confirmed")
    log = (closed_shop.folder / "daemon.log").read_text()
    (fenced,) = (json.loads(line) for line in log.splitlines() if '"daemon.fenced"' in line)
    assert str(closed_shop.data_dir / "keystore.json") in fenced["hidden"]
    assert "Traceback" not in log
