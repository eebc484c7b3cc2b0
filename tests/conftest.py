"""What every test shares: the watch for planted secrets, and a devnet with an empty data folder."""

import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from payagent.devnet.server import DevnetThread

pytest.register_assert_rewrite("kit")
settings.register_profile("any machine", deadline=None)  # no test depends on the machine's speed
settings.load_profile("any machine")

from kit import canaries  # noqa: E402  after the line above

LONG = (
    "test_sim_seeds.py",
    "test_fuzz.py",
    "test_kills_daemon.py",
    "test_fleet_failures.py",
    "test_sim_mutants.py",
    "test_daemon_start.py",
    "test_daemon_upgrade.py",
    "test_client_pay_and_retry.py",
    "test_day.py",
    "test_sim_soak.py",
    "test_hostile_merchants.py",
    "test_crash_points.py",
)
"""The files that take minutes begin first: one that came last would have a processor to itself."""

LEAKED = pytest.StashKey[bool]()
SEARCHED = pytest.StashKey[set[Path]]()
LAST = pytest.StashKey[pytest.Item]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    begins = {name: at for at, name in enumerate(LONG)}
    items.sort(key=lambda item: begins.get(item.path.name, len(LONG)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test whose output or log holds a planted secret, and do not repeat it."""
    report = yield
    item.session.stash[LAST] = item
    leaked = canaries.found_in("".join(content for _, content in report.sections))
    if leaked:
        report.sections = []
        if not item.stash.get(LEAKED, False):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} printed or logged: {', '.join(leaked)}"
        item.stash[LEAKED] = True
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    if call.when == "teardown" and folder is not None:
        item.session.stash.setdefault(SEARCHED, set()).add(folder)
        if wrote := canaries.found_in_files(folder):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} wrote: {'; '.join(wrote)}"
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """What whole modules share is looked at when all is over: an error of the last test, in the last line too."""
    base = getattr(getattr(session.config, "_tmp_path_factory", None), "_basetemp", None)
    searched, last = session.stash.get(SEARCHED, set()), session.stash.get(LAST, None)
    wrote = [] if base is None else canaries.found_in_files(base, searched)
    if wrote and last is not None:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        told = "the tests of this run wrote: " + "; ".join(wrote)
        report = pytest.TestReport(last.nodeid, last.location, {}, "failed", told, "teardown")
        session.config.hook.pytest_runtest_logreport(report=report)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[object]:
    """A fresh devnet with its merchant, and an empty data folder (kit.agent.World)."""
    from kit.agent import World

    with DevnetThread() as devnet:
        world = World(devnet, tmp_path)
        yield world
        world.http.close()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[object]:
    """A PostgreSQL server (kit.postgresql.Server)."""
    from kit.postgresql import server

    with server() as running:
        yield running


@pytest.fixture
def receiver() -> Iterator[object]:
    """A server that receives notifications (kit.webhook.Receiver)."""
    from kit.webhook import Receiver

    with Receiver().serving() as receiver:
        yield receiver


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes; skipped for who may not mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2048k", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


pytest_plugins = ("kit.run_report",)
