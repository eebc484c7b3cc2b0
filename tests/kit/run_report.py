"""A pytest plugin: says as a run begins what it leaves out and why, and at its end how long each folder took.

A worker of pytest-xdist collects the tests but cannot print, so what it knows travels in reports of tests.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest

from kit.effort import IS_LONG, pick

_NOT_RUN = "not run"


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
    if only_long:
        yield f"NOT RUN without --long: {_counted(only_long)}"
    sampled = {item.nodeid.partition("::")[0] for item in items if _has_sample(item)}
    if sampled and not IS_LONG:
        yield f"NOT RUN without --long: all cases of {', '.join(sorted(sampled))}"


def _has_sample(item: pytest.Item) -> bool:
    names = vars(item.module) if isinstance(item, pytest.Function) else {}
    return names.get("pick") is pick or "IS_LONG" in names


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.items:
        session.items[0].user_properties.append((_NOT_RUN, list(_not_run(session.items))))


class _Printer:
    """Prints the lines and times in test reports."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal
        self._wall_s: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._wall_s[_folder(report.nodeid)] += report.duration
        if report.when == "setup":
            for line in dict(report.user_properties).get(_NOT_RUN, ()):
                self._terminal.write_line(line)

    def pytest_terminal_summary(self) -> None:
        if not self._wall_s:
            return
        self._terminal.section("seconds of each folder, all workers together")
        for folder, wall_s in sorted(self._wall_s.items(), key=lambda item: -item[1]):
            self._terminal.write_line(f"{wall_s:7.1f}  {folder}")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Printer(terminal))
