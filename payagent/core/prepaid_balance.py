"""Prepaid balance: what was bought at a merchant, what is used of it, what is left, and what that cost.

A balance counts in calls of a batch or in units of an asset. Three things happen to it: it is bought when a
payment is confirmed, used when a call is served without a payment of its own, and taken back when a payment loses
its block. More served than bought is `unexplained`, until something bought later explains it.

What was paid moves from prepaid to spent as it is used, at the average of what is left: the last call takes the
rest, so nothing is lost in rounding.
May import: the standard library. Never: takes a merchant's word for a count.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

CALLS = "calls"
"""The unit of a balance that is counted in calls; any other unit is an asset."""

WALLET_WANTED = "wallet_address_required_for_prepaid_batches"
"""A merchant's word for: it must know whose the calls of a batch will be."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Units of one asset that were paid for a balance, and how many of them are used up."""

    bought: int = 0
    used: int = 0

    @property
    def left(self) -> int:
        return self.bought - self.used


@dataclass(frozen=True, slots=True)
class PrepaidBalance:
    """Never negative: 0 <= used <= bought, and only of a balance that is used up more was served than bought."""

    bought: int = 0
    used: int = 0
    unexplained: int = 0
    costs: Mapping[str, Cost] = field(default_factory=dict)

    @property
    def left(self) -> int:
        return self.bought - self.used


def buy(balance: PrepaidBalance, count: int, paid: Mapping[str, int]) -> PrepaidBalance:
    """The balance after so much more is bought, for `paid` units per asset. It first covers what was served
    unexplained.
    """
    costs = dict(balance.costs)
    for asset, units in paid.items():
        cost = costs.get(asset, Cost())
        costs[asset] = Cost(cost.bought + units, cost.used)
    more = PrepaidBalance(balance.bought + count, balance.used, 0, costs)
    return use(more, balance.unexplained)


def use(balance: PrepaidBalance, count: int) -> PrepaidBalance:
    """The balance after so much was served: covered by what is left, at its average cost; else unexplained."""
    covered = min(count, balance.left)
    costs = {
        asset: Cost(cost.bought, cost.used + (cost.left * covered // balance.left if covered else 0))
        for asset, cost in balance.costs.items()
    }
    return PrepaidBalance(balance.bought, balance.used + covered, balance.unexplained + count - covered, costs)


def average(balance: PrepaidBalance, count: int) -> dict[str, int]:
    """What a use of so much costs per asset: the average of what is left; of nothing left, that of all."""
    if balance.left:
        return {asset: cost.left * count // balance.left for asset, cost in balance.costs.items()}
    return {
        asset: cost.bought * count // balance.bought for asset, cost in balance.costs.items() if balance.bought
    }


def take_back(balance: PrepaidBalance, count: int, paid: Mapping[str, int]) -> PrepaidBalance:
    """What `buy` had added is on no chain any more. What was served of it is unexplained now."""
    bought = balance.bought - count
    used = min(balance.used, bought)
    costs = {
        asset: _averaged(cost.bought - paid.get(asset, 0), used, bought) for asset, cost in balance.costs.items()
    }
    return PrepaidBalance(bought, used, balance.unexplained + balance.used - used, costs)


def _averaged(units: int, used: int, bought: int) -> Cost:
    """The cost of a balance of which one purchase is gone: what is used of the rest costs its average."""
    return Cost(units, units * used // bought if bought else units)
