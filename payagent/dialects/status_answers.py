"""What a merchant says of a payment: the answer to GET /payments/status/{id}, which no document describes.

It is advice; the chain decides. So the reading is lenient, never raises, and a word that it does not know is
`unknown`. May import: the standard library. Never: turns a merchant's word into a reason to pay again.
"""

from typing import Literal

StatusWord = Literal["pending", "submitted", "confirmed", "consumed", "expired", "failed", "unknown"]

# The union of what the SDK's core, its command line, its gateway and partners' clients know.
WORDS: dict[str, StatusWord] = {
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


def read_status(body: object) -> StatusWord:
    """The word of a status answer, at the top level or under `detail`, whatever its letter case."""
    if isinstance(body, dict):
        for said in (body, body.get("detail")):
            if isinstance(said, dict) and isinstance(said.get("status"), str):
                return WORDS.get(said["status"].strip().lower(), "unknown")
    return "unknown"
