"""Fault rates of a run: how often each fault occurs, drawn per seed. Many are zero.

Never: draws anything after the start.
"""

from dataclasses import dataclass, fields
from random import Random

OFTEN, SOMETIMES, SELDOM = 0.35, 0.15, 0.05


@dataclass(frozen=True, slots=True)
class FaultRates:
    """Chances per call, block or commit, as each group says. The defaults are the maxima of the draw."""

    # per call to a provider
    unknown: float = OFTEN
    tip_lags: float = OFTEN
    index_lags: float = OFTEN
    # per submission
    lost_request: float = 0.7
    lost_reply: float = OFTEN
    late_accept: float = 0.25
    mempool_full: float = SOMETIMES
    over_limit: float = SOMETIMES
    broken: float = SOMETIMES
    dropped: float = 0.7
    other_id: float = SOMETIMES
    # per block
    empty_block: float = 0.7
    evicted: float = OFTEN
    fork: float = SOMETIMES
    deep_fork: float = 0.8  # share of the forks
    rebroadcast: float = OFTEN
    deposit_lost: float = 0.7  # share of the deposits that a fork undoes
    deposit_back: float = 0.1  # of those, per block
    # per call to a merchant
    merchant_unreached: float = OFTEN
    merchant_reply_lost: float = OFTEN
    merchant_broken: float = SOMETIMES
    merchant_rechallenges: float = SOMETIMES
    merchant_status_lies: float = OFTEN
    never_broadcasts: float = 0.6
    broadcasts_late: float = 0.6
    # process and disk, per commit
    crash_in_commit: float = 0.06
    crash_at_await: float = 1.0  # deaths per `ROUNDS` rounds of the loop (sim.world)
    disk_full: float = 0.04
    disk_error: float = 0.04
    torn_tail: float = 0.7
    # per minute
    clock_jump: float = 0.1
    operator_acts: float = 0.3
    deposit: float = SOMETIMES
    second_daemon: float = SELDOM
    taken_over: float = 0.02


def draw_mix(rng: Random) -> FaultRates:
    """Draw the rates of a seed. Each rate is zero in two of five seeds."""
    drawn = {f.name: 0.0 if rng.random() < 0.4 else f.default * rng.random() for f in fields(FaultRates)}  # type: ignore[operator]
    return FaultRates(**drawn)


QUIET = FaultRates(**{f.name: 0.0 for f in fields(FaultRates)})
"""No faults."""
