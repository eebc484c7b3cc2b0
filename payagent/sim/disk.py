"""The disk under the ledger: a real SQLite file, of which a death leaves what had been synced.

With `synchronous = FULL` a commit has been synced when it returns; with less it has not, and a death takes it.
What was written after the last sync may be there in part, or as garbage: SQLite must see that by its checksums.
May import: the standard library, store.writer. Never: lets a process read what another process's death took.
"""

import shutil
from pathlib import Path
from random import Random

from payagent.store.signer import Signed
from payagent.store.writer import Connection

_FULL = 2
_PAGES_UNBOUNDED = 2**31


class Disk:
    """`path` is the ledger of the life that is running; `signed` what the signer's record says."""

    def __init__(self, folder: Path, template: Path) -> None:
        self._folder = folder
        self._generation = 0
        self.signed: Signed | None = None
        self._synced_bytes = 0
        self.path = folder / "0.db"
        shutil.copyfile(template, self.path)

    @property
    def _wal(self) -> Path:
        return self.path.with_name(self.path.name + "-wal")

    def attach(self, conn: Connection) -> None:
        """The log is never folded into the file while a process lives, so that its length tells what is synced."""
        conn.execute("PRAGMA wal_autocheckpoint = 0")
        self._synced_bytes = self._size()

    def committed(self, conn: Connection) -> bool:
        """A commit returned: whether it was synced."""
        is_synced = bool(conn.execute("PRAGMA synchronous").fetchone()[0] >= _FULL)
        if is_synced:
            self._synced_bytes = self._size()
        return is_synced

    def fill_up(self, conn: Connection) -> None:
        """From now on no page can be added."""
        (pages,) = conn.execute("PRAGMA page_count").fetchone()
        conn.execute(f"PRAGMA max_page_count = {pages}")

    def make_room(self, conn: Connection) -> None:
        conn.execute(f"PRAGMA max_page_count = {_PAGES_UNBOUNDED}")

    def die(self, rng: Random, *, torn: bool) -> None:
        """What is left goes on under another name; the old one belongs to the dead."""
        log = self._wal.read_bytes() if self._wal.exists() else b""
        left = log[: self._synced_bytes]
        if torn:
            lost = log[self._synced_bytes :]
            left += lost[: rng.randrange(len(lost) + 1)] if lost else b""
            left += rng.randbytes(rng.randrange(1, 600))
        self._generation += 1
        dead, self.path = self.path, self._folder / f"{self._generation}.db"
        shutil.copyfile(dead, self.path)
        self._wal.write_bytes(left)

    def _size(self) -> int:
        return self._wal.stat().st_size if self._wal.exists() else 0
