"""A shop and a program that pays in it, blocking and not."""

from collections.abc import AsyncIterator

import pytest
from agent_kit import World
from client import client_kit
from client.client_kit import Program, Start
from proxy.proxy_kit import Place


@pytest.fixture
async def shop(world: World) -> AsyncIterator[Place]:
    async with client_kit.shop(world) as at:
        yield at


@pytest.fixture(params=client_kit.WAYS)
def start(request: pytest.FixtureRequest, shop: Place) -> Start:
    """Start a program: `start(max_cost_units=...)`."""
    return lambda **options: Program(shop, request.param, **options)
