"""A shop and a program that pays in it, blocking and not."""

from collections.abc import AsyncIterator

import pytest
from kit.agent import World
from kit.client import WAYS, Program, Start, open_shop
from kit.proxy import Place


@pytest.fixture
async def shop(world: World) -> AsyncIterator[Place]:
    async with open_shop(world) as at:
        yield at


@pytest.fixture(params=WAYS)
def start(request: pytest.FixtureRequest, shop: Place) -> Start:
    """Start a program: `start(max_cost_units=...)`."""
    return lambda **options: Program(shop, request.param, **options)
