"""Twenty thousand kills: campaigns of some hundreds, each with its own devnet, wallets and processes.

Run by `scripts/evidence kills`. Each finished campaign is a line of a file, so a stopped run can be
resumed; lines of another program version are refused. A campaign that found something ends the run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from killcampaign import EVERY_POINT
from simulation.evidence import Log, say
from simulation.report import machine
from simulation.sources import ROOT

Line = dict[str, Any]
WORK = ROOT / ".evidence/kills.jsonl"
PROCESSORS = len(os.sched_getaffinity(0))


def run_share(kills: int, seed: int) -> Line:
    """One campaign in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="killshare") as folder:
        result = Path(folder) / "result.json"
        done = subprocess.run(
            (sys.executable, ROOT / "tests/kills/killcampaign.py", "--kills", str(kills), "--seed", str(seed),
             "--result", result),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        if not result.exists():
            return {"seed": seed, "findings": [f"the campaign itself failed: {done.stderr[-2000:]}"], "kills": {}}
        told: Line = json.loads(result.read_text(encoding="utf-8"))
        return told | {"told": done.stderr[-2000:]}


def run(log: Log, options: argparse.Namespace) -> bool:
    done = {line["seed"] for line in log.of("kills") if not line["findings"]}
    seeds = [seed for seed in range(1, -(-options.kills // options.share) + 1) if seed not in done]
    say(f"{len(done)} campaigns of {options.share} kills are there, {len(seeds)} to go")
    began_s, kills = time.monotonic(), 0
    with ThreadPoolExecutor(options.processes) as pool:
        asked = [pool.submit(run_share, options.share, seed) for seed in seeds]
        for ended in as_completed(asked):
            line = ended.result()
            log.add("kills", **line)
            kills += sum(line["kills"].values())
            say(f"seed {line['seed']}: {kills} kills, {kills / (time.monotonic() - began_s):.1f} a second")
            if line["findings"]:
                say("\n".join(line["findings"]))
                for other in asked:
                    other.cancel()
    return all(not line["findings"] for line in log.of("kills"))


def as_rows(log: Log) -> str:
    """What docs/evidence/kills.md takes in: the sums, and each point with its kills."""
    lines = log.of("kills")
    kills: Counter[str] = Counter()
    trouble: Counter[str] = Counter()
    for line in lines:
        kills.update(line["kills"])
        trouble.update(line.get("trouble", {}))
    at_points = sum(kills[point] for point in EVERY_POINT)
    findings = sum(len(line["findings"]) for line in lines)
    purchases = sum(line.get("purchases", 0) for line in lines)
    seconds = sum(line.get("seconds", 0) for line in lines)
    lost, of = trouble["rolled back transactions"], machine()
    rows = [
        f"{of['processors']} processors ({of['cpu']}), Python {of['python']}, SQLite {of['sqlite']}; sources "
        f"{lines[0]['package'][:16]}, at commit {', '.join(sorted({line['commit'] for line in lines}))}.",
        "",
        "| run | kills | at commit points | at random | cold | purchases | "
        "rollbacks (transactions lost by them) | seconds of campaigns | violations |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| {len(lines)} campaigns | {kills.total()} | {at_points} | {kills['random']} | {kills['cold start']} | "
        f"{purchases} | {trouble['rollback']} ({lost}) | {seconds:.0f} | {findings} |",
        "",
        ", ".join(f"{point} {kills[point]}" for point in EVERY_POINT) + ".",
    ]
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/evidence kills", description="Kill daemons twenty thousand times, a campaign at a time."
    )
    parser.add_argument("--kills", type=int, default=20_000)
    parser.add_argument("--share", type=int, default=500, help="kills in a campaign; fewer than 500 miss a point")
    parser.add_argument("--processes", type=int, default=PROCESSORS)
    parser.add_argument("--work", type=Path, default=WORK, help="the file of what is done")
    options = parser.parse_args()
    log = Log(options.work)
    is_clean = run(log, options)
    print(as_rows(log))
    return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
