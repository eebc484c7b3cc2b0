"""A signer's process for tests without an event loop.

Never: used while a loop watches the process.
"""

import asyncio

from payagent.signer.client import AccountSigner


class WaitingSigner:
    """A `Signer` of one account that blocks until its process has answered."""

    def __init__(self, account: AccountSigner) -> None:
        self._account = account
        self.public_key = account.public_key
        self.payment_key_hash = account.address.payment_key_hash

    def sign(self, body: bytes, paid: int) -> bytes:
        return asyncio.run(self._signed(body, paid))

    async def _signed(self, body: bytes, paid: int) -> bytes:
        process = self._account.process
        process.watch(lambda: None)
        try:
            return await self._account.signature(body, paid)
        finally:
            process.unwatch()
