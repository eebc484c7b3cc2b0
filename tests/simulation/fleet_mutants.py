"""Seeded bugs of a fleet that the simulator must find: what keeps two daemons from one account is switched off,
or what keeps a daemon from an old primary.

`python tests/simulation/fleet_mutants.py NAME 0..300` prints the first seed that finds one, and what it violates.
No seed can find that the trigger alone is off, since nothing comes through the fence to it. The daemon itself
notices a guard that is missing or disabled (tests/store/test_store_postgresql.py).
"""

import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

from payagent.store.db import committer
from payagent.store.db.committer import Committer, Job
from payagent.store.db.fence import AccountClaim, Seat
from payagent.store.db.postgresql.hosts import HostAnswer
from payagent.store.rows.fleet import LEASE_MS
from sim import fleet_fence, fleet_process, fleet_servers
from sim.fleet_process import FleetProcess
from sim.fleet_world import FleetWorld
from sim.stage import SimStage

Mutant = dict[tuple[Any, str], Any]
"""What takes the place of each (object, attribute)."""

NOT_COUNTED = ("BUG",)


TRIGGER_OFF: Mutant = {(fleet_process, "install_fence"): partial(fleet_fence.install_fence, refuses=False)}


def fence_off() -> Mutant:
    """A daemon goes on for an account that another has taken: it never asks who holds it."""
    return {
        (Seat, "check"): _prove_only,
        (Committer, "_is_fenced_off"): lambda _self, _job: False,
        (committer, "claims_of"): _claims_of_all,
    }


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
    """The holder of a lease looks at its own clock before each commit, and not at who has the account in it."""
    real_commit, real_pause = FleetProcess.commit, FleetProcess.maybe_pause
    until_ms: dict[str, int] = {}
    over: set[str] = set()

    async def maybe_pause(self: FleetProcess, when: str, names: list[str]) -> None:
        if when == "before" and self.now_ms() >= until_ms.get(self.id, 0):
            over.add(self.id)
        await real_pause(self, when, names)

    def commit(self: FleetProcess, jobs: list[Job]) -> None:
        real_commit(self, jobs)
        if any(job.name == "lease" and job.raised is None for job in jobs):
            until_ms[self.id] = self.now_ms() + LEASE_MS

    def check(self: Seat, claims: Any, timeline: int) -> None:
        _prove_only(self, claims, timeline)
        if self.holder in over:
            over.remove(self.holder)
            self.begin_anew()

    return {
        (FleetProcess, "maybe_pause"): maybe_pause,
        (FleetProcess, "commit"): commit,
        (Seat, "check"): check,
        (committer, "claims_of"): _claims_of_all,
    }


def _claims_of_all(conn: Any, _holder: str) -> dict[int, AccountClaim]:
    """The claims to all accounts, whoever holds them."""
    rows = conn.execute("SELECT account, epoch, proven_timeline, noted FROM accounts")
    return {account: AccountClaim(*rest) for account, *rest in rows}


def _first_writable(answers: Sequence[HostAnswer], _recorded: object, **_kind: bool) -> HostAnswer:
    """The first server that takes writes, whatever its timeline is: as of a URL with several hosts."""
    for one in answers:
        if one.kind == "writable":
            return one
    raise sqlite3.OperationalError("no host takes writes")


BEHIND_THE_TRIGGER: dict[str, Callable[[], Mutant]] = {
    "fence off": fence_off,
    "until trusted by its holder": until_trusted,
}
"""Bugs with which the trigger still refuses the rows of another's account."""
MUTANTS: dict[str, Callable[[], Mutant]] = {
    **BEHIND_THE_TRIGGER,
    "fence and trigger off": lambda: fence_off() | TRIGGER_OFF,
    "until trusted by its holder, trigger off": lambda: until_trusted() | TRIGGER_OFF,
    "gate off": gate_off,
    "timelines off": lambda: {(fleet_servers, "choose"): _first_writable},
}


@contextmanager
def switched_on(name: str) -> Iterator[None]:
    changes = MUTANTS[name]()
    patches = [patch.object(place, attribute, made) for (place, attribute), made in changes.items()]
    with ExitStack() as stack:
        for one in patches:
            stack.enter_context(one)
        yield


def first_failure(seeds: range) -> tuple[int, str] | None:
    """A seed and what it violates. A step that fails does not count, since that is how a bug may be put in."""
    stage = SimStage(FleetWorld)
    try:
        for seed in seeds:
            violations = [what for what in stage.run(seed).violations if not what.startswith(NOT_COUNTED)]
            if violations:
                return seed, violations[0]
    finally:
        stage.close()
    return None


def kill(name: str, seeds: range) -> tuple[int, str] | None:
    """The first seed that finds the bug, and what it violates; None if every seed lets it live."""
    with switched_on(name):
        found = first_failure(seeds)
    if found is not None and first_failure(range(found[0], found[0] + 1)) is not None:
        return kill(name, range(found[0] + 1, seeds.stop))  # it fails without the bug too
    return found


def trespasses(name: str, seeds: range, least: int) -> list[str]:
    """With a bug: what was tried or written for an account of another daemon, in at least so many seeds."""
    stage, found = SimStage(FleetWorld), list[str]()
    try:
        with switched_on(name):
            for count, seed in enumerate(seeds):
                if found and count >= least:
                    break
                found += [what for what in stage.run(seed).violations if what.startswith("I6")]
    finally:
        stage.close()
    return found


if __name__ == "__main__":
    first, _, last = sys.argv[2].partition("..")
    for chosen in MUTANTS if sys.argv[1] == "all" else [sys.argv[1]]:
        print(f"{chosen}: {kill(chosen, range(int(first), int(last)))}", flush=True)
