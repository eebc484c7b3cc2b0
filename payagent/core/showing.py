"""Showing a proof: when the same one is shown again, and what an answer that was paid for says that it cost.

The proxy and the transports of `client` show proofs; both keep to what stands here.
May import: core.money. Never: asks what time it is.
"""

from collections.abc import Sequence

from payagent.core.money import LOVELACE

_FIRST_S, _MAX_S = 0.5, 10.0


def again_after_s(count: int) -> float:
    """In how many seconds a proof is shown again that was shown `count` times in vain."""
    return min(_FIRST_S * 2.0 ** min(count - 1, 10), _MAX_S)


def cost_text(outputs: Sequence[tuple[str, int]], fee_lovelace: int) -> str:
    """What outputs (asset, units) came to in the asset that was asked for, with the fee where that is ADA."""
    asset = outputs[0][0]
    units = sum(units for name, units in outputs if name == asset)
    return f"{units + fee_lovelace if asset == LOVELACE else units} {asset}"
