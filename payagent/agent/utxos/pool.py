"""Stock: a coin for each payment that comes.

Who finds none free stands in line for change (agent.utxos.queue); a coin is split, or small ones are gathered,
where that is worth its fee (agent.utxos.upkeep).
May import: core, store, wallet, agent.payments, agent.context, agent.utxos, agent.base, structlog. Never: moves
coins to anybody but ourselves.
"""

from collections.abc import Sequence
from functools import partial

import structlog

from payagent.agent.base.orders import AdmittedPayment, PaymentIntent
from payagent.agent.context import AgentContext
from payagent.agent.payments.intake import Intake
from payagent.agent.payments.lifecycle import PaymentLifecycle
from payagent.agent.payments.sign import PaymentSigner
from payagent.agent.utxos.queue import Look, UtxoQueue
from payagent.agent.utxos.upkeep import Means, UtxoUpkeep
from payagent.core.money import LOVELACE
from payagent.store.rows import about, intents, payments
from payagent.wallet.transaction import TxPlan

KEPT_EVERY_MS = 600_000
"""How often at least the coins are looked at: that it is quiet now is written nowhere."""

log = structlog.get_logger("payagent.agent")


class UtxoPool:
    """The coins of one wallet, as those see them who need one."""

    def __init__(
        self, context: AgentContext, signing: PaymentSigner, carrying: PaymentLifecycle, reception: Intake
    ) -> None:
        self._context = context
        self._signing = signing
        self._carrying = carrying
        self._reception = reception
        self._upkeep = UtxoUpkeep(context.admission)
        self._line = UtxoQueue(signing.claimed, signing.stirred, self.keep_utxos)
        self._kept: tuple[object, int] = (None, 0)
        """The version of the ledger at the last look that found nothing to keep, and when that was."""

    async def admit(self, purchase: PaymentIntent) -> AdmittedPayment:
        """As `Admission.admit`; where all coins are in use, in line with the others, while change can be had."""

        async def admit(can_wait: bool) -> AdmittedPayment:
            now_ms = self._context.ports.clock.now_ms()
            job = partial(
                self._context.admission.admit,
                purchase=purchase,
                now_ms=now_ms,
                can_wait=can_wait,
                on_record=self._reception.is_on_record(purchase.app_id, purchase.topup),
            )
            return await self._context.write("admit", job)

        is_kept = self._context.terms.upkeep_lovelace > 0 and self._context.terms.unconfirmed_ancestors > 0
        if not is_kept or any(one.asset != LOVELACE or one.handed_over for one in purchase.offers):
            return await admit(False)
        return await self._line.admit(
            purchase.ids.payment,
            purchase.invoice.total_units,
            admit,
            partial(self._wants_utxos, purchase),
            is_turn=self._line.is_free(len(self._context.utxos)),
        )

    def _wants_utxos(self, purchase: PaymentIntent) -> bool:
        """Whether it needs a coin of its own, so that it may stand in line. What needs none is decided at once.

        For those in line a coin may be split, and that costs a fee which no limit of an app bounds.
        """
        intent = intents.live_intent(self._context.conn, purchase.app_id, purchase.key)
        if intent is not None and payments.live_payment_of(self._context.conn, intent.id) is not None:
            return False
        return self._context.admission.wants_utxos(
            self._context.conn, purchase, self._context.ports.clock.now_ms()
        )

    def look_ahead(self, plan: TxPlan) -> None:
        """When half of the depth is used up to which change is spent: later there is no coin that can be split."""
        depth, most = (
            self._context.admission.planner.depth_of(plan.tx_id),
            self._context.terms.unconfirmed_ancestors,
        )
        if self._context.terms.upkeep_lovelace and 0 < depth >= most - most // 2:
            self._line.nudge()

    async def keep_utxos(self, waiting: Sequence[int] = ()) -> Look:
        """Split or gather coins by ourselves, where that is worth its fee: for payments that wait, or later ones.

        Refused as `UtxoUpkeep.keep` does.
        """
        ids, now_ms = self._context.new_ids(), self._context.ports.clock.now_ms()
        means = Means(self._context.terms.upkeep_lovelace, self._context.assets_allowed())
        with self._signing.claim(ids.payment):
            kept = await self._context.write(
                "keep", lambda unit: self._upkeep.keep(unit, ids, means, waiting, now_ms)
            )
            if kept.admitted is not None:
                log.info("coins.kept", payment=kept.admitted.payment_id, waiting=len(waiting))
                await self._carrying.carry_out(kept.admitted)
        return Look(kept.admitted is not None, kept.room)

    async def keep_ready(self) -> None:
        """As `keep_coins`, for later payments: when the ledger has changed since, and now and then."""
        context = self._context
        now_ms, version = context.ports.clock.now_ms(), about.version(context.conn)
        if (
            not context.terms.upkeep_lovelace
            or self._line
            or context.is_paused
            or not context.chain.is_ready(now_ms)
        ):
            return
        if version != self._kept[0] or not self._kept[1] <= now_ms < self._kept[1] + KEPT_EVERY_MS:
            look = await self.keep_utxos()
            self._kept = (None if look.is_split else version, now_ms)
