"""Ledgers of many payments, as `scripts/make_ledger` makes them, kept in `.bench` since a million takes long.

What is kept goes by what made it: the schema and the script. May import: payagent, scripts/make_ledger. Never:
changes a ledger that is kept; who measures takes a copy.
"""

import hashlib
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from payagent.store.db import schema

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / ".bench"
MAKER = ROOT / "scripts" / "make_ledger"


def settled(count: int) -> Path:
    """A ledger of so many settled payments; not to be written."""
    path = _path(f"settled-{count}")
    if not path.exists():
        _make(path, lambda new: subprocess.run([sys.executable, MAKER, new, str(count)], check=True))
    return path


def in_flight(refs: Sequence[tuple[str, int]]) -> Path:
    """A ledger of payments in flight, eight for each of these coins (transaction, index); not to be written."""
    path = _path(f"open-{hashlib.sha256(repr(refs).encode()).hexdigest()[:12]}-{len(refs)}")
    if not path.exists():
        _make(path, lambda new: maker()["make"](new, 0, refs))
    return path


def maker() -> dict[str, Any]:
    """The names of the script."""
    return runpy.run_path(str(MAKER), run_name="make_ledger")


def copied(ledger: Path, folder: Path) -> Path:
    """One that may be written."""
    return Path(shutil.copyfile(ledger, folder / ledger.name))


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that is gone afterwards, on the disk of the kept ledgers: a commit has to reach one."""
    KEPT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=KEPT, prefix="run-") as name:
        yield Path(name)


def _path(name: str) -> Path:
    made_by = hashlib.sha256(schema.tables_now().encode() + MAKER.read_bytes()).hexdigest()[:12]
    return KEPT / f"{made_by}-{name}.db"


def _make(path: Path, make: Any) -> None:
    with folder() as new:
        make(new / path.name)
        shutil.move(new / path.name, path)
