"""Counts what the signer signed in the last 24 hours, whether it landed or not, against caps.

At most one of several transactions that share an input can land, so only the largest amount counts. They form a
group as long as all of them share an input, as the attempts of a payment share its nonce UTxO.

Never: reads a clock, a file or the ledger; forgets a transaction signed in the last 24 hours.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from payagent.core.hard_caps import Caps
from payagent.core.money import LOVELACE, format_amount
from payagent.core.problems import Refused

DAY_S = 86_400
GROUPS_MAX = 200_000

Input = tuple[str, int]


@dataclass(slots=True, eq=False)
class Group:
    """Transactions of which at most one can land, because all spend the inputs in `shared`."""

    shared: frozenset[Input]
    at_s: float
    most: dict[str, int] = field(default_factory=dict)


class SpendWindow:
    """The units signed in the last 24 hours per asset, against caps. `name` is the setting that refusals name."""

    def __init__(self, caps: Caps, name: str) -> None:
        self._caps, self._name = caps, name
        self._groups: OrderedDict[Group, None] = OrderedDict()  # oldest first
        self._of: dict[Input, Group] = {}
        self._sums: dict[str, int] = {}

    def covers(self, inputs: frozenset[Input], leaving: Mapping[str, int], now_s: float) -> bool:
        """Join a counted group that shares an input and takes as much already. False if there is none."""
        self._forget(now_s)
        group = self._group_for(inputs)
        if group is None or any(units > group.most.get(asset, 0) for asset, units in leaving.items()):
            return False
        self._narrow(group, inputs)
        return True

    def require(self, inputs: frozenset[Input], leaving: Mapping[str, int], now_s: float) -> None:
        """Refuse a transaction that would exceed the caps (`limit_exceeded`)."""
        self._forget(now_s)
        group = self._group_for(inputs)
        counted = {} if group is None else group.most
        for asset, units in leaving.items():
            sum_units = self._sums.get(asset, 0)
            most = self._caps.get(asset, 0)
            if sum_units + max(units - counted.get(asset, 0), 0) > most:
                raise Refused(
                    "limit_exceeded",
                    f"at most {format_amount(asset, most)} may be signed out of the wallet in 24 hours "
                    f"({self._name}); {format_amount(asset, sum_units)} already is, this takes "
                    f"{format_amount(asset, units - counted.get(asset, 0))} with its fee",
                    fix=None
                    if self._name.startswith("limits.")
                    else f"Wait until room frees up, or raise {self._name} in the config file and start again.",
                    limit=self._name.removeprefix("limits."),
                    asset=asset,
                    left=str(max(most - sum_units, 0)),
                    asked=str(units),
                )
        if group is None and len(self._groups) >= GROUPS_MAX:
            raise Refused("signer_refused", f"{GROUPS_MAX} transactions were signed in 24 hours")

    def note(self, inputs: frozenset[Input], leaving: Mapping[str, int], now_s: float) -> None:
        """Count a transaction that is signed now."""
        group = self._group_for(inputs)
        if group is None:
            group = Group(inputs, now_s)
        else:
            self._narrow(group, inputs)
        group.at_s = now_s
        self._groups[group] = None
        self._groups.move_to_end(group)
        for tx_input in group.shared:
            self._of[tx_input] = group
        for asset, units in leaving.items():
            more = units - group.most.get(asset, 0)
            if more > 0:
                group.most[asset] = units
                self._sums[asset] = self._sums.get(asset, 0) + more

    def _group_for(self, inputs: frozenset[Input]) -> Group | None:
        """Return the group with a common input that counts most lovelace, or None."""
        groups = {self._of[tx_input] for tx_input in inputs if tx_input in self._of}
        return max(groups, key=lambda group: group.most.get(LOVELACE, 0), default=None)

    def _narrow(self, group: Group, inputs: frozenset[Input]) -> None:
        for tx_input in group.shared - inputs:
            del self._of[tx_input]
        group.shared &= inputs

    def _forget(self, now_s: float) -> None:
        while self._groups and (oldest := next(iter(self._groups))).at_s + DAY_S <= now_s:
            del self._groups[oldest]
            for tx_input in oldest.shared:
                if self._of.get(tx_input) is oldest:
                    del self._of[tx_input]
            for asset, units in oldest.most.items():
                self._sums[asset] -= units
