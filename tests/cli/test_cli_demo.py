"""The demo, as it is: every step verified, quick enough, and nothing left behind."""

import os
import signal
import subprocess
import time
from pathlib import Path

from cli_kit import spawn, until


def children(pid: int) -> list[int]:
    """Process ids of the children, by the kernel's own list."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def test_every_step_is_verified_and_nothing_is_left(tmp_path: Path) -> None:
    os.environ["TMPDIR"], before = str(tmp_path), os.environ.get("TMPDIR")
    try:
        started_s = time.monotonic()
        process = spawn("demo", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=90)
    finally:
        restore(before)
    assert process.returncode == 0, out + err
    assert time.monotonic() - started_s < 60
    for words in (
        "revenue shares",
        "native token",
        "kill -9",
        "sum to zero",
        "to the unit",
        "Every step was verified",
    ):
        assert words in out
    assert err == ""
    assert list(tmp_path.iterdir()) == []


def restore(before: str | None) -> None:
    if before is None:
        del os.environ["TMPDIR"]
    else:
        os.environ["TMPDIR"] = before


def test_a_demo_that_is_stopped_takes_its_daemon_with_it(tmp_path: Path) -> None:
    log = tmp_path / "out"
    with log.open("w") as out:
        process = spawn("demo", stdout=out, stderr=subprocess.PIPE)
        until(lambda: "is ready" in log.read_text(), "the demo does not start")
        (daemon,) = children(process.pid)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert not Path(f"/proc/{daemon}").exists()
