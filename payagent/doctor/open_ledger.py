"""Opens the ledger read-only for checks, and turns every error of the file into a refusal.

May import: core, store.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from payagent.core.problems import Refused
from payagent.store.db.opening import require_ledger
from payagent.store.db.readers import Readers
from payagent.store.db.unit import Connection


@contextmanager
def opened(path: Path) -> Iterator[Connection]:
    """A read-only connection. Raises `ledger_missing`, `ledger_newer` or `store_failed`."""
    require_ledger(path)
    try:
        with closing(Readers(path).conn) as conn:
            yield conn
    except Refused:
        raise
    except Exception as error:  # noqa: BLE001  whatever SQLite raises: only the store imports SQLite
        raise Refused("store_failed", f"{path} cannot be read: {error}") from None
