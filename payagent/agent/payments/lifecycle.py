"""Moves a payment on: signs it, resumes it after a crash, replaces a lost attempt, or cancels it.

Start with `PaymentLifecycle.carry_out`. Only one task at a time works on a payment: it claims the payment first
(agent.payments.sign).
Never: takes another nonce UTxO; ends a payment for which something was signed.
"""

from collections.abc import Awaitable, Callable

from payagent.agent.base.free_utxos import utxo_of
from payagent.agent.base.requests import AdmittedPayment
from payagent.agent.commits import payment_transitions
from payagent.agent.commits.replacement import (
    NEXT_INVOICE_PATIENCE_S,
    is_lost,
    last_ttl_slot,
    rebuilt,
    require_nonce_utxo,
    same_again,
)
from payagent.agent.context import AgentContext
from payagent.agent.payments.sign import NOT_SIGNED, PaymentSigner
from payagent.agent.payments.submit import TxSubmitter
from payagent.core.aggregate import PaymentRow
from payagent.core.network import ROLLBACK_S
from payagent.core.payment.machine import AWAITING_SIGNATURE, EFFECTS, NEVER_SIGNED, Event, State
from payagent.core.problems import Refused
from payagent.dialects import TIMED_BY_BLOCK
from payagent.store.db.unit import Unit
from payagent.store.rows import attempts_and_utxos, pauses
from payagent.wallet.transaction import TxPlan

SIGNING_PATIENCE_S = 10.0
"""Seconds that a repeated request waits for the first one to be signed."""

CANCEL_TTL_S = ROLLBACK_S
"""Lifetime of a cancel in seconds: longer than any rollback. It pays nobody else, so no invoice limits it.

A transaction that spends its output therefore stays valid for as long as the cancel's block may be lost.
"""


