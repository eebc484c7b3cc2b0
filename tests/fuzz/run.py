#!/usr/bin/env python3
"""Fuzz one target: `python tests/fuzz/run.py TARGET --seconds N`; with files, only these are run.

An exception, more than a second of processor time for one input and a growth of more than 64 MB are findings: the
run then exits with a code other than 0 and names the file with the input. `--gather FOLDER` rebuilds the committed
corpus from itself, the examples of the other tests and the folder, and keeps the inputs that add coverage.

`run.py -` reads lines from standard input, each with the arguments of one run. It imports the code once and forks
for each run, whose output goes to the file `said` in its `--found` folder. It prints the exit codes.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import atheris

if TYPE_CHECKING:
    from targets import Target

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CORPUS = HERE / "corpus"
sys.path[:0] = [str(ROOT), str(HERE), str(HERE.parent)]

STARTED_S = time.monotonic()
HANG_S = 1.0
"""In processor time, so that a busy machine causes no finding."""
GROWTH_KB = 64 * 1024
ENDLESS_S = 600


def read_arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target")
    parser.add_argument("files", nargs="*", help="run these inputs alone")
    parser.add_argument("--seconds", type=int, default=60, help="how long, the start included")
    parser.add_argument("--runs", type=int, help="how many inputs, however long that takes")
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time")
    parser.add_argument("--found", type=Path, help="where new inputs and findings are kept")
    parser.add_argument("--bug", action="store_true", help="run the target over code with a mistake in it")
    parser.add_argument("--gather", type=Path, metavar="FOLDER")
    parser.add_argument("--raw", help=argparse.SUPPRESS)
    return parser.parse_intermixed_args(given)


def bounded(fuzzed: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """The target, which also fails when it takes too much time or memory."""

    def once(data: bytes) -> None:
        began_s = time.process_time()
        fuzzed(data)
        took_s = time.process_time() - began_s
        if took_s > HANG_S:
            raise TimeoutError(f"one input took {took_s:.1f} s")
        grown_kb = most_kb() - at_first_kb
        if grown_kb > GROWTH_KB:
            raise MemoryError(f"the process grew by {grown_kb // 1024} MB")

    at_first_kb = most_kb()
    return once


def most_kb() -> int:
    """The peak memory of this program; getrusage would include that of the process that started it."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM:"))


def gather(name: str, folder: Path, found: Path) -> None:
    """Rebuild the committed corpus from itself, the examples and the folder: what adds coverage stays."""
    from seeds import SEEDS

    examples, merged, again = found / "seeds", found / "merged", found / "again"
    for made in (examples, merged):
        made.mkdir()
    for number, seed in enumerate(SEEDS[name]()):
        (examples / f"{number:04}").write_bytes(seed)
    # libFuzzer merges in child processes, which it starts by the name of the first argument
    again.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} --raw="{again} $*"\n')
    again.chmod(0o700)
    sources = [str(path) for path in (CORPUS / name, examples, folder) if path.is_dir()]
    subprocess.run([again, "-merge=1", str(merged), *sources], check=True)
    shutil.rmtree(CORPUS / name, ignore_errors=True)
    shutil.copytree(merged, CORPUS / name)


def main() -> None:
    if sys.argv[1:] == ["-"]:
        fork_each([line.split() for line in sys.stdin])
        return
    arguments = read_arguments(sys.argv[1:])
    if arguments.gather is not None:
        found = arguments.found or Path(tempfile.mkdtemp(prefix=f"fuzz-{arguments.target}-"))
        gather(arguments.target, arguments.gather, found)
    else:
        fuzz(arguments, load_targets())


def load_targets() -> dict[str, "Target"]:
    with atheris.instrument_imports(include=["payagent", "h11"]):
        from targets import TARGETS
    return TARGETS


def fork_each(lines: list[list[str]]) -> None:
    targets = load_targets()
    for line in lines:
        child = os.fork()
        if child == 0:
            arguments = read_arguments(line)
            arguments.found.mkdir(parents=True)
            said = os.open(arguments.found / "said", os.O_WRONLY | os.O_CREAT)
            os.dup2(said, 1)
            os.dup2(said, 2)
            fuzz(arguments, targets)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def fuzz(arguments: argparse.Namespace, targets: dict[str, "Target"]) -> None:
    name = arguments.target
    found = arguments.found or Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    target = targets[name]
    fuzzed = bounded(target.bug if arguments.bug else target.run)
    if arguments.raw is not None:
        options = arguments.raw.split()
    else:
        options = [__file__, *options_of(arguments, target, found)]
    atheris.Setup(options, fuzzed)
    atheris.Fuzz()


def options_of(arguments: argparse.Namespace, target: "Target", found: Path) -> list[str]:
    """The options of libFuzzer."""
    if arguments.files:
        return arguments.files
    learnt, words = found / "corpus", found / "words"
    learnt.mkdir(parents=True, exist_ok=True)
    words.write_text("".join(f'"{"".join(f"{chr(92)}x{byte:02x}" for byte in word)}"\n' for word in target.words))
    left_s = max(1, arguments.seconds - int(time.monotonic() - STARTED_S))
    return [
        f"-runs={arguments.runs}" if arguments.runs else f"-max_total_time={left_s}",
        f"-max_len={target.most_bytes}",
        f"-dict={words}",
        f"-seed={arguments.seed}",
        f"-timeout={ENDLESS_S}",
        f"-artifact_prefix={found}/",
        "-print_final_stats=1",
        "-verbosity=1",
        str(learnt),
        str(CORPUS / arguments.target),
    ]


if __name__ == "__main__":
    main()
