"""What a merchant says of a payment: the answer to GET /payments/status/{id}, which no document describes.

It is advice; the chain decides. So the reading is lenient, never raises, and takes no word that it does not
know for final. May import: the standard library. Never: turns a merchant's word into a reason to pay again.
"""

import re
from dataclasses import dataclass
from typing import Literal

Said = Literal["pending", "submitted", "confirmed", "consumed", "expired", "failed", "unknown"]

# The union of what the SDK's core, its command line, its gateway and partners' clients know.
WORDS: dict[str, Said] = {
    "pending": "pending",
    "processing": "pending",
    "submitted": "submitted",
    "verified": "confirmed",
    "confirmed": "confirmed",
    "settled": "confirmed",
    "completed": "confirmed",
    "consumed": "consumed",
    "expired": "expired",
    "failed": "failed",
    "rejected": "failed",
    "cancelled": "failed",
}
_TX_HASH = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class StatusSaid:
    """The merchant's word in our vocabulary, and the transaction that it names, if any."""

    status: Said
    tx_hash: str | None

    @property
    def final(self) -> bool:
        """Whether the merchant will not say anything else; `unknown` is never final."""
        return self.status in ("confirmed", "consumed", "expired", "failed")


def read_status(body: object) -> StatusSaid:
    """Read a status answer, at the top level or under `detail`, whatever its letter case."""
    if isinstance(body, dict):
        for said in (body, body.get("detail")):
            if isinstance(said, dict) and isinstance(said.get("status"), str):
                word = said["status"].strip().lower()
                return StatusSaid(WORDS.get(word, "unknown"), _tx_hash(said.get("txHash", said.get("tx_hash"))))
    return StatusSaid("unknown", None)


def _tx_hash(value: object) -> str | None:
    return value.lower() if isinstance(value, str) and _TX_HASH.fullmatch(value) else None
