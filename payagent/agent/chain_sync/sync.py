"""One pass over the chain: its parts, in the order in which they run.

Start with `ChainSync.run_once`. A pass is idempotent: each part reads everything again, and a step that is not due
is not taken.

May import: core.payment, chain.provider, chain.quorum_view, outbound.merchant_client, the rest of agent. Never:
asks a provider itself; decides about a payment or a UTxO.
"""

import asyncio

from payagent.agent.agent import Agent
from payagent.agent.chain_sync.confirmations import Confirmations
from payagent.agent.chain_sync.follow_up import FollowUp
from payagent.agent.chain_sync.merchant_polling import MerchantPolling
from payagent.agent.chain_sync.open_payments import LOOKED_FOR, OpenPayments
from payagent.agent.chain_sync.providers import ProviderSelection
from payagent.agent.chain_sync.utxo_list import UtxoListSync
from payagent.agent.chain_sync.worker_pool import WorkerPool
from payagent.chain.provider import Tip
from payagent.chain.quorum_view import QuorumView
from payagent.core.payment import State
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
        self._lock = asyncio.Lock()
        self._last: Tip | None = None

    @property
    def trouble(self) -> str | None:
        """Why the last pass was not complete; None if it was."""
        return self._context.chain.unread.get("look")

    @property
    def is_idle(self) -> bool:
        """Whether nothing that somebody waits for will change soon. A confirmed payment has hours to settle.

        A wallet without a UTxO waits for one.
        """
        is_due = self._confirmations.is_due or self._utxo_list.is_due or self.trouble
        waited_for = self._open_payments.open((State.RESERVED, *LOOKED_FOR, State.IN_BLOCK))
        return not is_due and not waited_for and bool(self._open_payments.utxos())

    async def run_once(self) -> bool:
        """Run one pass: tip, payments, UTxOs, then what is to be submitted or signed. Returns False if incomplete.

        An exception does not keep anything from being submitted again: it is raised after that.
        """
        async with self._lock:
            try:
                found = await self._look_anew()
            except Exception:
                await self._follow_up.carry_on()
                raise
            await self._follow_up.carry_on()
            why = (
                self._confirmations.trouble or self._utxo_list.trouble
                if found
                else self.provider_selection.trouble
            )
            self._context.chain.note_unread("look", why)
            return why is None

    async def _look_anew(self) -> QuorumView | None:
        """Read what the providers show now, unless it was already read in full; None if none was believed."""
        found = await self.provider_selection.observe()
        if found is None:
            return None
        is_new = self._last is None or found.tip.hash != self._last.hash
        if is_new or self._confirmations.is_due or self._utxo_list.is_due:
            await self._look(found, found.tip, is_new)
        return found

    async def _look(self, view: QuorumView, tip: Tip, is_new: bool) -> None:
        await self._confirmations.check(view, tip, self._last)
        if is_new or self._utxo_list.is_due:
            await self._utxo_list.check(view, tip)
        if self._last is None:
            # submissions that the last process had just recorded may never have been sent
            self._confirmations.urgent.update(row.id for row in self._open_payments.open((State.IN_FLIGHT,)))
        self._last = tip
        if self._utxo_list.is_read:
            self._context.take_tip(tip)
