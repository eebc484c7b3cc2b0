"""Checks whether the ledger's disk has room for the next writes. A full disk still reads well.

May import: the standard library. Never: writes.
"""

import os
from collections.abc import Callable
from pathlib import Path

ROOM_MIN_BYTES = 4 * 1024**2
"""The ledger and its log will need at least this much soon."""


def room_problem(folder: Path, look: Callable[[Path], os.statvfs_result] = os.statvfs) -> str | None:
    """The problem with the folder's disk, as text. None if it has room or does not report its free space."""
    try:
        disk = look(folder)
    except OSError as error:
        return f"its disk cannot be looked at: {error.strerror}"
    if disk.f_flag & os.ST_RDONLY:
        return "its disk is mounted read-only"
    free_bytes = disk.f_bavail * disk.f_frsize
    if disk.f_blocks and free_bytes < ROOM_MIN_BYTES:
        return f"its disk has {free_bytes // 1024} KiB of room"
    return None
