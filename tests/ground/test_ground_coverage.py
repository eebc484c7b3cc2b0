"""The tests of the pure modules cover every branch of them; other tests do not count."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = "payagent.core,payagent.dialects,payagent.chain"
MEASURED = "payagent/core/*,payagent/dialects/*,payagent/chain/submit_answers.py"
THEIR_TESTS = ("tests/core", "tests/dialects", "tests/chain/test_chain_submit_answers.py")
# random inputs take different branches in each run
NOT_COUNTED = "--ignore=tests/dialects/test_dialects_fuzz.py"


@pytest.mark.timeout(900)
def test_every_branch_of_the_pure_modules_is_tested(tmp_path: Path) -> None:
    options = ["-q", "-x", "-p", "no:cacheprovider", "--hypothesis-seed=0", NOT_COUNTED]
    run = coverage(tmp_path, "run", "--branch", f"--source={SOURCES}", "-m", "pytest", *options, *THEIR_TESTS)
    assert run.returncode == 0, run.stdout[-4000:]
    shown = ("--show-missing", "--skip-covered", "--fail-under=100")
    told = coverage(tmp_path, "report", f"--include={MEASURED}", *shown)
    assert told.returncode == 0, told.stdout[-4000:]


def coverage(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "coverage", *arguments]
    environment = {**os.environ, "COVERAGE_FILE": str(folder / "coverage")}
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
