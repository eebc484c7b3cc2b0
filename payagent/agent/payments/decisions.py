"""Applies decisions on payments that await approval: approve, deny, and deny after the timeout.

The rules of a decision are in `agent.commits.approvals`.
Never: requests an approval (agent.commits.approvals does); decides by itself whether to pay.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from payagent.agent.base.log import log
from payagent.agent.base.requests import Approver
from payagent.agent.commits.approvals import note_refused
from payagent.agent.context import AgentContext
from payagent.agent.payments.sign import NOT_SIGNED, PaymentSigner
from payagent.agent.payments.submit import TxSubmitter
from payagent.core.aggregate import PaymentRow
from payagent.core.payment.machine import State
from payagent.core.problems import STILL_ASKED, Refused
from payagent.store.db.unit import Unit
from payagent.store.rows import payments

T = TypeVar("T")


class Decisions:
    """Commits decisions, then signs and submits what was approved."""

    def __init__(self, context: AgentContext, signing: PaymentSigner, submitter: TxSubmitter) -> None:
        self._context = context
        self._signing = signing
        self._submitter = submitter

    async def approve(self, payment_id: str, by: Approver) -> PaymentRow:
        """Approve a payment that awaits a decision, then sign and submit it like any other.

        If the merchant submits the transaction, it is signed only when the request comes again. Raises the
        refusals of `ApprovalRules.approve`.
        """
        window_s = self._context.config.min_window_s
        with self._signing.claim(payment_id):
            decided = await self._decide(
                "approve",
                lambda unit, now_ms: self._context.admission.approval_rules.approve(
                    unit, payment_id, by, window_s, now_ms
                ),
                payment_id,
                by,
            )
            if decided.plan is None:
                raise decided.refusal or Refused("already_decided", f"{payment_id} is decided")
            if not self._context.payment(payment_id).invoice.merchant_submits:
                try:
                    await self._signing.sign(payment_id, decided.plan)
                    self._submitter.submit(payment_id)
                except Refused as refused:  # it is approved and held: the next pass signs it
                    log.warning("payment.not_signed_yet", payment=payment_id, code=refused.code)
                    if refused.code in NOT_SIGNED:
                        self._context.metrics.refusals[refused.code] += 1
        return self._context.payment(payment_id)

    async def deny(self, payment_id: str, by: Approver) -> PaymentRow:
        """End a payment that awaits a decision. Raises the refusals of `ApprovalRules.deny`."""
        await self._decide(
            "deny",
            lambda unit, now_ms: self._context.admission.approval_rules.deny(unit, payment_id, by, now_ms),
            payment_id,
            by,
        )
        return self._context.payment(payment_id)

    async def _decide(self, name: str, job: Callable[[Unit, int], T], payment_id: str, by: Approver) -> T:
        """Commit a person's decision. If it is refused, record that on the payment, which keeps awaiting one."""
        try:
            return await self._context.write_at(name, job, payment_id)
        except Refused as refusal:
            why = refusal
            await self._context.write_at(
                "refuse", lambda unit, now_ms: note_refused(unit, payment_id, by, why, now_ms)
            )
            row = payments.payment(self._context.conn, payment_id)
            if row is not None and row.state is State.AWAITING_APPROVAL:
                raise refusal.with_money(STILL_ASKED) from None
            raise

    async def deny_what_is_over(self) -> None:
        """Deny the account's payments whose time for a decision has run out."""
        now_ms, window_s = self._context.ports.clock.now_ms(), self._context.config.min_window_s
        approval_rules = self._context.admission.approval_rules
        for payment_id in approval_rules.over(self._context.conn, window_s, now_ms):
            if self._context.payment(payment_id).account != self._context.account:
                continue
            job = partial(
                approval_rules.deny_when_over, payment_id=payment_id, min_window_s=window_s, now_ms=now_ms
            )
            decided = await self._context.write("deny", job, payment_id)
            if decided is not None and decided.refusal is not None:
                self._context.metrics.refusals[decided.refusal.code] += 1
