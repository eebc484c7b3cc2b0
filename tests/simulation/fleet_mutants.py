"""Seeded bugs of a fleet that the simulator must find: what keeps two daemons from one account is switched off.

`python tests/simulation/fleet_mutants.py NAME 0..300` prints the first seed that finds one, and what it violates.
The trigger behind the fence is not among them: only PostgreSQL has it. Its test is
`tests/store/test_store_fleet_postgresql.py`.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from payagent.store.db import committer
from payagent.store.db.committer import Committer, Job
from payagent.store.db.fence import Seat
from payagent.store.rows.fleet import LEASE_MS
from sim.fleet_process import FleetProcess, FleetWriter
from sim.fleet_world import FleetWorld
from sim.stage import SimStage

Mutant = dict[tuple[Any, str], Any]
"""What takes the place of each (object, attribute)."""

NOT_COUNTED = ("BUG",)


def fence_off() -> Mutant:
    """A daemon goes on for an account that another has taken: it never asks who holds it."""
    return {(Seat, "check"): _prove_only, (Committer, "_is_fenced_off"): lambda _self, _job: False}


def _prove_only(self: Seat, claims: Any, timeline: int) -> None:
    self._proven = frozenset(one for one, claim in claims.items() if claim.proven_timeline == timeline)


def gate_off() -> Mutant:
    """A commit goes by the gate and the fence as they were when it was asked for: others commit in between."""
    seen: dict[Committer, tuple[Any, Any]] = {}
    real_pause, real_lock, real_claims = FleetProcess.maybe_pause, Committer._lock_gate, committer.claims_of

    async def maybe_pause(self: FleetProcess, when: str, names: list[str]) -> None:
        one = self._committer
        if when == "before":
            gate = one.conn.execute(one._select_gate).fetchone()
            seen[one] = gate, real_claims(one.conn, self.id)
        await real_pause(self, when, names)

    def lock_gate(self: Committer) -> Any:
        gate = real_lock(self)
        return type(gate)(*seen[self][0]) if self in seen else gate

    def claims_of(conn: Any, holder: str) -> Any:
        for one, (_, claims) in seen.items():
            if one.conn is conn:
                return claims
        return real_claims(conn, holder)

    return {
        (FleetProcess, "maybe_pause"): maybe_pause,
        (Committer, "_lock_gate"): lock_gate,
        (committer, "claims_of"): claims_of,
    }


def until_trusted() -> Mutant:
    """The holder of a lease goes on writing until the lease's end by its own clock, whoever has the account."""
    real_job, real_hold = Committer.job, Seat.hold
    until_ms: dict[Seat, int] = {}
    return {}


MUTANTS: dict[str, Callable[[], Mutant]] = {
    "fence off": fence_off,
    "gate off": gate_off,
    "until trusted by its holder": until_trusted,
}


@contextmanager
def switched_on(name: str) -> Iterator[None]:
    changes = MUTANTS[name]()
    patches = [patch.object(place, attribute, made) for (place, attribute), made in changes.items()]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()
