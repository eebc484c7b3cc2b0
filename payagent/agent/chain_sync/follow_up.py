"""Follows up on payments after each pass: submits, resubmits, replaces, cancels, and signs what is admitted.

A resubmission sends the very same bytes (exactly-once.md R5); an error in reply is expected. Start with
`FollowUp.carry_on`.
Never: reads the chain; builds a transaction.
"""

from payagent.agent.chain_sync.confirmations import Confirmations
from payagent.agent.chain_sync.open_payments import OpenPayments, WorkerPool
from payagent.agent.chain_sync.rolled_back_deposits import RolledBackDeposits
from payagent.agent.commits import payment_transitions as steps
from payagent.agent.commits.replacement import is_hopeless, is_lost
from payagent.agent.context import AgentContext
from payagent.agent.payments.lifecycle import PaymentLifecycle
from payagent.agent.payments.submit import TxSubmitter
from payagent.chain.provider import BlockSeen
from payagent.core.aggregate import PaymentRow
from payagent.core.payment.machine import AWAITING_SIGNATURE, State
from payagent.core.retry_schedule import backoff
from payagent.store.rows import attempts_and_utxos, payments
from payagent.store.rows.payments import OpenPayment

RESUBMIT_FIRST_MS = 5_000
RESUBMIT_MAX_MS = 200_000

SENT_AT_ONCE_MAX = 64
"""Attempts that may be under submission when others are resubmitted.

With a pass every 5 s this allows at least the ten calls a second that Blockfrost sustains. Each submission takes
memory and one of a provider's few threads. Behind hundreds of them, reads and new payments would time out.
"""

_SENDING = (State.SIGNED, State.IN_FLIGHT, State.CANCELLING)


def resubmit_due_ms(sent_count: int, last_sent_ms: int, *, is_hopeless: bool = False) -> int:
    """When the same bytes are submitted again: after 5, 10, 20, ... s, then every 200 s (ten expected blocks).

    `is_hopeless`: a provider said that they can never be valid, and none took them. They are then submitted every
    200 s from the start.
    """
    if is_hopeless:
        return last_sent_ms + RESUBMIT_MAX_MS
    return last_sent_ms + backoff(RESUBMIT_FIRST_MS, RESUBMIT_MAX_MS, sent_count)


class FollowUp:
    """The last part of each pass, which runs even if the pass failed.

    `_waits`: when each attempt was last submitted and when it is due again, as of the last time it was due.
    """

    def __init__(
        self,
        context: AgentContext,
        lifecycle: PaymentLifecycle,
        submitter: TxSubmitter,
        rows: OpenPayments,
        workers: WorkerPool,
        confirmations: Confirmations,
        rolled_back: RolledBackDeposits,
    ) -> None:
        self._context = context
        self._lifecycle = lifecycle
        self._submitter = submitter
        self._open_payments = rows
        self._workers = workers
        self._confirmations = confirmations
        self._rolled_back = rolled_back
        self._waits: dict[int | None, tuple[int, int]] = {}

    async def carry_on(self) -> None:
        """Submit and resubmit what is due, then replace or cancel, then sign what is admitted and unsigned."""
        context = self._context
        now_ms = context.ports.clock.now_ms()
        if context.chain.slots is None:
            return
        slot = context.chain.slots.slot_at(now_ms)
        self._submit_due(slot, now_ms)
        if context.chain.is_ready(now_ms) and context.chain.tip is not None:
            await self._replace_or_cancel(context.chain.tip)
            unsigned = [
                row
                for row in self._open_payments.open(AWAITING_SIGNATURE)
                if row.id not in self._rolled_back.stuck
            ]
            await self._workers.each(unsigned, self._lifecycle.resume)

    async def _replace_or_cancel(self, tip: BlockSeen) -> None:
        """Replace or cancel attempts whose TTL has passed at the tip's slot. Until then one may enter any block.

        A payment that was not looked up yet waits.
        """
        context = self._context

        async def act(row: PaymentRow) -> None:
            if steps.reason_to_cancel(context.conn, row, tip.slot):
                await self._lifecycle.cancel(row)
            elif row.id not in self._confirmations.unread and is_lost(context.conn, row, tip.slot):
                await self._lifecycle.renew(row)

        over = [row for row in self._open_payments.open(_SENDING) if _may_be_over(row, tip.slot)]
        await self._workers.each([row for row in over if row.id not in self._rolled_back.stuck], act)

    def _submit_due(self, slot: int, now_ms: int) -> None:
        """Submit what is due, longest waiting first, at most `SENT_AT_ONCE_MAX` at once; the rest next pass."""
        submittable = [
            row for row in self._open_payments.open(_SENDING) if (row.ttl_slot or 0) > slot and row.attempt
        ]
        self._waits = {row.attempt: self._waits[row.attempt] for row in submittable if row.attempt in self._waits}
        due = [row for row in submittable if self._is_due(row, now_ms)]
        due.sort(key=lambda row: (self._waits.get(row.attempt, (0, 0)), row.seq))
        room, unsent = SENT_AT_ONCE_MAX - self._submitter.count, set()
        for row in due:
            if room <= 0:
                unsent.add(row.id)
                continue
            self._waits[row.attempt] = self._wait_of(row.id)  # it may have been submitted since
            if self._is_due(row, now_ms) and self._may_broadcast(row):
                self._submitter.submit(row.id)
                room -= 1
        self._confirmations.urgent &= unsent

    def _is_due(self, row: OpenPayment, now_ms: int) -> bool:
        """Whether to submit now, also if the last submission lies in the future: the clock was set back since."""
        last_ms, due_ms = self._waits.get(row.attempt, (0, 0))
        return now_ms >= due_ms or now_ms < last_ms or row.id in self._confirmations.urgent

    def _may_broadcast(self, row: OpenPayment) -> bool:
        if not row.merchant_submits:
            return True
        payment = payments.payment(self._context.conn, row.id)
        return payment is not None and steps.may_broadcast(payment)

    def _wait_of(self, payment_id: str) -> tuple[int, int]:
        """When a payment's attempt was last submitted, and when it is due again."""
        conn = self._context.conn
        tx_id = payments.tx_of(conn, payment_id)
        count, last_ms = attempts_and_utxos.submissions(conn, tx_id)
        return last_ms, resubmit_due_ms(count, last_ms, is_hopeless=is_hopeless(conn, payment_id, tx_id))


def _may_be_over(row: OpenPayment, slot: int) -> bool:
    """Whether to check the payment further: its attempt's TTL may have passed, or it is to be cancelled.

    No check is needed if payagent itself submitted the attempt and it can still land.
    """
    can_land = row.attempt is not None and not row.is_cancel and (row.ttl_slot or 0) > slot
    return row.state is State.CANCELLING or row.merchant_submits or not can_land
