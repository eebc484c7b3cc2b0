"""Records merchants' answers to a proof and advises whether to present the same proof again.

Start with `Deliveries.take_answer`. Money and delivery are two state machines: no answer of a merchant makes a
payment.
Never: pays; presents a proof itself.
"""

from functools import partial

from payagent.agent.base.log import log
from payagent.agent.commits import delivery_transitions
from payagent.agent.commits.delivery_transitions import Presented
from payagent.agent.context import AgentContext
from payagent.agent.payments.lifecycle import PaymentLifecycle
from payagent.core.aggregate import PaymentRow
from payagent.core.pay_and_retry import Answered
from payagent.core.payment.machine import ON_CHAIN, WITHOUT_PROOF, Delivery
from payagent.core.problems import Refused
from payagent.core.retry_schedule import again_after_s
from payagent.dialects import HttpResponse, RetryVerdict, read_answer
from payagent.store.db.unit import Unit
from payagent.store.rows import payments


class Deliveries:
    """Commits the steps of a delivery. Cancels a payment that its merchant was to submit and refused."""

    def __init__(self, context: AgentContext, lifecycle: PaymentLifecycle) -> None:
        self._context = context
        self._lifecycle = lifecycle
        self._running_since_ms: int | None = None

    async def record_delivery(self, payment_id: str, http_status: int) -> PaymentRow:
        """Record the status of the retry. An intent with a derived key ends when its request was served."""
        now_ms, clock_ms, rules = *self._times_ms(), self._context.config.rules
        is_new = await self._context.write(
            "delivery",
            lambda unit: delivery_transitions.record_delivery(
                unit, payment_id, http_status, rules, clock_ms, now_ms
            ),
            payment_id,
        )
        return self._row(payment_id, now_ms, is_new=is_new)

    async def record_unanswered(self, payment_id: str, why: str) -> None:
        """Record that a proof was presented to the merchant and no answer arrived."""
        if self._context.payment(payment_id).delivery is not Delivery.NOT_PRESENTED:
            return
        rules = self._context.config.rules
        await self._context.write_at(
            "delivery",
            lambda unit, now_ms: delivery_transitions.record_unanswered(unit, payment_id, why, rules, now_ms),
            payment_id,
        )

    async def take_silence(self, payment_id: str, why: str) -> tuple[PaymentRow, Answered]:
        """Record that no answer arrived, and advise whether to present the same proof again."""
        await self.record_unanswered(payment_id, why)
        row = self._context.payment(payment_id)
        after_s = None if row.state in WITHOUT_PROOF else again_after_s(1)
        return row, Answered(RetryVerdict.UNCLEAR, why, 504, after_s)

    async def record_used_up(self, payment_id: str) -> PaymentRow:
        """Record a delivery because the merchant says that the proof is used up: nobody but us presented it."""
        rules = self._context.config.rules
        await self._context.write_at(
            "delivery",
            lambda unit, now_ms: delivery_transitions.record_used_up(unit, payment_id, rules, now_ms),
            payment_id,
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
    ) -> tuple[PaymentRow, Answered]:
        """Read and record the merchant's answer to a retry, and advise whether to present the same proof again.

        `shown_depth`: the transaction's depth when the proof was presented; None means its depth now. If the
        payment is not `ready` afterwards, present the proof again as soon as it is.
        `has_served`: the merchant has begun to serve a request for this payment, delivered or not.
        `is_delivered`: the client already has the answer, so a served request is recorded as delivered. Otherwise
        call `record_delivery` once the client has it.

        If the merchant was to submit the transaction and refused it, the payment is cancelled.
        """
        row = self._context.payment(payment_id)
        now_ms, clock_ms, rules = *self._times_ms(), self._context.config.rules
        answer = read_answer(
            row.invoice.dialect or "",
            response,
            invoice_id=row.invoice.id or "",
            shown_tx=row.attempt.tx_id or "",
            now_ms=now_ms,
            is_on_chain=row.state in ON_CHAIN,
            has_served=has_served or row.delivery is Delivery.ACCEPTED,
        )
        depth = self._context.depth(row) if shown_depth is None else min(shown_depth, self._context.depth(row))
        by_auto = self._context.is_by_auto(row)
        presented = Presented(depth, by_auto, by_auto and depth < self._context.config.confirm_depth)

        def job(unit: Unit) -> tuple[float | None, bool]:
            status = response.status
            after_s = delivery_transitions.record_answer_to_retry(
                unit, payment_id, answer, status, presented, rules, clock_ms, now_ms
            )
            is_served = is_delivered and answer.verdict is RetryVerdict.SERVED
            return after_s, is_served and delivery_transitions.record_delivery(
                unit, payment_id, status, rules, clock_ms, now_ms
            )

        after_s, is_new = await self._context.write("delivery", job, payment_id)
        row = self._row(payment_id, now_ms, is_new=is_new)
        if row.invoice.merchant_submits and answer.verdict is RetryVerdict.REFUSED:
            row = await self._cancel(row)
        if by_auto and answer.verdict is RetryVerdict.PENDING:
            self._context.note_pending(row, depth)
        if by_auto and after_s is not None and not self._context.is_ready(row):
            after_s = float(answer.retry_after_s or 0)
        return row, Answered(
            answer.verdict, answer.reason, response.status, after_s, answer.poll_query, has_served
        )

    def _row(self, payment_id: str, now_ms: int, *, is_new: bool) -> PaymentRow:
        """The payment after its delivery was recorded, measured if the delivery is newly accepted."""
        row = self._context.payment(payment_id)
        if is_new:
            self._context.metrics.serve(self._context.config, row, now_ms)
        return row

    async def _cancel(self, row: PaymentRow) -> PaymentRow:
        """Cancel a payment that its merchant was to submit and refused, now or in a later pass."""
        try:
            await self._lifecycle.cancel_refused(row)
        except Refused as refusal:
            log.info("payment.not_cancelled_yet", payment=row.id, why=refusal.detail)
        return self._context.payment(row.id)

    async def give_up_unserved(self) -> None:
        """Record which merchants have not served payments that were confirmed long enough ago.

        Without this, a payment for which no request comes again would never count. The daemon must have run for
        that whole time: while it was down, nobody could present a proof.
        """
        context = self._context
        now_ms, clock_ms = self._times_ms()
        if self._running_since_ms is None and context.chain.tip is not None:
            self._running_since_ms = clock_ms
        if self._running_since_ms is None or self._running_since_ms > delivery_transitions.serving_ended_ms(
            clock_ms
        ):
            return
        until_ms = delivery_transitions.serving_ended_ms(clock_ms)
        for payment_id in payments.unserved(context.conn, until_ms, account=context.config.account):
            job = partial(
                delivery_transitions.give_up_unserved,
                payment_id=payment_id,
                clock_ms=clock_ms,
                rules=context.config.rules,
                now_ms=now_ms,
            )
            await context.write("delivery", job, payment_id)

    async def acknowledge_unserved(self, payment_id: str, by_app: str) -> PaymentRow:
        """Record that an operator has dealt with a payment that was not served. Refused: `wrong_state`."""
        await self._context.write_at(
            "delivery",
            lambda unit, now_ms: delivery_transitions.acknowledge_unserved(unit, payment_id, by_app, now_ms),
            payment_id,
        )
        return self._context.payment(payment_id)

    def _times_ms(self) -> tuple[int, int]:
        """Our clock's time, which is recorded, and the limits' clock's time, which decides what is late.

        So a jump of our clock blames no merchant.
        """
        now_ms = self._context.ports.clock.now_ms()
        return now_ms, self._context.admission.rules.clock_ms(self._context.conn, now_ms)
