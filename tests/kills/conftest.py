"""One fork server for each test file."""

from collections.abc import AsyncIterator

import pytest_asyncio
from killforks import ForkServer, fork_server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def forks() -> AsyncIterator[ForkServer]:
    async with fork_server() as server:
        yield server
