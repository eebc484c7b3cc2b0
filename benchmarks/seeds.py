"""How many seeds of the simulator one process runs in a second of its processor's time."""

import time

from benchmarks.results import Options, Part, Table
from sim.run import run_share

FIRST = 1_000_000
"""Far from the seeds that tests run."""

WARM_UP = 20


def measure(options: Options) -> Part:
    run_share(range(FIRST, FIRST + WARM_UP))
    return of(range(FIRST + WARM_UP, FIRST + WARM_UP + options.pick(40, 2_000)))


def of(seeds: range) -> Part:
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    result = run_share(seeds)
    cpu_s, took_s = time.process_time() - began_cpu_s, time.perf_counter() - began_s
    if result.violations:
        raise RuntimeError(f"seeds failed: {result.violations}")
    per_core_second = round(len(seeds) / cpu_s, 1)
    columns = ("seeds", "core-seconds", "seconds", "seeds per core-second")
    return Part(
        "seeds",
        "The simulator",
        how=f"{len(seeds)} seeds, each the life of an agent among faults, in one process, after {WARM_UP} that "
        "are not counted. Seconds of the processor, so that what else the machine does counts for little.",
        tables=[Table("Seeds", columns, [(len(seeds), round(cpu_s, 1), round(took_s, 1), per_core_second)])],
    )
