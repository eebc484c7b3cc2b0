"""What may be taken out of the wallet, whoever ordered it: bounds beside the limits of the policy.

The agent asks what one transaction may take before anything is held, so that nothing waits for a signature that
never comes; the signer asks again, of the bytes, and what all of them may take in a day.
May import: core.money, core.network, core.problems. Never: counts over time; that is `policy`, and for the signer
`outflow`.
"""

from collections.abc import Iterable, Mapping

from payagent.core.money import LOVELACE, format_amount
from payagent.core.network import ROLLBACK_S
from payagent.core.problems import Refused

FEE_CAP_LOVELACE = 900_000  # a plain transaction of 16,384 bytes costs 876,277

TTL_AHEAD_MAX_S = ROLLBACK_S + 7_200
"""The longest that anything is signed for is a cancel, beyond the last rollback; clocks may differ."""

Caps = Mapping[str, int]
"""Per asset, in its units. An asset without a cap may not leave."""


WITH_FEE, BEFORE_FEE = "with its fee", "and its fee"
"""How a refusal goes on that has told what a payment takes: the fee is in it, or is known later."""


def barred(assets: Iterable[str], caps: Caps) -> frozenset[str]:
    """The tokens among these of which nothing may leave."""
    return frozenset(asset for asset in assets if asset != LOVELACE and not caps.get(asset))


def require_within_caps(leaving: Mapping[str, int], caps: Caps, fee: str = WITH_FEE) -> None:
    """Refuse what takes more of an asset than may leave at once (`limit_exceeded`), the fee counts; or a token
    that has no cap (`asset_not_allowed`).
    """
    uncapped = sorted(asset for asset in leaving.keys() - caps.keys() if asset != LOVELACE)
    if uncapped:
        raise Refused(
            "asset_not_allowed",
            f"nothing says how much of {', '.join(uncapped[:8])} may leave: the config needs a table "
            "[[limits.assets]] for each",
            asset=uncapped[0],
        )
    for asset, units in leaving.items():
        most = caps.get(asset, 0)
        if units > most:
            raise Refused(
                "limit_exceeded",
                f"one transaction may take {format_amount(asset, most)} out of the wallet "
                f"(limits.per_transaction), this one takes {format_amount(asset, units)} {fee}",
                limit="per_transaction",
                asset=asset,
                left=str(most),
                asked=str(units),
            )
