"""Whether the disk that the ledger is on takes what is to be written: a full one reads well, and refuses orders.

May import: core. Never: writes.
"""

import os
from collections.abc import Callable
from pathlib import Path

from payagent.core.problem import Refused

ROOM_MIN_BYTES = 4 * 1024**2
"""The ledger and its log are sure to ask for as much soon."""


def require_room(folder: Path, look: Callable[[Path], os.statvfs_result] = os.statvfs) -> None:
    """Refused: `store_failed`, for a disk that is nearly full or mounted read-only."""
    try:
        disk = look(folder)
    except OSError as error:
        raise Refused("store_failed", f"{folder} cannot be looked at: {error.strerror}") from None
    if disk.f_flag & os.ST_RDONLY:
        raise Refused("store_failed", f"{folder} is on a disk that is mounted read-only")
    free_bytes = disk.f_bavail * disk.f_frsize
    if free_bytes < ROOM_MIN_BYTES:
        raise Refused("store_failed", f"{folder} is on a disk with {free_bytes // 1024} KiB of room")
