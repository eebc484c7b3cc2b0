"""Tests share code only through tests/kit: no file imports a test module. Each long run starts."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def imported_tests(source: str) -> Iterator[str]:
    """The test modules that a file imports."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(alias.name for alias in node.names)]
        yield from (name for name in names if name.split(".")[-1].startswith("test_"))


def sources() -> list[Path]:
    """Our files below tests/."""
    return [path for path in TESTS.rglob("*.py") if "node_modules" not in path.parts]


def test_no_file_imports_a_test_module() -> None:
    found = {str(path.relative_to(TESTS)): list(imported_tests(path.read_text())) for path in sources()}
    assert {path: names for path, names in found.items() if names} == {}


def test_an_import_of_a_test_module_is_found() -> None:
    source = "import kit\nimport agent.test_a\nfrom api import test_b\ndef f():\n    from test_c import world\n"
    assert list(imported_tests(source)) == ["agent.test_a", "test_b", "test_c"]


def test_the_reason_of_each_test_that_only_a_long_run_has_names_the_option() -> None:
    marks = re.compile(r"skipif\(\s*not IS_LONG,\s*reason=([^)]*)")
    reasons = [reason for path in sources() for reason in marks.findall(path.read_text())]
    assert reasons
    assert [reason for reason in reasons if "--long" not in reason] == []


@pytest.mark.parametrize("run", [(), ("soak",), ("kills",), ("fleet",)], ids=" ".join)
def test_a_long_run_starts(run: tuple[str, ...]) -> None:
    script = TESTS.parent / "scripts/evidence"
    done = subprocess.run([script, *run, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["usage:", "scripts/evidence"]), done.stderr
