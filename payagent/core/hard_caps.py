"""Hard caps on what one transaction may take out of the wallet, above the limits of the policy.

The agent checks them before it holds funds, because the signer would refuse to sign later. The signer checks them
again on the transaction bytes, and adds caps per 24 hours.

Never: counts over time; `policy` does, and `signer.spend_window` in the signer.
"""

from collections.abc import Iterable, Mapping

from payagent.core.money import LOVELACE, format_amount
from payagent.core.network import ROLLBACK_S
from payagent.core.problems import Refused

FEE_CAP_LOVELACE = 900_000  # a plain transaction of 16,384 bytes, the maximum, costs 876,277

TTL_AHEAD_MAX_S = ROLLBACK_S + 7_200
"""The furthest TTL, in seconds ahead. A cancel needs most: it outlives any rollback. Clocks may differ by 2 h."""

Caps = Mapping[str, int]
"""The cap per asset, in units. An asset without a cap may not leave the wallet."""


WITH_FEE, BEFORE_FEE = "with its fee", "and its fee"
"""How a refusal continues after the amount: the fee is included, or is not known yet."""


def barred(assets: Iterable[str], caps: Caps) -> frozenset[str]:
    """Return the tokens among `assets` that have no cap, or a cap of 0, so nothing of them may leave."""
    return frozenset(asset for asset in assets if asset != LOVELACE and not caps.get(asset))


def require_within_caps(leaving: Mapping[str, int], caps: Caps, fee: str = WITH_FEE) -> None:
    """Refuse a transaction above a cap (`limit_exceeded`) or with a token without a cap (`asset_not_allowed`).

    `leaving` is in units per asset; `fee` says whether the network fee is included.
    """
    uncapped = sorted(asset for asset in leaving.keys() - caps.keys() if asset != LOVELACE)
    if uncapped:
        raise Refused(
            "asset_not_allowed",
            f"there is no limit for {', '.join(uncapped[:8])}: the config needs a table "
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
