"""The proxy in front of a raw merchant."""

from collections.abc import AsyncIterator

import pytest
from kit.agent import World
from kit.proxy import Place, place


@pytest.fixture
async def at(world: World) -> AsyncIterator[Place]:
    async with place(world) as there:
        yield there
