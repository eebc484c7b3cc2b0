"""Scenarios: changes to some seeds' plans that make rare but important events frequent enough to test.

A payment is replaced only if no block included it for half an hour. A void is reopened only if a deep fork
follows. Limits are contended only if several clients pay at once. By chance alone, each occurs once in a thousand
seeds or less. A third of the seeds have no scenario.

Never: draws anything after the start.
"""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from payagent.devnet.merchant import Terms as ShopTerms
from sim.fault_rates import OFTEN, SOMETIMES, FaultRates
from sim.fixtures import ADA
from sim.providers import KINDS, MISPLACES, Habits

UPKEPT = 0.15
"""In how many seeds the wallet runs upkeep."""

BY_FLUX, BY_X402_V1 = 0.08, 0.08
"""In how many seeds merchants use these instead of the T Backend's dialect and x402 version 2."""

TURNED_DOWN = 0.1
"""In how many seeds facilitators refuse payments that they could settle."""

MISPLACED = 0.1
"""In how many seeds with one provider it shows transactions in blocks that do not hold them."""

AUTO, REFUSED_EARLY = 0.5, 0.5
"""How many merchants are configured with `ready = "auto"`, and how many of these refuse an early proof."""

Shops = tuple[ShopTerms, ...]
Theme = Callable[[Random, FaultRates, Shops], dict[str, Any]]
"""Returns the plan fields that it sets, with their values."""


def _outlived(rng: Random, mix: FaultRates, shops: Shops) -> dict[str, Any]:
    """Invoices outlast a transaction's TTL, and no block has room until the TTL is over.

    Later forks at earlier slots may hold the attempt that was replaced. Until then other branches have no room
    either, or everything would have landed long before.
    """
    return _until(rng, mix, 1845 + rng.random() * 75) | {
        "shops": tuple(replace(shop, timeout_s=3600, proof="tx_hash") for shop in shops),
        "utxos": tuple(rng.randint(8, 40) * ADA for _ in range(2)),
        "wants": rng.randint(1, 2),
        "wanted_within_s": 60.0,
        "calm_from_s": 2500.0,
        "weak_job": rng.choice(("", "replace", "replace", "replace", "replace")),
        "is_stubborn": True,
        "by_x402": 0.2,
    }


def _invoiced_again(rng: Random, mix: FaultRates, shops: Shops) -> dict[str, Any]:
    """No room until the first or the second invoices have expired; clients come back with new ones."""
    is_long = rng.random() < 0.5
    dry_until_s = 900 + rng.random() * 500 if is_long else 400 + rng.random() * 400
    return _until(rng, mix, dry_until_s) | {
        "shops": tuple(
            replace(shop, timeout_s=200 if is_long else rng.choice((200, 300)), proof="tx_hash") for shop in shops
        ),
        "utxos": tuple(rng.randint(8, 40) * ADA for _ in range(3)),
        "wants": rng.randint(1, 2),
        "wanted_within_s": 100.0,
        "calm_from_s": dry_until_s + 500,
        "weak_job": rng.choice(("", "replace", "replace", "replace", "replace")),
        "is_stubborn": True,
        "by_x402": 0.2,
    }


def _until(rng: Random, mix: FaultRates, dry_until_s: float) -> dict[str, Any]:
    """No block on any branch has room for our transactions until then. Then forks come, some deep."""
    wet = replace(
        mix,
        fork=SOMETIMES * (0.3 + 0.7 * rng.random()),
        deep_fork=0.8,
        operator_acts=min(mix.operator_acts, 0.03),
        dropped=min(mix.dropped, 0.3),
        never_broadcasts=0.0,
        deposit_lost=min(mix.deposit_lost, 0.1),
    )
    return {
        "mix": wet,
        "dry_mix": replace(wet, fork=0.0),
        "drought_s": (0.0, dry_until_s),
        "per_day_units": 1000 * ADA,
    }


def _undone(rng: Random, mix: FaultRates, shops: Shops) -> dict[str, Any]:
    """Payments are cancelled early, and forks undo the blocks of the cancels."""
    chosen = replace(
        mix,
        fork=SOMETIMES * (0.3 + 0.7 * rng.random()),
        deep_fork=0.8,
        operator_acts=OFTEN * (0.3 + 0.7 * rng.random()),
        never_broadcasts=0.6 * rng.random(),
        deposit_lost=min(mix.deposit_lost, 0.1),
    )
    return {
        "mix": chosen,
        "dry_mix": chosen,
        "shops": tuple(replace(shop, timeout_s=rng.choice((200, 300))) for shop in shops),
        "void_depth": 2,
        "wanted_within_s": 300.0,
        "drought_s": (0.0, 200 + 300 * rng.random()),
        "calm_from_s": 1600.0,
        "weak_job": rng.choice(("cancel", "void", "void", "void")),
    }


def _prepaid(rng: Random, mix: FaultRates, shops: Shops) -> dict[str, Any]:
    """Calls are bought in batches and used by proxy clients that lose answers and ask again."""
    return {
        "shops": tuple(replace(shop, batch=4, timeout_s=rng.choice((200, 300, 600))) for shop in shops[:1]),
        "wants": 4,
        "per_day_units": 1000 * ADA,
        "drought_s": (0.0, 0.0),
        "by_proxy": 0.9,
        "keyed": 0.9,
        "topup": rng.random() < 0.8,
        "weak_job": "use",
    }


