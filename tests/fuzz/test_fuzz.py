"""Each fuzz target runs over its committed corpus, some seconds more, and over code with a planted mistake."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from kit.effort import pick

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
NAMES = ("address", "body402", "cbor", "http", "provider")
SECONDS = pick(2, 20)

pytestmark = pytest.mark.skipif(
    find_spec("atheris") is None, reason="NOT RUN: the fuzzer has no wheel for this Python"
)


def fuzz(name: str, *options: str) -> tuple[int, str]:
    """The runner's exit code, and its output and libFuzzer's."""
    command = [sys.executable, str(HERE / "run.py"), name, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    return done.returncode, done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_fuzzing_each_target_finds_nothing(name: str, tmp_path: Path) -> None:
    status, said = fuzz(name, "--seconds", str(SECONDS), "--seed", "402", "--found", str(tmp_path))
    assert status == 0, said[-6000:]
    ran = re.search(r"^stat::number_of_executed_units: (\d+)$", said, re.MULTILINE)
    assert ran is not None, said[-2000:]
    assert int(ran[1]) > len(list((CORPUS / name).iterdir())), "it ran more inputs than the corpus has"


@pytest.mark.parametrize("name", NAMES)
def test_fuzzing_code_with_a_planted_mistake_finds_it(name: str, tmp_path: Path) -> None:
    """For `body402` and `address` no corpus input shows it; some thousand runs do on average."""
    status, said = fuzz(name, "--bug", "--runs", "150000", "--seed", "402", "--found", str(tmp_path))
    assert status != 0, said[-2000:]
    assert "Uncaught Python exception" in said, said[-2000:]
    assert list(tmp_path.glob("crash-*"))


@pytest.mark.parametrize(
    ("what", "finding"),
    [
        ("while time.process_time() < 2: pass", "one input took"),
        ("data = b' ' * (200 << 20)", "the process grew by"),
    ],
    ids=["a hang", "a growth"],
)
def test_an_input_that_takes_too_much_time_or_memory_is_reported(what: str, finding: str) -> None:
    program = f"import run, time\ndef eager(data):\n    {what}\nrun.bounded(eager)(b'')"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=HERE, stderr=subprocess.PIPE, text=True)
    assert finding in done.stderr


def test_the_committed_corpus_is_small() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == set(NAMES)
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert len(files) < 500
    assert sum(path.stat().st_size for path in files) < 1_000_000
