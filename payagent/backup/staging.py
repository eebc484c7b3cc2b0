"""Builds files in a private folder and moves them into place when they are complete.

Never: overwrites a file; leaves a partial file under its final name.
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
    """Turn disk errors while a backup or restore writes into `write_failed/backup`."""
    try:
        yield
    except OSError as error:
        raise Refused(
            "write_failed/backup", f"{error.filename or 'a file'} cannot be written: {error.strerror}"
        ) from None


@contextmanager
def workshop(folder: Path) -> Iterator[Path]:
    """A private working folder, removed at the end. Leftovers of a killed process are removed first.

    The kernel holds the lock, so a second command in the same place is refused and a dead command blocks none.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise Refused("already_exists/file", f"{folder} exists already, and belongs to something else")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused("already_exists/file", f"another command is working in {folder}") from None
        _empty(folder)
        try:
            yield folder
        finally:
            _empty(folder)
            folder.rmdir()
    finally:
        os.close(handle)


def put(source: Path, target: Path) -> None:
    """Move a finished file to its final name, if that name is free. `sync_folder` then makes the move durable.

    An empty file claims the name, and the rename replaces it. Not every file system supports hard links.
    """
    try:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise Refused("already_exists/file", f"{target} exists already") from None
    try:
        source.rename(target)
    except BaseException:
        target.unlink()
        raise


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
