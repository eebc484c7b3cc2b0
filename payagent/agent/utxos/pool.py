"""Finds a UTxO for each payment that arrives, and decides when to split or gather UTxOs.

A payment that finds none waits in the queue for change (agent.utxos.queue). agent.utxos.upkeep splits a UTxO or
gathers small ones where that is worth its fee.
Never: moves UTxOs to another wallet.
"""

from collections.abc import Sequence
from functools import partial

from payagent.agent.base.log import log
from payagent.agent.base.requests import AdmittedPayment, AfterAdmission, PaymentIntent
from payagent.agent.context import AgentContext
from payagent.agent.pay.lookup import find_payment
from payagent.agent.pay.offers import wants_utxos
from payagent.agent.payments.intake import Intake
from payagent.agent.payments.lifecycle import PaymentLifecycle
from payagent.agent.payments.sign import PaymentSigner
from payagent.agent.utxos.queue import UtxoCheck, UtxoQueue
from payagent.agent.utxos.upkeep import Means, UtxoUpkeep
from payagent.core.money import LOVELACE
from payagent.store.db.unit import Unit
from payagent.store.rows import about
from payagent.wallet.transaction import TxPlan

UPKEEP_EVERY_MS = 600_000
"""Longest time between upkeep runs: no commit shows that payments have become rare."""


class UtxoPool:
    """Hands payments to admission through the queue and runs upkeep for the wallet's UTxOs."""

    def __init__(
        self, context: AgentContext, signing: PaymentSigner, lifecycle: PaymentLifecycle, intake: Intake
    ) -> None:
        self._context = context
        self._signing = signing
        self._lifecycle = lifecycle
        self._intake = intake
        self._upkeep = UtxoUpkeep(context.admission)
        self._queue = UtxoQueue(signing.claimed, signing.stirred, self.keep_utxos)
        self._last_idle: tuple[object, int] = (None, 0)
        """The ledger's version at the last run that found nothing to do, and when that was."""

    async def enqueue(self, intent: PaymentIntent, then: AfterAdmission | None = None) -> AdmittedPayment:
        """Admit as `Admission.admit` does; if all UTxOs are in use, wait in the queue while change may come.

        `then` runs in the same commit.
        """

        async def admit(can_wait: bool) -> AdmittedPayment:
            on_record = self._intake.is_on_record(intent.app_id, intent.topup)

            def job(unit: Unit, now_ms: int) -> AdmittedPayment:
                admitted = self._context.admission.admit(
                    unit, intent, now_ms, can_wait=can_wait, on_record=on_record
                )
                if then is not None:
                    then(unit, admitted)
                return admitted

            return await self._context.write_at("admit", job)

        config = self._context.config
        has_upkeep = config.upkeep_fees_per_day_lovelace > 0 and config.unconfirmed_ancestors_max > 0
        if not has_upkeep or any(offer.asset != LOVELACE or offer.merchant_submits for offer in intent.offers):
            return await admit(False)
        return await self._queue.enqueue(
            intent.ids.payment,
            intent.invoice.total_units,
            admit,
            partial(self._wants_utxos, intent),
            is_turn=self._queue.is_available(len(self._context.utxos)),
        )

    def _wants_utxos(self, intent: PaymentIntent) -> bool:
        """Whether the purchase needs UTxOs of its own, so it may wait in the queue. If not, it is decided at once.

        A UTxO may be split for the payments in the queue, and no limit of an app bounds that fee.
        """
        conn, now_ms = self._context.conn, self._context.ports.clock.now_ms()
        if find_payment(conn, intent.app_id, intent.key).payment is not None:
            return False
        return wants_utxos(self._context.admission.rules, conn, intent, now_ms)

    def look_ahead(self, plan: TxPlan) -> None:
        """Nudge the queue once half of the allowed unconfirmed ancestors are used: later no UTxO can be split."""
        config, depth = self._context.config, self._context.admission.planner.depth_of(plan.tx_id)
        ancestors_max = config.unconfirmed_ancestors_max
        if config.upkeep_fees_per_day_lovelace and 0 < depth >= ancestors_max - ancestors_max // 2:
            self._queue.nudge()

    async def keep_utxos(self, waiting: Sequence[int] = ()) -> UtxoCheck:
        """Split or gather UTxOs where that is worth its fee, for payments that wait or later ones.

        `waiting`: what each waiting payment pays, in lovelace. Raises the refusals of `UtxoUpkeep.keep`.
        """
        ids = self._context.new_ids()
        means = Means(self._context.config.upkeep_fees_per_day_lovelace, self._context.assets_allowed())
        with self._signing.claim(ids.payment):
            result = await self._context.write_at(
                "keep", lambda unit, now_ms: self._upkeep.keep(unit, ids, means, waiting, now_ms)
            )
            if result.admitted is not None:
                log.info("utxos.kept", payment=result.admitted.payment_id, waiting=len(waiting))
                await self._lifecycle.carry_out(result.admitted)
        return UtxoCheck(result.admitted is not None, result.room)

    async def keep_ready(self) -> None:
        """Run `keep_utxos` for later payments, if the ledger has changed or `UPKEEP_EVERY_MS` has passed."""
        context = self._context
        now_ms, version = context.ports.clock.now_ms(), about.version(context.conn)
        if (
            not context.config.upkeep_fees_per_day_lovelace
            or self._queue
            or context.is_paused
            or not context.chain.is_ready(now_ms)
        ):
            return
        if (
            version != self._last_idle[0]
            or not self._last_idle[1] <= now_ms < self._last_idle[1] + UPKEEP_EVERY_MS
        ):
            check = await self.keep_utxos()
            self._last_idle = (None if check.is_split else version, now_ms)
