"""`scripts/bench`: all parts, or some, one after the other; then the page, its plots and the JSON."""

import argparse
import dataclasses
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.results import Options, Part

PARTS = (
    *("building", "signing", "paying", "before", "burst", "proxy", "channels", "store", "fleet", "starting"),
    "seeds",
)
ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure what a payment costs, beside others who do the same work, and write the page.",
        epilog="Example: scripts/bench --quick --only building --only proxy",
    )
    parser.add_argument("--quick", action="store_true", help="measure less of each part")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part (may be repeated)")
    parser.add_argument("--out", type=Path, help="the folder for the page, its plots and the JSON")
    parser.add_argument("--page-of", type=Path, metavar="JSON", help="measure nothing: make the page of this run")
    parser.add_argument(
        "--before",
        metavar="COMMIT",
        help="measure beside this commit (default: the last one before HEAD in payagent/)",
    )
    options = parser.parse_args()
    if options.page_of:
        kept = json.loads(options.page_of.read_text(encoding="utf-8"))
        report.write(kept, options.out or options.page_of.parent)
        return 0
    parts = options.only or PARTS
    wanted = (options.before,) if options.before else ("HEAD~1", "--", "payagent")
    before = report.git("rev-list", "-1", *wanted) or ""
    if "before" in parts and not before:
        parser.error("git finds no commit to measure beside: name one with --before, or other parts with --only")
    told: dict[str, Any] = {"quick": options.quick, "run": report.about_the_run(), "parts": []}
    for name in parts:
        told["parts"].append(measured(name, Options(options.quick, before)))
        if options.out:  # after each, so that what was measured is kept when a later one fails
            report.write(told, options.out)
    print(report.as_summary(told))
    return 0 if all(bound["holds"] for part in told["parts"] for bound in part["bounds"]) else 1


def measured(name: str, options: Options) -> dict[str, Any]:
    """One part as data, with how long it took."""
    say(f"{name} …")
    began_s = time.monotonic()
    part: Part = importlib.import_module(f"benchmarks.{name}").measure(options)
    took_s = round(time.monotonic() - began_s, 1)
    say(f"{name}: {took_s} s")
    return as_data(part) | {"took_s": took_s}


def as_data(part: Part) -> dict[str, Any]:
    told = dataclasses.asdict(part)
    for data, bound in zip(told["bounds"], part.bounds, strict=True):
        data["holds"] = bound.holds
    return told


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
