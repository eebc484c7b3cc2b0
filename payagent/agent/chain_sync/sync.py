"""One pass over the chain: its parts, in the order in which they run.

Start with `ChainSync.run_once`. A pass is idempotent: each part reads everything again and takes only the steps
that are due.

Never: asks a provider itself; decides about a payment or a UTxO.
"""

import asyncio

from payagent.agent.agent import Agent
from payagent.agent.base.chain_view import PASS
from payagent.agent.chain_sync.confirmations import Confirmations
from payagent.agent.chain_sync.follow_up import FollowUp
from payagent.agent.chain_sync.merchant_polling import MerchantPolling
from payagent.agent.chain_sync.open_payments import LOOKED_FOR, OpenPayments, WorkerPool
from payagent.agent.chain_sync.providers import ProviderSelection
from payagent.agent.chain_sync.utxo_list import UtxoListSync
from payagent.chain.provider import BlockSeen
from payagent.chain.quorum_view import QuorumView
from payagent.core.payment.machine import State
from payagent.outbound.merchant_client import MerchantClient


class ChainSync:
    """Runs passes over the chain. One `run_once` at a time."""

    def __init__(self, agent: Agent, merchants: MerchantClient) -> None:
        self._context = context = agent.context
        self._open_payments = rows = OpenPayments(context)
        workers = WorkerPool(context, agent.signing)
        self.provider_selection = ProviderSelection(context)
        self._confirmations = Confirmations(context, rows, workers)
        self._utxo_list = UtxoListSync(context, rows)
        self._follow_up = FollowUp(
            context,
            agent.lifecycle,
            agent.submitter,
            rows,
            workers,
            self._confirmations,
            self._utxo_list.rolled_back,
        )
        self.merchant_polling = MerchantPolling(context, merchants, rows, workers)
        self._channels = agent.channels
        self._lock = asyncio.Lock()
        self._last_tip: BlockSeen | None = None

    @property
    def trouble(self) -> str | None:
        """Why the last pass was not complete; None if it was."""
        return self._context.chain.unread.get(PASS)

    @property
    def is_idle(self) -> bool:
        """Whether the next pass can wait: nothing is due or awaits a block, and the wallet has a UTxO.

        Confirmed payments do not count: they take hours to settle.
        """
        is_due = self._confirmations.is_due or self._utxo_list.is_due or self.trouble
        waiting = self._open_payments.open((State.RESERVED, *LOOKED_FOR, State.IN_BLOCK))
        return not is_due and not waiting and bool(self._open_payments.utxos())

    async def run_once(self) -> bool:
        """Run one pass: tip, payments, UTxOs, then what is to be submitted or signed. Returns False if incomplete.

        If reading the chain raises, the due submissions are still made before the exception goes on.
        """
        async with self._lock:
            try:
                view = await self._observe()
            except Exception:
                await self._follow_up.carry_on()
                raise
            await self._follow_up.carry_on()
            trouble = (
                self._confirmations.trouble or self._utxo_list.trouble if view else self.provider_selection.trouble
            )
            self._context.chain.note_unread(PASS, trouble)
            return trouble is None

    async def _observe(self) -> QuorumView | None:
        """Read what the providers show now, unless that is read already. None if no provider is believed."""
        view = await self.provider_selection.observe()
        if view is None:
            return None
        is_new = self._last_tip is None or view.tip.hash != self._last_tip.hash
        if is_new or self._confirmations.is_due or self._utxo_list.is_due:
            await self._check(view, view.tip, is_new)
        return view

    async def _check(self, view: QuorumView, tip: BlockSeen, is_new: bool) -> None:
        await self._confirmations.check(view, tip, self._last_tip)
        if is_new or self._utxo_list.is_due:
            await self._utxo_list.check(view, tip)
        if self._last_tip is None:
            # submissions that the last process had just recorded may never have been sent
            self._confirmations.urgent.update(row.id for row in self._open_payments.open((State.IN_FLIGHT,)))
        self._last_tip = tip
        if self._utxo_list.is_read:
            self._context.take_tip(tip)
        if self._channels is not None:
            await self._channels.follow.run(view)
