"""For tests that run a simulation in their own process: its stage takes the process's log for itself."""

import logging
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def log_given_back() -> Iterator[None]:
    """The log is as it was before, for the tests after these."""
    disabled, config = logging.root.manager.disable, structlog.get_config()
    yield
    logging.disable(disabled)
    structlog.configure(**config)
