"""Names: no public class name occurs twice, and no identifier has a word that the glossary replaces."""

import ast
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from payagent.store.db.schema import bring_up_to_date

ROOT = Path(__file__).parents[2]


def class_names(sources: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Which files define each public class; `sources` are file names with their text."""
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


def test_a_class_name_that_occurs_twice_is_found() -> None:
    one, other = ("a.py", "class Payment: ...\nclass _Own: ..."), ("b.py", "class Payment: ...\nclass _Own: ...")
    assert twice([one, other]) == {"Payment": ["a.py", "b.py"]}


REPLACED = {
    "anchor": "nonce_utxo",
    "carrying": "lifecycle",
    "clerk": "payer",
    "coin": "utxo",
    "coins": "utxos",
    "crumbs": "dust",
    "desk": "context",
    "errand": "request",
    "everybody": "all_apps",
    "filed": "from_file",
    "flights": "single_flight",
    "foreign": "external_spend",
    "hearing": "provider_selection",
    "panel": "quorum",
    "purse": "free_utxos",
    "reception": "intake",
    "rulebook": "rules",
    "sightings": "block_observations",
    "stock": "utxo_pool",
    "stocktaking": "utxo_list",
    "strikes": "unserved_streak",
    "thaw": "unfreeze",
    "trip": "exchange",
    "turnstile": "rate_limiter",
    "vanished": "rolled_back",
    "wish": "goal",
}
"""Words that the glossary in ARCHITECTURE.md replaces, each with its new word."""

PROTOCOL_NAMES = {"coins_per_byte", "coins_per_utxo_byte"}
"""Names of Cardano protocol parameters."""


def words_of(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)}


def identifiers(text: str) -> set[str]:
    """Every name that a module defines or uses: variables, parameters, attributes, functions and classes."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.alias(name=name):
                found.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
    return found


def replaced_words(names: Iterable[str]) -> dict[str, set[str]]:
    return {
        name: hit for name in names if name not in PROTOCOL_NAMES and (hit := words_of(name) & REPLACED.keys())
    }


def test_no_identifier_has_a_word_that_the_glossary_replaces() -> None:
    """The devnet is another party with its own names. Fields of API bodies are identifiers too."""
    for path in sorted((ROOT / "payagent").rglob("*.py")):
        if path.relative_to(ROOT / "payagent").parts[0] != "devnet":
            assert replaced_words(identifiers(path.read_text())) == {}, path.relative_to(ROOT)


def test_no_table_or_column_has_a_word_that_the_glossary_replaces() -> None:
    with closing(sqlite3.connect(":memory:")) as conn:
        bring_up_to_date(conn)
        tables = [
            name for (name,) in conn.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
        ]
        columns = [row[1] for table in tables for row in conn.execute(f"PRAGMA table_info({table})")]
    assert replaced_words([*tables, *columns]) == {}


def test_a_replaced_word_is_found() -> None:
    assert replaced_words(identifiers("class Purse:\n    def take_coins(self, errand): ...")) == {
        "Purse": {"purse"}, "take_coins": {"coins"}, "errand": {"errand"}
    }  # fmt: skip
