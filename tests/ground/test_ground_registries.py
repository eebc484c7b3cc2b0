"""What a registry lists is named there alone: every other module asks the objects.

A chain provider's module, which has its class, is imported in `chain/open.py`. A dialect is named in `dialects`.
Its name is also a word of other things: of the devnet's merchants, which are another party's code, and of a preset
of `init`.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from payagent.chain.open import KINDS
from payagent.dialects import DIALECTS

PACKAGE = Path(__file__).parents[2] / "payagent"
NAMES = {dialect.name for dialect in DIALECTS}
MODULES = {
    "dialects": {path.stem for path in (PACKAGE / "dialects").glob("*.py") if "DIALECT = " in path.read_text()},
    "chain": {make.__module__.split(".")[-1] for make in KINDS.values()},
}
MAY_NAME = {
    "dialects": ("dialects/",),
    "chain": ("chain/open.py",),
    "a dialect's name": ("dialects/", "devnet/", "demo/", "cli/init_questions.py"),
}


def named(source: str, file: str) -> Iterator[str]:
    """What a module names that only a registry may."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        else:
            is_name = isinstance(node, ast.Constant) and node.value in NAMES
            if is_name and not file.startswith(MAY_NAME["a dialect's name"]):
                yield f"{file}: {ast.unparse(node)}"
            continue
        for room, modules in MODULES.items():
            for path in paths:
                parts = path.split(".")
                is_listed = parts[:2] == ["payagent", room] and len(parts) > 2 and parts[2] in modules
                if is_listed and not file.startswith(MAY_NAME[room]):
                    yield f"{file}: {path}"


def test_no_module_but_a_registry_names_what_it_lists() -> None:
    assert len(MODULES["dialects"]) == len(DIALECTS)
    files = sorted(PACKAGE.rglob("*.py"))
    found = [name for path in files for name in named(path.read_text(), str(path.relative_to(PACKAGE)))]
    assert found == []


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("is_timed = row.invoice.dialect == 'flux'", "agent/pay/admission.py"),
        ("is_timed = row.invoice.dialect in ('x402-v1', 'x402-v2')", "client/present_proof.py"),
        ("from payagent.dialects import t_backend", "audit/receipt.py"),
        ("from payagent.dialects.x402_v2 import NAME", "agent/base/payment_view.py"),
        ("from payagent.chain.blockfrost import Blockfrost", "daemon.py"),
        ("from payagent.chain import blockfrost", "doctor/chain.py"),
        ("import payagent.chain.blockfrost", "chain/quorum.py"),
    ],
)
def test_a_line_that_names_one_is_found(line: str, file: str) -> None:
    assert list(named(line, file))
