"""Decides from findings whether a payment proceeds, needs an approval, or is refused.

Findings come from the merchant rules and from the operator's approval thresholds. A finding that no approval can
override refuses the payment. All others are listed in the approval.

Never: weighs one finding against another.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from payagent.core.money import format_amount
from payagent.core.problems import Refused


class Finding(NamedTuple):
    """One objection to a payment: a code from PROBLEMS and a detail.

    `asks`: an approval can override it. Otherwise the payment is refused.
    """

    code: str
    detail: str
    asks: bool


Reasons = tuple[Finding, ...]
"""Why a payment needs an approval. Empty: it proceeds without one."""


def judge(findings: Iterable[Finding]) -> Reasons:
    """Return the reasons for an approval. Raise `Refused` for the first finding that no approval can override."""
    reasons = tuple(findings)
    for finding in reasons:
        if not finding.asks:
            raise Refused(finding.code, finding.detail)
    return reasons


def above(thresholds: Mapping[str, int], spend: Mapping[str, int]) -> Reasons:
    """Return one finding for each asset of which the payment takes more than its approval threshold."""
    return tuple(
        Finding(
            "approval_required",
            f"it takes {format_amount(asset, units)}, more than {format_amount(asset, thresholds[asset])}",
            asks=True,
        )
        for asset, units in spend.items()
        if asset in thresholds and units > thresholds[asset]
    )
