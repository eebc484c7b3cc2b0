"""How long to wait before a retry, and when to present a proof to a merchant.

Never: reads a clock.
"""

from dataclasses import dataclass
from typing import Literal

from payagent.core.payment.machine import POSTED, State

Ready = Literal["auto", "signed", "submitted", "confirmed"]
"""A merchant's `ready` setting: the stage at which to send the retry with the proof."""

_FIRST_MS, _MAX_MS = 500, 10_000


@dataclass(frozen=True, slots=True)
class MerchantReadiness:
    """What `ready = "auto"` has learned from a merchant's answers.

    `accepted_depth`: the transaction's depth when the merchant accepted a proof. 1 is the newest block, 0 no
    block, None unknown. `refused_early`: the merchant refused a proof before `confirm_depth`.
    """

    accepted_depth: int | None = None
    refused_early: bool = False

    @property
    def first_depth(self) -> int:
        """The depth at which to present the next proof first."""
        return 1 if self.accepted_depth is None else self.accepted_depth

    def after_accepted(self, depth: int, pending_depth: int | None) -> "MerchantReadiness":
        """Return the readiness after a proof was accepted at `depth`.

        `pending_depth` is the depth at the last answer "pending", if any. A proof first presented deeper than
        `first_depth`, and never pending, says nothing about the depth that the merchant needs.
        """
        if pending_depth is not None:
            return MerchantReadiness(min(depth, pending_depth + 1), self.refused_early)
        return MerchantReadiness(depth, self.refused_early) if depth <= self.first_depth else self


def may_be_shown(
    ready: Ready,
    readiness: MerchantReadiness,
    state: State,
    depth: int,
    *,
    was_sent: bool,
    status_confirmed: bool,
    was_pending: bool,
) -> bool:
    """Whether a merchant is expected to accept a proof now. For payments that payagent submits itself.

    `depth`: 1 in the newest block, 0 in no block. `was_sent`: a provider accepted the transaction.
    `status_confirmed`: the merchant's payment status says confirmed. `was_pending`: the merchant answered
    "pending" to this proof, and there was no new block since.
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


def backoff(first: int, longest: int, failures: int) -> int:
    """Return the wait after some failures in a row: `first`, doubled after each further one, up to `longest`."""
    return min(first << min(max(failures - 1, 0), 32), longest)


def again_after_s(count: int) -> float:
    """Seconds until a proof that was presented `count` times without success is presented again."""
    return backoff(_FIRST_MS, _MAX_MS, count) / 1000
