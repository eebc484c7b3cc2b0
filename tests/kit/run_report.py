"""A pytest plugin: says as a run begins what it leaves out and why, and at its end how long each folder took.

A worker of pytest-xdist collects the tests but cannot print, so what it knows travels in reports of tests.
"""

import os
from collections import defaultdict
from collections.abc import Generator, Iterator
from pathlib import PurePosixPath

import pytest

from kit.effort import IS_LONG, pick

_NOT_RUN, _PROCESSOR_S = "not run", "processor_s"
_USED_S = pytest.StashKey[float]()


def _processor_s() -> float:
    """Processor seconds of this process and of its children that ended."""
    return sum(os.times()[:4])


def _folder(nodeid: str) -> str:
    return str(PurePosixPath(nodeid.partition("::")[0]).parent)


def _skip_reason(item: pytest.Item) -> str | None:
    """The reason of the first mark that skips the test."""
    return next((mark.kwargs["reason"] for mark in item.iter_markers("skipif") if any(mark.args)), None)


def _counted(nodeids: list[str]) -> str:
    return f"{len(nodeids)} in {', '.join(sorted(set(map(_folder, nodeids))))}"


def _not_run(items: list[pytest.Item]) -> Iterator[str]:
    """A line for each reason, and one for all that only --long runs."""
    skipped: defaultdict[str, list[str]] = defaultdict(list)
    for item in items:
        if reason := _skip_reason(item):
            skipped["--long" if "--long" in reason else reason.removeprefix("NOT RUN: ")].append(item.nodeid)
    only_long = skipped.pop("--long", [])
    yield from (f"NOT RUN: {reason}: {_counted(nodeids)}" for reason, nodeids in skipped.items())
    sampled = {item.path for item in items if getattr(getattr(item, "module", None), "pick", None) is pick}
    parts = [_counted(only_long)] if only_long else []
    parts += [f"all cases of {len(sampled)} files, which run a sample"] if sampled and not IS_LONG else []
    if parts:
        yield f"NOT RUN without --long: {'; '.join(parts)}"


def pytest_collection_finish(session: pytest.Session) -> None:
    session.stash[_USED_S] = _processor_s()
    if session.items:
        session.items[0].user_properties.append((_NOT_RUN, list(_not_run(session.items))))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    try:
        return (yield)
    finally:
        before, now = item.session.stash[_USED_S], _processor_s()
        item.session.stash[_USED_S] = now
        item.user_properties.append((_PROCESSOR_S, now - before))


class _Printer:
    """Prints what the reports of tests tell."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal
        self._wall_s: defaultdict[str, float] = defaultdict(float)
        self._processor_s: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told = dict(report.user_properties)
        folder = _folder(report.nodeid)
        self._wall_s[folder] += report.duration
        if report.when == "setup":
            for line in told.get(_NOT_RUN, ()):
                self._terminal.write_line(line)
        elif report.when == "teardown":
            self._processor_s[folder] += told.get(_PROCESSOR_S, 0)

    def pytest_terminal_summary(self) -> None:
        if not self._wall_s:
            return
        self._terminal.section("seconds of each folder, all workers together")
        self._terminal.write_line("   wall  processor")
        for folder, wall_s in sorted(self._wall_s.items(), key=lambda item: -item[1]):
            self._terminal.write_line(f"{wall_s:7.1f}  {self._processor_s[folder]:9.1f}  {folder}")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Printer(terminal))
