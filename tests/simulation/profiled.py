"""Where a run's time goes: a profile's own times, by kind of work."""

import cProfile
import pstats
from collections import Counter

KINDS = (
    ("SQLite", ("sqlite3.", "_sqlite3", "sqlite_utils")),
    ("signatures", ("/nacl/", "_sodium", "crypto_sign", "ed25519", "/cryptography/")),
    ("hashes", ("_hashlib", "_blake2", "_sha2", "hexdigest", "blake2b", "sha256")),
    ("the merchants' HTTP application (FastAPI, pydantic)", ("fastapi", "starlette", "pydantic", "anyio")),
    ("HTTP client of the daemon's own calls (httpx)", ("httpx", "httpcore")),
    ("the event loop (asyncio, sim/loop)", ("asyncio", "sim/loop", "selectors", "contextvars", "heapq")),
    ("the audit at the end (audit)", ("payagent/audit",)),
    ("the world: devnet", ("payagent/devnet",)),
    ("the world: sim", ("payagent/sim",)),
    ("the store's Python", ("payagent/store",)),
    ("wallet and pycardano", ("payagent/wallet", "pycardano", "cbor2")),
    ("agent, chain, core, dialects, proxy", ("payagent/",)),
    ("JSON", ("/json/", "_json")),
    ("copies of files (fork of the disk)", ("shutil", "posix.")),
)  # fmt: skip
OTHER = "other"


def shares(profile: cProfile.Profile) -> list[tuple[str, float]]:
    """Percent of the time by kind, greatest first. The time of a built-in counts for its caller's kind."""
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    times: Counter[str] = Counter()
    for function, (_, _, own_s, _, callers) in stats.items():
        kind = _kind(function)
        if kind != OTHER or not callers:
            times[kind] += own_s
            continue
        for caller, (_, _, from_caller_s, _) in callers.items():
            times[_kind(caller)] += from_caller_s
    whole_s = sum(times.values())
    return [(kind, round(100 * spent_s / whole_s, 1)) for kind, spent_s in times.most_common()]


def _kind(function: tuple[str, int, str]) -> str:
    text = f"{function[0]} {function[2]}"
    return next((kind for kind, marks in KINDS if any(mark in text for mark in marks)), OTHER)
