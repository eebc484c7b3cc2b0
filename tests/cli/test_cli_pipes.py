"""Closed standard streams: by a reader that went away, or from the start."""

import os
import subprocess
from pathlib import Path

import pytest
from kit.cli import Result, Shop, spawn

READER_GONE = 141


def ended(process: subprocess.Popen[str]) -> Result:
    out, err = process.communicate(timeout=60)
    return Result(process.returncode, out or "", err or "")


def unread() -> int:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize(
    "command",
    [
        ("--help",),
        ("--version",),
        ("payments", "list", "--help"),
        ("wallet",),
        ("wallet", "--human"),
        ("payments", "list", "--json"),
        ("payments", "list", "--human"),
    ],
)
def test_a_reader_that_went_away_ends_the_command_silently(shop: Shop, command: tuple[str, ...]) -> None:
    config = ("--config", shop.config) if command[0] in ("wallet", "payments") and "--help" not in command else ()
    writing = unread()
    try:
        result = ended(spawn(*command, *config, stdout=writing, stderr=subprocess.PIPE))
    finally:
        os.close(writing)
    assert (result.code, result.err) == (READER_GONE, "")


@pytest.mark.parametrize(
    "command",
    [("wallet",), ("wallet", "--human"), ("payments", "--human"), ("ledger", "export"), ("ledger", "verify")],
    ids=" ".join,
)
def test_output_to_a_full_disk_is_write_failed(shop: Shop, command: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        result = ended(spawn(*command, "--config", shop.config, stdout=full, stderr=subprocess.PIPE))
    named = (
        "write_failed/answer" in result.err if "--human" in command else result.problem == "write_failed/answer"
    )
    assert (result.code, named) == (2, True), result.err
    assert "No space left on device" in result.err
    assert "Traceback" not in result.err
    assert "Exception ignored" not in result.err


def test_an_error_written_to_a_closed_pipe_exits_with_141(shop: Shop) -> None:
    """As in `payagent payments show pay_none 2>&1 | true`."""
    unknown = ("payments", "show", "pay_none", "--config", shop.config)
    writing = unread()
    try:
        both = ended(spawn(*unknown, stdout=writing, stderr=subprocess.STDOUT))
    finally:
        os.close(writing)
    assert both.code == READER_GONE


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("command", "code"), [(("wallet",), 0), (("payments", "show", "pay_none"), 2)])
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
