"""core and dialects are pure: they use only the standard library, without I/O, clocks or randomness.

What a room may import stands in `.importlinter`.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "payagent"
PURE_ROOMS = ("core", "dialects")
WORLD = {
    "asyncio", "ftplib", "getpass", "glob", "http", "io", "logging", "multiprocessing", "os", "pathlib",
    "platform", "random", "secrets", "select", "shutil", "signal", "smtplib", "socket", "sqlite3", "ssl",
    "subprocess", "tempfile", "threading", "time", "uuid",
}  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))
CALLS = {"open", "input", "print", "exec", "eval", "now", "utcnow", "today"}


def impurities(source: str, rooms: tuple[str, ...]) -> Iterator[str]:
    """What in a module makes it impure."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if called in CALLS:
                yield f"calls {called}"
        elif isinstance(node, ast.Assert):
            yield "asserts, which -O removes"
        for name in names:
            own = any(name == f"payagent.{room}" or name.startswith(f"payagent.{room}.") for room in rooms)
            top = name.split(".")[0]
            if not own and name != "payagent" and (top not in sys.stdlib_module_names or top in WORLD):
                yield f"imports {name}"


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_core_and_dialects_do_no_io_and_read_no_clock() -> None:
    found = {
        name_of(path): list(impurities(path.read_text(), ("core",) if room == "core" else PURE_ROOMS))
        for room in PURE_ROOMS
        for path in sorted((PACKAGE / room).rglob("*.py"))
    }
    assert len(found) > 20
    assert {name: impure for name, impure in found.items() if impure} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import httpx",
        "import os.path",
        "from time import monotonic",
        "def f():\n    import secrets",
        "from payagent.store import writer",
        "from payagent.dialects import flux",
        "from datetime import datetime\ndatetime.now()",
        "open('x')",
        "assert 1",
    ],
)
def test_an_impure_module_is_caught(source: str) -> None:
    assert list(impurities(source, ("core",)))


def test_every_module_has_a_docstring() -> None:
    assert [name_of(path) for path in MODULES if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_the_daemons_process_loads_nothing_of_mcp() -> None:
    code = (
        "import sys; from payagent.cli.main import payagent\n"
        "import payagent.daemon.serve, payagent.signer.process\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('mcp', 'mcp_types', 'httpx2')"
        " or name.startswith('payagent.mcp')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
