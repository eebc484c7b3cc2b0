"""The disk under the ledger: a real SQLite file, of which a death leaves only the synced part.

With `synchronous = FULL` a commit is synced when it returns. With a lower setting it is not, and a death removes
it. Data written after the last sync may remain in part or as garbage, which SQLite must detect by its checksums.

Never: lets a process read what another's death removed.
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
    """`path` is the ledger of the running daemon, `signed` the content of the signer's record."""

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
        """Checkpoint the WAL now and never while the process lives, so that the WAL's length tells what is synced.

        The exclusive lock saves a lock per read; no one else opens the file.
        """
        conn.execute("PRAGMA wal_autocheckpoint = 0")
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        conn.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._is_synced = conn.execute("PRAGMA synchronous").fetchone()[0] >= _FULL
        self._synced_bytes = self._size()

    def committed(self) -> bool:
        """Note that a commit returned. Returns whether it was synced."""
        if self._is_synced:
            self._synced_bytes = self._size()
        return self._is_synced

    @property
    def leased(self) -> tuple[str, ...]:
        """The files that a daemon leases with its folder."""
        return (self.path.name, KEYSTORE)

    def take_over(self, conn: Connection) -> None:
        """Take the ledger over as a daemon that no lock stops: on another machine, or after a suspend."""
        conn.execute("UPDATE boot SET epoch = 'another daemon'")
        self.committed()

    def fill_up(self, conn: Connection) -> None:
        """From now on no page can be added."""
        (pages,) = conn.execute("PRAGMA page_count").fetchone()
        conn.execute(f"PRAGMA max_page_count = {pages}")

    def make_room(self, conn: Connection) -> None:
        conn.execute(f"PRAGMA max_page_count = {_PAGES_UNBOUNDED}")

    def die(self, rng: Random, *, torn: bool) -> None:
        """Move the surviving bytes to a new name. The dead process keeps the old one."""
        size_bytes, left_bytes, garbage = self._size(), self._synced_bytes, b""
        if torn:
            lost_bytes = size_bytes - left_bytes
            left_bytes += rng.randrange(lost_bytes + 1) if lost_bytes else 0
            garbage = rng.randbytes(rng.randrange(1, 600))
        self._generation += 1
        dead, dead_log, self.path = self.path, self._wal, self.folder / f"{self._generation}.db"
        # a dead connection checkpoints its WAL when it is closed, but not once the file's name is gone
        dead.rename(self.path)
        if size_bytes:
            dead_log.rename(self._wal)
        with self._wal.open("ab") as log:
            log.truncate(left_bytes)
            log.write(garbage)

    def copy(self) -> None:
        """Copy the ledger as an operator might: the file and its synced WAL, and nothing beside it."""
        shutil.copyfile(self.path, self._copy)
        log = self._wal.read_bytes() if self._size() else b""
        self._log_of(self._copy).write_bytes(log[: self._synced_bytes])

    def put_back(self) -> None:
        """Put the copy in the place of the ledger that the last death left."""
        self._generation += 1
        self.path.unlink()
        self._wal.unlink(missing_ok=True)
        self.path = self.folder / f"{self._generation}.db"
        self._copy.rename(self.path)
        self._log_of(self._copy).rename(self._wal)

    def _size(self) -> int:
        try:
            return os.stat(f"{self.path}-wal").st_size  # noqa: PTH116  called after each commit
        except FileNotFoundError:
            return 0
