"""Signed links: who has one decides on that payment, one way, as long as it waits, and on nothing else.

A link's signature is over the payment, the terms that are decided on, the way, and the end of the question. It
alone travels, for the rest is in the ledger.

May import: the standard library, store.approvals. Never: decides; shows its key.
"""

import base64
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Literal, get_args

from payagent.store.approvals import Approval

Way = Literal["approve", "deny"]
WAYS: tuple[Way, ...] = get_args(Way)
PREFIX = "/decide/"
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Links:
    """Makes and checks links. `origin`: the scheme, host and port at which people reach the daemon."""

    origin: str
    key: bytes = field(repr=False)

    def url(self, approval: Approval, way: Way) -> str:
        return f"{self.origin}{PREFIX}{approval.payment_id}/{way}/{self._signature(approval, way)}"

    def is_good(self, approval: Approval, way: str, signature: str) -> bool:
        """Whether this is the link of that question for that way."""
        return any(
            hmac.compare_digest(self._signature(approval, one).encode(), signature.encode())
            for one in WAYS
            if one == way
        )

    def _signature(self, approval: Approval, way: Way) -> str:
        said = "\n".join(
            ("payagent-decide/1", approval.payment_id, approval.terms_hash, way, str(approval.ends_at_ms))
        )
        digest = hmac.digest(self.key, said.encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")
