"""Showing a proof: when it may be shown, when the same one is shown again, and what a paid answer says it cost.

The proxy, the top-ups and the transports of `client` show proofs; all keep to what stands here.
May import: core.money, core.payment. Never: asks what time it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from payagent.core.money import LOVELACE
from payagent.core.payment import POSTED, State

Ready = Literal["auto", "signed", "submitted", "confirmed"]
"""A merchant's `ready` setting: when the retry that carries the proof is worth sending."""

_FIRST_S, _MAX_S = 0.5, 10.0


@dataclass(frozen=True, slots=True)
class Readiness:
    """What a merchant's answers taught `ready = "auto"`.

    `accepted_depth`: how deep the transaction was when the merchant accepted a proof, 1 in the newest block, 0 in
    no block; None while unknown. `refused_early`: the merchant refused a proof before `confirm_depth`.
    """

    accepted_depth: int | None = None
    refused_early: bool = False

    @property
    def first_depth(self) -> int:
        """The depth at which the next proof is first shown."""
        return 1 if self.accepted_depth is None else self.accepted_depth

    def after_accepted(self, depth: int, pending_depth: int | None) -> "Readiness":
        """The merchant accepted a proof at `depth`. `pending_depth`: that of its last answer "pending", if any.

        A proof that was first shown later, and was never pending, says nothing of the depth that is needed.
        """
        if pending_depth is not None:
            return Readiness(min(depth, pending_depth + 1), self.refused_early)
        return Readiness(depth, self.refused_early) if depth <= self.first_depth else self


def may_be_shown(
    ready: Ready,
    readiness: Readiness,
    state: State,
    depth: int,
    *,
    was_sent: bool,
    status_confirmed: bool,
    was_pending: bool,
) -> bool:
    """Whether a merchant can be expected to accept a proof now, where payagent broadcasts the transaction.

    `depth`: 1 in the newest block, 0 in no block. `was_sent`: a provider accepted the transaction.
    `status_confirmed`: the merchant's status call says so. `was_pending`: the merchant answered "pending" to this
    proof, and no block came since.
    """
    if ready == "confirmed" or (ready == "auto" and readiness.refused_early):
        return state in POSTED
    if ready == "auto":
        if was_pending:
            return False
        if readiness.first_depth:
            return status_confirmed or depth >= readiness.first_depth
        return status_confirmed or was_sent or depth > 0
    return ready == "signed" or was_sent or depth > 0


def again_after_s(count: int) -> float:
    """In how many seconds a proof is shown again that was shown `count` times in vain."""
    return min(_FIRST_S * 2.0 ** min(count - 1, 10), _MAX_S)


def cost_text(outputs: Sequence[tuple[str, int]], fee_lovelace: int) -> str:
    """What outputs (asset, units) came to in the asset that was asked for, with the fee where that is ADA."""
    asset = outputs[0][0]
    units = sum(units for name, units in outputs if name == asset)
    return f"{units + fee_lovelace if asset == LOVELACE else units} {asset}"
