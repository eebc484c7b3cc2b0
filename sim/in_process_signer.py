"""A signer in the agent's own process, for the simulator and for tests.

Never: used by the daemon, whose key is in a process of its own.
"""

from payagent.wallet.keys import Signer


class InProcessSigner:
    """It blocks the event loop for as long as a signature takes."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    @property
    def public_key(self) -> bytes:
        return self._signer.public_key

    async def signature(self, body: bytes, paid: int) -> bytes:
        return self._signer.sign(body, paid)
