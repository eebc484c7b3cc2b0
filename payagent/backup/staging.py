"""Where files are made before they are whole, and how they come to stand where they belong: whole, or not at all.

May import: core, the standard library. Never: overwrites a file; leaves half a file under its name.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from payagent.core.problems import Refused


@contextmanager
def writing() -> Iterator[None]:
    """What the disk says to a file of a backup, told as `backup_not_written`."""
    try:
        yield
    except OSError as error:
        raise Refused(
            "backup_not_written", f"{error.filename or 'a file'} cannot be written: {error.strerror}"
        ) from None


@contextmanager
def workshop(folder: Path) -> Iterator[Path]:
    """A private folder to make files in, gone at the end; what a killed process left in it goes first.

    The lock is the kernel's, so a second command in the same place is refused, and a dead one keeps nobody out.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise Refused("file_exists", f"{folder} is there already, and is not this command's own")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused("file_exists", f"another command is at work in {folder}") from None
        _empty(folder)
        try:
            yield folder
        finally:
            _empty(folder)
            folder.rmdir()
    finally:
        os.close(handle)


def put(made: Path, target: Path) -> None:
    """Move a finished file to its name, if nothing has that name; `sync_folder` makes it durable.

    The name is claimed by an empty file that the rename replaces: a hard link is not known to every file system.
    """
    try:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise Refused("file_exists", f"{target} is there already") from None
    try:
        made.rename(target)
    except BaseException:
        target.unlink()
        raise


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
