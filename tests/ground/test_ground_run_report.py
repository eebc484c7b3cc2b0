"""A run prints first which tests it leaves out and why, and last how long each folder took."""

import re

import pytest

pytest_plugins = ["pytester"]

TEST = """
import pytest
from kit.effort import IS_LONG, pick

CASES = pick(2, 9)

@pytest.mark.parametrize("number", range(CASES))
def test_runs(number):
    sum(range(3_000_000))

@pytest.mark.skipif(True, reason="NOT RUN: curl is missing")
@pytest.mark.parametrize("number", range(3))
def test_calls_curl(number):
    pass

@pytest.mark.skipif(False, reason="only root may")
def test_is_root():
    pass

@pytest.mark.skipif(not IS_LONG, reason="only --long runs it")
def test_takes_long():
    pass
"""


ONLY_LONG = [
    "NOT RUN without --long: 2 in a, b",
    "NOT RUN without --long: all cases of a/test_a.py, b/test_b.py",
]


@pytest.mark.parametrize(
    ("options", "long", "only_long"),
    [((), "1", []), (("-p", "xdist.plugin", "-n", "1"), "0", ONLY_LONG)],
    ids=["one process, --long", "a worker, a sample"],
)
def test_a_run_says_what_it_leaves_out_and_how_long_each_folder_took(
    pytester: pytest.Pytester,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    long: str,
    only_long: list[str],
) -> None:
    kit = pytester.mkpydir("kit")
    for name in ("effort.py", "run_report.py"):
        kit.joinpath(name).write_text((request.config.rootpath / "tests/kit" / name).read_text())
    pytester.makeconftest("pytest_plugins = ('kit.run_report',)")
    for folder in ("a", "b"):
        pytester.mkdir(folder).joinpath(f"test_{folder}.py").write_text(TEST)
    monkeypatch.setenv("LONG_TESTS", long)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    lines = pytester.runpytest_subprocess("-v", *options).outlines
    first = next(at for at, line in enumerate(lines) if "test_runs" in line and "PASSED" in line)
    told = [line for line in lines[:first] if line.startswith("NOT RUN")]
    assert told == ["NOT RUN: curl is missing: 6 in a, b", *only_long]
    times = [line.split() for line in lines if re.fullmatch(r" +[0-9]+\.[0-9]  [ab]", line)]
    assert sorted(folder for _, folder in times) == ["a", "b"]
    assert any(float(wall_s) > 0 for wall_s, _ in times)
