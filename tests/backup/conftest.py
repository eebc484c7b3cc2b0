"""A world whose devnet follows a clock that a test can move."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.agent import Clock, World
from kit.backup import with_keystore

from payagent.devnet.server import DevnetThread


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    clock = Clock()
    with DevnetThread(now_ms=clock.now_ms) as devnet:
        world = World(devnet, tmp_path)
        world.clock = clock
        with world.http:
            yield with_keystore(world)
