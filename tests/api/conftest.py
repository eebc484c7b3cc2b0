"""The running API, for every test of this room."""

from collections.abc import AsyncIterator

import pytest
from kit.agent import World
from kit.api import Api, served


@pytest.fixture
async def api(world: World) -> AsyncIterator[Api]:
    """A funded wallet behind a running API."""
    world.fund(*[100_000_000] * 5)
    async with world.run() as run:
        await run.run_pass()
        async with served(run) as api:
            yield api
