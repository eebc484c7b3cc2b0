"""The lock of a data folder on a read-only disk."""

import errno
import os
from pathlib import Path

import pytest

from payagent.core.problems import Refused
from payagent.store.db.lease import lease


def test_a_lock_file_that_cannot_be_opened_is_reported_as_store_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("payagent.store.db.lease.os.open", refuse)
    with pytest.raises(Refused) as told, lease(tmp_path, ()):
        pass
    assert told.value.name == "store_failed"
    assert told.value.detail == f"{tmp_path / 'lock'} cannot be opened: Read-only file system"
