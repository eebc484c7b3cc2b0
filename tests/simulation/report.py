"""The report of a long run, made only from the lines that the run left."""

import json
import os
import platform
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from statistics import median
from typing import Any

from sim.coverage import LISTED
from sim.fault_rates import FaultRates

Line = dict[str, Any]

LISTED_LEAST, LISTED_SEEDS = 1000, 100_000
"""What is listed must have been reached a thousand times in a run of a hundred thousand seeds."""

LEFT_OUT = """\
- One wallet, one daemon, and at most six purchases with a top-up and the operator's orders; the soak
  (`scripts/evidence soak`) has fifty thousand payments.
- One token at a time that is sold for, by all merchants of a seed.
- At most one of two providers lies, and the other is silent seldom then: whoever hears liars alone can be lied to.
- No fork is deeper than the payment's `settle_depth`: after that nobody watches.
- One thread. The writer's thread, the HTTP of the provider and of the API, processes and the operating system's
  file system are real in `tests/kills`, `tests/daemon` and `tests/crash`, and not here.
- What a disk tells as synced is there after a death. Disks that lie about it are in `tests/crash`.
- The rates are far above what a network shows. They rank designs and find mistakes; they do not predict how often
  something happens.
"""


def write(lines: Sequence[Line], folder: Path, *, of_fleet: bool = False) -> list[Path]:
    """Both forms, for people and for programs. Of a fleet, the page alone."""
    told = summary(lines)
    if of_fleet:
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / "fleet-seeds.md"
        page.write_text(as_fleet_page(told), encoding="utf-8")
        return [page]
    page, data = folder / "simulation.md", folder / "simulation.json"
    folder.mkdir(parents=True, exist_ok=True)
    page.write_text(as_page(told), encoding="utf-8")
    data.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return [page, data]


