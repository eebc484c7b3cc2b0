"""A full or read-only disk is reported before a payment needs it."""

import os
from pathlib import Path

import pytest

from payagent.store.db.opening import ROOM_MIN_BYTES, room_problem

BLOCK_BYTES = 4096


def disk(free_bytes: int, flags: int = 0) -> os.statvfs_result:
    free = free_bytes // BLOCK_BYTES
    return os.statvfs_result((BLOCK_BYTES, BLOCK_BYTES, 10**9, free + 1, free, 9, 9, 9, flags, 255))


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (disk(ROOM_MIN_BYTES), None),
        (disk(ROOM_MIN_BYTES - 1), "its disk has only 4092 KiB of room"),
        (disk(10**12, os.ST_RDONLY), "its disk is mounted read-only"),
        (os.statvfs_result((0,) * 10), None),
    ],
)
def test_a_full_or_read_only_disk_is_reported(tmp_path: Path, found: os.statvfs_result, told: str | None) -> None:
    assert room_problem(tmp_path, lambda _: found) == told


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    assert room_problem(tmp_path / "gone") == "its disk cannot be checked: No such file or directory"
