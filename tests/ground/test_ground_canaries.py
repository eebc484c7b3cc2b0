"""The watch for planted secrets can fail a test, and its report does not repeat the secret."""

import pytest

pytest_plugins = ["pytester"]

CONFTEST = "from conftest_of_payagent import pytest_runtest_makereport"
TEST = """
import canaries, sys

def test_leaks():
    secret = canaries.plant("the token", "tok-4711")
    print("here it is:", secret)

def test_is_quiet():
    print("nothing here")
"""


def test_a_test_that_prints_a_secret_fails(pytester: pytest.Pytester, request: pytest.FixtureRequest) -> None:
    here = request.config.rootpath / "tests"
    pytester.makepyfile(
        conftest_of_payagent=(here / "conftest.py").read_text(), canaries=(here / "canaries.py").read_text()
    )
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_secret=TEST)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:asyncio")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*printed or logged: the token*"])
    result.stdout.no_fnmatch_line("*tok-4711*")
