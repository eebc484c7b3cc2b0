"""The policy: may this be spent, by the limits that the operator set? A pure decision over plain values.

The agent asks it inside the write transaction that would place the hold, with sums that count every hold,
fee and riding min-ADA, so that no race gets around a limit (rule 7).
May import: the standard library, core.money, core.problem. Never: reads a clock or a database.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from payagent.core.money import LOVELACE
from payagent.core.problem import Refused


@dataclass(frozen=True, slots=True)
class Limit:
    """Limits of one asset, in its units."""

    per_payment_units: int
    per_day_units: int


@dataclass(frozen=True, slots=True)
class Allowed:
    """A limit that allowed a spend: what it left at that moment, and what was asked of it."""

    limit: str
    asset: str
    left_units: int
    asked_units: int


def decide(
    spend: Mapping[str, int],
    limits: Mapping[str, Limit],
    spent_day: Mapping[str, int],
    *,
    paid_asset: str,
    max_total_units: int | None,
    topup_left_lovelace: int | None = None,
    count: int = 1,
) -> tuple[Allowed, ...]:
    """Every limit that was asked, when the spend is within it; else `asset_not_allowed` or `limit_exceeded`.

    `spent_day` is what was held or spent in the 24 hours before, per asset. `max_total_units` is the
    caller's own bound on what leaves in the invoice's asset (the fee counts where that is ADA); it can
    only tighten. So can `topup_left_lovelace`, what the merchant's limit for top-ups leaves. `count`: it is to be
    spent so often within the day.
    """
    allowed = []
    for asset, units in spend.items():
        limit = limits.get(asset)
        if limit is None:
            raise Refused("asset_not_allowed", f"no limit is set for {asset}", asset=asset)
        allowed.append(_require(asset, units, limit.per_payment_units, "per_payment"))
        allowed.append(_require(asset, units * count, limit.per_day_units - spent_day.get(asset, 0), "per_day"))
    if max_total_units is not None:
        allowed.append(_require(paid_asset, spend.get(paid_asset, 0), max_total_units, "max_total"))
    if topup_left_lovelace is not None:
        asked = spend.get(LOVELACE, 0) * count
        allowed.append(_require(LOVELACE, asked, topup_left_lovelace, "topup_per_day"))
    return tuple(allowed)


def _require(asset: str, units: int, left_units: int, limit: str) -> Allowed:
    if units > left_units:
        unit = LOVELACE if asset == LOVELACE else f"units of {asset}"
        raise Refused(
            "limit_exceeded",
            f"{limit} leaves {max(left_units, 0)} {unit}, this payment takes {units} with its fee",
            limit=limit,
            asset=asset,
            left=str(max(left_units, 0)),
            asked=str(units),
        )
    return Allowed(limit, asset, left_units, units)