class PaymentLifecycle:
    """Takes one step of one payment at a time."""

    def __init__(self, context: AgentContext, signing: PaymentSigner, submitter: TxSubmitter) -> None:
        self._context = context
        self._signing = signing
        self._submitter = submitter

    async def carry_out(
        self, admitted: AdmittedPayment, signed: Callable[[], Awaitable[bytes]] | None = None
    ) -> tuple[PaymentRow, bool]:
        """Sign and submit an admitted payment. Returns it, and whether it is new. `signed`: as of `sign`."""
        if admitted.plan is not None:
            await self._signing.sign(admitted.payment_id, admitted.plan, signed)
            self._submitter.submit(admitted.payment_id)
        return await self.once_signed(self._context.payment(admitted.payment_id)), admitted.is_new

    async def once_signed(self, row: PaymentRow) -> PaymentRow:
        """Wait until a payment that a request found is signed, or sign it if no task does.

        Refused: `not_signed_yet` when the wait is over; `invoice_expired`, or why else it was rejected.
        """
        if row.state is State.RESERVED and row.invoice.merchant_submits:
            await self.resume(row, is_requested=True)
            row = self._context.payment(row.id)
            if row.state in NEVER_SIGNED:  # too late for its invoice: the same request opens a new payment
                raise Refused(row.problem.name or "invoice_expired", row.problem.detail or "", payment=row.id)
        if row.state is State.REPLACING:
            await self.resume(row)
            row = self._context.payment(row.id)
        if row.state in AWAITING_SIGNATURE:
            pauses.require_running(self._context.conn)
            row = await self._context.wait(row.id, SIGNING_PATIENCE_S)
        if row.state in AWAITING_SIGNATURE:
            raise Refused("not_signed_yet", f"{row.id} waits for its signature", payment=row.id)
        return row

    async def resume(self, row: PaymentRow, *, is_requested: bool = False) -> None:
        """Sign and submit an admitted or replaced attempt, with the UTxOs, nonce UTxO and TTL it was given.

        If it is too late, or its merchant is stopped, a payment with nothing signed is rejected and its hold
        released. Any other payment is cancelled.

        If the merchant submits the transaction, it is signed only when `is_requested`. A proof that nobody
        presents would have to be cancelled.
        """
        if row.id in self._signing.claimed or row.account != self._context.account:
            return
        now_ms = self._context.ports.clock.now_ms()
        slot = self._context.chain.require_ready(now_ms)
        with self._signing.claim(row.id):
            row = self._context.payment(row.id)
            if row.state not in AWAITING_SIGNATURE:
                return
            try:
                rejected = await self._sign_or_end(row, slot, now_ms, is_requested)
            except Refused as refused:
                if not is_requested and row.state is State.RESERVED and refused.code in NOT_SIGNED:
                    self._context.metrics.refusals[refused.code] += 1
                raise
            if not is_requested and rejected is not None:  # no caller gets the refusal and counts it
                self._context.metrics.refusals[rejected.code] += 1

    async def _sign_or_end(self, row: PaymentRow, slot: int, now_ms: int, is_requested: bool) -> Refused | None:
        """Do the work of `resume`. Returns the reason if the payment was rejected."""
        stopped = self._context.admission.rules.why_stopped(self._context.conn, row, now_ms)
        if stopped is None and (row.attempt.ttl_slot or 0) - slot >= self._context.config.min_window_s:
            if is_requested or not (row.invoice.merchant_submits or self._context.is_paused):
                await self._signing.sign(row.id, self._rebuild(row))
                self._submitter.submit(row.id)
        elif row.state is State.RESERVED:
            late = stopped or Refused(
                "invoice_expired", "its invoice was about to expire before payagent could sign"
            )
            await self._context.write(
                "reject",
                lambda unit: payment_transitions.reject_unsigned(unit, row.id, self._context.utxos, late, now_ms),
                row.id,
            )
            return late
        elif is_requested or not self._context.is_paused:
            late = Refused(
                "payment_void/expired",
                "its invoice was about to expire before payagent could replace the transaction",
            )
            await self._take_back(row, stopped or late, slot, now_ms)
        return None

    async def renew(self, row: PaymentRow) -> None:
        """Replace an attempt that can no longer land, on the same nonce UTxO.

        If it is too late for that, cancel the payment. Does nothing to a payment that is not lost. Raises the
        refusals of `ChainView.require_ready`.
        """
        if row.id in self._signing.claimed or self._context.is_paused:
            return
        now_ms = self._context.ports.clock.now_ms()
        slot = self._context.chain.require_ready(now_ms)
        if not self._is_renewal_due(row, slot):
            return

        def job(unit: Unit) -> tuple[Refused | None, PaymentRow]:
            replacement, window_s = self._context.admission.replacement, self._context.config.min_window_s
            why = replacement.replace(unit, row.id, window_s, now_ms)
            return why, payment_transitions.row_of(unit, row.id)

        with self._signing.claim(row.id):
            why, decided = await self._context.write("replace", job, row.id)
            if why is not None:
                await self._take_back(decided, why, slot, now_ms)
            elif decided.state is State.REPLACING:
                await self._signing.sign(row.id, self._rebuild(decided))
                self._submitter.submit(row.id)

    async def cancel_refused(self, row: PaymentRow) -> None:
        """Cancel a payment that its merchant refused. If another task works on it, wait for that task instead."""
        if row.id in self._signing.claimed:
            await self._context.changes.wait(row.id, SIGNING_PATIENCE_S)
        else:
            await self.cancel(row)

    def _is_renewal_due(self, row: PaymentRow, slot: int) -> bool:
        """Whether a lost payment can be replaced, or has waited long enough for another invoice."""
        tip = self._context.chain.tip
        if tip is None or not is_lost(self._context.conn, row, tip.slot):
            return False
        is_over = row.kind == "invoice" and not self._context.chain.has_time(
            slot,
            row.invoice.expires_at_ms,
            self._context.config.min_window_s,
            from_block=row.invoice.dialect in TIMED_BY_BLOCK,
        )
        return not is_over or tip.slot >= last_ttl_slot(self._context.conn, row) + NEXT_INVOICE_PATIENCE_S

    async def cancel(self, row: PaymentRow, why: Refused | None = None) -> None:
        """Cancel a payment: one transaction to ourselves spends all its UTxOs, the nonce UTxO included.

        `why`: the reason; None: only if `reason_to_cancel` has one.

        At most one of the cancel and the paying attempt can be on the chain, whatever became of that attempt.
        Raises the refusals of `ChainView.require_ready`; then nothing has changed.
        """
        if row.id in self._signing.claimed or row.account != self._context.account or self._context.is_paused:
            return
        now_ms = self._context.ports.clock.now_ms()
        slot = self._context.chain.require_ready(now_ms)
        with self._signing.claim(row.id):
            row = self._context.payment(row.id)
            why = why or payment_transitions.reason_to_cancel(self._context.conn, row, slot)
            if why is not None:
                await self._take_back(row, why, slot, now_ms)

    async def _take_back(
        self, row: PaymentRow, why: Refused, slot: int, now_ms: int, by: str | None = None
    ) -> None:
        """Sign and submit the cancel of a payment that this task has claimed."""
        plan = await self._context.write(
            "plan", lambda unit: self._context.admission.planner.cancel(unit, row, slot + CANCEL_TTL_S)
        )
        raw = await self._signing.sign_and_check(row.id, plan)
        own = self._context.config.own.raw

        utxos = self._context.utxos
        await self._context.write(
            "cancel",
            lambda unit: payment_transitions.record_cancel(unit, row, plan, raw, own, why, utxos, now_ms, by),
            row.id,
        )
        self._submitter.submit(row.id)

    async def resolve(self, payment_id: str, app_id: str) -> PaymentRow:
        """Release a payment's UTxOs now, on request of the operator's app.

        A payment with nothing signed is rejected. Otherwise a cancel competes for the nonce UTxO with the signed
        attempt. A cancel that needs a UTxO which is not on the chain is signed again without it.
        Refused: `wrong_state` if the payment is in a block or has ended; `not_signed_yet` while it is being
        signed; `deposit_rolled_back` if no cancel could land.
        """
        now_ms = self._context.ports.clock.now_ms()
        row = self._context.payment(payment_id)
        if row.state is State.CANCELLING:
            require_nonce_utxo(self._context.conn, row)
        if row.state is State.CANCELLING and self._are_inputs_available(row):
            return row
        if row.state is not State.RESERVED and (row.state, Event.CANCEL) not in EFFECTS:
            ends = f"; payagent payments deny {row.id} ends it" if row.state is State.AWAITING_APPROVAL else ""
            raise Refused("wrong_state", f"a payment that is {row.state} cannot be cancelled{ends}")
        if row.id in self._signing.claimed:
            raise Refused("not_signed_yet", f"{row.id} is being signed right now", payment=row.id)
        with self._signing.claim(row.id):
            why = Refused("payment_void/cancelled_by_operator", "the operator cancelled it")
            if row.state is State.RESERVED:
                await self._context.write(
                    "reject",
                    lambda unit: payment_transitions.reject_unsigned(
                        unit, row.id, self._context.utxos, why, now_ms, app_id
                    ),
                    row.id,
                )
            else:
                await self._take_back(row, why, self._context.chain.require_ready(now_ms), now_ms, app_id)
        return self._context.payment(row.id)

    def _are_inputs_available(self, row: PaymentRow) -> bool:
        """Whether all inputs of a payment's last attempt, the nonce UTxO aside, are available now."""
        attempt = attempts_and_utxos.attempts(self._context.conn, row.id)[-1]
        utxos = [
            attempts_and_utxos.utxo(self._context.conn, ref) for ref in attempt.inputs if ref != attempt.nonce_utxo
        ]
        return all(utxo is not None and utxo.state == "available" for utxo in utxos)

    def _rebuild(self, row: PaymentRow) -> TxPlan:
        """The plan that a payment was admitted or replaced with: the same UTxOs give the same bytes."""
        inputs = [utxo_of(utxo) for utxo in attempts_and_utxos.utxos_reserved_for(self._context.conn, row.id)]
        nonce_utxo = next(utxo for utxo in inputs if utxo.ref == row.nonce_utxo)
        if row.state is State.REPLACING:
            chosen = attempts_and_utxos.replacement_inputs(self._context.conn, row.id)
            inputs = [utxo for utxo in inputs if utxo.ref in chosen]
        next_attempt = same_again(row, self._context.config.network)
        return rebuilt(
            inputs,
            nonce_utxo,
            next_attempt,
            row.attempt.ttl_slot or 0,
            self._context.config.own,
            self._context.config.network,
        )
