"""A signer in the agent's own process, for the simulator and for tests.

Never: used by the daemon, whose key is in a process of its own.
"""

import json

from payagent.signer.channels import Channels
from payagent.wallet.keys import Signer


class InProcessSigner:
    """It blocks the event loop for as long as a signature takes."""

    def __init__(self, signer: Signer, channels: Channels | None = None) -> None:
        self._signer, self._channels = signer, channels

    @property
    def public_key(self) -> bytes:
        return self._signer.public_key

    async def signature(self, body: bytes, paid: int) -> bytes:
        return self._signer.sign(body, paid)

    async def channel(self, kind: str, **fields: object) -> bytes:
        if self._channels is None:
            raise TypeError("it signs for no channels")
        return self._channels.answer(json.dumps({kind: fields}).encode())
