"""One name for one thing: a public class name occurs once in the package and the simulator."""

import ast
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]


def class_names(sources: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Which files define each public class; `sources` are names of files with their text."""
    found = defaultdict(list)
    for name, text in sources:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(name)
    return found


def twice(sources: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    return {name: files for name, files in class_names(sources).items() if len(files) > 1}


def test_no_public_class_name_occurs_twice() -> None:
    paths = sorted([*(ROOT / "payagent").rglob("*.py"), *(ROOT / "sim").rglob("*.py")])
    assert twice((str(path.relative_to(ROOT)), path.read_text()) for path in paths) == {}


def test_a_name_that_occurs_twice_is_found() -> None:
    one, other = ("a.py", "class Payment: ...\nclass _Own: ..."), ("b.py", "class Payment: ...\nclass _Own: ...")
    assert twice([one, other]) == {"Payment": ["a.py", "b.py"]}
