"""An empty ledger as a file. The migrations that make one take 50 ms, so each process runs them once."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from payagent.store.db.writer import Writer


def lay_ledger(path: Path) -> None:
    """Put an empty ledger there, unless there is one."""
    if not path.exists():
        path.write_bytes(_empty())


@cache
def _empty() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder, "ledger.db")
        Writer(path).close()
        return path.read_bytes()