def _rush(rng: Random, mix: FaultRates, shops: Shops) -> dict[str, Any]:
    """All clients pay at once, and the daily limit is enough for two or three of them."""
    chosen = replace(mix, unknown=min(mix.unknown, 0.1), merchant_unreached=0.0, merchant_broken=0.0)
    return {
        "mix": chosen,
        "dry_mix": chosen,
        "shops": tuple(replace(shop, batch=1) for shop in shops[:1]),
        "utxos": tuple(rng.randint(15, 40) * ADA for _ in range(5)),
        "wants": rng.randint(4, 6),
        "wanted_from_s": 200.0,
        "wanted_within_s": 0.0,
        "per_day_units": rng.choice((8, 12, 16)) * ADA,
        "drought_s": (0.0, 0.0),
    }


def _put_back(rng: Random, mix: FaultRates, shops: Shops) -> dict[str, Any]:
    """An older copy replaces the ledger while much is in flight; clients pay before and after."""
    copied_s = 100 + 300 * rng.random()
    put_back_s = copied_s + 60 + 400 * rng.random()
    chosen = replace(mix, clock_jump=rng.choice((mix.clock_jump, 0.4)))
    clock_off_ms = rng.choice((0, -86_400_000))
    if clock_off_ms:
        # what the ledger forgot can land for long, and clients still pay when the clock is right again
        shops = tuple(replace(shop, timeout_s=1200, proof="tx_hash") for shop in shops)
    return {
        "shops": shops,
        "mix": chosen,
        "dry_mix": chosen,
        "wants": rng.randint(5, 8),
        "wanted_within_s": put_back_s + (300 if clock_off_ms else rng.choice((0, 0, 2600))),
        "calm_from_s": put_back_s + 2800,
        "per_day_units": 1000 * ADA,
        "copied_s": copied_s,
        "put_back_s": put_back_s,
        "put_back_clock_off_ms": clock_off_ms,
    }


_THEMES: tuple[tuple[Theme | None, int], ...] = (
    (None, 35),
    (_outlived, 15),
    (_invoiced_again, 12),
    (_undone, 17),
    (_prepaid, 13),
    (_rush, 8),
    (_put_back, 7),
)
"""The scenarios with their weights."""


def draw_upkeep(seed: int, utxos: tuple[int, ...], shops: Shops) -> dict[str, Any]:
    """In some seeds the wallet runs upkeep: many clients pay from one large UTxO, sometimes with dust beside it.

    It has its own random numbers, so other seeds run as they did before it was added.
    """
    rng = Random(f"{seed} keeper")  # noqa: S311  a seed gives the same run again
    if rng.random() >= UPKEPT:
        return {}
    dust = (1_200_000,) * rng.choice((0, 0, 0, 55))
    return {
        "upkeep_fees_per_day_lovelace": rng.choice((1, 2, 2)) * ADA,
        "unconfirmed_ancestors_max": rng.choice((0, 1, 1, 2, 3, 8)),
        "shops": tuple(replace(shop, batch=1) for shop in shops),
        "topup": False,
        "utxos": (*utxos[1:], rng.randint(100, 1000) * ADA, *dust),
        "per_day_units": 1000 * ADA,
        "wants": rng.randint(5, 14),
        "wanted_within_s": rng.choice((0.0, 0.0, 5.0, 60.0, 400.0)),
        "by_x402": rng.choice((0.0, 0.0, 0.2, 0.5)),
    }


def draw_dialects(seed: int, shops: Shops) -> dict[str, Any]:
    """The dialect of the merchants' 402s. It has its own random numbers, so other seeds run as before.

    A Flux 402 names no batch: a payment buys one call.
    """
    drawn = Random(f"{seed} tongues").random()  # noqa: S311  a seed gives the same run again
    if drawn < BY_FLUX:
        return {"shops": tuple(replace(shop, dialect="flux", batch=1) for shop in shops), "topup": False}
    return {"x402_version": 1} if drawn < BY_FLUX + BY_X402_V1 else {}


def draw_ready(seed: int, shops: Shops, confirm_depth: int) -> dict[str, Any]:
    """Which merchants use "auto", and the depth each requires or refuses below. It has its own random numbers."""
    rng = Random(f"{seed} ready")  # noqa: S311  a seed gives the same run again
    auto = tuple(rng.random() < AUTO for _ in shops)
    below = tuple(confirm_depth if by_auto and rng.random() < REFUSED_EARLY else 0 for by_auto in auto)
    return {"auto": auto, "refused_below": below}


def draw_turned_down(seed: int) -> dict[str, Any]:
    """How many payments each facilitator refuses. It has its own random numbers."""
    rng = Random(f"{seed} turned down")  # noqa: S311  a seed gives the same run again
    return {"turned_down": rng.choice((1, 1, 2, 3))} if rng.random() < TURNED_DOWN else {}


def draw_misplaced(seed: int, providers: tuple[Habits, ...]) -> dict[str, Any]:
    """Whether the only provider tells the `MISPLACES` lie. It has its own random numbers."""
    drawn = Random(f"{seed} misplaced").random()  # noqa: S311  a seed gives the same run again
    is_lie = len(providers) == 1 and drawn < MISPLACED
    return {"providers": (replace(providers[0], lie=MISPLACES),)} if is_lie else {}


def draw_kinds(seed: int, providers: tuple[Habits, ...]) -> dict[str, Any]:
    """Which kind each provider is of. They have their own random numbers."""
    rng = Random(f"{seed} kinds")  # noqa: S311  a seed gives the same run again
    return {"providers": tuple(replace(habits, kind=rng.choice(KINDS)) for habits in providers)}


def draw_theme(rng: Random, mix: FaultRates, shops: Shops) -> dict[str, Any]:
    """Draw the seed's scenario. Returns the plan fields that it changes."""
    (theme,) = rng.choices([theme for theme, _ in _THEMES], [weight for _, weight in _THEMES])
    return {} if theme is None else theme(rng, mix, shops)
