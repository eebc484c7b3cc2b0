"""Planted secrets: a test that uses one fails if it shows up in what it printed, logged or wrote.

`plant` a secret where a test makes one. tests/conftest.py looks after each test, and once more at the end.
"""

from collections.abc import Iterator, Set
from pathlib import Path

_PLANTED: dict[str, str] = {}
_LONGEST_OF_ITS_OWN = 10_000


def plant(name: str, secret: str) -> str:
    """Watch for a secret from now on; gives it back. `name` is what a report calls it."""
    _PLANTED[secret] = name
    return secret


def found_in(text: str) -> list[str]:
    """Names of the planted secrets that a text holds."""
    return sorted({name for secret, name in _PLANTED.items() if secret in text})


def found_in_files(folder: Path, but: Set[Path] = frozenset()) -> list[str]:
    """Files below a folder that hold a planted secret among other things, each with what it holds.

    A file that holds one and nothing else is where it lies. Of the folder's own folders `but` are left out.
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
    inside = {secret: name for secret, name in _PLANTED.items() if secret.encode() in content}
    is_place = len(content) < _LONGEST_OF_ITS_OWN and content.strip() in {secret.encode() for secret in inside}
    return [] if is_place else sorted(set(inside.values()))
