"""scripts/test installs what the tests it runs need, and no more. It starts and enables no service."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"

SIGNS = {
    "chromium": r'which\("chromium"\)',
    "curl": r'which\("curl"\)',
    "debootstrap": r'which\("debootstrap"\)',
    "haproxy": r'which\("haproxy"\)',
    "hledger": r'which\("hledger"\)',
    "nodejs npm": r'which\("node"\)|node_modules',
    "pgbouncer": r'which\("pgbouncer"',
    "postgresql": r'"/usr/lib/postgresql"|\bpostgresql: Server\b|"postgresql"\)',
    "softhsm2": r'which\("softhsm2-util"\)',
    "tests/axe": "axe/node_modules",
    "tests/ledger_check": r'"node_modules" / "scalus"',
    "tests/mcp/peers": r'/ "peers"',
    "tests/mcp/programs": r'/ "programs"',
    "tests/x402_sdk/sellers": r'/ "sellers"',
    "valgrind": r'which\("valgrind"\)',
}
"""What the source of a test has in it if it needs a row, by the row's packages or folder of node packages."""


def table() -> dict[str, set[str]]:
    """The folders of each row."""
    rows = re.findall(
        r'^  "([a-z0-9_ ]+)\|([a-z0-9 ]*)\|([^"]+)"$', (ROOT / "scripts/test").read_text(), re.MULTILINE
    )
    return {packages or is_there.split()[-1]: set(folders.split()) for folders, packages, is_there in rows}


def imported(path: Path) -> Iterator[Path]:
    """The modules of kit and of other folders of tests/ that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if (module := TESTS / f"{name.replace('.', '/')}.py").is_file():
                yield module


def sources(folder: Path) -> set[Path]:
    """The files of a folder, and all modules of tests/ that they import, also by others."""
    found: set[Path] = set()
    waiting = list(folder.glob("*.py"))
    while waiting:
        if (path := waiting.pop()) not in found:
            found.add(path)
            waiting += imported(path)
    return found


def test_the_table_has_each_folder_whose_tests_need_a_package_and_no_other() -> None:
    folders = {path.parent for path in TESTS.glob("*/test_*.py")} - {Path(__file__).parent}
    texts = {folder.name: [path.read_text() for path in sources(folder)] for folder in folders}
    needs = {
        need: {name for name, files in texts.items() if any(re.search(sign, text) for text in files)}
        for need, sign in SIGNS.items()
    }
    assert table() == needs


def test_the_page_names_all_packages_that_the_tests_need() -> None:
    (row,) = re.findall(r"They need (.*?)\.$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
    packages = {package for need in table() if "/" not in need for package in need.split()}
    assert row.replace(",\n ", ",").split(", ") == [
        f"`{package}`" for package in ["python3-venv", *sorted(packages)]
    ]


def bash(script: str) -> str:
    """What a script prints that has the functions of scripts/test."""
    functions = re.search(r"^NEEDS=\(.*?(?=^if )", (ROOT / "scripts/test").read_text(), re.MULTILINE | re.DOTALL)
    assert functions is not None
    whole = f". scripts/environment.sh\n{functions[0]}\n{script}"
    done = subprocess.run(["bash", "-uc", whole], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    ("arguments", "installed"),
    [
        ("tests/ground", ""),
        ("tests/mcp/test_mcp_peers.py::test_name -k name", "nodejs npm"),
        ("-x tests/store/ ./tests/counts", "valgrind postgresql pgbouncer"),
        ("tests/counts tests", "all"),
        ("-n 4", "all"),
        ("", "all"),
    ],
)
def test_only_what_the_named_folders_need_is_installed(arguments: str, installed: str) -> None:
    script = f"""
    command() {{ return 1; }}
    compgen() {{ return 1; }}
    ensure_node_packages() {{ return 1; }}
    install_system() {{ printf '%s\\n' "${{@:2}}"; return 1; }}
    ensure_needs {arguments}
    """
    everything = {package for need in table() if "/" not in need for package in need.split()}
    assert set(bash(script).split()) == (everything if installed == "all" else set(installed.split()))


def test_a_service_that_comes_with_a_package_is_neither_started_nor_left_enabled(tmp_path: Path) -> None:
    wants, runlevel = tmp_path / "etc/systemd/system/multi-user.target.wants", tmp_path / "etc/rc2.d"
    for link in (wants / "mine.service", runlevel / "S01mine"):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.touch()
    script = f"""
    ETC={tmp_path}/etc POLICY={tmp_path}/policy-rc.d
    id() {{ echo 0; }}
    update-rc.d() {{ echo "update-rc.d $*"; }}
    apt-get() {{
      echo "apt-get $*"
      [ "$1" = install ] || return 0
      touch {wants}/haproxy.service {runlevel}/S01haproxy
      "$POLICY" haproxy start; echo "start: $?"
      return 7
    }}
    install_system "the pages need it" haproxy 2>&1 || echo "status $?"
    """
    assert bash(script).splitlines() == [
        "==> the pages need it: installing the system package haproxy with apt-get",
        "apt-get update -q",
        "apt-get install -q -y --no-install-recommends haproxy",
        "start: 101",
        "==> disabling haproxy at boot",
        "update-rc.d haproxy disable",
        "status 7",
    ]
    assert not (tmp_path / "policy-rc.d").exists()


def test_a_policy_of_the_machine_stays(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text("of the machine")
    assert bash(f"POLICY={policy}\nwithout_services echo done") == "done\n"
    assert policy.read_text() == "of the machine"


def test_an_environment_that_is_a_link_to_another_trees_is_replaced_and_not_emptied(tmp_path: Path) -> None:
    theirs, link, python = tmp_path / "theirs", tmp_path / ".venv", tmp_path / "python"
    theirs.mkdir()
    link.symlink_to(theirs)
    python.write_text('#!/bin/sh\nif [ "$2" = venv ]; then mkdir "$4"; fi\n')
    python.chmod(0o755)
    bash(f"VENV={link}\nfind_python() {{ echo {python}; }}\nmake_venv")
    assert theirs.is_dir()
    assert link.is_dir()
    assert not link.is_symlink()
