"""What every test shares: the watch for planted secrets, and a devnet with an empty data folder."""

from collections.abc import Generator, Iterator
from pathlib import Path

import canaries
import pytest

from payagent.devnet.server import DevnetThread

LEAKED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test whose output or log holds a planted secret, and do not repeat it."""
    report = yield
    leaked = canaries.found_in("".join(content for _, content in report.sections))
    if leaked:
        report.sections = []
        if not item.stash.get(LEAKED, False):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} printed or logged: {', '.join(leaked)}"
        item.stash[LEAKED] = True
    return report


@pytest.fixture
def world(tmp_path: Path) -> Iterator[object]:
    """A fresh devnet with its merchant, and an empty data folder (agent_kit.World)."""
    from agent_kit import World

    with DevnetThread() as devnet:
        world = World(devnet, tmp_path)
        yield world
        world.http.close()
