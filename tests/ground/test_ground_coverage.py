"""The tests of the pure modules take every branch of them. Other tests do not count, nor do random inputs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = "payagent.core,payagent.dialects,payagent.chain"
MEASURED = "payagent/core/*,payagent/dialects/*,payagent/chain/submit_answers.py"
THEIR_TESTS = ("tests/core", "tests/dialects", "tests/chain/test_chain_submit_answers.py")
# random inputs take different branches in each run, and take most of the time
NOT_COUNTED = ("-p", "_hypothesis_pytestplugin", "-m", "not hypothesis")
# the plugins of the suite take longer than these tests
BARE = ("-c", "/dev/null", "--rootdir", ".", "-o", "pythonpath=tests .", "-p", "no:cacheprovider", "-q", "-x")


@pytest.mark.timeout(900)
def test_every_branch_of_the_pure_modules_is_tested(tmp_path: Path) -> None:
    pytest_run = ("-m", "pytest", *BARE, *NOT_COUNTED, "--basetemp", str(tmp_path / "run"), *THEIR_TESTS)
    run = coverage(tmp_path, "run", "--branch", f"--source={SOURCES}", *pytest_run)
    assert run.returncode == 0, run.stdout[-4000:]
    shown = ("--show-missing", "--skip-covered", "--fail-under=100")
    told = coverage(tmp_path, "report", f"--include={MEASURED}", *shown)
    assert told.returncode == 0, told.stdout[-4000:]


def coverage(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "coverage", *arguments]
    environment = {
        **os.environ,
        "COVERAGE_FILE": str(folder / "coverage"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
