"""Code blocks of the documentation, for tests that run them, and the script that makes pages from the code."""

import importlib.machinery
import importlib.util
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def blocks(heading: str, page: str = "README.md", language: str = "sh") -> list[str]:
    """The code blocks under a heading, without indentation. A page's title covers the whole page."""
    section = re.search(rf"^(##?) {re.escape(heading)}$(.*?)(?:^\1 |\Z)", (ROOT / page).read_text(), re.M | re.S)
    assert section is not None
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", section[2], re.M | re.S)
    return ["".join(line.removeprefix(indent) + "\n" for line in text.splitlines()) for indent, text in found]


def docs_script() -> ModuleType:
    """The module `scripts/docs`."""
    loader = importlib.machinery.SourceFileLoader("payagent_docs", str(ROOT / "scripts/docs"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
