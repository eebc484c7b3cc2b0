"""Signed links that let their holder decide on one payment, one way, while it awaits a decision.

A link has two signatures. The first covers the payment and the decision, and identifies our links before any data
is read. The second also covers the terms and when the approval ends. The link carries only the payment, the
decision and the signatures; the rest is in the ledger.

Never: decides; shows its key.
"""

import base64
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Literal, get_args

from payagent.store.rows.approvals import ApprovalRow

Way = Literal["approve", "deny"]
WAYS: tuple[Way, ...] = get_args(Way)
PREFIX = "/ui/decide/"
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class ApprovalLinks:
    """Makes and checks links. `origin`: the scheme, host and port at which people reach the daemon."""

    origin: str
    key: bytes = field(repr=False)

    def url(self, approval: ApprovalRow, way: Way) -> str:
        return f"{self.origin}{PREFIX}{approval.payment_id}/{way}/{self._signature(approval, way)}"

    def is_ours(self, payment_id: str, way: str, signature: str) -> bool:
        """Whether the signature begins like one of ours. This takes only the key, no read."""
        ours = self._sign("payagent-link/1", payment_id, way)
        return way in WAYS and _is_same(ours, signature[: len(ours)])

    def is_good(self, approval: ApprovalRow, way: str, signature: str) -> bool:
        """Whether this is the link of that approval for that decision."""
        return any(_is_same(self._signature(approval, one), signature) for one in WAYS if one == way)

    def _signature(self, approval: ApprovalRow, way: Way) -> str:
        terms = approval.payment_id, approval.terms_hash, way, str(approval.expires_at_ms)
        return self._sign("payagent-link/1", approval.payment_id, way) + self._sign("payagent-decide/1", *terms)

    def _sign(self, *parts: str) -> str:
        digest = hmac.digest(self.key, "\n".join(parts).encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _is_same(ours: str, given: str) -> bool:
    return hmac.compare_digest(ours.encode(), given.encode())
