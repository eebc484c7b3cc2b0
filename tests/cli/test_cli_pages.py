"""The commands of the operators' pages, run as they stand on the wallet of a running daemon."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from kit.cli import Shop, clean_environ
from kit.pages import blocks

PAGES = (
    ("fund-the-wallet", "Fund the wallet", 1),
    ("limit-spending", "Limit what may be spent", 1),
    ("check-merchants", "Check a merchant's addresses, prices and service", 1),
    ("change-settings", "Change settings while the daemon runs", 1),
    ("let-a-program-pay", "Let a program pay", 2),
    ("rotate-tokens", "Rotate tokens", 2),
    ("connect-an-agent", "Set up a known client", 3),
    ("scrape-metrics", "Scrape metrics", 1),
    ("stop-signing", "Stop all signing", 1),
    ("see-what-happens", "See what payagent does", 2),
    ("use-the-dashboard", "Use the dashboard", 2),
)
"""Name and title of a page, and how many of its blocks ask for nothing but this wallet."""
COMPLETE = "docs/how-to/complete-commands.md"


def test_the_commands_of_the_operators_pages_work(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(shop.folder))
    for name, title, count in PAGES:
        for line in "".join(blocks(title, f"docs/how-to/{name}.md")[:count]).splitlines():
            command, *words = shlex.split(line)
            assert command == "payagent"
            ran = shop.payagent(*words)
            assert (ran.code, bool(ran.out)) == (0, True), f"{name}: {line}: {ran.err}"


def test_the_commands_for_completions_write_the_shells_files(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", "-ec", "".join(blocks("Complete commands with the Tab key", COMPLETE)[:3])]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=clean_environ() | {"PATH": path, "HOME": str(tmp_path)},
    )
    assert run.returncode == 0, run.stderr
    for file in (".bashrc", ".zshrc", ".config/fish/completions/payagent.fish"):
        assert "_PAYAGENT_COMPLETE" in (tmp_path / file).read_text()
