"""Closed standard streams: by a reader that went away, or from the start."""

import io
import os
import subprocess
from pathlib import Path
from typing import TextIO

import pytest
from kit.cli import Result, Shop, spawn
from kit.effort import pick

from payagent.cli import run
from payagent.cli.terminal import Terminal

READER_GONE = 141
ALL_CLOSED = "<&- >&- 2>&-"
SHOWN, UNKNOWN = ("wallet",), ("payments", "show", "pay_none")


def ended(process: subprocess.Popen[str]) -> Result:
    out, err = process.communicate(timeout=60)
    return Result(process.returncode, out or "", err or "")


def unread() -> int:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def run_into(stdout: TextIO, shop: Shop, command: tuple[str, ...]) -> Result:
    """Run a command in this process with another standard output."""
    err = io.StringIO()
    code = run([*command, "--config", str(shop.config)], Terminal(io.StringIO(), stdout, err))
    return Result(code, "", err.getvalue())


@pytest.mark.parametrize(
    "command",
    [
        ("--help",),
        ("payments", "list", "--human"),
        ("--version",),
        ("payments", "list", "--help"),
        ("wallet",),
        ("wallet", "--human"),
        ("payments", "list", "--json"),
    ][: pick(2, 7)],
)
def test_a_reader_that_went_away_ends_the_command_silently(shop: Shop, command: tuple[str, ...]) -> None:
    config = ("--config", shop.config) if command[0] in ("wallet", "payments") and "--help" not in command else ()
    writing = unread()
    try:
        result = ended(spawn(*command, *config, stdout=writing, stderr=subprocess.PIPE))
    finally:
        os.close(writing)
    assert (result.code, result.err) == (READER_GONE, "")


def test_no_command_goes_on_after_its_reader_went_away(shop: Shop) -> None:
    for command in (SHOWN, (*SHOWN, "--human"), ("payments", "list"), ("payments", "list", "--human")):
        with os.fdopen(unread(), "w") as stdout, pytest.raises(BrokenPipeError):
            run_into(stdout, shop, command)


TO_A_FULL_DISK = (
    *(("payments", "--human"), ("ledger", "export")),
    *(("wallet",), ("wallet", "--human"), ("ledger", "verify")),
)


@pytest.mark.parametrize("command", TO_A_FULL_DISK[: pick(1, 5)], ids=" ".join)
def test_output_to_a_full_disk_is_write_failed(shop: Shop, command: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        result = ended(spawn(*command, "--config", shop.config, stdout=full, stderr=subprocess.PIPE))
    require_write_failed(result, command)
    assert "Traceback" not in result.err
    assert "Exception ignored" not in result.err


def test_every_kind_of_output_to_a_full_disk_is_write_failed(shop: Shop) -> None:
    for command in TO_A_FULL_DISK:
        with Path("/dev/full").open("w") as full:
            require_write_failed(run_into(full, shop, command), command)


def require_write_failed(result: Result, command: tuple[str, ...]) -> None:
    named = (
        "write_failed/answer" in result.err if "--human" in command else result.problem == "write_failed/answer"
    )
    assert (result.code, named) == (2, True), result.err
    assert "No space left on device" in result.err


def test_an_error_written_to_a_closed_pipe_exits_with_141(shop: Shop) -> None:
    """As in `payagent payments show pay_none 2>&1 | true`."""
    writing = unread()
    try:
        both = ended(spawn(*UNKNOWN, "--config", shop.config, stdout=writing, stderr=subprocess.STDOUT))
    finally:
        os.close(writing)
    assert both.code == READER_GONE


@pytest.mark.parametrize(
    ("command", "code", "closed"),
    [
        *((UNKNOWN, 2, "2>&-"), (SHOWN, 0, ">&-"), (UNKNOWN, 2, ALL_CLOSED), (SHOWN, 0, ALL_CLOSED)),
        *((SHOWN, 0, "<&-"), (SHOWN, 0, "2>&-"), (UNKNOWN, 2, "<&-"), (UNKNOWN, 2, ">&-")),
    ][: pick(3, 8)],
)
def test_closed_standard_streams_do_not_change_the_exit_code(
    shop: Shop, command: tuple[str, ...], code: int, closed: str
) -> None:
    started = spawn(
        *(*command, "--config", shop.config),
        under=("sh", "-c", f'"$@" {closed}', "sh"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    result = ended(started)
    assert (result.code, "Traceback" in result.err) == (code, False)
