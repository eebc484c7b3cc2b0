"""Asks merchants for the status of our open invoices and for what is left of prepaid balances.

The answers are advice: they are recorded and shown, and move no money.
Never: pays; changes a payment's state or money because of a merchant's answer.
"""

from dataclasses import replace

from payagent.agent.base.config import MerchantConfig
from payagent.agent.chain_sync.open_payments import SEEN, OpenPayments, WorkerPool
from payagent.agent.commits import payment_transitions as steps
from payagent.agent.context import AgentContext
from payagent.core.aggregate import PaymentRow
from payagent.core.changes import Note, SetColumn
from payagent.core.payment.machine import Delivery, State
from payagent.dialects import WITH_STATUS
from payagent.outbound.merchant_client import MerchantClient
from payagent.store.db.unit import Unit
from payagent.store.executor import write
from payagent.store.rows import prepaid, topups
from payagent.store.rows.prepaid import Observation, Pool

MERCHANT_PATIENCE_MS = 3_600_000
MERCHANT_AGAIN_MS = 600_000
MERCHANT_CALLS_MAX = 50
"""Requests per run; payments that waited longest go first. A burst of payments must not become one of requests."""

PREPAID_EVERY_MS = 600_000
OBSERVED_AGAIN_MS = 3_600_000
"""How often a merchant's answer on a prepaid balance is recorded again although it has not changed."""

_OPEN_DELIVERY = (Delivery.NOT_PRESENTED, Delivery.PRESENTED)


def is_asked_again(created_ms: int, asked_ms: int | None, now_ms: int) -> bool:
    """Whether to ask about an invoice again: once it is twice as old as it was the last time.

    So a new invoice is asked about soon, an old one every ten minutes, and a burst of them costs little for long.
    It is also asked about if the clock was set back since.
    """
    return asked_ms is None or not 0 <= now_ms - asked_ms < min(asked_ms - created_ms, MERCHANT_AGAIN_MS)


class MerchantPolling:
    """Sends the requests to merchants. They run beside the passes over the chain."""

    def __init__(
        self, context: AgentContext, merchants: MerchantClient, rows: OpenPayments, workers: WorkerPool
    ) -> None:
        self._context = context
        self._merchants = merchants
        self._open_payments = rows
        self._workers = workers
        self._merchants_asked_ms: dict[str, int | None] = {}
        self._prepaid_asked: dict[int, tuple[int, int]] = {}

    async def poll_merchants(self) -> None:
        """Ask merchants for the status of open invoices. The answers move no money.

        With `ready = "auto"` the status "confirmed" makes payagent present the proof at once.
        """
        now_ms = self._context.ports.clock.now_ms()
        young = [
            row
            for row in self._open_payments.open((State.IN_FLIGHT, *SEEN))
            if row.delivery in _OPEN_DELIVERY and now_ms < row.created_at_ms + MERCHANT_PATIENCE_MS
        ]
        asked_ms = {row.id: self._merchants_asked_ms.get(row.id) for row in young}
        due = [row for row in young if is_asked_again(row.created_at_ms, asked_ms[row.id], now_ms)]
        due = sorted(due, key=lambda row: asked_ms[row.id] or 0)[:MERCHANT_CALLS_MAX]
        self._merchants_asked_ms = {**asked_ms, **{row.id: now_ms for row in due}}
        await self._workers.each(due, self._ask_merchant)

    async def _ask_merchant(self, row: PaymentRow) -> None:
        context = self._context
        merchant = context.config.merchants.get(row.invoice.origin or "")
        if merchant is None or row.invoice.id is None or row.invoice.dialect not in WITH_STATUS:
            return
        headers = merchant.call_headers(row, context.public_address)
        status = await self._merchants.status(
            merchant.origin, row.invoice.id, headers=headers, timeout_s=merchant.timeout_s
        )
        if status is None or status == row.merchant_status:
            return

        def job(unit: Unit, now_ms: int) -> None:
            state = steps.row_of(unit, row.id).state
            answered = Note(row.id, "retry_answered", state, {"status": status})
            write(unit, (SetColumn(row.id, "merchant_status", status), answered), now_ms)

        await context.write_at("merchant", job, row.id)

    async def observe_prepaid(self) -> None:
        """Ask merchants what is left of prepaid balances: after a balance has moved, and every ten minutes."""
        context = self._context
        now_ms = context.ports.clock.now_ms()
        for pool in prepaid.all_pools(context.conn, context.config.account):
            merchant = context.config.merchants.get(pool.origin)
            # a top-up moves our count when it is confirmed, and the merchant's when the proof is presented
            moved_ms = max(
                prepaid.last_move_ms(context.conn, pool.id), topups.last_ended_ms(context.conn, pool.id)
            )
            asked_ms, seen_move_ms = self._prepaid_asked.get(pool.id, (0, -1))
            is_due = moved_ms != seen_move_ms or not 0 <= now_ms - asked_ms < PREPAID_EVERY_MS
            # apps name buyers freely, so for another wallet it asks only after something was bought
            is_asked = moved_ms > 0 or pool.wallet == context.public_address
            if merchant is not None and pool.partner and pool.partner == merchant.partner and is_asked and is_due:
                self._prepaid_asked[pool.id] = (now_ms, moved_ms)
                await self._observe(pool, merchant)

    async def _observe(self, pool: Pool, merchant: MerchantConfig) -> None:
        """Record the merchant's answer, unless it is the same as last time."""
        context = self._context
        headers = merchant.own_headers(pool.wallet) | {"X-Partner": pool.partner}
        answer = await self._merchants.prepaid(
            pool.origin, pool.partner, pool.wallet, headers=headers, timeout_s=merchant.timeout_s
        )
        if answer is None:
            return
        balance, now_ms = answer.parsed, context.ports.clock.now_ms()
        seen = Observation(
            source=answer.source,
            http_status=answer.status,
            body=answer.body,
            remaining=balance.remaining,
            total=balance.total,
            used=balance.used,
            unit=balance.unit,
            expires_at_ms=balance.expires_at_ms,
            why_not_understood=None if balance.understood else balance.why,
            at_ms=now_ms,
        )
        last = prepaid.last_observation(context.conn, pool.id)
        is_same = last is not None and replace(last, at_ms=now_ms) == seen
        if last is None or not is_same or not 0 <= now_ms - last.at_ms < OBSERVED_AGAIN_MS:
            await context.write("observe_prepaid", lambda unit: prepaid.add_observation(unit, pool.id, seen))
