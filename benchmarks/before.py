"""A payment beside the commit before: the same calls to this tree's daemon and to the one of an earlier commit.

May import: benchmarks.paying, benchmarks.stage. Never: changes this tree, or leaves the other one behind.
"""

import asyncio
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.clients import at_once
from benchmarks.measure import cpu_s
from benchmarks.paying import BLOCKS, UTXO_LOVELACE, payments, require, settled, warm
from benchmarks.report import git
from benchmarks.results import Bound, Options, Part, Ratio, Table
from benchmarks.stage import ROOT, Stage, stage

CLIENTS = 64
FOLLOW_S = 3.0
"""A payment is submitted and watched after its answer. That processor time counts too."""

CPU_RATIO_MAX = 1.15
HOW = """\
Payments with {clients} clients to the daemon of this tree{state}, and to the daemon of commit {commit}. Both
run at the same time and take turns: {turns} each, of {count} payments. Processor time is that of a daemon and its
signer, from the first call until {follow_s:.0f} s after the last answer. The ratios are of the medians.
"""
SAME = "Both have the same payagent/, so the ratios show what chance does.\n"
THIS, BEFORE = "this tree", "the commit before"
Turn = tuple[float, float]
"""Milliseconds of processor time per payment, and payments a second."""


def measure(options: Options) -> Part:
    turns, count = options.pick(3, 9), options.pick(100, 300)
    utxos = [UTXO_LOVELACE] * 2 * count  # two small ones may go into one payment
    with (
        checked_out(options.before) as tree,
        stage(utxos, devnet_options=BLOCKS) as ours,
        stage(utxos, devnet_options=BLOCKS, tree=tree) as theirs,
    ):
        stages = {THIS: ours, BEFORE: theirs}
        made: dict[str, list[Turn]] = {THIS: [], BEFORE: []}
        for up in stages.values():
            warm(up)
        for number in range(turns):
            for name, up in stages.items():
                made[name].append(_turn(up, f"turn {number}", count))
    state = " with its uncommitted changes" if git("status", "--porcelain") else ""
    how = HOW.format(
        clients=CLIENTS, state=state, commit=options.before[:12], count=count, turns=turns, follow_s=FOLLOW_S
    )
    if git("diff", "--quiet", options.before, "--", "payagent") is not None:
        how += SAME
    return as_part(how, made)


def as_part(how: str, made: dict[str, list[Turn]]) -> Part:
    (cpu_ms, rate), (cpu_ms_before, rate_before) = (
        [statistics.median(figures) for figures in zip(*made[name], strict=True)] for name in (THIS, BEFORE)
    )
    cpu_ratio = round(cpu_ms / cpu_ms_before, 2)
    return Part(
        "before",
        "A payment beside the commit before",
        how,
        [Bound(f"processor time of a payment, beside {BEFORE}", cpu_ratio, CPU_RATIO_MAX, "times")],
        [Ratio(f"durable payments, {CLIENTS} clients", BEFORE, rate / rate_before)],
        [
            Table(
                "Turns",
                ("by", "ms of processor time a payment", "payments a second"),
                [(name, *turn) for name, turns in made.items() for turn in turns],
            )
        ],
    )


def _turn(up: Stage, name: str, count: int) -> Turn:
    settled(up)
    calls, began_s = payments(up, name, count), cpu_s(up.pid)
    answers, took_s = asyncio.run(at_once(up.api, calls, CLIENTS))
    require(answers, 201)
    time.sleep(FOLLOW_S)
    return (cpu_s(up.pid) - began_s) / count * 1000, count / took_s


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The tree of a commit, in a temporary git worktree."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(("git", "worktree", "add", "--quiet", "--detach", tree, commit), cwd=ROOT, check=True)
        try:
            yield tree
        finally:
            subprocess.run(("git", "worktree", "remove", "--force", tree), cwd=ROOT, check=True)
