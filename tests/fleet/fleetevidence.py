"""`scripts/evidence fleet`: daemons of a fleet are killed and stopped at every commit point, and its database
fails. Times are taken.

Prints the rows of docs/evidence/fleet.md. The judges of a drill end the run if they find something. Exit status 1:
an account was not taken within its lease and two seconds, or the others stood still for three.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import fleetfaults
from fleetrounds import DAEMONS, Failure, every_round, run_round
from fleetworld import drill_fleet
from kit.postgresql import server
from simulation.report import machine

from payagent.store.rows.fleet import LEASE_MS

TAKEN_WITHIN_MS, STALLED_MAX_MS = 2_000, 3_000


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/evidence fleet",
        description="Kill and stop daemons at every commit point, let the database fail, and print the rows of "
        "docs/evidence/fleet.md.",
        epilog="Example: scripts/evidence fleet",
    )
    parser.add_argument("--database", action="store_true", help="only let the database fail")
    is_short = parser.parse_args().database
    with tempfile.TemporaryDirectory(prefix="fleet") as folder, server() as running:
        print("| fault | paid again after | /healthz answered | purchases | transactions |")
        print("|---|---|---|---|---|")
        for row in fleetfaults.rows(Path(folder), running):
            print(row, flush=True)
    return 0 if is_short else kill_and_stop()


def kill_and_stop() -> int:
    began_s, failures = time.monotonic(), list[Failure]()
    with (
        tempfile.TemporaryDirectory(prefix="fleet") as folder,
        server() as running,
        drill_fleet(Path(folder), running, DAEMONS) as drill,
    ):
        for planned in every_round():
            run_round(drill, planned)
            failures += planned
            print(planned, file=sys.stderr, flush=True)
        purchases = len(drill.purchases)
    of, taken_s = machine(), time.monotonic() - began_s
    print(f"{of['processors']} processors ({of['cpu']}), Python {of['python']}.")
    print(f"\n{len(failures)} failures, {purchases} purchases, {taken_s:.0f} s, 0 violations.\n")
    print("| a daemon is | times | account taken after (median, worst) | gate free after (median, worst) |")
    print("|---|---|---|---|")
    for action in ("kill", "stop"):
        for side in ("before", "after"):
            print(
                _row(
                    action, side, [one for one in failures if (one.action, one.point.split()[0]) == (action, side)]
                )
            )
    is_in_time = all(
        one.taken_s * 1000 <= LEASE_MS + TAKEN_WITHIN_MS and one.stalled_s * 1000 <= STALLED_MAX_MS
        for one in failures
    )
    return 0 if is_in_time else 1


def _row(action: str, side: str, failures: Sequence[Failure]) -> str:
    taken, stalled = [one.taken_s for one in failures], [one.stalled_s for one in failures]
    times = " | ".join(f"{median(all_s):.1f} s, {max(all_s):.1f} s" for all_s in (taken, stalled))
    done = {"kill": "killed", "stop": "stopped"}[action]
    return f"| {done} {side} a commit | {len(failures)} | {times} |"


if __name__ == "__main__":
    sys.exit(main())
