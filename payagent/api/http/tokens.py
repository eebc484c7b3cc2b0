"""App tokens: makes them, and hashes them for storage.

A token has 256 random bits, so it needs no slow hash.

Never: stores a token.
"""

import base64
import hashlib

from payagent.agent.base.ports import Randomness

PREFIX = "pa_"
_TOKEN_BYTES = 32
TOKEN_PATTERN = f"^{PREFIX}[A-Za-z0-9_-]{{43}}$"


def new_token(randomness: Randomness) -> str:
    """Make a token: "pa_" and 43 characters of URL-safe base64. It is shown once; only its hash is stored."""
    raw = bytes.fromhex(randomness.token_hex(_TOKEN_BYTES))
    return PREFIX + base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")


def hash_token(token: str) -> str:
    """The SHA-256 of a token in hex, as stored in the table of tokens.

    The time that a lookup by hash takes reveals nothing about the token.
    """
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
