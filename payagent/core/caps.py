"""What one transaction may take out of the wallet, whoever ordered it: bounds beside the limits of the policy.

The agent asks before anything is held, so that nothing waits for a signature that never comes; the signer asks
again, of the bytes.
May import: core.problem. Never: counts over time; that is `policy`.
"""

from collections.abc import Mapping

from payagent.core.problem import Refused

FEE_CAP_LOVELACE = 900_000  # a plain transaction of 16,384 bytes costs 876,277

Caps = Mapping[str, int]
"""By asset, in its units. What has no cap is not bounded."""


def require_within_caps(leaving: Mapping[str, int], caps: Caps) -> None:
    """Refuse (`limit_exceeded`) what takes more of an asset than may leave at once; the fee counts."""
    for asset, units in leaving.items():
        most = caps.get(asset, units)
        if units > most:
            raise Refused(
                "limit_exceeded",
                f"one transaction may take {most} of {asset} out of the wallet (limits.per_transaction), this one "
                f"takes {units} with its fee",
                limit="per_transaction",
                asset=asset,
                left=str(most),
                asked=str(units),
            )
