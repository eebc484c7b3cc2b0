"""A devnet for each test file, and a data folder for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.daemon import furnish

from payagent.devnet.server import DevnetThread


@pytest.fixture(scope="module")
def devnet() -> Iterator[DevnetThread]:
    with DevnetThread(block_time_s=1) as devnet:
        yield devnet


@pytest.fixture
def folder(tmp_path: Path, devnet: DevnetThread) -> Path:
    """A data folder with a keystore, a database, a passphrase file and a config."""
    return furnish(tmp_path, devnet)
