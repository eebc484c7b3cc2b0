"""Each fuzz target runs over its committed corpus, some seconds more, and over code with a planted mistake."""

import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from kit.effort import pick

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
RUNS = pick(2_000, 30_000)
"""More inputs than the corpus of any target has."""
RUNS_MAX = 150_000
SEEDS = {"address": 402, "body402": 16, "cbor": 402, "http": 402, "provider": 402}
"""For each target a seed of the fuzzer that soon finds the planted mistake."""

pytestmark = pytest.mark.skipif(
    find_spec("atheris") is None, reason="NOT RUN: the fuzzer has no wheel for this Python"
)


@dataclass(frozen=True, slots=True)
class Run:
    """A run of the fuzzer over one target: its exit code, its output and libFuzzer's, and what it found."""

    status: int
    said: str
    crashes: list[Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Each target over its corpus and more inputs, and with a planted mistake; they share the start."""
    folder = tmp_path_factory.mktemp("fuzz")
    options = {name: f"{name} --runs {RUNS} --seed 402" for name in SEEDS}
    options |= {f"{name} bug": f"{name} --bug --runs {RUNS_MAX} --seed {seed}" for name, seed in SEEDS.items()}
    folders = {name: folder / name.replace(" ", "-") for name in options}
    lines = "".join(f"{given} --found {folders[name]}\n" for name, given in options.items())
    command = [sys.executable, str(HERE / "run.py"), "-"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return {
        name: Run(int(status), (here / "said").read_text(errors="replace"), list(here.glob("crash-*")))
        for (name, here), status in zip(folders.items(), done.stdout.split(), strict=True)
    }


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SEEDS)
def test_fuzzing_each_target_finds_nothing(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    assert run.status == 0, run.said[-6000:]
    ran = re.search(r"^stat::number_of_executed_units: (\d+)$", run.said, re.MULTILINE)
    assert ran is not None, run.said[-2000:]
    assert int(ran[1]) >= RUNS > len(list((CORPUS / name).iterdir())), "it ran more inputs than the corpus has"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SEEDS)
def test_fuzzing_code_with_a_planted_mistake_finds_it(runs: dict[str, Run], name: str) -> None:
    """For `body402` and `address` no corpus input shows it; some thousand runs do on average."""
    run = runs[f"{name} bug"]
    assert run.status != 0, run.said[-2000:]
    assert "Uncaught Python exception" in run.said, run.said[-2000:]
    assert run.crashes


@pytest.mark.parametrize(
    ("what", "finding"),
    [
        ("run.HANG_S = -1", "one input took"),
        ("data = b' ' * (200 << 20)", "the process grew by"),
    ],
    ids=["a hang", "a growth"],
)
def test_an_input_that_takes_too_much_time_or_memory_is_reported(what: str, finding: str) -> None:
    program = f"import run\ndef eager(data):\n    {what}\nrun.bounded(eager)(b'')"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=HERE, stderr=subprocess.PIPE, text=True)
    assert finding in done.stderr


def test_the_committed_corpus_is_small() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == SEEDS.keys()
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert len(files) < 500
    assert sum(path.stat().st_size for path in files) < 1_000_000
