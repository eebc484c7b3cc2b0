"""One daemon for a data folder, a ledger and a keystore, by whatever path it reaches them.

The kernel's locks are on the files themselves, so that a link or another mount of them is no way around, and go
with the process, however it ends. SQLite's own locks are of another kind and not touched: but closing a file ends
all locks of that other kind that the process has on it, so these stay open until everything else is closed.

May import: core. Never: reads or writes the files; waits for a lock.
"""

import fcntl
import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from payagent.core.problems import Refused

SHARED_KINDS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "glusterfs"})
"""File systems that another machine may have mounted too: its locks are not seen here, or not at once."""

MOUNTS = Path("/proc/self/mountinfo")


@contextmanager
def lease(data_dir: Path, files: tuple[str, ...]) -> Generator[None]:
    """Hold the folder's lock and those of its files that are there.

    Refused: `already_running`; `config_invalid` for a folder where a lock proves nothing; `store_failed` where it
    cannot be had, on a disk that is read-only, say.
    """
    require_local(data_dir)
    with ExitStack() as held:
        for name in ("lock", *files):
            # not blocking: what is a pipe where a file ought to be is for others to refuse
            flags = os.O_RDWR | os.O_CREAT if name == "lock" else os.O_RDONLY | os.O_NONBLOCK
            try:
                handle = os.open(data_dir / name, flags | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise Refused("store_failed", f"{data_dir / name} cannot be opened: {error.strerror}") from None
            held.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused("already_running", f"another payagent runs on {data_dir / name}") from None
        yield


def require_local(folder: Path, mounts: Path = MOUNTS) -> None:
    """Refuse (`config_invalid`) a folder on a file system that other machines may write too."""
    kind = _kind_of(folder, mounts)
    if kind in SHARED_KINDS or kind.startswith("fuse."):
        raise Refused(
            "config_invalid",
            f"{folder} is on a file system of kind {kind}, where a lock keeps no other machine away: "
            "move data_dir to a local disk",
        )


def _kind_of(folder: Path, mounts: Path) -> str:
    """What the kernel calls the file system that a folder is on; "" where it does not tell."""
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.read_text(errors="replace").splitlines():
        if f" {wanted} " not in line:
            continue
        mount, _, kind = line.partition(" - ")
        if mount.split(" ")[2:3] == [wanted]:
            return kind.split(" ")[0]
    return ""
