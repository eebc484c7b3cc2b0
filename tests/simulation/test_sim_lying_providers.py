"""I11: with one of two providers dead or lying and no other fault, payments land in time.

In time means: the transaction is in a block of the true chain before its invoice expires, and the
merchant accepted it.
"""

import asyncio
from dataclasses import dataclass, replace
from random import Random

import pytest
from kit.effort import pick

from payagent.chain.provider import ChainProvider
from payagent.core.aggregate import PaymentRow
from payagent.core.payment.machine import State
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows import payments
from sim.clients import ClientGoal
from sim.fault_rates import QUIET
from sim.fixtures import ADA
from sim.operator import SimOperator
from sim.providers import LIES, MISPLACES, Habits
from sim.seed_plan import SeedPlan
from sim.stage import SimStage
from sim.world import World

SEEDS, WANTS, WITHIN_S = pick(2, 8), 6, 900.0
SHARE_PERCENT = 99
TRIES = 12
"""How often a client retries: enough for a merchant that waits for blocks until the invoice expires."""

UP_FOR_S = 300
"""A new ledger waits for a dead or lying provider, and reads the other one three times."""

RESTART_S, SOON_S = 300, 20
KINDS: dict[str, Habits] = {
    "honest": Habits("other"),
    "dead": Habits("other", dead_until_s=10**9),
    "drips": Habits("other", drips_from_s=0.0),
    "drips later": Habits("other", drips_from_s=100.0),
    **{lie: Habits("other", lie) for lie in LIES},
}


@dataclass(slots=True)
class Tally:
    """How many requests there were, how many landed in time, and how many their merchant accepted."""

    wants: int = 0
    in_time: int = 0
    taken: int = 0
    violations: tuple[str, ...] = ()
    alerts: int = 0
    """How many `payment_reopened` alerts there were."""

    @property
    def percent(self) -> float:
        return 100 * min(self.in_time, self.taken) / self.wants


class Watched(World):
    """A world that counts before it ends."""

    tally: Tally
    habits: tuple[Habits, ...]
    dies_s: int | None = None
    """When the daemon restarts on its ledger and finds the other provider dead."""

    lives = 0

    def _draw_plan(self, seed: int) -> SeedPlan:
        return quiet_plan(super()._draw_plan(seed), self.rng, *self.habits)

    def _draw_operator(self, seed: int) -> SimOperator:
        return SimOperator(Random(seed))

    def _start(self) -> None:
        self.lives += 1
        super()._start()

    def providers(self) -> list[ChainProvider]:
        if self.dies_s is None or self.lives > 1:
            return super().providers()
        self.plan, plan = replace(self.plan, providers=(Habits("honest"), Habits("other"))), self.plan
        try:
            return super().providers()
        finally:
            self.plan = plan

    def _restart(self) -> None:
        if self._life is not None:
            self._life.die("it is started anew")

    def died(self, why: str) -> None:
        self._life = None
        self._started = asyncio.Event()
        self.loop.call_later(0, self._start)

    def _wants(self) -> list[ClientGoal]:
        """Clients that retry soon and start once the daemon no longer waits for absent providers."""
        if self.dies_s is None:
            return [
                replace(want, pause_s=40.0, tries=TRIES, starts_at_s=want.starts_at_s + UP_FOR_S)
                for want in super()._wants()
            ]
        self.loop.call_later(self.dies_s, self._restart)
        soon = SOON_S / WITHIN_S
        return [
            replace(want, pause_s=40.0, tries=TRIES, starts_at_s=want.starts_at_s * soon + self.dies_s)
            for want in super()._wants()
        ]

    async def _settle(self) -> None:
        await super()._settle()
        conn = (await self.life()).conn
        self.tally.wants += self.plan.wants
        in_time: set[str] = set()
        taken: set[str] = set()
        for row in payments.payments_in(conn, tuple(State)):
            if row.kind == "invoice":
                pays = [one.tx_id for one in queries.attempts(conn, row.id) if one.kind == "pay"]
                in_time |= {row.intent.id for tx_id in pays if self._is_in_time(tx_id, row)}
                taken |= {row.intent.id for tx_id in pays if self._is_taken(tx_id)}
        self.tally.in_time += len(in_time)
        self.tally.taken += len(taken)

    def _is_in_time(self, tx_id: str, row: PaymentRow) -> bool:
        found = self.net.chain.tx(tx_id)
        if found is None or found[1] is None:
            return False
        return self.net.node.time_s(found[1].slot) * 1000 < (row.invoice.expires_at_ms or 0)

    def _is_taken(self, tx_id: str) -> bool:
        """By the merchants' own books; whether the client reported it to the daemon does not matter."""
        return any(
            tx_id in shop.merchant._paid_with or (tx_id in claims and claims[tx_id].served > 0)
            for shop in self.shops.values()
            for claims in [shop.shop.facilitator.claims]
        )


def quiet_plan(plan: SeedPlan, rng: Random, *habits: Habits) -> SeedPlan:
    """The providers are the only fault, and there is money for everything."""
    shops = tuple(replace(shop, batch=1, timeout_s=max(300, shop.timeout_s)) for shop in plan.shops)
    providers = list(habits)
    rng.shuffle(providers)
    return replace(
        plan, mix=QUIET, shops=shops, wants=WANTS, utxos=(40 * ADA,) * 10, per_day_units=1000 * ADA,
        providers=tuple(providers), topup=False, drought_s=(0.0, 0.0), wanted_within_s=WITHIN_S, copied_s=None,
        weak_job="", upkeep_fees_per_day_lovelace=0, turned_down=0,
    )  # fmt: skip


def measure(seeds: range, *habits: Habits, dies_s: int | None = None) -> Tally:
    tally = Tally()
    Watched.tally, Watched.habits, Watched.dies_s = tally, habits, dies_s
    stage = SimStage(Watched)
    try:
        for seed in seeds:
            story = stage.run(seed)
            tally.violations += tuple(f"seed {seed}: {what}" for what in story.violations)
            tally.alerts += story.reached["an alert: payment_reopened"]
    finally:
        stage.close()
    return tally


@pytest.mark.parametrize("kind", KINDS)
def test_one_bad_provider_of_two_makes_no_payment_late(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    tally = measure(range(SEEDS), Habits("honest"), KINDS[kind])
    with capsys.disabled():
        print(f"\n{kind}: of {tally.wants} {tally.in_time} in time, {tally.taken} taken")
    assert tally.violations == ()
    assert tally.percent >= SHARE_PERCENT, tally


def test_a_restart_with_one_dead_provider_makes_no_payment_late(capsys: pytest.CaptureFixture[str]) -> None:
    """Clients send requests within the first seconds."""
    tally = measure(range(SEEDS), Habits("honest"), KINDS["dead"], dies_s=RESTART_S)
    with capsys.disabled():
        print(f"\ndead at the start: of {tally.wants} {tally.in_time} in time, {tally.taken} taken")
    assert tally.violations == ()
    assert tally.percent >= SHARE_PERCENT, tally


def test_a_lie_of_the_only_provider_about_a_block_is_corrected_in_the_end() -> None:
    """The only provider is believed for a while; in the end the books match the chain."""
    tally = measure(range(SEEDS), Habits("one", MISPLACES))
    assert tally.violations == ()
    assert tally.alerts > 0


def test_nothing_is_paid_when_both_providers_are_dead() -> None:
    tally = measure(range(1), Habits("one", dead_until_s=10**9), KINDS["dead"])
    assert (tally.wants, tally.in_time) == (WANTS, 0)
