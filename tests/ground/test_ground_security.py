"""docs/explanation/security.md has a row for each threat, with an existing test or a reason."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/explanation/security.md").read_text()
ROWS = {"A": 6, "B": 5, "C": 3, "D": 7, "E": 8, "F": 7, "G": 8, "H": 10, "I": 9, "J": 12, "K": 6, "L": 7, "M": 12}
"""How many threats each part of the list has."""

WANTED = [f"{part}{number}" for part, count in ROWS.items() for number in range(1, count + 1)]
REASON = re.compile(r"\*(?:Not done|Out of reach)\*: \w+")
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::([\w:]+))?`")


def faults(page: str) -> list[str]:
    """What is wrong with the page's table and the tests it names."""
    rows = [line.strip("| ").split(" | ") for line in re.findall(r"^\| [A-Z]\d+ \|.*$", page, re.MULTILINE)]
    told = (
        [] if [row[0] for row in rows] == WANTED else ["the rows are not those of the threat list, in its order"]
    )
    told += [f"{row[0]} has not four cells" for row in rows if len(row) != 4 or not all(row[:3])]
    told += [
        f"{row[0]} has neither a test nor a reason"
        for row in rows
        if not any(test for _, test in NAMED.findall(row[-1])) and not REASON.search(" ".join(row))
    ]
    return told + [
        f"{path}::{test} is not there" for path, test in NAMED.findall(page) if not is_there(path, test)
    ]


def is_there(path: str, test: str) -> bool:
    """Whether a test file defines a test; with an empty name, whether the file exists."""
    return (ROOT / path).is_file() and (not test or test in defined_in(path))


@cache
def defined_in(path: str) -> set[str]:
    """The names of a file's tests; those in a class with and without the class name."""
    body = ast.parse((ROOT / path).read_text()).body
    classes = {node.name: named_in(node.body) for node in body if isinstance(node, ast.ClassDef)}
    with_class = {f"{name}::{test}" for name, tests in classes.items() for test in tests}
    return named_in(body).union(with_class, *classes.values())


def named_in(body: list[ast.stmt]) -> set[str]:
    functions = (node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {name for name in functions if name.startswith("test_")}


def test_every_threat_on_the_security_page_has_an_existing_test_or_a_reason() -> None:
    assert faults(PAGE) == []


def test_a_wrong_security_page_would_be_found() -> None:
    first = re.search(r"^\| A6 \|.*$", PAGE, re.MULTILINE)
    assert first is not None
    row = first[0]
    tests = row.rsplit(" | ", 1)[1].removesuffix(" |")
    rows = "the rows are not those of the threat list, in its order"
    assert faults(PAGE.replace(row + "\n", "")) == [rows]
    assert faults(PAGE.replace(row, f"{row}\n{row}")) == [rows]
    assert faults(PAGE.replace(tests, "")) != []
    assert faults(PAGE.replace(tests, "the code")) == ["A6 has neither a test nor a reason"]
    for name in ("test_that_nobody_wrote", "TestNothing::test_that_nobody_wrote"):
        gone = f"`tests/agent/test_agent_limits.py::{name}`"
        assert faults(PAGE.replace(tests, gone)) == [f"{gone.strip('`')} is not there"]
    assert faults(PAGE + "`tests/nowhere.py`") == ["tests/nowhere.py:: is not there"]
