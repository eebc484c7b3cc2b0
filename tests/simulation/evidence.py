"""The simulator's long run: many seeds, some of them again, every seeded bug, and the report of it.

Run by `scripts/evidence`. Each finished share is one line of a file, so a stopped run can be resumed; lines of
another program (another hash over the package's sources) are refused, never mixed in.
"""

import argparse
import cProfile
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

from simulation import fleet_mutants, profiled, report
from simulation.mutants import MUTANTS, kill
from simulation.sources import ROOT, base_seed, commit, package_hash

from sim.fleet_world import FleetWorld
from sim.run import Result, run_share
from sim.world import World

Line = dict[str, Any]
WORK, FLEET_WORK = ROOT / ".evidence/simulation.jsonl", ROOT / ".evidence/fleet-seeds.jsonl"
SHARE = 200
AGAIN_PER_SHARE = 10
"""Of so many seeds of each the digest is kept, and the sample that is run again is drawn from them."""
PROFILED_SEEDS = 50
MUTANT_SEEDS = 2000
PROCESSORS = len(os.sched_getaffinity(0))


class Log:
    """The file of finished shares."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._package = package_hash()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lines: list[Line] = self._read()

    def _read(self) -> list[Line]:
        """The complete lines; a share whose line was cut off by a crash is run again."""
        if not self._path.exists():
            return []
        text = self._path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._path.write_text(whole, encoding="utf-8")
        lines = [json.loads(line) for line in whole.splitlines()]
        if others := {line["package"] for line in lines} - {self._package}:
            told = ", ".join(sorted(other[:12] for other in others))
            sys.exit(f"{self._path} is of another program ({told}, now {self._package[:12]}); put it away first")
        return lines

    def add(self, stage: str, **told: object) -> None:
        line = {"package": self._package, "commit": commit(), "stage": stage, **told}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, sort_keys=True) + "\n")
        self.lines.append(line)

    def of(self, stage: str) -> list[Line]:
        return [line for line in self.lines if line["stage"] == stage]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def spread(
    processes: int, work: Callable[..., Any], calls: Iterable[tuple[Any, ...]]
) -> Iterable[tuple[Any, Any]]:
    """Each call with its result, as they end."""
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        asked = {pool.submit(work, *call): call for call in calls}
        for done in as_completed(asked):
            yield asked[done], done.result()


# --- seeds


@dataclass(slots=True)
class Share:
    result: Result
    cpu_s: float
    wall_s: float


def run_timed(first: int, last: int, world: type[World]) -> Share:
    cpu_s, wall_s = time.process_time(), time.monotonic()
    result = run_share(range(first, last), world)
    return Share(result, time.process_time() - cpu_s, time.monotonic() - wall_s)


def run_seeds(log: Log, options: argparse.Namespace) -> None:
    base, count = options.base, options.seeds
    done = {(line["first"], line["last"]) for line in log.of("seeds")}
    shares = [(at, min(at + SHARE, base + count)) for at in range(base, base + count, SHARE)]
    world = FleetWorld if options.fleet else World
    todo = [(*share, world) for share in shares if share not in done]
    say(f"seeds {base}..{base + count}: {len(shares) - len(todo)} of {len(shares)} shares are there")
    violations = 0
    for number, ((first, last, _), share) in enumerate(spread(options.processes, run_timed, todo), 1):
        violations += len(share.result.violations)
        log.add(
            "seeds",
            first=first,
            last=last,
            processes=options.processes,
            cpu_s=round(share.cpu_s, 2),
            wall_s=round(share.wall_s, 2),
            reached=dict(share.result.reached),
            violations={str(seed): what for seed, what in share.result.violations.items()},
            digests={str(seed): share.result.digests[seed] for seed in range(first, last)[:AGAIN_PER_SHARE]},
        )
        say(f"share {number} of {len(todo)}, {violations} violations")


# --- the same seeds again


def digests_of(seeds: list[int]) -> dict[str, str]:
    found: dict[str, str] = {}
    for seed in seeds:
        found |= {str(key): digest for key, digest in run_share(range(seed, seed + 1)).digests.items()}
    return found


def replay(log: Log, options: argparse.Namespace) -> None:
    """A sample again, in processes of their own in which text hashes to other numbers."""
    before = {seed: digest for line in log.of("seeds") for seed, digest in line["digests"].items()}
    rng = Random(options.base)
    sample = rng.sample(sorted(before, key=int), min(options.sample, len(before)))
    shares = [sample[at :: options.processes] for at in range(options.processes)]
    say(f"{len(sample)} seeds again")
    running = [
        subprocess.Popen(
            (sys.executable, __file__, "digests", *share),
            env={**os.environ, "PYTHONHASHSEED": str(number + 1)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number, share in enumerate(shares)
        if share
    ]
    again: dict[str, str] = {}
    for process in running:
        out, _ = process.communicate()
        if process.returncode:
            sys.exit("a process that ran seeds again has failed")
        again |= json.loads(out)
    different = [seed for seed in sample if again[seed] != before[seed]]
    log.add("replay", sample=len(sample), different=different)
    say(f"{len(different)} of {len(sample)} differ")


# --- seeded bugs


def kill_one(name: str, base: int) -> tuple[int, int, str] | None:
    return kill(name, range(base, base + MUTANT_SEEDS))


def kill_one_of_a_fleet(name: str, base: int) -> tuple[int, int, str] | None:
    found = fleet_mutants.kill(name, range(base, base + MUTANT_SEEDS))
    return None if found is None else (found[0] - base + 1, *found)


def run_mutants(log: Log, options: argparse.Namespace) -> None:
    done = {line["name"] for line in log.of("mutants")}
    names, kill_it = (fleet_mutants.MUTANTS, kill_one_of_a_fleet) if options.fleet else (MUTANTS, kill_one)
    todo = [(name, options.base) for name in names if name not in done]
    for (name, _), found in spread(options.processes, kill_it, todo):
        took, seed, violated = found or (None, None, None)
        log.add("mutants", name=name, took=took, seed=seed, violated=violated)
        say(f"{name}: " + (f"killed by seed {took}" if found else f"lives through {MUTANT_SEEDS} seeds"))


# --- where the time goes


def profile(log: Log, options: argparse.Namespace) -> None:
    watched = cProfile.Profile()
    watched.runcall(run_share, range(options.base, options.base + PROFILED_SEEDS))
    log.add("profile", seeds=PROFILED_SEEDS, shares=profiled.shares(watched))


def write_report(log: Log, options: argparse.Namespace) -> None:
    if not log.of("seeds"):
        sys.exit("nothing was run yet")
    for path in report.write(log.lines, options.out, of_fleet=options.fleet):
        say(f"written: {path}")


FLEET_STAGES = ("seeds", "mutants", "report")
STAGES = {"seeds": run_seeds, "replay": replay, "mutants": run_mutants, "profile": profile, "report": write_report}


def main() -> int:
    if sys.argv[1:2] == ["digests"]:
        print(json.dumps(digests_of([int(seed) for seed in sys.argv[2:]])))
        return 0
    parser = argparse.ArgumentParser(
        prog="scripts/evidence",
        description="Run the simulator over many seeds and write docs/evidence/simulation.md, or fleet-seeds.md. "
        "`scripts/evidence soak` and `scripts/evidence kills` are the two other long runs (--help).",
    )
    parser.add_argument(
        "stage", nargs="?", choices=("all", *STAGES), default="all", help="all: each in this order"
    )
    parser.add_argument("--fleet", action="store_true", help="several daemons over one ledger")
    parser.add_argument("--seeds", type=int, metavar="N", help="default: 100000, with --fleet 20000")
    parser.add_argument("--base", type=int, default=base_seed(), help="the first seed; by default it follows from "
                        "the sources")  # fmt: skip
    parser.add_argument("--sample", type=int, default=500, metavar="N", help="how many seeds are run again")
    parser.add_argument("--processes", type=int, default=PROCESSORS, metavar="N")
    parser.add_argument("--work", type=Path, help="the file of what is done")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/evidence", help="where the report goes")
    options = parser.parse_args()
    options.seeds = options.seeds or (20_000 if options.fleet else 100_000)
    log = Log(options.work or (FLEET_WORK if options.fleet else WORK))
    every = FLEET_STAGES if options.fleet else tuple(STAGES)
    for stage in every if options.stage == "all" else (options.stage,):
        STAGES[stage](log, options)
    failed: Counter[str] = Counter()
    failed["violations"] = sum(len(line["violations"]) for line in log.of("seeds"))
    failed["different"] = sum(len(line["different"]) for line in log.of("replay"))
    failed["mutants alive"] = sum(line["took"] is None for line in log.of("mutants"))
    say(", ".join(f"{count} {what}" for what, count in failed.items()))
    return 1 if failed.total() else 0


if __name__ == "__main__":
    sys.exit(main())
