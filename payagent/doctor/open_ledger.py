"""The ledger, opened to be looked at: read-only, and whatever is wrong with the file is a refusal.

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
    """A connection that cannot write. Refused: `ledger_missing`, `ledger_newer`, `store_failed`."""
    require_ledger(path)
    try:
        with closing(Readers(path).conn) as conn:
            yield conn
    except Refused:
        raise
    except Exception as error:  # noqa: BLE001  whatever SQLite raises: the store is its only home
        raise Refused("store_failed", f"{path} cannot be read: {error}") from None
