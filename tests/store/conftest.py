"""A PostgreSQL server for the tests that need one."""

from collections.abc import Iterator

import pytest
from kit.postgresql import Server, server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    with server() as found:
        yield found