def summary(lines: Sequence[Line]) -> dict[str, Any]:
    """Sums over all shares; of what was done more than once, the last."""
    shares = [line for line in lines if line["stage"] == "seeds"]
    reached: Counter[str] = Counter()
    violations: dict[str, str] = {}
    for share in shares:
        reached.update(share["reached"])
        violations |= share["violations"]
    seeds = sum(share["last"] - share["first"] for share in shares)
    return {
        "package": shares[0]["package"],
        "commits": sorted({share["commit"] for share in shares}),
        "machine": machine(),
        "seeds": {
            "count": seeds,
            "ranges": _ranges((share["first"], share["last"]) for share in shares),
            "cpu_s": round(sum(share["cpu_s"] for share in shares), 1),
            "core_s": round(sum(share["wall_s"] for share in shares), 1),
            "processes": max(share["processes"] for share in shares),
        },
        "reached": dict(reached),
        "listed": {event: reached[event] for event in LISTED},
        "violations": violations,
        "replay": _last(lines, "replay"),
        "profile": _last(lines, "profile"),
        "mutants": [line for line in lines if line["stage"] == "mutants"],
        "mix": {field.name: field.default for field in fields(FaultRates)},
    }


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line] \
        if info.exists() else []  # fmt: skip
    return {
        "processors": len(os.sched_getaffinity(0)),
        "cpu": names[0] if names else platform.processor() or "unknown",
        "system": platform.system(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }


def _ranges(shares: Iterable[tuple[int, int]]) -> list[list[int]]:
    joined: list[list[int]] = []
    for first, last in sorted(shares):
        if joined and joined[-1][1] == first:
            joined[-1][1] = last
        else:
            joined.append([first, last])
    return joined


def _last(lines: Sequence[Line], stage: str) -> Line | None:
    return next((line for line in reversed(lines) if line["stage"] == stage), None)


def as_page(told: dict[str, Any]) -> str:
    parts = (_head, _verdict, _speed, _counters, _again, _mutants, _mix)
    lines = [text for part in parts for text in (*part(told), "")] + ["## What the mix leaves out", "", LEFT_OUT]
    titles = [text.removeprefix("## ") for text in lines if text.startswith("## ")]
    first = lines.index(f"## {titles[0]}")
    contents = [f"- [{title}](#{title.lower().replace(' ', '-')})" for title in titles]
    return "\n".join([*lines[:first], *contents, "", *lines[first:]])


def as_fleet_page(told: dict[str, Any]) -> str:
    head = [
        "# The simulation of a fleet",
        "",
        "Written by `scripts/evidence --fleet`.",
        "`scripts/sim --fleet --seeds A..B --story` shows any of its seeds step by step.",
        "",
    ]
    counts = sorted(told["reached"].items(), key=lambda pair: pair[1])
    reached = ["## What was reached", "", "| times | event |", "|---|---|"]
    reached += [f"| {count:,} | {event} |" for event, count in counts]
    bugs = [line.replace("mutants.py", "fleet_mutants.py") for line in _mutants(told)]
    lines = [*head, *_program(told), "", *_verdict(told), "", *_speed(told), "", *reached, "", *bugs, ""]
    return "\n".join(lines)


def _head(told: dict[str, Any]) -> list[str]:
    return [
        "# The simulation",
        "",
        "Written by `scripts/evidence`; the same numbers for programs are in [simulation.json](simulation.json).",
        "`scripts/sim --seeds A..B --story` shows any of its seeds step by step.",
        "",
        *_program(told),
    ]


def _program(told: dict[str, Any]) -> list[str]:
    machine = told["machine"]
    return [
        f"Program: sources {told['package'][:16]}, at commit {', '.join(told['commits'])}.",
        f"Machine: {machine['processors']} processors ({machine['cpu']}), {machine['system']}, "
        f"Python {machine['python']}, SQLite {machine['sqlite']}.",
    ]


def _verdict(told: dict[str, Any]) -> list[str]:
    seeds, failed = told["seeds"], told["violations"]
    ranges = ", ".join(f"{first}..{last}" for first, last in seeds["ranges"])
    lines = ["## Seeds", "", f"{seeds['count']:,} seeds ({ranges}), {len(failed)} violations."]
    if not failed:
        bound = 3 / seeds["count"]
        lines.append(
            f"None in {seeds['count']:,} bounds the share of runs that violate something below {bound:.1e} "
            "(3/N, at 95 %), for this mix of faults and no other."
        )
    return lines + [
        f"- seed {seed}: {what}" for seed, what in sorted(failed.items(), key=lambda pair: int(pair[0]))
    ]


def _speed(told: dict[str, Any]) -> list[str]:
    seeds, profile = told["seeds"], told["profile"]
    lines = [
        "## Speed",
        "",
        f"{seeds['count'] / seeds['cpu_s']:.1f} seeds a second of a core's own time, "
        f"{seeds['count'] / seeds['core_s']:.1f} a second of each process's (on up to {seeds['processes']} "
        "at once, beside whatever else the machine did).",
    ]
    if profile:
        lines += [
            "",
            f"What limits it, by a profile over {profile['seeds']} seeds:",
            "",
            "| part | % |",
            "|---|---|",
        ]
        lines += [f"| {kind} | {share} |" for kind, share in profile["shares"]]
    return lines


def _counters(told: dict[str, Any]) -> list[str]:
    reached, listed = told["reached"], told["listed"]
    least = LISTED_LEAST * min(told["seeds"]["count"], LISTED_SEEDS) // LISTED_SEEDS
    few = {event: count for event, count in listed.items() if count < least}
    lines = ["## What was reached", ""]
    if few:
        lines += [f"Of what is to be reached {least} times (in bold below), these were not:", ""]
        lines += [f"- {event}: {count}" for event, count in sorted(few.items(), key=lambda pair: pair[1])]
    else:
        lines.append(f"Each of the {len(listed)} listed events (in bold) was reached at least {least} times.")
    lines += ["", "| times | event |", "|---|---|"]
    return lines + [
        f"| {count:,} | {f'**{event}**' if event in listed else event} |"
        for event, count in sorted((dict.fromkeys(listed, 0) | reached).items(), key=lambda pair: pair[1])
    ]


def _again(told: dict[str, Any]) -> list[str]:
    done = told["replay"]
    if done is None:
        return ["## The same seeds again", "", "Not run."]
    return [
        "## The same seeds again",
        "",
        f"{done['sample']} of the seeds were run again in other processes, with other hashes of text: "
        f"{len(done['different'])} differ in any line of their story.",
        *(f"- seed {seed}" for seed in done["different"]),
    ]


def _mutants(told: dict[str, Any]) -> list[str]:
    rows = told["mutants"]
    if not rows:
        return ["## Seeded bugs", "", "Not run."]
    took = [row["took"] for row in rows if row["took"] is not None]
    alive = len(rows) - len(took)
    lines = ["## Seeded bugs", "", f"{len(rows)} bugs (`tests/simulation/mutants.py`), {alive} not found."]
    if took:
        lines.append(f"Seeds until one is found: {median(took):g} at the median, {max(took)} at most.")
    lines += [
        "What `verify` finds does not count here: a payer with the bug would verify by the same mistake.",
        "",
        "| bug | seeds | what it violates |",
        "|---|---|---|",
    ]
    return lines + [
        f"| {row['name']} | {row['took'] or 'not found'} | {row['violated'] or ''} |"
        for row in sorted(rows, key=lambda row: row["took"] or 10**9)
    ]


def _mix(told: dict[str, Any]) -> list[str]:
    rates = "".join(f"| `{name}` | {rate} |\n" for name, rate in told["mix"].items()).rstrip()
    return [
        "## The mix",
        "",
        "Each rate is zero in two of five seeds and otherwise drawn evenly from zero to the greatest",
        "(`sim/fault_rates.py`); it is a chance for each call, submission, block or commit, or for a minute.",
        "",
        "| rate | greatest |",
        "|---|---|",
        rates,
    ]
