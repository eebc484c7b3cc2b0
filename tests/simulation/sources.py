"""The program under test: a hash over the sources of package and simulator, and the first seed from it."""

import hashlib
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASE_SEEDS = 10**9


def package_hash() -> str:
    """The same for the same sources under the same names, in whatever commit they are."""
    told = hashlib.sha256()
    for path in sorted([*(ROOT / "payagent").rglob("*.py"), *(ROOT / "sim").rglob("*.py")]):
        text = path.read_bytes()
        told.update(f"{path.relative_to(ROOT).as_posix()} {len(text)}\n".encode() + text)
    return told.hexdigest()


def base_seed() -> int:
    """Where the seeds of the suite begin: others for each change of the program, the same ones until then."""
    return int(package_hash()[:15], 16) % BASE_SEEDS


def regressions(name: str = "regressions.txt") -> list[int]:
    """Seeds that failed once; each line of the file is a seed and why."""
    lines = (ROOT / "tests/simulation" / name).read_text(encoding="utf-8").splitlines()
    return [int(line.split()[0]) for line in lines if line.strip() and not line.startswith("#")]


def commit() -> str:
    """The commit, and whether the work tree's package or simulator is not what it says."""
    head = _git("rev-parse", "HEAD")
    return head + (
        " and changes" if _git("status", "--porcelain", "--", "payagent", "sim", "tests/simulation") else ""
    )


def _git(*arguments: str) -> str:
    return subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
