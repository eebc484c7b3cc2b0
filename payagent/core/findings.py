"""The verdict on a payment: it may go on, it is refused, or a person is asked first.

What speaks against a payment are findings, of the guards and of the thresholds above which the operator wants to
be asked. One that asks nobody refuses; the others, all of them, are what the person is told.

May import: the standard library, core.money, core.problems. Never: weighs one finding against another.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from payagent.core.money import format_amount
from payagent.core.problems import Refused


class Finding(NamedTuple):
    """What was found against a payment: a code with a row in PROBLEMS, and in words.

    `asks`: a person may allow it all the same; else the payment is refused.
    """

    code: str
    detail: str
    asks: bool


Reasons = tuple[Finding, ...]
"""Why a person is asked; none: nobody is, and the payment goes on."""


def judge(findings: Iterable[Finding]) -> Reasons:
    """The verdict: for which reasons a person is asked. Refused by the first finding that asks nobody."""
    reasons = tuple(findings)
    for finding in reasons:
        if not finding.asks:
            raise Refused(finding.code, finding.detail)
    return reasons


def above(thresholds: Mapping[str, int], spend: Mapping[str, int]) -> Reasons:
    """A reason to ask for each asset of which the payment takes more than may leave without a person's word."""
    return tuple(
        Finding(
            "above_threshold",
            f"it takes {format_amount(asset, units)}, more than {format_amount(asset, thresholds[asset])}",
            asks=True,
        )
        for asset, units in spend.items()
        if asset in thresholds and units > thresholds[asset]
    )
