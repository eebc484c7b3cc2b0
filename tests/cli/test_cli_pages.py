"""The commands of the operators' pages, run as they stand on the wallet of a running daemon."""

import os
import subprocess
import sys
from pathlib import Path

from kit.cli import Shop, clean_environ
from kit.pages import blocks

PAGES = (
    ("fund-the-wallet", "Fund the wallet", 1),
    ("limit-spending", "Limit what may be spent", 1),
    ("check-merchants", "Check a merchant's addresses, prices and service", 1),
    ("change-settings", "Change settings while the daemon runs", 1),
    ("let-a-program-pay", "Let a program pay", 2),
    ("rotate-tokens", "Rotate tokens", 2),
    ("set-up-an-mcp-client", "Set up an MCP client", 3),
    ("scrape-metrics", "Scrape metrics", 1),
    ("stop-signing", "Stop all signing", 1),
    ("see-what-happens", "See what payagent does", 2),
    ("use-the-dashboard", "Use the dashboard", 2),
    ("complete-commands", "Complete commands with the Tab key", 3),
)
"""Name and title of a page, and how many of its blocks ask for nothing but this wallet."""


def test_the_commands_of_the_operators_pages_work(shop: Shop) -> None:
    environ = clean_environ() | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PAYAGENT_CONFIG": str(shop.config),
        "HOME": str(shop.folder),
    }
    for name, title, count in PAGES:
        command = ["bash", "-ec", "".join(blocks(title, f"docs/how-to/{name}.md")[:count])]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environ)
        assert run.returncode == 0, f"{name}: {run.stderr}"
        assert run.stdout or name == "complete-commands", name
