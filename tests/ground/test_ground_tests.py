"""Tests share code only through tests/kit: no file imports a test module."""

import ast
from collections.abc import Iterator
from pathlib import Path

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


def test_no_file_imports_a_test_module() -> None:
    found = {str(path.relative_to(TESTS)): list(imported_tests(path.read_text())) for path in TESTS.rglob("*.py")}
    assert {path: names for path, names in found.items() if names} == {}


def test_an_import_of_a_test_module_is_found() -> None:
    source = "import kit\nimport agent.test_a\nfrom api import test_b\ndef f():\n    from test_c import world\n"
    assert list(imported_tests(source)) == ["agent.test_a", "test_b", "test_c"]
