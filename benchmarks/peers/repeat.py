"""What the peers in Python share: the job read, the lines told, the builds repeated and timed."""

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any


def serve(package: str, prepare: Callable[[dict[str, Any]], Callable[[], str]]) -> None:
    """`prepare` makes of a job the function that builds and signs, and gives the bytes in hex."""
    job = json.load(sys.stdin)
    try:
        build = prepare(job)
        _tell(ready=f"{package} {version(package)}, Python {sys.version.split()[0]}")
        took_ms, _ = _timed(build)
        _tell(built=took_ms)
        _tell(**_repeated(build, job))
    except Exception as error:  # noqa: BLE001 - whatever a peer says, the one who asked is told
        _tell(error=f"{type(error).__name__}: {error}"[:300])


def _repeated(build: Callable[[], str], job: dict[str, Any]) -> dict[str, Any]:
    ms: list[float] = []
    end_s = time.perf_counter() + job["most_s"]
    while len(ms) < job["rounds"] and (not ms or time.perf_counter() < end_s):
        took_ms, tx = _timed(build)
        ms.append(took_ms)
    return {"ms": ms, "tx": tx}


def _timed(build: Callable[[], str]) -> tuple[float, str]:
    start_s = time.perf_counter()
    tx = build()
    return (time.perf_counter() - start_s) * 1000, tx


def _tell(**line: Any) -> None:
    print(json.dumps(line), flush=True)
