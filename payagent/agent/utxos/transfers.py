"""The operator's transfers: out of the wallet, or within it. No app's limit applies to them.

May import: core, store, wallet, agent.base, agent.payments, agent.context, agent.utxos, agent.commits. Never: pays
an invoice.
"""

from collections.abc import Callable, Sequence
from functools import partial

from payagent.agent.base.orders import AdmittedPayment, TransferRequest
from payagent.agent.base.requests import digest
from payagent.agent.commits.tx_planner import TransferPlan
from payagent.agent.context import AgentContext
from payagent.agent.payments.lifecycle import PaymentLifecycle
from payagent.agent.payments.sign import PaymentSigner
from payagent.agent.utxos import emptying
from payagent.core.address import Address
from payagent.core.invoice import Output, Role
from payagent.store.db.unit import Unit
from payagent.store.rows.payments import PaymentRow
from payagent.wallet.transaction import TxPlan, select, split_outputs
from payagent.wallet.utxo_index import Utxo, UtxoIndex


class Transfers:
    """Makes transfers. The same key makes the same transfer only once."""

    def __init__(self, context: AgentContext, signing: PaymentSigner, carrying: PaymentLifecycle) -> None:
        self._context = context
        self._signing = signing
        self._carrying = carrying

    async def send(
        self, app_id: str, to: Address, asset: str, units: int, key: str | None = None
    ) -> tuple[PaymentRow, bool]:
        """Send an amount from the wallet. No limit applies. It is durable before it is submitted.

        Returns the payment, and whether it is new.
        """
        role: Role = "change" if to.raw == self._context.terms.own.raw else "pay_to"
        outputs = (Output(role, to, asset, units),)
        order = self._order(app_id, "send", key, to.text, asset, str(units))
        return await self._transfer(order, partial(self._select, outputs))

    async def sweep(self, app_id: str, to: Address, key: str | None = None) -> tuple[PaymentRow, bool]:
        """Send everything that is available and may leave, smallest UTxOs first, up to one full transaction."""
        order, now_ms = self._order(app_id, "sweep", key, to.text), self._context.ports.clock.now_ms()
        return await self._order_transfer(
            order, lambda unit: emptying.admit(self._context.admission, unit, order, to, now_ms)
        )

    async def split(
        self, app_id: str, count: int, lovelace: int, key: str | None = None
    ) -> tuple[PaymentRow, bool]:
        """Create `count` UTxOs of pure ADA, so that as many payments can be in flight at once."""
        outputs = split_outputs(self._context.terms.own, count, lovelace)
        order = self._order(app_id, "split", key, str(count), str(lovelace))
        return await self._transfer(order, partial(self._select, outputs))

    def _order(self, app_id: str, kind: str, key: str | None, *what: str) -> TransferRequest:
        ids = self._context.new_ids()
        return TransferRequest(
            ids=ids,
            app_id=app_id,
            key=f"order:{ids.intent}" if key is None else f"key:{key}",
            derived=key is None,
            fingerprint=digest([kind, *what]),
            kind=kind,
        )

    async def _transfer(self, order: TransferRequest, plan: TransferPlan) -> tuple[PaymentRow, bool]:
        now_ms = self._context.ports.clock.now_ms()
        return await self._order_transfer(
            order, lambda unit: self._context.admission.admit_transfer(unit, order, plan, now_ms)
        )

    async def _order_transfer(
        self, order: TransferRequest, admit: Callable[[Unit], AdmittedPayment]
    ) -> tuple[PaymentRow, bool]:
        with self._signing.claim(order.ids.payment):
            return await self._carrying.carry_out(await self._context.write("admit", admit))

    def _select(
        self, outputs: Sequence[Output], utxos: UtxoIndex, ttl_slot: int, nonce_utxo: Utxo | None
    ) -> TxPlan:
        return select(
            utxos,
            outputs,
            change=self._context.terms.own,
            ttl_slot=ttl_slot,
            network_id=self._context.terms.network.network_id,
            nonce_utxo=nonce_utxo,
        )
