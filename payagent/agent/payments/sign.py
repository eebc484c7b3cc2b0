"""Signing: the claims on payments that are on the way to their signature, and the signature itself, checked and
durable (C3) before anybody gets the bytes.

May import: core.problems, store, wallet, agent.context, agent.base, agent.commits. Never: decides what is signed;
sends.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from payagent.agent.base.ports import Signatures
from payagent.agent.commits import payment_transitions as steps
from payagent.agent.context import AgentContext
from payagent.core.problems import Refused
from payagent.store.rows import pauses
from payagent.wallet.transaction import TxPlan, assemble, check

GIVE_WAY_S = 0.02
"""How long a look at a payment waits at most while others are being signed."""

NOT_SIGNED = frozenset({"asset_not_allowed", "limit_exceeded", "signer_refused"})
"""What the signer says by its own policy: asking again gives the same answer, for a day at least."""


class PaymentSigner:
    """`claimed` are the payments that somebody carries to their signature now.

    `stirred` is set when one of them is signed or given up; who waits for that clears it.
    """

    def __init__(self, context: AgentContext, signer: Signatures) -> None:
        self._context = context
        self._signer = signer
        self.claimed: set[str] = set()
        self.stirred = asyncio.Event()
        self._none_claimed = asyncio.Event()

    @contextmanager
    def claim(self, payment_id: str) -> Iterator[None]:
        """While one task carries a payment to its signature, no sweep takes it up beside it.

        Who comes second, as with a second yes to the same question, takes nothing from the first.
        """
        if payment_id in self.claimed:
            yield
            return
        self.claimed.add(payment_id)
        self._none_claimed.clear()
        try:
            yield
        finally:
            self.claimed.discard(payment_id)
            if not self.claimed:
                self._none_claimed.set()
            self.stirred.set()

    async def give_way(self) -> float:
        """Wait a moment while payments are on the way to their signature, for somebody waits for each of these.

        How many seconds that took.
        """
        if not self.claimed:
            return 0.0
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        with suppress(TimeoutError):
            async with asyncio.timeout(GIVE_WAY_S):
                await self._none_claimed.wait()
        return loop.time() - began_s

    async def sign(self, payment_id: str, plan: TxPlan) -> None:
        """Sign, read the bytes again and compare them with the plan, then C3."""
        raw = await self.sign_and_check(payment_id, plan)
        now_ms = self._context.ports.clock.now_ms()
        await self._context.write(
            "sign",
            lambda unit: steps.record_attempt(unit, payment_id, plan, raw, self._context.terms.own.raw, now_ms),
            payment_id,
        )

    async def sign_and_check(self, payment_id: str, plan: TxPlan) -> bytes:
        """Refused by the signer's own policy: what was never signed is rejected, and it is told once. `paused`, as
        the commit is that would make it durable: a pause may come between the two.
        """
        pauses.require_running(self._context.conn)
        key = self._signer.public_key
        try:
            signature = await self._signer.signature(plan.body, plan.paid)
        except Refused as refusal:
            if refusal.code in NOT_SIGNED:
                await self._note_not_signed(payment_id, refusal)
            raise
        raw = assemble(plan, key, signature)
        check(raw, plan, key)
        return raw

    async def _note_not_signed(self, payment_id: str, refusal: Refused) -> None:
        now_ms = self._context.ports.clock.now_ms()
        await self._context.write(
            "reject",
            lambda unit: steps.record_not_signed(unit, payment_id, self._context.utxos, refusal, now_ms),
            payment_id,
        )
