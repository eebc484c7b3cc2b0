"""Signs a payment's transaction, checks the bytes, and makes them durable (C3) before anyone gets them.

It also keeps the claims: payments a task is signing.
Never: decides which transaction is signed; submits.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from payagent.agent.base.ports import Signatures
from payagent.agent.commits import payment_transitions
from payagent.agent.context import AgentContext
from payagent.core.problems import Refused
from payagent.store.rows import pauses
from payagent.wallet.transaction import TxPlan, assemble, check

GIVE_WAY_S = 0.02
"""Longest time in seconds that a payment's check waits while other payments are being signed."""

NOT_SIGNED = frozenset({"asset_not_allowed", "limit_exceeded", "signer_refused"})
"""Refusals by the signer's own policy: asking again gives the same answer, for a day at least."""


class PaymentSigner:
    """Signs payments. `claimed` holds the payments a task is signing.

    `stirred` is set when a claim ends. The task that waits for it clears it.
    """

    def __init__(self, context: AgentContext, signer: Signatures) -> None:
        self._context = context
        self._signer = signer
        self.claimed: set[str] = set()
        self.stirred = asyncio.Event()
        self._none_claimed = asyncio.Event()

    @contextmanager
    def claim(self, payment_id: str) -> Iterator[None]:
        """Claim a payment while this task brings it to its signature, so no pass works on it at the same time.

        A nested or concurrent claim leaves the first one in place.
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
        """Wait up to `GIVE_WAY_S` while payments are being signed, because a client waits for each of them.

        Returns the seconds waited.
        """
        if not self.claimed:
            return 0.0
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        with suppress(TimeoutError):
            async with asyncio.timeout(GIVE_WAY_S):
                await self._none_claimed.wait()
        return loop.time() - began_s

    async def sign(
        self, payment_id: str, plan: TxPlan, signed: Callable[[], Awaitable[bytes]] | None = None
    ) -> None:
        """Sign, read the bytes again, compare them with the plan, and commit the attempt (C3).

        `signed`: signs and checks a transaction that has another form than payments.
        """
        raw = await self.sign_and_check(payment_id, plan, signed)
        await self._context.write_at(
            "sign",
            lambda unit, now_ms: payment_transitions.record_attempt(
                unit, payment_id, plan, raw, self._context.config.own.raw, now_ms
            ),
            payment_id,
        )

    async def sign_and_check(
        self, payment_id: str, plan: TxPlan, signed: Callable[[], Awaitable[bytes]] | None = None
    ) -> bytes:
        """Sign, read the bytes again and compare them with the plan. Returns the transaction.

        If the signer's own policy refuses, the refusal is recorded and a payment with nothing signed is rejected.
        Refused: `paused`. The commit that makes the bytes durable checks this too, because a pause may come in
        between.
        """
        pauses.require_running(self._context.conn)
        try:
            return await (signed or partial(self._signed, plan))()
        except Refused as refusal:
            if refusal.code in NOT_SIGNED:
                why = refusal
                await self._context.write_at(
                    "reject",
                    lambda unit, now_ms: payment_transitions.record_not_signed(
                        unit, payment_id, self._context.utxos, why, now_ms
                    ),
                    payment_id,
                )
            raise

    async def _signed(self, plan: TxPlan) -> bytes:
        key, signature = self._signer.public_key, await self._signer.signature(plan.body, plan.paid)
        raw = assemble(plan, key, signature)
        check(raw, plan, key)
        return raw
