"""The desk: what all of the agent's parts work at.

On it are the ledger with its readers and its writer, the terms that count, the free coins, the chain as it was
last seen, and the clock. Who needs no more than these takes a desk, and cannot sign, send or pay.
The terms are replaced at run time (`take_terms`), so they are read here each time and kept nowhere.
May import: core, chain.provider, chain.throttled_provider, store, wallet, agent.commits, agent.base. Never:
decides about a payment; signs; sends.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import BinaryIO, TypeVar

import structlog

from payagent.agent.base.chain_view import ChainView
from payagent.agent.base.change_notifier import Changes
from payagent.agent.base.config import AgentConfig
from payagent.agent.base.configured import overlaid
from payagent.agent.base.free_utxos import utxo_of
from payagent.agent.base.orders import Ids
from payagent.agent.base.payment_view import Json, has_proof, payment_view
from payagent.agent.base.ports import Ports, Writes
from payagent.agent.commits.admission import Admission
from payagent.chain.provider import PacedProvider, Tip
from payagent.chain.throttled_provider import ThrottledProvider
from payagent.core import policy
from payagent.core.payment import ENDED_WITHOUT_PAYING, ON_CHAIN, POSTED
from payagent.core.problems import Refused
from payagent.core.retry_schedule import may_be_shown
from payagent.store.db.readers import Readers
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import about, onchain, pauses, payments, trust
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows import limit_counters as spending
from payagent.store.rows.payments import PaymentRow
from payagent.wallet.utxo_index import UtxoIndex

T = TypeVar("T")

log = structlog.get_logger("payagent.agent")


class AgentContext:
    """One for an agent. All methods are for one event loop."""

    def __init__(
        self, terms: AgentConfig, ports: Ports, writer: Writes, readers: Readers, sources: Sequence[PacedProvider]
    ) -> None:
        self.filed = terms
        """The terms of the config file; `terms` are those that count, with what was set at run time."""
        self.terms = terms = overlaid(terms, readers.conn)
        self.ports = ports
        self.sources = [ThrottledProvider(source, ports.clock, terms.call_rate) for source in sources]
        self.chain = ChainView(
            terms.network,
            restored_at_ms=about.restored_at_ms(readers.conn),
            foreign=onchain.frozen_by(readers.conn),
        )
        self.changes = Changes()
        self.utxos = UtxoIndex(utxo_of(row) for row in queries.free_utxos(readers.conn))
        self._writer = writer
        self._readers = readers
        self.admission = Admission.by(terms, self.utxos, self.chain)
        self.senders: Sequence[ThrottledProvider] = self.sources
        """The providers that are to be believed, as the watch last found: to them bytes are sent."""
        self.providers: Mapping[str, str | None] = {}
        """Why a provider is not heard, by name, or None when it is: what the watch last found."""
        self.refusals: Counter[str] = Counter()
        """How often each code was told, through whichever door, since the start."""
        self._taking = asyncio.Lock()
        self._pending: dict[str, int] = {}
        """Payments whose merchant answered "pending" since the newest block, with that block's height."""

    @property
    def conn(self) -> Connection:
        """A read-only connection."""
        return self._readers.conn

    def snapshot(self) -> AbstractContextManager[Connection]:
        """The ledger as it is now, for what takes long to read."""
        return self._readers.snapshot()

    def room_problem(self) -> str | None:
        """Why nothing more could soon be written down; None while there is room."""
        return self._readers.room_problem()

    def copied(self) -> AbstractContextManager[BinaryIO]:
        """A copy of the ledger as it is now, as a file that is gone when it is closed."""
        return self._readers.copied()

    async def write(self, name: str, job: Callable[[Unit], T], payment_id: str | None = None) -> T:
        """Run a job at a commit point; who waits for the payment is woken once it is durable."""
        result = await self._writer.run(name, job)
        if payment_id is not None:
            log.info(f"payment.{name}", payment=payment_id)
            self.changes.notify(payment_id)
        return result

    async def take_terms(self, filed: AgentConfig, job: Callable[[Unit], None]) -> None:
        """Go by these terms of the config file, and by what `job` sets at run time, from its commit on."""

        def take(unit: Unit) -> AgentConfig:
            job(unit)
            terms = overlaid(filed, unit.conn)
            unit.undo(partial(self.admission.take, self.terms))
            self.admission.take(terms)
            return terms

        async with self._taking:
            self.terms = await self.write("terms", take)
            self.filed = filed

    def payment(self, payment_id: str) -> PaymentRow:
        """As it stands now. Refused: `not_found`."""
        row = payments.payment(self.conn, payment_id)
        if row is None:
            raise Refused("not_found", f"there is no payment {payment_id[:80]!r}")
        return self.as_noted(row)

    def as_noted(self, row: PaymentRow) -> PaymentRow:
        """With whether its attempt may be shown: no proof of what the signer's own record lacks yet."""
        return row if self._writer.is_noted(row.attempt) else replace(row, is_noted=False)

    def require_noted(self, row: PaymentRow) -> PaymentRow:
        """As `as_noted`. Refused: `store_failed`, where nothing may be shown."""
        row = self.as_noted(row)
        if not row.is_noted:
            raise Refused("store_failed", f"the signer's own record lacks the transaction of {row.id} yet")
        return row

    def is_ready(self, row: PaymentRow) -> bool:
        """Whether the merchant can be expected to take its proof, as its `ready` setting says.

        What is handed over is ready as soon as there is a proof: nothing happens before it is shown.
        """
        if row.handed_over or not has_proof(row):
            return has_proof(row)
        merchant = self.terms.merchants.get(row.origin or "")
        return may_be_shown(
            merchant.ready if merchant else "confirmed",
            trust.readiness(self.conn, row.origin or ""),
            row.state,
            self.depth(row),
            was_sent=row.accepted_by_provider,
            status_confirmed=row.merchant_status == "confirmed",
            was_pending=row.id in self._pending,
        )

    def is_by_auto(self, row: PaymentRow) -> bool:
        """Whether `ready = "auto"` decides when its proof is shown."""
        merchant = self.terms.merchants.get(row.origin or "")
        return merchant is not None and merchant.ready == "auto" and not row.handed_over

    def depth(self, row: PaymentRow) -> int:
        """How many blocks there are from the payment's own, which counts, to the tip; 0 while it is in none."""
        if row.block_height is None or row.state not in ON_CHAIN:
            return 0
        seen = 0 if self.chain.tip is None else self.chain.tip.height - row.block_height + 1
        return max(seen, self.terms.confirm_depth if row.state in POSTED else 1)

    def view(self, row: PaymentRow) -> Json:
        """The payment object of the API."""
        return payment_view(row, self.terms, ready=self.is_ready(row))

    def take_tip(self, tip: Tip) -> None:
        """The chain's newest block is this one: what was pending may be shown again."""
        self.chain.tip = tip
        self._pending = {name: height for name, height in self._pending.items() if height >= tip.height}
        self.changes.notify_block()

    def note_pending(self, row: PaymentRow, shown_depth: int) -> None:
        """The merchant answered "pending" to the proof: it is shown again once a block has come since."""
        if self.depth(row) <= shown_depth:
            tip_height = 0 if self.chain.tip is None else self.chain.tip.height
            self._pending[row.id] = max(tip_height, row.block_height or 0)

    async def wait(self, payment_id: str, timeout_s: float) -> PaymentRow:
        """The payment, when its state or readiness has changed or time is up; at once when it is ready or ended.

        A caller learns of a payment and then asks to wait: what changed in between must not be waited for.
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
        """Whether an operator has stopped all signing."""
        return pauses.standing(self.conn) is not None

    def assets_allowed(self) -> frozenset[str]:
        """What the wallet may spend at all, by its limits."""
        at_run_time = spending.limits_binding(self.conn, policy.ANY, policy.ANY)
        return policy.allowed_assets(policy.in_force(self.terms.limits, at_run_time))

    @property
    def latest_ms(self) -> int:
        """The clock's time, or the newest block's when that is later: what expired by either has expired."""
        now_ms, tip, slots = self.ports.clock.now_ms(), self.chain.tip, self.chain.slots
        return now_ms if tip is None or slots is None else max(now_ms, slots.time_ms(tip.slot))

    def limits_clock_ms(self, conn: Connection, now_ms: int) -> int:
        """The clock of the limits (store.rows.limit_counters)."""
        return self.admission.rulebook.clock_ms(conn, now_ms)

    def new_ids(self) -> Ids:
        """For a purchase or an order; used up even where it finds what is there."""
        return Ids(self.ports.new_id("int"), self.ports.new_id("pay"), self.ports.new_id("req"))
