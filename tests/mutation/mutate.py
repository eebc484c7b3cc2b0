"""Change one thing at a time in a module and see whether its tests notice: `python tests/mutation/mutate.py`.

Each mutant runs the tests of `SUBJECTS` in a process of its own; the first test that fails kills it, and so does
more than a minute of processor time. What no test notices is told with its line.
"""

import argparse
import ast
import contextlib
import copy
import importlib
import io
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[2]
SUBJECTS = {
    "payagent.core.policy": ["tests/core/test_core_policy.py"],
    "payagent.core.payment.machine": ["tests/core/test_core_payment.py"],
}
CPU_S = 60
QUIET = ["-c", os.devnull, "--rootdir", str(ROOT), "-p", "_hypothesis_pytestplugin"]
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}  # fmt: skip
NAMES = {"min": "max", "max": "min"}


class Members(ast.NodeVisitor):
    """The members of each enumeration of a module, in order."""

    def __init__(self) -> None:
        self.of: dict[str, list[str]] = {}

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        names = [line.targets[0].id for line in node.body if isinstance(line, ast.Assign)]  # type: ignore[attr-defined]
        self.of[node.name] = names


def others(node: ast.AST, members: dict[str, list[str]]) -> Iterator[ast.AST]:
    """Each thing that may stand in the place of a node."""
    if type(node) in SWAPS:
        yield SWAPS[type(node)]()
    elif isinstance(node, ast.Constant):
        yield from constants(node.value)
    elif isinstance(node, ast.If | ast.IfExp):
        yield changed(node, test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Return) and not isinstance(node.value, ast.Constant | None):
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Name) and node.id in NAMES:
        yield ast.Name(NAMES[node.id], node.ctx)
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in members:
        known = members[node.value.id]
        yield changed(node, attr=known[(known.index(node.attr) + 1) % len(known)])
    elif isinstance(node, ast.Dict):
        for at in range(len(node.keys)):
            fresh = changed(node, keys=without(node.keys, at), values=without(node.values, at))
            fresh.told = f"without {told(node.keys[at])}"  # type: ignore[attr-defined]
            yield fresh
    elif isinstance(node, ast.Set | ast.Tuple | ast.List) and isinstance(
        getattr(node, "ctx", None), ast.Load | None
    ):
        yield from (
            changed(node, elts=without(node.elts, at)) for at in range(len(node.elts)) if len(node.elts) > 1
        )
    elif isinstance(node, ast.comprehension):
        yield from (changed(node, ifs=without(node.ifs, at)) for at in range(len(node.ifs)))
    elif isinstance(node, ast.AugAssign):
        yield ast.Pass()
    elif isinstance(node, ast.Call):
        yield from (changed(node, keywords=without(node.keywords, at)) for at in range(len(node.keywords)))


def constants(value: object) -> Iterator[ast.AST]:
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant(value + 1)
    elif isinstance(value, str):
        yield ast.Constant(value + "XX")


def without(items: list[ast.AST], at: int) -> list[ast.AST]:
    return [*items[:at], *items[at + 1 :]]


def changed(node: ast.AST, **fields: object) -> ast.AST:
    fresh = copy.copy(node)
    for name, value in fields.items():
        setattr(fresh, name, value)
    return fresh


def places(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Every node that may be another, with where it stands; not what is said of types, nor docstrings."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for at, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            is_docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            if is_docstring or not isinstance(child, ast.AST):
                continue
            yield node, name, at, child
            yield from places(child)


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """The line, what it said, and the whole source with that one thing another."""
    tree = ast.parse(source)
    members = Members()
    members.visit(tree)
    lines = source.splitlines()
    line = 0
    for parent, name, at, child in places(tree):
        line = getattr(child, "lineno", line)
        is_row = name == "keys" and isinstance(child, ast.Tuple)  # that it is gone is a mutant of its table
        for other in () if is_row else others(child, members.of):
            put(parent, name, at, other)
            with contextlib.suppress(ValueError):
                now = ast.unparse(ast.fix_missing_locations(tree))
                yield line, f"{lines[line - 1].strip()}  [{told(child)} -> {told(other)}]", now
            put(parent, name, at, child)


def put(parent: ast.AST, name: str, at: int | None, node: ast.AST) -> None:
    if at is None:
        setattr(parent, name, node)
    else:
        getattr(parent, name)[at] = node


def told(node: ast.AST) -> str:
    if hasattr(node, "told"):
        return str(node.told)
    if isinstance(node, ast.expr | ast.stmt | ast.comprehension):
        return " ".join(ast.unparse(node).split())[:60]
    return type(node).__name__


def is_killed(name: str, source: str, tests: list[str]) -> bool:
    """Whether the tests fail over that source; in a fork, in which the module was not imported yet."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] != 0
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    out = os.open(os.devnull, os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    status = 1
    try:
        module = ModuleType(name)
        sys.modules[name] = module
        exec(compile(source, f"{name}.py", "exec"), module.__dict__)
        package, _, last = name.rpartition(".")
        setattr(importlib.import_module(package), last, module)
        options = ["-x", "-q", "--noconftest", "-p", "no:cacheprovider", "--hypothesis-seed=0", *QUIET]
        with contextlib.redirect_stdout(io.StringIO()):
            status = int(pytest.main([*options, *tests]))
    finally:
        os._exit(status)


def judge(name: str, tests: list[str]) -> tuple[int, list[str]]:
    """How many mutants there were, and those that no test noticed."""
    path = ROOT / (name.replace(".", "/") + ".py")
    source = path.read_text()
    if is_killed(name, source, tests):
        sys.exit(f"the tests of {name} fail as it is")
    survivors, count = [], 0
    for line, what, mutated in mutants(source):
        count += 1
        if not is_killed(name, mutated, tests):
            survivors.append(f"{path.relative_to(ROOT)}:{line}: {what}")
            print(survivors[-1], flush=True)
    return count, survivors


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", default=list(SUBJECTS))
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT)]
    print("with hypothesis", hypothesis.__version__, "and pytest", pytest.__version__)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for name in parser.parse_args().modules:
        began_s = time.monotonic()
        count, survivors = judge(name, SUBJECTS[name])
        killed = count - len(survivors)
        took_s = time.monotonic() - began_s
        print(f"{name}: {count} mutants, {killed} killed ({100 * killed / count:.1f} %), {took_s:.0f} s")


if __name__ == "__main__":
    main()
