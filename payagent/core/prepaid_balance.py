"""Prepaid balance: how much was bought at a merchant, how much is used and left, and what it cost.

A balance counts calls of a batch or units of an asset. It grows when a payment is confirmed and shrinks when that
payment is rolled back. A call that is served without its own payment uses it. Use beyond what was bought is
`unexplained` until a later purchase covers it.

As the balance is used, its cost moves from prepaid to spent at the average cost of what is left. The last call
takes the remainder, so rounding loses nothing.

Never: trusts a merchant's count.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

CALLS = "calls"
"""The unit of a balance counted in calls. Any other unit is an asset."""

WALLET_WANTED = "wallet_address_required_for_prepaid_batches"
"""A merchant's error: it must know which wallet owns the calls of a batch."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Units of one asset paid for a balance, and how many of them are used."""

    bought: int = 0
    used: int = 0

    @property
    def left(self) -> int:
        return self.bought - self.used


@dataclass(frozen=True, slots=True)
class PrepaidBalance:
    """A balance, where 0 <= used <= bought. `unexplained` is above 0 only if everything bought is used."""

    bought: int = 0
    used: int = 0
    unexplained: int = 0
    costs: Mapping[str, Cost] = field(default_factory=dict)

    @property
    def left(self) -> int:
        return self.bought - self.used


def buy(balance: PrepaidBalance, count: int, paid: Mapping[str, int]) -> PrepaidBalance:
    """Return the balance after buying `count` for `paid` units per asset. It covers unexplained use first."""
    costs = dict(balance.costs)
    for asset, units in paid.items():
        cost = costs.get(asset, Cost())
        costs[asset] = Cost(cost.bought + units, cost.used)
    more = PrepaidBalance(balance.bought + count, balance.used, 0, costs)
    return use(more, balance.unexplained)


def use(balance: PrepaidBalance, count: int) -> PrepaidBalance:
    """Return the balance after using `count`, at the average cost. Use beyond what is left is unexplained."""
    covered = min(count, balance.left)
    costs = {
        asset: Cost(cost.bought, cost.used + (cost.left * covered // balance.left if covered else 0))
        for asset, cost in balance.costs.items()
    }
    return PrepaidBalance(balance.bought, balance.used + covered, balance.unexplained + count - covered, costs)


def average(balance: PrepaidBalance, count: int) -> dict[str, int]:
    """Return the average cost of `count` per asset: of what is left or, if nothing is left, of all bought."""
    if balance.left:
        return {asset: cost.left * count // balance.left for asset, cost in balance.costs.items()}
    return {
        asset: cost.bought * count // balance.bought for asset, cost in balance.costs.items() if balance.bought
    }


def take_back(balance: PrepaidBalance, count: int, paid: Mapping[str, int]) -> PrepaidBalance:
    """Undo a `buy` whose payment was rolled back. What was already used of it becomes unexplained."""
    bought = balance.bought - count
    used = min(balance.used, bought)
    costs = {
        asset: _averaged(cost.bought - paid.get(asset, 0), used, bought) for asset, cost in balance.costs.items()
    }
    return PrepaidBalance(bought, used, balance.unexplained + balance.used - used, costs)


def _averaged(units: int, used: int, bought: int) -> Cost:
    """Recompute a cost after one purchase is gone: the used part costs the average of the rest."""
    return Cost(units, units * used // bought if bought else units)
