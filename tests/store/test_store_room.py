"""A disk that takes no more is told before an order meets it."""

import os
from pathlib import Path

import pytest

from payagent.core.problem import Refused
from payagent.store.room import ROOM_MIN_BYTES, require_room

BLOCK_BYTES = 4096


def disk(free_bytes: int, flags: int = 0) -> os.statvfs_result:
    free = free_bytes // BLOCK_BYTES
    return os.statvfs_result((BLOCK_BYTES, BLOCK_BYTES, 10**9, free + 1, free, 9, 9, 9, flags, 255))


def test_a_disk_with_room_is_good(tmp_path: Path) -> None:
    require_room(tmp_path, lambda _: disk(ROOM_MIN_BYTES))


@pytest.mark.parametrize(
    ("found", "told"),
    [(disk(ROOM_MIN_BYTES - 1), "4092 KiB of room"), (disk(10**12, os.ST_RDONLY), "mounted read-only")],
)
def test_one_that_takes_nothing_is_told(tmp_path: Path, found: os.statvfs_result, told: str) -> None:
    with pytest.raises(Refused, match=told) as refused:
        require_room(tmp_path, lambda _: found)
    assert refused.value.code == "store_failed"


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="No such file"):
        require_room(tmp_path / "gone")
