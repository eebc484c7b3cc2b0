"""The stage of a simulation takes the process's log for itself; here it is given back."""

import logging
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def log_given_back() -> Iterator[None]:
    disabled, config = logging.root.manager.disable, structlog.get_config()
    yield
    logging.disable(disabled)
    structlog.configure(**config)
