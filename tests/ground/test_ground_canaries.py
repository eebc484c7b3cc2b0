"""The watch for planted secrets fails a test that leaks one, and its report does not show the secret."""

import pytest

pytest_plugins = ["pytester"]

CONFTEST = "from conftest_of_payagent import pytest_runtest_makereport, pytest_sessionfinish"
TEST = """
import sys
from kit import canaries

def test_leaks():
    secret = canaries.plant("the token", "tok-4711")
    print("here it is:", secret)

def test_leaks_what_looks_like_an_apps():
    secret = canaries.plant("the token of an app", "pa_" + "-4711" * 8 + "pa_")
    print("in another:", "pa_" + secret + secret)

def test_is_quiet():
    print("nothing here")
"""


def test_a_test_that_prints_a_secret_fails(pytester: pytest.Pytester, request: pytest.FixtureRequest) -> None:
    here = request.config.rootpath / "tests"
    pytester.makepyfile(conftest_of_payagent=(here / "conftest.py").read_text())
    pytester.mkpydir("kit").joinpath("canaries.py").write_text((here / "kit/canaries.py").read_text())
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_secret=TEST)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:asyncio")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*printed or logged: the token"])
    result.stdout.fnmatch_lines(["*printed or logged: the token of an app"])
    result.stdout.no_fnmatch_line("*-4711*")


WRITES = """
import pytest
from kit import canaries

def test_writes(tmp_path):
    (tmp_path / "log").write_text("token: " + canaries.plant("the token", "tok-4711"))

def test_keeps_it_in_a_file_of_its_own(tmp_path):
    (tmp_path / "token").write_text(canaries.plant("the token", "tok-4711") + chr(10))

@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    yield folder
    (folder / "ledger.db").write_bytes(b"row" + canaries.plant("the passphrase", "pass-4711").encode())

def test_shares(shared):
    pass
"""


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["one process", "workers"])
def test_a_run_that_writes_a_secret_into_a_file_fails(
    pytester: pytest.Pytester, request: pytest.FixtureRequest, workers: tuple[str, ...]
) -> None:
    here = request.config.rootpath / "tests"
    pytester.makepyfile(conftest_of_payagent=(here / "conftest.py").read_text())
    pytester.mkpydir("kit").joinpath("canaries.py").write_text((here / "kit/canaries.py").read_text())
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_secret=WRITES)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:asyncio", *workers)
    result.assert_outcomes(passed=3, errors=2)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*test_writes wrote: *log: the token*"])
    result.stdout.fnmatch_lines(["*the tests of this run wrote: *ledger.db: the passphrase*"])
    result.stdout.no_fnmatch_line("*-4711*")
