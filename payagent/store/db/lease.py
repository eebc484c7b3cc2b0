"""Ensures that one daemon at a time uses a data folder, a ledger and a keystore, by whatever path it opens them.

The kernel locks (flock) are on the files themselves, so a link or a second mount cannot bypass them. The kernel
releases them when the process ends.
SQLite uses POSIX locks, which are independent. But closing a file drops all POSIX locks that the process has on
it, so these handles stay open until everything else is closed.

Never: reads or writes the files; waits for another daemon.
"""

import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from payagent.core.problems import Refused

SHARED_KINDS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "glusterfs"})
"""File systems that other machines may have mounted too: their locks are not visible here, or only after a delay.
"""

LOCK_FILE = "lock"
"""It is made once and never replaced."""

MOUNTS = Path("/proc/self/mountinfo")


_TRIES = 40
_PAUSE_S = 0.05


@contextmanager
def lease(data_dir: Path, files: tuple[str, ...]) -> Generator[dict[str, int]]:
    """Hold the lock of the folder, and of each of its `files` that exists.

    Yields the open files by name. Whoever takes one out keeps its lock, and closes it.
    Refused: `already_running`; `config_invalid` for a file system where a lock does not exclude other machines;
    `store_failed` if a lock file cannot be opened, for example on a read-only disk.
    """
    require_local(data_dir)
    held: dict[str, int] = {}
    try:
        for name in (LOCK_FILE, *files):
            # non-blocking: a pipe in place of a file must not block here; another check refuses it
            flags = os.O_RDWR | os.O_CREAT if name == LOCK_FILE else os.O_RDONLY | os.O_NONBLOCK
            try:
                held[name] = os.open(data_dir / name, flags | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise Refused("store_failed", f"{data_dir / name} cannot be opened: {error.strerror}") from None
            _lock(held[name], data_dir / name)
        yield held
    finally:
        for handle in held.values():
            os.close(handle)


def _lock(handle: int, path: Path) -> None:
    """Lock a file. The launcher of a killed daemon's signer has the keystore's lock until it has ended too."""
    for left in reversed(range(1 if path.name == LOCK_FILE else _TRIES)):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not left:
                raise Refused("already_running", f"another payagent runs on {path}") from None
        time.sleep(_PAUSE_S)


def require_local(folder: Path, mounts: Path = MOUNTS) -> None:
    """Refuse (`config_invalid`) a folder on a file system that other machines may write to."""
    kind = _kind_of(folder, mounts)
    if kind in SHARED_KINDS or kind.startswith("fuse."):
        raise Refused(
            "config_invalid",
            f"{folder} is on a file system of kind {kind}, where a lock does not stop other machines: "
            "move data_dir to a local disk",
        )


def _kind_of(folder: Path, mounts: Path) -> str:
    """The kernel's name for the folder's file system; "" if it is not listed."""
    device = folder.stat().st_dev
    device_numbers = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.read_text(errors="replace").splitlines():
        if f" {device_numbers} " not in line:
            continue
        mount, _, kind = line.partition(" - ")
        if mount.split(" ")[2:3] == [device_numbers]:
            return kind.split(" ")[0]
    return ""
