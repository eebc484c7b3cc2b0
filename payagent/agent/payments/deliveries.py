"""Deliveries: what merchants answer to a proof, noted; and what is to be done next with the same proof.

Money and delivery are two state machines: nothing that a merchant says makes a payment.
May import: core, dialects, store, agent.base, agent.payments, agent.commits, agent.context, structlog. Never:
pays; shows a proof itself.
"""

from functools import partial

import structlog

from payagent.agent.base.requests import Advice
from payagent.agent.commits import delivery_transitions as delivery_steps
from payagent.agent.commits.delivery_transitions import Presented
from payagent.agent.context import AgentContext
from payagent.agent.payments.lifecycle import PaymentLifecycle
from payagent.core.payment import ON_CHAIN, WITHOUT_PROOF, Delivery
from payagent.core.problems import Refused
from payagent.core.retry_schedule import again_after_s
from payagent.dialects import HttpResponse, RetryAnswer, RetryVerdict, read_answer
from payagent.store.db.unit import Unit
from payagent.store.rows import payments
from payagent.store.rows.payments import PaymentRow

log = structlog.get_logger("payagent.agent")


class Deliveries:
    """What was handed over and refused is taken back from here."""

    def __init__(self, context: AgentContext, carrying: PaymentLifecycle) -> None:
        self._context = context
        self._carrying = carrying
        self._there_since_ms: int | None = None

    async def record_delivery(self, payment_id: str, http_status: int) -> PaymentRow:
        """Note what the retry got. A derived intent ends when its call was served."""
        now_ms, clock_ms, rules = *self._times_ms(), self._context.terms.rules
        await self._context.write(
            "delivery",
            lambda unit: delivery_steps.record_delivery(unit, payment_id, http_status, rules, clock_ms, now_ms),
            payment_id,
        )
        return self._context.payment(payment_id)

    async def record_unanswered(self, payment_id: str, why: str) -> None:
        """A proof was shown to the merchant, and no answer came to it."""
        if self._context.payment(payment_id).delivery is not Delivery.NOT_PRESENTED:
            return
        now_ms, rules = self._context.ports.clock.now_ms(), self._context.terms.rules
        await self._context.write(
            "delivery",
            lambda unit: delivery_steps.record_unanswered(unit, payment_id, why, rules, now_ms),
            payment_id,
        )

    async def take_silence(self, payment_id: str, why: str) -> tuple[PaymentRow, Advice]:
        """Note that no answer came, and say whether the same proof is shown again."""
        await self.record_unanswered(payment_id, why)
        row = self._context.payment(payment_id)
        after_s = None if row.state in WITHOUT_PROOF else again_after_s(1)
        return row, Advice(RetryAnswer(RetryVerdict.UNCLEAR, why), after_s)

    async def record_used_up(self, payment_id: str) -> PaymentRow:
        """The merchant says that the proof is used up, which was shown by nobody but us: it took it."""
        now_ms = self._context.ports.clock.now_ms()
        rules = self._context.terms.rules
        await self._context.write(
            "delivery", lambda unit: delivery_steps.record_used_up(unit, payment_id, rules, now_ms), payment_id
        )
        return self._context.payment(payment_id)

    async def take_answer(
        self,
        payment_id: str,
        response: HttpResponse,
        *,
        shown_depth: int | None = None,
        is_delivered: bool = False,
        has_served: bool = False,
    ) -> tuple[PaymentRow, Advice]:
        """Read what the merchant answered to a retry, note it, and say whether the same proof is shown again.

        `shown_depth`: how deep the transaction was when the proof was shown; None for as deep as it is now. Where
        the payment is not `ready` afterwards, the proof is shown again as soon as it is.
        `has_served`: the merchant has begun to serve a call for this payment, delivered or not.

        That a call was served is only noted, unless it `is_delivered` with that: it counts once its answer is in
        the client's hands, which `record_delivery` tells. A transaction that was handed over and refused is
        cancelled.
        """
        row = self._context.payment(payment_id)
        now_ms, clock_ms, rules = *self._times_ms(), self._context.terms.rules
        answer = read_answer(
            row.dialect or "",
            response,
            invoice_id=row.invoice_id or "",
            shown_tx=row.tx_id or "",
            now_ms=now_ms,
            is_on_chain=row.state in ON_CHAIN,
            has_served=has_served or row.delivery is Delivery.ACCEPTED,
        )

        depth = self._context.depth(row) if shown_depth is None else min(shown_depth, self._context.depth(row))
        by_auto = self._context.is_by_auto(row)
        presented = Presented(depth, by_auto, by_auto and depth < self._context.terms.confirm_depth)

        def job(unit: Unit) -> float | None:
            steps, status = delivery_steps, response.status
            after_s = steps.record_answer_to_retry(
                unit, payment_id, answer, status, presented, rules, clock_ms, now_ms
            )
            if is_delivered and answer.said is RetryVerdict.SERVED:
                steps.record_delivery(unit, payment_id, status, rules, clock_ms, now_ms)
            return after_s

        after_s = await self._context.write("delivery", job, payment_id)
        row = self._context.payment(payment_id)
        if row.handed_over and answer.said is RetryVerdict.REFUSED:
            try:
                await self._carrying.cancel_refused(row)
            except Refused as refusal:
                log.info("payment.not_cancelled_yet", payment=payment_id, why=refusal.detail)
            row = self._context.payment(payment_id)
        if by_auto and answer.said is RetryVerdict.PENDING:
            self._context.note_pending(row, depth)
        if by_auto and after_s is not None and not self._context.is_ready(row):
            after_s = float(answer.retry_after_s or 0)
        return row, Advice(answer, after_s)

    async def give_up_unserved(self) -> None:
        """Note which merchants have not served what was confirmed long enough ago: nobody may ever ask again.

        This daemon must have been there for as long: while it was away, nobody could show them a proof.
        """
        context = self._context
        now_ms, clock_ms = self._times_ms()
        if self._there_since_ms is None and context.chain.tip is not None:
            self._there_since_ms = clock_ms
        if self._there_since_ms is None or self._there_since_ms > delivery_steps.serving_ended_ms(clock_ms):
            return
        for payment_id in payments.unserved(context.conn, delivery_steps.serving_ended_ms(clock_ms)):
            job = partial(
                delivery_steps.give_up_unserved,
                payment_id=payment_id,
                clock_ms=clock_ms,
                rules=context.terms.rules,
                now_ms=now_ms,
            )
            await context.write("delivery", job, payment_id)

    def _times_ms(self) -> tuple[int, int]:
        """Our clock's time, which is noted, and the limits' clock's, by which it is late: a jump of ours blames no
        merchant.
        """
        now_ms = self._context.ports.clock.now_ms()
        return now_ms, self._context.limits_clock_ms(self._context.conn, now_ms)
