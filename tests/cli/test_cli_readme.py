"""The README's walk, by its own words: the blocks of shell are run as they stand, on other ports and folders."""

import re
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from cli_kit import Shop, checks

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 90


def blocks(heading: str) -> list[str]:
    """The shell blocks under a heading, without their indentation."""
    section = re.search(rf"^## {re.escape(heading)}$(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)
    assert section is not None
    found = re.findall(r"^( *)```sh\n(.*?)^ *```$", section[1], re.M | re.S)
    return ["".join(line.removeprefix(indent) + "\n" for line in text.splitlines()) for indent, text in found]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_the_walk_of_the_readme_ends_with_a_served_call(tmp_path: Path) -> None:
    walk = blocks("By hand, in ten steps")
    assert len(walk) == 11
    script = "set -e\ntrap 'kill $(jobs -p); wait' EXIT\n" + "".join(walk)
    for said, here in {
        "/tmp/payagent-walk": str(tmp_path / "walk"),
        ". .venv/bin/activate": f"export PATH={Path(sys.executable).parent}:$PATH",
        ":8402": f":{free_port()}",
    }.items():
        assert said in script
        script = script.replace(said, here)
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert result.returncode == 0, result.stderr
    assert "402\n" in result.stdout
    assert "\n200\n" in result.stdout
    assert '"delivery":"accepted"' in result.stdout.replace(" ", "")
    assert '"state": "confirmed"' in result.stdout


def test_the_copy_of_a_ledger_in_use_is_whole(shop: Shop, tmp_path: Path) -> None:
    """The newest entries lie in ledger.db-wal as yet, where a copy of the one file would lose them."""
    assert shop.payagent("pay", shop.saved("to be copied"), "--merchant", "t").code == 0
    assert (shop.data_dir / "ledger.db-wal").stat().st_size > 0
    newest = shop.payagent("ledger", "entries", "--limit", "1").json["entries"][0]
    (command,) = blocks("Copies of the ledger")
    source = "~/.local/share/payagent/ledger.db"
    assert source in command
    script = f"export PATH={Path(sys.executable).parent}:$PATH\ncd {tmp_path}\n"
    script += command.replace(source, str(shop.data_dir / "ledger.db"))
    made = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (made.returncode, made.stderr) == (0, "")
    (copy,) = tmp_path.iterdir()
    assert copy.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(copy)) as conn:
        assert conn.execute("SELECT max(id) FROM journal").fetchone() == (newest["id"],)
    copy.rename(tmp_path / "ledger.db")
    found = checks(shop.config_of(tmp_path))
    assert (found["ledger"]["ok"], found["ledger file"]["ok"]) == (True, True), found
