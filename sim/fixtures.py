"""Constants of every run: the network, a wallet with publicly known words, and the canary secrets.

Never: draws anything.
"""

from functools import cache

from payagent.core.network import NETWORKS
from payagent.wallet.keys import Account, derive, seed_from_words
from sim.canaries import Canaries

ADA = 1_000_000
NETWORK = NETWORKS["devnet"]
START_MS = 1_700_000_000_000
API_KEY = "canary-of-an-api-key"


@cache
def account(number: int = 0) -> Account:
    """An account of a wallet from fixed words. Its keys protect nothing."""
    return derive(seed_from_words("abandon " * 23 + "art"), NETWORK, number)


@cache
def canaries() -> Canaries:
    """The secrets that the daemon must know and never write."""
    signer = account().signer
    key = b"".join(getattr(signer, f"_{name}") for name in ("scalar", "nonce_key"))
    return Canaries(
        {"the wallet's words": "abandon abandon", "a merchant's api key": API_KEY},
        {"the wallet's key": key[:32], "the key's second half": key[32:]},
    )
