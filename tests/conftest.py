"""Fixtures that several rooms' tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from payagent.devnet.server import DevnetThread


@pytest.fixture
def world(tmp_path: Path) -> Iterator[object]:
    """A fresh devnet with its merchant, and an empty data folder (agent_kit.World)."""
    from agent_kit import World

    with DevnetThread() as devnet:
        world = World(devnet, tmp_path)
        yield world
        world.http.close()
