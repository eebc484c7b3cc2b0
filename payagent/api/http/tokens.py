"""App tokens: how one is made, and what is kept of it.

May import: agent.base. Never: keeps a token. Its 256 random bits need no slow hash.
"""

import base64
import hashlib

from payagent.agent.base.ports import Randomness

PREFIX = "pa_"
_TOKEN_BYTES = 32
TOKEN_PATTERN = f"^{PREFIX}[A-Za-z0-9_-]{{43}}$"


def new_token(randomness: Randomness) -> str:
    """A new token: "pa_" and 43 characters of URL-safe base64. It is shown once; only its hash is kept."""
    raw = bytes.fromhex(randomness.token_hex(_TOKEN_BYTES))
    return PREFIX + base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")


def hash_token(token: str) -> str:
    """The SHA-256 of a token in hex, as the table of tokens has it.

    Looking it up takes no time that tells the token.
    """
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
