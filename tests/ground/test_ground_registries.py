"""What a registry lists is named there alone: every other module asks the objects.

A chain provider's module has its class and the name of its kind, and `chain/open.py` lists it. A dialect is named
in `dialects`. What stays allowed, and why:

- `devnet` plays other parties, a chain with a provider's API and merchants, so it names what it plays. It shares
  no code with `dialects` or `chain`, or a mistake of one would hide in the other.
- `cli/init_questions.py` offers the T Backend as a preset: there the word names that merchant.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from payagent.chain.open import KINDS
from payagent.dialects import DIALECTS

PACKAGE = Path(__file__).parents[2] / "payagent"
NAMES = {dialect.name for dialect in DIALECTS}
MODULES = {
    "dialects": {path.stem for path in (PACKAGE / "dialects").glob("*.py") if "DIALECT = " in path.read_text()},
    "chain": {kind.make.__module__.split(".")[-1] for kind in KINDS.values()},
}
MAY_NAME = {
    "dialects": ("dialects/",),
    "chain": ("chain/open.py",),
    "a dialect's name": ("dialects/", "devnet/", "cli/init_questions.py"),
    "a provider's kind": ("chain/", "devnet/"),
}
KIND = re.compile("|".join(map(re.escape, KINDS)), re.IGNORECASE)


def named(source: str, file: str) -> Iterator[str]:
    """What a module names that only a registry may."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        else:
            is_dialect = isinstance(node, ast.Constant) and node.value in NAMES
            is_kind = isinstance(node, ast.Constant) and node.value in KINDS
            if isinstance(node, ast.Name | ast.FunctionDef | ast.ClassDef):
                is_kind = bool(KIND.search(node.id if isinstance(node, ast.Name) else node.name))
            if is_dialect and not file.startswith(MAY_NAME["a dialect's name"]):
                yield f"{file}: {ast.unparse(node)}"
            if is_kind and not file.startswith(MAY_NAME["a provider's kind"]):
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
        ("is_timed = row.invoice.dialect in ('x402-v1', 'x402-v2')", "client/retry.py"),
        ("from payagent.dialects import t_backend", "audit/receipt.py"),
        ("from payagent.dialects.x402_v2 import NAME", "agent/base/payment_view.py"),
        ("from payagent.chain.blockfrost import Blockfrost", "daemon/compose.py"),
        ("from payagent.chain import blockfrost", "doctor/chain.py"),
        ("import payagent.chain.blockfrost", "chain/quorum.py"),
        ("kind: Literal['blockfrost']", "settings/schema.py"),
        ("is_without = is_blockfrost(provider.base_url)", "doctor/chain.py"),
        ("def is_blockfrost(url): ...", "core/origin.py"),
        ("url = BLOCKFROST_URLS[network]", "cli/init_questions.py"),
    ],
)
def test_a_line_that_names_one_is_found(line: str, file: str) -> None:
    assert list(named(line, file))
