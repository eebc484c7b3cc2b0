"""The plan of a seed, drawn before anything happens: the wallet, the merchants, the purchases and the faults.

Never: draws anything after the start.
"""

from dataclasses import dataclass, replace
from random import Random

from payagent.core.money import LOVELACE
from payagent.devnet.merchant import Terms as ShopTerms
from sim.fault_rates import FaultRates, draw_mix
from sim.fixtures import ADA
from sim.providers import LIES, Habits
from sim.scenarios import (
    draw_dialects,
    draw_kinds,
    draw_misplaced,
    draw_ready,
    draw_theme,
    draw_turned_down,
    draw_upkeep,
)
from sim.tokens import draw_asset

SELDOM_JOBS = ("sign", "observe", "confirm", "replace", *("settle",) * 3, "use", *("cancel",) * 4, *("void",) * 6)


@dataclass(frozen=True, slots=True)
class SeedPlan:
    """The plan of a seed, drawn before anything happens."""

    mix: FaultRates
    confirm_depth: int
    void_depth: int
    settle_depth: int
    beat_s: float
    utxos: tuple[int, ...]
    per_day_units: int
    """The daily limit for each asset that merchants sell for, and for ADA."""

    shops: tuple[ShopTerms, ...]
    wants: int
    providers: tuple[Habits, ...]
    topup: bool
    drought_s: tuple[float, float]
    lasts_s: float
    weak_job: str
    dry_mix: FaultRates
    """The fault rates while blocks are full."""
    wanted_from_s: float = 30.0
    wanted_within_s: float = 400.0
    calm_from_s: float = 0.0
    by_proxy: float = 0.4
    by_x402: float = 0.5
    keyed: float = 0.5
    shared: float = 0.08
    """The share of keyed purchases that several clients want at once."""

    copied_s: float | None = None
    """When the ledger is copied. At `put_back_s` the copy replaces the ledger."""

    put_back_s: float = 0.0
    put_back_clock_off_ms: int = 0
    """The clock error when the daemon starts on that copy."""

    unconfirmed_ancestors_max: int = 8
    upkeep_fees_per_day_lovelace: int = 0
    """The daily upkeep budget; 0 means no upkeep."""

    is_stubborn: bool = False
    """Clients ask again sooner and more often."""

    asset: str = LOVELACE
    """The asset that the merchants sell for."""

    auto: tuple[bool, ...] = (False, False)
    """Which merchants are configured with `ready = "auto"`."""

    refused_below: tuple[int, ...] = (0, 0)
    """The depth below which each merchant refuses a proof for good."""

    x402_version: int = 2
    turned_down: int = 0
    """How many payments each facilitator first refuses although it could settle them."""


def draw_plan(rng: Random, seed: int) -> SeedPlan:
    """Draw a plan: few faults out of many, in amounts that differ by seed.

    Later additions draw from the seed and not from `rng`, so that everything else stays as it was.
    """
    plan = _draw_base(rng)
    plan = replace(plan, **draw_upkeep(seed, plan.utxos, plan.shops))
    plan = replace(plan, **draw_dialects(seed, plan.shops))
    plan = replace(plan, **draw_asset(seed, plan.shops))
    plan = replace(plan, **draw_misplaced(seed, plan.providers))
    plan = replace(plan, **draw_turned_down(seed))
    plan = replace(plan, **draw_kinds(seed, plan.providers))
    return replace(plan, **draw_ready(seed, plan.shops, plan.confirm_depth))


def _draw_base(rng: Random) -> SeedPlan:
    mix = draw_mix(rng)
    shops = tuple(_draw_shop(rng) for _ in range(rng.choice((1, 1, 2))))
    wants = rng.choice((1, 1, 2, 2, 3))
    wanted_within_s = rng.choice((200.0, 400.0, 800.0))
    utxos = tuple(rng.randint(8, 40) * ADA for _ in range(rng.choice((1, 1, 2, 3, 5))))
    habits = [Habits("honest")]
    if rng.random() < 0.4:
        lie = rng.choice((None, None, None, None, *LIES))
        dead_until_s = rng.choice((0.0, 0.0, 800.0)) if lie is None else 0.0
        stays_s = rng.choice((0.0, 200.0, 600.0)) if lie is None and not dead_until_s else 0.0
        habits.append(Habits("other", lie, dead_until_s, stays_s))
        rng.shuffle(habits)
    if any(habit.lie for habit in habits):
        # one lies at a time: if the honest one is silent or excluded for minutes, only the liar is left
        mix = replace(mix, unknown=min(mix.unknown, 0.02), other_id=0.0)
    dry_from_s = rng.random() * wanted_within_s
    dry_for_s = rng.choice((0.0, 0.0, 0.0, 300.0, 700.0))
    plan = SeedPlan(
        mix=mix,
        dry_mix=mix,
        confirm_depth=rng.choice((1, 1, 2, 3)),
        void_depth=rng.choice((2, 3, 5)),
        settle_depth=rng.choice((20, 32)),
        beat_s=rng.choice((40.0, 60.0)),
        utxos=utxos,
        per_day_units=rng.choice((20, 60, 1000)) * ADA,
        shops=shops,
        wants=wants,
        providers=tuple(habits),
        topup=rng.random() < 0.6 and shops[0].batch > 1,
        drought_s=(dry_from_s, dry_from_s + dry_for_s),
        lasts_s=rng.choice((0.0, 0.0, 0.0, 0.0, 600.0)),
        weak_job=rng.choice(("", "", *SELDOM_JOBS)),
        wanted_within_s=wanted_within_s,
    )
    return replace(plan, **draw_theme(rng, mix, shops))


def _draw_shop(rng: Random) -> ShopTerms:
    base = ShopTerms()
    return replace(
        base,
        price_units=rng.randint(2, 6) * ADA,
        splits=base.splits if rng.random() < 0.5 else (),
        batch=rng.choice((1, 1, 1, 4)),
        timeout_s=rng.choice((200, 300, 300, 600, 1200, 7200)),
        confirmations=rng.choice((0, 1, 2)),
        proof=rng.choice(("tx_hash", "signed_cbor")),
        replays=rng.choice((None, "serve", "refuse")),
        dialect="t-backend",
    )
