"""`AgentContext`: the state that all parts of the agent share. It cannot sign, submit or pay.

It holds the ledger's readers and writer, the config in force, the available UTxOs, the chain as last read, and the
clock. `take_config` replaces the config at run time, so read `config` each time and do not keep it.
Never: decides on a payment; signs; submits.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from payagent.agent.base.chain_view import ChainView
from payagent.agent.base.change_notifier import Changes
from payagent.agent.base.config import AgentConfig, overlaid
from payagent.agent.base.free_utxos import utxo_of
from payagent.agent.base.log import log
from payagent.agent.base.metrics import AgentMetrics
from payagent.agent.base.payment_view import has_proof
from payagent.agent.base.ports import Ports, Writes
from payagent.agent.base.requests import Ids
from payagent.agent.pay.admission import Admission
from payagent.chain.provider import BlockSeen, ChainProvider
from payagent.chain.throttled_provider import ThrottledProvider
from payagent.core import policy
from payagent.core.aggregate import PaymentRow
from payagent.core.payment.machine import ENDED_WITHOUT_PAYING, ON_CHAIN, POSTED
from payagent.core.problems import Refused
from payagent.core.retry_schedule import may_be_shown
from payagent.dialects import NAMES_PAYER
from payagent.store.db.fence import lease_lost
from payagent.store.db.readers import Readers
from payagent.store.db.unit import Connection, Unit
from payagent.store.load import load_row
from payagent.store.rows import about, apps, attempts_and_utxos, fleet, limit_counters, merchants, onchain, pauses
from payagent.store.rows.apps import AppRow
from payagent.wallet.utxo_index import UtxoIndex

if TYPE_CHECKING:
    from payagent.agent.base.call_views import CallViews as _CallViews

T = TypeVar("T")


class AgentContext:
    """One per agent. Call it from one event loop."""

    def __init__(
        self,
        config: AgentConfig,
        ports: Ports,
        writer: Writes,
        readers: Readers,
        all_providers: Sequence[ChainProvider],
        front: "AgentContext | None" = None,
    ) -> None:
        """`front`: in a fleet, the context whose providers, waiters and counters the daemon's others share."""
        self.from_file = config
        """The config of the file alone. `config` is the one in force, with the changes made at run time."""
        self.config = config = overlaid(config, readers.conn)
        self.public_address = config.own.text if front is None else front.config.own.text
        """The address by which merchants know the wallet, whichever account pays."""
        self.account: int | None = config.account
        """The account that its jobs work for. None: they write only what all accounts share."""
        self.is_lost = False
        """Whether the daemon lost the account. If it regains the account, it builds a new context."""
        self.ports = ports
        self.all_providers: Sequence[ThrottledProvider] = (
            [ThrottledProvider(provider, ports.clock, provider.rate) for provider in all_providers]
            if front is None
            else front.all_providers
        )
        self.chain = ChainView(
            config.network,
            restored_at_ms=about.restored_at_ms(readers.conn),
            external_spends=onchain.frozen_by(readers.conn),
        )
        self.changes: Changes = Changes() if front is None else front.changes
        self.utxos = UtxoIndex(utxo_of(row) for row in attempts_and_utxos.free_utxos(readers.conn, config.account))
        self._writer = writer
        self.readers = readers
        self.admission = Admission.by(config, self.utxos, self.chain)
        self.submit_providers: Sequence[ThrottledProvider] = self.all_providers
        """The providers that the last pass believed. Transactions are submitted to these."""
        self.providers: Mapping[str, str | None] = {}
        """By name: why the last pass did not believe a provider; None if it did."""
        self.metrics: AgentMetrics = AgentMetrics() if front is None else front.metrics
        self.calls: _CallViews | None = None if front is None else front.calls
        """Calls that channels pay, as payments; None where channels are off."""
        if config.channels is not None and self.calls is None:
            from payagent.agent.base.call_views import CallViews

            self.calls = CallViews()
        self._config_lock = asyncio.Lock()
        self._pending: dict[str, int] = {} if front is None else front._pending
        """Payments whose merchant answered "pending", with the height of the newest block at that time."""

    @property
    def conn(self) -> Connection:
        """A read-only connection."""
        return self.readers.conn

    async def write(self, name: str, job: Callable[[Unit], T], payment_id: str | None = None) -> T:
        """Run a job as one write transaction. Wakes the callers that wait for the payment once it is durable."""
        if self.is_lost and self.account is not None:
            raise lease_lost(self.account)
        result = await self._writer.run(name, job, self.account)
        if payment_id is not None:
            log.info(f"payment.{name}", payment=payment_id)
            self.changes.notify(payment_id)
        return result

    async def write_at(self, name: str, job: Callable[[Unit, int], T], payment_id: str | None = None) -> T:
        """As `write`. The job also gets our clock's time at this call, in milliseconds."""
        now_ms = self.ports.clock.now_ms()
        return await self.write(name, lambda unit: job(unit, now_ms), payment_id)

    async def take_config(self, from_file: AgentConfig, job: Callable[[Unit], None]) -> None:
        """Put this config into force, together with the changes that `job` makes, in one commit."""

        def take(unit: Unit) -> AgentConfig:
            job(unit)
            config = overlaid(from_file, unit.conn)
            unit.undo(partial(self.admission.take, self.config))
            self.admission.take(config)
            return config

        async with self._config_lock:
            self.config = await self.write("config", take)
            self.from_file = from_file

    def adopt(self, front: "AgentContext") -> None:
        """Put the front's config into force, for this context's own account."""
        own = self.config.own, self.config.account
        self.from_file = replace(front.from_file, own=own[0], account=own[1])
        self.config = replace(front.config, own=own[0], account=own[1])
        self.admission.take(self.config)

    def payment(self, payment_id: str) -> PaymentRow:
        """The payment as it is now, or the call that a channel pays. Refused: `not_found`."""
        return self.call(payment_id) or self.as_noted(load_row(self.conn, payment_id))

    def call(self, payment_id: str) -> PaymentRow | None:
        """The call of this id that a channel pays. None where channels are off: then nothing is read."""
        return None if self.calls is None else self.calls.find(self.conn, payment_id)

    def as_noted(self, row: PaymentRow) -> PaymentRow:
        """The row with `is_noted`. False until the signer's record has its attempt: present no proof before."""
        return row if self.has_noted(row.attempt.number, row.account) else replace(row, is_noted=False)

    def has_noted(self, number: int | None, account: int) -> bool:
        """Whether the signer's record has an attempt of the account, by its number."""
        return self._writer.is_noted(number, account) or fleet.is_noted(self.conn, number, account)

    def require_noted(self, row: PaymentRow) -> PaymentRow:
        """As `as_noted`. Refused: `store_failed` if the signer's record lacks the attempt."""
        row = self.as_noted(row)
        if not row.is_noted:
            raise Refused("store_failed", f"the signer's record does not have the transaction of {row.id} yet")
        return row

    def wallet_address(self, row: PaymentRow) -> str:
        """The address that names the wallet in the payment's proof. x402 names the account that paid.

        For all others it is the public one.
        """
        if row.account == 0 or row.invoice.dialect not in NAMES_PAYER:
            return self.public_address
        return about.account_addresses(self.conn).get(row.account, self.public_address)

    def is_ready(self, row: PaymentRow) -> bool:
        """Whether the merchant is expected to accept the proof now, by its `ready` setting.

        If the merchant submits the transaction, the payment is ready as soon as it has a proof.
        """
        if row.invoice.merchant_submits or not has_proof(row):
            return has_proof(row)
        merchant = self.config.merchants.get(row.invoice.origin or "")
        return may_be_shown(
            merchant.ready if merchant else "confirmed",
            merchants.readiness(self.conn, row.invoice.origin or ""),
            row.state,
            self.depth(row),
            was_sent=row.attempt.accepted_by_provider,
            status_confirmed=row.merchant_status == "confirmed",
            was_pending=row.id in self._pending,
        )

    def is_by_auto(self, row: PaymentRow) -> bool:
        """Whether `ready = "auto"` decides when to present the proof."""
        merchant = self.config.merchants.get(row.invoice.origin or "")
        return merchant is not None and merchant.ready == "auto" and not row.invoice.merchant_submits

    def depth(self, row: PaymentRow) -> int:
        """Depth of the payment's block, which counts as 1; 0 while it is in no block."""
        if row.block.height is None or row.state not in ON_CHAIN:
            return 0
        tip_depth = 0 if self.chain.tip is None else self.chain.tip.height - row.block.height + 1
        return max(tip_depth, self.config.confirm_depth if row.state in POSTED else 1)

    def take_tip(self, tip: BlockSeen) -> None:
        """Take the newest block. A proof that was answered "pending" before it may be presented again."""
        self.chain.tip = tip
        for name in [name for name, height in self._pending.items() if height < tip.height]:
            del self._pending[name]
        self.changes.notify_block()

    def note_pending(self, row: PaymentRow, presented_depth: int) -> None:
        """Note that the merchant answered "pending". The proof is presented again after the next block."""
        if self.depth(row) <= presented_depth:
            tip_height = 0 if self.chain.tip is None else self.chain.tip.height
            self._pending[row.id] = max(tip_height, row.block.height or 0)

    async def wait(self, payment_id: str, timeout_s: float) -> PaymentRow:
        """The payment once its state or readiness changes, or after `timeout_s`.

        Returns at once if it is ready or has ended: it may have changed before the caller asked to wait.
        """
        row = self.payment(payment_id)
        if self.is_ready(row) or row.state in ENDED_WITHOUT_PAYING:
            return row
        before = (row.state, self.is_ready(row))
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while (left_s := deadline_s - asyncio.get_running_loop().time()) > 0:
            if not await self.changes.wait(payment_id, left_s, or_block=True):
                break
            row = self.payment(payment_id)
            if (row.state, self.is_ready(row)) != before:
                break
        return row

    @property
    def is_paused(self) -> bool:
        """Whether an operator paused all signing."""
        return pauses.standing(self.conn) is not None

    def assets_allowed(self) -> frozenset[str]:
        """The assets that the wallet's limits allow it to spend."""
        at_run_time = limit_counters.limits_binding(self.conn, policy.ANY, policy.ANY)
        return policy.allowed_assets(policy.in_force(self.config.limits, at_run_time))

    @property
    def latest_ms(self) -> int:
        """The later of the clock and the newest block's time: expired by either means expired."""
        now_ms, tip, slots = self.ports.clock.now_ms(), self.chain.tip, self.chain.slots
        return now_ms if tip is None or slots is None else max(now_ms, slots.time_ms(tip.slot))

    def app_of(self, token_hash: str) -> AppRow | None:
        """The app whose valid token this is. The call is noted."""
        app = apps.by_token(self.conn, token_hash, self.latest_ms)
        if app is not None:
            self.metrics.last_calls_ms[app.id] = self.ports.clock.now_ms()
        return app

    def new_ids(self) -> Ids:
        """Fresh ids for a payment or a transfer. They go unused if the payment exists already."""
        return Ids(self.ports.new_id("int"), self.ports.new_id("pay"), self.ports.new_id("req"))
