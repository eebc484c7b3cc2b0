"""The daemon keeps nothing about ended payments in memory; they are in the ledger."""

import gc
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from sqlite3 import Connection
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType

import pytest
from kit.effort import pick
from simulation import soak
from simulation.soak import Size, Soak

from payagent.agent.chain_sync import recovery

PAYMENTS = pick(40, 60)
_NO_STATE = (type, ModuleType, FunctionType, BuiltinFunctionType, CodeType, Connection)
"""A connection keeps weak references to its cursors, even dead ones, until there are 200 of them."""


class Held(Soak):
    """A short soak that counts the daemon's objects once no payment is open."""

    held: Counter[str]

    async def _come_to_rest(self) -> None:
        await super()._come_to_rest()
        world = (
            self,
            self.net,
            self.net.node,
            self.net.chain,
            self.judge,
            self.story,
            self.disk,
            self.loop,
            self.rng,
        )
        self.held = Counter(_name(one) for one in reached(self._life, (*world, self.shops, *self.shops.values())))


def reached(root: object, others: Iterable[object]) -> Iterator[object]:
    """Every object reachable from `root`, except through `others`."""
    known = {id(other) for other in others}
    waiting = [root]
    while waiting:
        one = waiting.pop()
        if id(one) in known or isinstance(one, _NO_STATE):
            continue
        known.add(id(one))
        yield one
        waiting += gc.get_referents(one)
        if isinstance(one, dict):
            waiting += one  # get_referents leaves out keys that are strings


def _name(one: object) -> str:
    return f"{type(one).__module__}.{type(one).__qualname__}"


def held_after(payments: int, folder: Path) -> Counter[str]:
    folder.mkdir()
    run = Held(Size(days=1.2, payments=payments, beat_s=pick(120, 60), fork_hours=0), folder)
    run.run()
    assert run.story.violations == []
    assert run.served > 0.8 * payments
    return run.held


def test_ended_payments_leave_nothing_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "SETTLE_DEPTH", 30)
    monkeypatch.setattr(recovery, "REMEMBERED_MAX", 1)
    few, many = (held_after(times * PAYMENTS, tmp_path / str(times)) for times in (1, 3))
    more = {name: count - few[name] for name, count in many.items() if count - few[name] >= PAYMENTS}
    assert more == {}, "the daemon keeps something for every payment"
    assert many.total() < few.total() + PAYMENTS
