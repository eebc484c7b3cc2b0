"""Planted secrets: a test that uses one fails if it shows up in what it printed, logged or wrote.

`plant` a secret where a test makes one. tests/conftest.py checks after each test, and once at the end.

Apps' tokens are planted by the thousand, so text of their form is looked up. Searching everything a test wrote for
each token took minutes.
"""

import re
from collections.abc import Iterator, Set
from pathlib import Path

_TOKEN = re.compile(rb"pa_[A-Za-z0-9_-]{43}")
_BEGIN, _TOKEN_BYTES = b"pa_", 46
_TOKENS: dict[bytes, str] = {}
_OTHERS: dict[bytes, str] = {}
_LONGEST_OF_ITS_OWN = 10_000


def plant(name: str, secret: str) -> str:
    """Watch for a secret from now on and return it. A report calls it `name`."""
    planted = secret.encode()
    kept = _TOKENS if _TOKEN.fullmatch(planted) else _OTHERS
    kept[planted] = name
    return secret


def found_in(text: str) -> list[str]:
    """Names of the planted secrets that a text holds."""
    return sorted(set(_inside(text.encode(errors="replace")).values()))


def found_in_files(folder: Path, but: Set[Path] = frozenset()) -> list[str]:
    """Files below a folder that hold a planted secret among other things, each with what it holds.

    A file that holds only the secret is its proper place. The folders in `but` are left out.
    """
    roots = [path for path in folder.iterdir() if path not in but] if but else [folder]
    files = (path for root in roots for path in _files(root))
    return sorted(f"{path}: {', '.join(names)}" for path in files if (names := _names_in(path)))


def _files(folder: Path) -> Iterator[Path]:
    for path in (folder, *folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path


def _names_in(path: Path) -> list[str]:
    content = path.read_bytes()
    inside = _inside(content)
    is_place = len(content) < _LONGEST_OF_ITS_OWN and content.strip() in inside
    return [] if is_place else sorted(set(inside.values()))


def _inside(content: bytes) -> dict[bytes, str]:
    """The planted secrets in it, with their names."""
    others = {secret: name for secret, name in _OTHERS.items() if secret in content}
    return others | {token: _TOKENS[token] for token in _tokens_in(content)}


def _tokens_in(content: bytes) -> Iterator[bytes]:
    at = content.find(_BEGIN)
    while at >= 0:
        if (token := content[at : at + _TOKEN_BYTES]) in _TOKENS:
            yield token
        at = content.find(_BEGIN, at + 1)
