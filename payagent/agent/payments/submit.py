"""Submits the bytes of a payment's last attempt to every provider that is believed.

The bytes are already durable (C3), each submission is recorded before the bytes are sent (C4), and no answer
decides anything (exactly-once.md R4). Start with `TxSubmitter.submit`.
Never: signs; submits bytes that are not in the ledger.
"""

import asyncio
from collections.abc import Sequence

from payagent.agent.base.log import log
from payagent.agent.commits import payment_transitions
from payagent.agent.context import AgentContext
from payagent.chain.throttled_provider import ThrottledProvider
from payagent.core.aggregate import AttemptRow
from payagent.core.problems import Refused
from payagent.store.rows import attempts_and_utxos


class TxSubmitter:
    """Submits in background tasks, one for each payment."""

    def __init__(self, context: AgentContext) -> None:
        self._context = context
        self._under_way: dict[str, dict[str, asyncio.Event]] = {}
        """By payment and provider: an event that is set when the submission to that provider is over."""
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, payment_id: str) -> None:
        """Submit the payment's last attempt (again) in a background task."""
        if payment_id not in self._under_way:
            self._under_way[payment_id] = {
                provider.name: asyncio.Event() for provider in self._context.submit_providers
            }
            task = asyncio.create_task(self._submit_attempt(payment_id), name=f"send {payment_id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    @property
    def count(self) -> int:
        """The number of payments being submitted."""
        return len(self._under_way)

    async def drain(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` for the submissions under way. Called at a stop, before the scheduler ends."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    async def _submit_attempt(self, payment_id: str) -> None:
        """Submit to every provider that is believed, so one that falsely claims acceptance delays nothing."""
        done = self._under_way[payment_id]
        try:
            row = self._context.payment(payment_id)
            attempt = next(
                (
                    one
                    for one in attempts_and_utxos.attempts(self._context.conn, payment_id)
                    if one.tx_id == row.attempt.tx_id
                ),
                None,
            )
            if attempt is None:  # it is being replaced
                return
            now_ms = self._context.ports.clock.now_ms()
            if self._context.chain.slots and self._context.chain.slots.slot_at(now_ms) >= attempt.ttl_slot:
                return
            if payment_transitions.may_broadcast(row):
                parents = self._submit_parents(attempt.tx_id)
                await asyncio.gather(
                    *(
                        self._submit_to(provider, row.id, attempt, parents)
                        for provider in self._context.submit_providers
                    )
                )
        finally:
            del self._under_way[payment_id]
            for event in done.values():
                event.set()

    def _submit_parents(self, tx_id: str) -> list[dict[str, asyncio.Event]]:
        """Submit the pending payments whose outputs this attempt spends.

        The first time, a parent that a provider already accepted is left out. Returns the events of the parents'
        submissions under way, by provider.
        """
        parents = attempts_and_utxos.pending_parents(self._context.conn, tx_id)
        is_again = bool(parents) and attempts_and_utxos.submissions(self._context.conn, tx_id)[1] > 0
        submissions = []
        for parent_tx in parents:
            parent = attempts_and_utxos.payment_of_attempt(self._context.conn, parent_tx)
            if parent is not None and parent.attempt.tx_id == parent_tx:
                if is_again or not parent.attempt.accepted_by_provider:
                    self.submit(parent.id)
                submissions.append(self._under_way.get(parent.id, {}))
        return submissions

    async def _submit_to(
        self,
        provider: ThrottledProvider,
        payment_id: str,
        attempt: AttemptRow,
        parents: Sequence[dict[str, asyncio.Event]],
    ) -> None:
        """Commit C4, then submit, once the parents' bytes were sent to this provider.

        No provider waits for another. A provider that by then asks for a pause, or is no longer believed, gets
        nothing. Its answer is recorded and decides nothing (exactly-once.md R4).
        """
        done = self._under_way[payment_id].get(provider.name)
        try:
            for parent in parents:
                if (parent_done := parent.get(provider.name)) is not None:
                    await parent_done.wait()
            now_ms = self._context.ports.clock.now_ms()
            if provider not in self._context.submit_providers or not provider.may_submit(now_ms):
                return
            may_send = await self._context.write(
                "submit",
                lambda unit: payment_transitions.record_submit(
                    unit, payment_id, attempt.tx_id, provider.name, now_ms
                ),
                payment_id,
            )
            if not may_send:
                return
            answer = await provider.submit(attempt.cbor, attempt.tx_id)
            await self._context.write_at(
                "answer",
                lambda unit, answered_ms: payment_transitions.record_answer(
                    unit, payment_id, attempt.tx_id, answer, provider.name, answered_ms
                ),
                payment_id,
            )
        except Exception as error:
            is_bug = not isinstance(error, Refused)
            log.warning("payment.not_sent", payment=payment_id, error=repr(error), exc_info=is_bug)
        finally:
            if done is not None:
                done.set()
