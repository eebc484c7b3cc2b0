"""The simulated operator: pauses all signing for a while, and approves, denies or ignores payments.

It has its own random numbers and acts in some seeds only, so other seeds run as they did before it was added.

Never: does what no operator could.
"""

import asyncio
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from payagent.agent.base.requests import Approver
from payagent.agent.operator.pause import pause, unpause
from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.store.db.unit import Connection
from payagent.store.rows import payments
from sim.fixtures import ADA
from sim.process import DeadError, SimDaemon
from sim.trace import Trace

APP = "app_test"
QUESTION_S = 900
_SIGNED = "SELECT COUNT(*) FROM attempts"
_NOT_ASKED = "SELECT DISTINCT a.payment_id FROM attempts a JOIN approvals q ON q.payment_id = a.payment_id"


class OperatorWorld(Protocol):
    """The operator's view of the world."""

    story: Trace
    is_calm: bool

    async def life(self) -> SimDaemon:
        """The daemon, as soon as it runs."""


@dataclass
class SimOperator:
    """The operator of one run. `asks_above` is the seed's approval threshold; None means no approvals."""

    rng: Random
    asks_above: int | None = None
    pauses: bool = False
    _approved: set[str] = field(default_factory=set)
    _signed_before: int | None = None
    """How many attempts there were when a pause was confirmed; None while no pause is known to hold."""

    @classmethod
    def of(cls, seed: int) -> "SimOperator":
        rng = Random(f"{seed} desk")  # noqa: S311  a seed gives the same run again
        asks_above = rng.randint(2, 6) * ADA if rng.random() < 0.25 else None
        return cls(rng, asks_above, rng.random() < 0.25)

    async def pause_now_and_then(self, world: OperatorWorld) -> None:
        """Pause all signing and resume it some minutes later, whatever dies meanwhile."""
        while not world.is_calm:
            await self._sleep(world, self.rng.uniform(60, 500))
            try:
                life = await world.life()
                await life.call(pause(life.fleet.context, APP, "a drill"))
                self._signed_before = _count(life.conn)
                world.story.reach("an operator stops all signing")
            except (DeadError, Refused):
                world.story.reach("an operator does not hear whether signing stopped")
            await self._sleep(world, self.rng.uniform(30, 400))
            await self.resume(world)
        await self.resume(world)  # an older ledger that was put back may have a pause that is over

    async def resume(self, world: OperatorWorld) -> None:
        """Resume until it is confirmed. The pause may be over from the first try on."""
        self._signed_before = None
        while True:
            try:
                life = await world.life()
                await life.call(unpause(life.fleet.context, APP))
                return
            except (DeadError, Refused):
                await asyncio.sleep(20)

    async def answer(self, world: OperatorWorld) -> None:
        """Decide on open approvals from time to time: approve most, deny some, and let some time out."""
        while True:
            await asyncio.sleep(self.rng.uniform(20, 200))
            life = await world.life()
            for row in payments.payments_in(life.conn, (State.AWAITING_APPROVAL,)):
                world.story.reach("a person is asked")
                way = self.rng.choice(("approve", "approve", "approve", "deny", ""))
                if way == "approve":
                    self._approved.add(row.id)
                if way:
                    await self._decide(world, life, way, row.id)

    async def _decide(self, world: OperatorWorld, life: SimDaemon, way: str, payment_id: str) -> None:
        by = Approver("token", APP)
        try:
            if way == "approve":
                await life.call(life.fleet.approve(payment_id, by))
            else:
                await life.call(life.fleet.deny(payment_id, by))
            world.story.reach(f"a person says yes or no: {way}")
        except Refused as refused:
            world.story.reach(f"a decision is refused: {refused.name}")
        except DeadError:
            world.story.reach("a person does not hear what became of the decision")

    def forgets(self) -> None:
        """An older ledger does not know a later pause."""
        self._signed_before = None

    def committed(self, world: OperatorWorld, conn: Connection) -> None:
        """I13: nothing is signed after a pause is confirmed. I14: what needs approval has it when signed."""
        if self._signed_before is not None and _count(conn) > self._signed_before:
            world.story.violate("I13", "an attempt was made durable after a pause was answered")
            self._signed_before = None
        if self.asks_above is not None:
            for (payment_id,) in conn.execute(_NOT_ASKED):
                if payment_id not in self._approved:
                    world.story.violate("I14", f"{payment_id} was signed, and nobody approved it")

    async def _sleep(self, world: OperatorWorld, seconds: float) -> None:
        """Sleep, but not past the end of the faults."""
        while seconds > 0 and not world.is_calm:
            await asyncio.sleep(min(seconds, 30))
            seconds -= 30


def _count(conn: Connection) -> int:
    return int(conn.execute(_SIGNED).fetchone()[0])
