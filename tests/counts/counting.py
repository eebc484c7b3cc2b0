"""The countable costs of a payment, which are the same each time however busy the machine is.

Statements, commits and requests to the provider are counted in the real agent over a real file and a devnet over
HTTP, memory by `tracemalloc`, instructions under `valgrind --tool=callgrind`. Instructions and memory depend
on the version of Python, which the baseline names; under another version they are not compared.

    python tests/counts/counting.py           show the counts beside the baseline
    python tests/counts/counting.py --write   make them the baseline
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection

HERE = Path(__file__).parent
BASELINE = HERE / "baseline.json"
TOLERANCE_PERCENT = 5

PAYMENTS = 20
"""How many payments are counted after a first one, which prepares statements and warms caches."""

UTXOS = (1, 1_000, 10_000)
BUILT_FROM = UTXOS[:2]
WARM_UP, BUILT = 5, 40
"""How many payments callgrind sees built from each wallet: before, and while it counts."""

Counts = dict[str, float]

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(slots=True)
class Statements:
    """Counts the statements of a connection, including those run by triggers."""

    count: int = 0
    commits: int = 0

    def watch(self, conn: Connection) -> None:
        conn.set_trace_callback(self._note)

    def _note(self, sql: str) -> None:
        self.count += 1
        self.commits += sql == "COMMIT"

    def taken(self) -> tuple[int, int]:
        """(statements, commits) since the last call."""
        told = (self.count, self.commits)
        self.count = self.commits = 0
        return told


async def of_the_agent(folder: Path) -> Counts:
    """What one payment needs, as the daemon runs it: with the lease and the signer's record.

    A trace shows the statements and the guards' programs alike. So the same payments are counted once with the
    guards and once without them, which run nothing else.
    """
    (folder / "guarded").mkdir()
    (folder / "bare").mkdir()
    both = await counted(folder / "guarded", is_guarded=True)
    statements = await counted(folder / "bare", is_guarded=False)
    counts = {name: count for name, count in statements.items() if name.startswith("statements")}
    guards = {
        name.replace("statements", "guard runs"): both[name] - count
        for name, count in counts.items()
        if "payment" in name
    }
    return both | counts | guards


async def least_of_the_agent(folder: Path) -> Counts:
    """The least of several: on a busy machine a payment is looked at more often."""
    least: Counts = {}
    for number in range(4):
        (folder / str(number)).mkdir()
        found = await of_the_agent(folder / str(number))
        least = {name: min(count, least.get(name, count)) for name, count in found.items()}
        if not grown(least, baseline()):
            break
    return least


async def counted(folder: Path, *, is_guarded: bool) -> Counts:
    """Statements and commits of a payment until it is submitted; provider requests for one more, and when idle."""
    from kit.agent import ADA, world_with_clock

    from payagent.scheduler import NETWORK_INTERVALS
    from payagent.store.db.signer_record import SIGNER_FILE, SignerFile
    from payagent.store.db.triggers import TRIGGERS

    told: Counts = {}
    with world_with_clock(folder) as world:
        world.fund(*[20 * ADA] * (PAYMENTS + 1))
        async with world.run(record=SignerFile(folder / SIGNER_FILE)) as run:
            await run.run_pass()
            await run.pay("first")
            await run.settle_down(3)
            statements, source = Statements(), run.context.all_providers[0]
            conn = run.context._writer._committer.conn  # type: ignore[attr-defined]
            for trigger in () if is_guarded else TRIGGERS:
                conn.execute(f"DROP TRIGGER {trigger.name}")
            statements.watch(conn)
            statements.watch(run.context.conn)
            calls = source.calls
            await run.settle_down(10)
            assert run.chain_sync.is_idle
            told["provider calls of an idle look at a new block"] = (source.calls - calls) / 10
            told["provider calls a minute when idle"] = 60 / NETWORK_INTERVALS.idle_s * (source.calls - calls) / 10
            told["statements of an idle look at a new block"] = statements.taken()[0] / 10
            calls = source.calls
            for number in range(PAYMENTS):
                await run.pay(f"call {number}")
            done, commits = statements.taken()
            told["statements of a payment, asked for to sent"] = done / PAYMENTS
            told["commits of a payment, asked for to sent"] = commits / PAYMENTS
            await run.settle_down(3)
            told["statements of a payment, sent to confirmed"] = statements.taken()[0] / PAYMENTS
            idle = 3 * told["provider calls of an idle look at a new block"]
            told["provider calls of one payment more"] = (source.calls - calls - idle) / PAYMENTS
    return told


def builder(utxos: int) -> Callable[[], object]:
    """Select, build, sign and check one payment from a wallet of that many UTxOs."""
    from benchmarks.wallets import outputs, pay, wallet
    from payagent.wallet.utxo_index import UtxoIndex

    index, asked = UtxoIndex(wallet(utxos, "ada")), outputs("ada")
    return lambda: pay(index, asked)


def memory_of_building() -> Counts:
    """Peak memory of one payment in KiB: the least of several, since other threads may run meanwhile."""
    told: Counts = {}
    for utxos in UTXOS:
        work = builder(utxos)
        for _ in range(3):
            work()
        told[f"KiB at once to build and sign, {utxos} coins"] = min(_peak_kib(work) for _ in range(5))
    return told


def _peak_kib(work: Callable[[], object]) -> float:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 1024
    finally:
        tracemalloc.stop()


def instructions_of_building() -> Counts:
    """Instructions of one payment. The calls of `getppid` divide what callgrind counts into parts.

    Raises `FileNotFoundError` where valgrind is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "part"
        options = ("--tool=callgrind", "--dump-before=getppid", f"--callgrind-out-file={out}")
        run = subprocess.run(
            ("valgrind", *options, sys.executable, __file__, "--build"),
            env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if run.returncode:
            raise RuntimeError(f"callgrind failed: {run.stderr[-500:]}")
        parts = [_instructions(Path(f"{out}.{number}")) for number in range(1, 2 * len(BUILT_FROM) + 1)]
    names = (f"instructions to build and sign, {utxos} coins" for utxos in BUILT_FROM)
    return dict(zip(names, (part / BUILT for part in parts[1::2]), strict=True))


def _instructions(part: Path) -> int:
    found = re.search(r"^(?:totals|summary): (\d+)$", part.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{part.name} has no sum")
    return int(found[1])


def build_between_marks() -> None:
    """What callgrind runs: the payments that are counted stand between two calls of `getppid`."""
    for utxos in BUILT_FROM:
        work = builder(utxos)
        for count in (WARM_UP, BUILT):
            for _ in range(count):
                work()
            os.getppid()


def count_all() -> Counts:
    with tempfile.TemporaryDirectory() as folder:
        told = asyncio.run(of_the_agent(Path(folder)))
    return told | memory_of_building() | instructions_of_building()


def baseline() -> Counts:
    told: Counts = json.loads(BASELINE.read_text())["counts"]
    return told


def baseline_python() -> str:
    return str(json.loads(BASELINE.read_text())["python"])


def grown(counts: Counts, before: Counts) -> dict[str, str]:
    """The counts that exceed the baseline by more than the tolerance, or are not in it, in words."""
    return {
        name: f"{count:g}, the baseline is {before.get(name, 0):g}"
        for name, count in counts.items()
        if count * 100 > before.get(name, 0) * (100 + TOLERANCE_PERCENT)
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/counts/counting.py", description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="make what is counted the baseline")
    parser.add_argument("--build", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        build_between_marks()
        return 0
    counts = count_all()
    before = baseline() if BASELINE.exists() else {}
    for name, count in counts.items():
        print(f"{name}: {count:g} (baseline {before.get(name, 0):g})")
    if options.write:
        told = {"python": PYTHON, "counts": {name: round(count, 2) for name, count in counts.items()}}
        BASELINE.write_text(json.dumps(told, indent=1) + "\n")
        return 0
    return 1 if grown(counts, before) else 0


if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]
    sys.exit(main())
