"""The pure rooms' own tests take every branch of them; the tests of what is around them do not count."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEASURED = ("payagent/core/*", "payagent/dialects/*", "payagent/chain/classify.py")
THEIR_TESTS = ("tests/core", "tests/dialects", "tests/chain/test_chain_classify.py")


@pytest.mark.timeout(900)
def test_every_branch_is_taken(tmp_path: Path) -> None:
    # generated values take a branch today and another tomorrow, so those of the fuzz test do not count either
    left_out = "--ignore=tests/dialects/test_dialects_fuzz.py"
    options = ["-q", "-x", "-p", "no:cacheprovider", "--hypothesis-seed=0", left_out]
    run = coverage(
        tmp_path, "run", "--branch", f"--include={','.join(MEASURED)}", "-m", "pytest", *options, *THEIR_TESTS
    )
    assert run.returncode == 0, run.stdout[-4000:]
    told = coverage(tmp_path, "report", "--show-missing", "--skip-covered", "--fail-under=100")
    assert told.returncode == 0, told.stdout[-4000:]
    measured = coverage(tmp_path, "report").stdout
    modules = [
        str(path.relative_to(ROOT)) for pattern in MEASURED for path in ROOT.glob(pattern) if path.is_file()
    ]
    assert len(modules) > 30
    assert [name for name in modules if name not in measured] == []


def coverage(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "coverage", *arguments]
    environment = {**os.environ, "COVERAGE_FILE": str(folder / "coverage")}
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
