"""The disk under the ledger: a real SQLite file, of which a death leaves what had been synced.

With `synchronous = FULL` a commit has been synced when it returns; with less it has not, and a death takes it.
What was written after the last sync may be there in part, or as garbage: SQLite must see that by its checksums.
May import: the standard library, store.db. Never: lets a process read what another's death took.
"""

import os
import shutil
from pathlib import Path
from random import Random

from payagent.store.db.signer_record import LastSigned
from payagent.store.db.unit import Connection

KEYSTORE = "keystore.json"
_FULL = 2
_PAGES_UNBOUNDED = 2**31


class Disk:
    """`path` is the ledger of the life that is running; `signed` what the signer's record says."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.folder = folder
        self._generation = 0
        self.signed: LastSigned | None = None
        self._synced_bytes = 0
        self._is_synced = True
        self.path = folder / "0.db"
        self._copy = folder / "copy.db"
        shutil.copyfile(template, self.path)
        (folder / KEYSTORE).touch()

    @property
    def _wal(self) -> Path:
        return self._log_of(self.path)

    @staticmethod
    def _log_of(path: Path) -> Path:
        return path.with_name(path.name + "-wal")

    def attach(self, conn: Connection) -> None:
        """The log is folded into the file now, and not while the process lives: its length tells what is synced.

        Nobody else opens the file meanwhile, so that nothing need be locked for each read.
        """
        conn.execute("PRAGMA wal_autocheckpoint = 0")
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        conn.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._is_synced = conn.execute("PRAGMA synchronous").fetchone()[0] >= _FULL
        self._synced_bytes = self._size()

    def committed(self) -> bool:
        """A commit returned: whether it was synced."""
        if self._is_synced:
            self._synced_bytes = self._size()
        return self._is_synced

    @property
    def leased(self) -> tuple[str, ...]:
        """The files that a daemon leases with its folder."""
        return (self.path.name, KEYSTORE)

    def take_over(self, conn: Connection) -> None:
        """As another daemon would that no lock keeps away: one on another machine, or while this one slept."""
        conn.execute("UPDATE boot SET epoch = 'another daemon'")
        self.committed()

    def fill_up(self, conn: Connection) -> None:
        """From now on no page can be added."""
        (pages,) = conn.execute("PRAGMA page_count").fetchone()
        conn.execute(f"PRAGMA max_page_count = {pages}")

    def make_room(self, conn: Connection) -> None:
        conn.execute(f"PRAGMA max_page_count = {_PAGES_UNBOUNDED}")

    def die(self, rng: Random, *, torn: bool) -> None:
        """What is left goes on under another name; the old one belongs to the dead."""
        size_bytes, left_bytes, garbage = self._size(), self._synced_bytes, b""
        if torn:
            lost_bytes = size_bytes - left_bytes
            left_bytes += rng.randrange(lost_bytes + 1) if lost_bytes else 0
            garbage = rng.randbytes(rng.randrange(1, 600))
        self._generation += 1
        dead, dead_log, self.path = self.path, self._wal, self.folder / f"{self._generation}.db"
        # by its name the dead would fold its log into the file when it is closed; where that is gone, it does not
        dead.rename(self.path)
        if size_bytes:
            dead_log.rename(self._wal)
        with self._wal.open("ab") as log:
            log.truncate(left_bytes)
            log.write(garbage)

    def copy(self) -> None:
        """What an operator keeps of the ledger, by the file, and nothing of what is beside it."""
        shutil.copyfile(self.path, self._copy)
        log = self._wal.read_bytes() if self._size() else b""
        self._log_of(self._copy).write_bytes(log[: self._synced_bytes])

    def put_back(self) -> None:
        """The copy takes the place of what the last death left."""
        self._generation += 1
        self.path.unlink()
        self._wal.unlink(missing_ok=True)
        self.path = self.folder / f"{self._generation}.db"
        self._copy.rename(self.path)
        self._log_of(self._copy).rename(self._wal)

    def _size(self) -> int:
        try:
            return os.stat(f"{self.path}-wal").st_size  # noqa: PTH116  it is asked after each commit
        except FileNotFoundError:
            return 0
