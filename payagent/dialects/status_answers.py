"""Parses a merchant's answer to GET /payments/status/{id}.

No document describes the answer, and it is only advice; the chain decides. So the parser is lenient and never
raises. A word that it does not know is `unknown`.

Never: gives a reason to pay again.
"""

from typing import Literal

StatusWord = Literal["pending", "submitted", "confirmed", "consumed", "expired", "failed", "unknown"]

# The union of the words known to the SDK's core, its command line, its gateway, and partners' clients.
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
    """Return the status, found at the top level or under `detail`, in any letter case."""
    if isinstance(body, dict):
        for fields in (body, body.get("detail")):
            if isinstance(fields, dict) and isinstance(fields.get("status"), str):
                return WORDS.get(fields["status"].strip().lower(), "unknown")
    return "unknown"
