"""Checks the outcome of a run of the simulator."""

from sim.run import Result


def require_clean(result: Result) -> None:
    told = "\n".join(f"seed {seed}: {what}" for seed, what in sorted(result.violations.items()))
    first = min(result.violations, default=0)
    how = f"step by step: scripts/sim --seeds {first}..{first + 1} --story"
    assert not result.violations, f"{len(result.violations)} of {result.seeds} seeds\n{told}\n{how}"
