"""Records what the chain shows of our payments: in a block, deep enough, block lost, or void by a cancel.

A payment without a verdict is looked up again in the next pass: a missing answer decides nothing.
Never: submits, signs or builds; ends a payment without positive evidence (exactly-once.md R8).
"""

from functools import partial

from payagent.agent.chain_sync.open_payments import LOOKED_FOR, OpenPayments, WorkerPool
from payagent.agent.chain_sync.repeated_reads import RepeatedReads
from payagent.agent.commits import payment_transitions as steps
from payagent.agent.context import AgentContext
from payagent.chain.provider import BlockSeen, Found, NotFound, Read, Unknown, Why
from payagent.chain.quorum_view import QuorumView
from payagent.core.aggregate import PaymentRow, TxSeen
from payagent.core.payment.machine import State
from payagent.store.rows import attempts_and_utxos
from payagent.store.rows.payments import OpenPayment

RECHECK_DEPTHS = (16, 128, 1024)
"""Depths at which a block is looked up again although no fork was noticed: an index may have lagged."""


class Confirmations:
    """The part of each pass that observes payments. It runs before the UTxO list.

    `unread`: payments of which not every attempt could be looked up. `urgent`: payments whose bytes the providers
    may have lost; they are submitted again at once, whenever that was last done.
    `_unverified`: payments on the chain whose block may be gone. They stay in it until a provider gives a verdict,
    whatever the tip does meanwhile.
    """

    def __init__(self, context: AgentContext, rows: OpenPayments, workers: WorkerPool) -> None:
        self.unread: set[str] = set()
        self.urgent: set[str] = set()
        self._context = context
        self._open_payments = rows
        self._workers = workers
        self._unverified: set[str] = set()
        self._unanswered: str | None = "the payments were not looked up yet"
        self._has_cancel_in_block = False
        self._deep_seen = RepeatedReads()
        self._denied = RepeatedReads()

    @property
    def trouble(self) -> str | None:
        """Why a read had no answer or an observation was not recorded; None if all went well."""
        return self._unanswered or ("what was seen could not be recorded" if self._workers.failed else None)

    @property
    def is_due(self) -> bool:
        """Whether something must be read again although there is no new block."""
        return bool(self._unverified or self._has_cancel_in_block or self.trouble)

    async def check(self, view: QuorumView, tip: BlockSeen, last: BlockSeen | None) -> None:
        """Check payments in doubt, then those that may be in a block, then those that may be deep enough."""
        self._unanswered, self._workers.failed = None, False
        self._unverified |= await self._in_doubt(view, tip, last)
        on_chain = self._open_payments.on_chain()
        self._unverified &= {row.id for row in on_chain}
        self._denied.keep(self._unverified)
        await self._workers.each(
            [row for row in on_chain if row.id in self._unverified], partial(self._recheck, view, tip)
        )
        self._has_cancel_in_block = False
        self.unread.clear()
        await self._workers.each(self._open_payments.open(LOOKED_FOR), partial(self._look_for, view, tip))
        await self._workers.each(
            self._deep(State.IN_BLOCK, tip, self._context.config.confirm_depth), partial(self._confirm, view, tip)
        )
        settle_depth = self._context.config.settle_depth
        ending = [
            *self._deep(State.CONFIRMED, tip, settle_depth),
            *self._deep(State.VOID, tip, settle_depth),
        ]
        if view.is_for_good:
            await self._workers.each(ending, partial(self._settle, view, tip))

    async def _in_doubt(self, view: QuorumView, tip: BlockSeen, last: BlockSeen | None) -> set[str]:
        """Payments whose block may be off the chain: all of them after a possible fork, else those due by depth.

        It adds those whose block is above the tip: a height that was reported once may have been wrong.
        """
        rows = self._open_payments.on_chain()
        if last is None or await self._may_have_forked(view, tip, last):
            return {row.id for row in rows}
        new_blocks = tip.height - last.height
        return {
            row.id
            for row in rows
            if _depth(row.block_height, tip) < 1
            or any(0 <= _depth(row.block_height, tip) - depth < new_blocks for depth in RECHECK_DEPTHS)
        }

    async def _may_have_forked(self, view: QuorumView, tip: BlockSeen, last: BlockSeen) -> bool:
        """Whether the block that was the tip in the last pass may be off the chain."""
        if tip.hash == last.hash:
            return False
        return tip.height <= last.height or not isinstance(await view.block(last.hash, last.slot), Found)

    async def _look_for(self, view: QuorumView, tip: BlockSeen, row: PaymentRow) -> None:
        """Find out whether an attempt in flight is in a block. The payment is `unread` while any read is open."""
        self.unread.add(row.id)
        is_open = False
        for attempt in attempts_and_utxos.attempts(self._context.conn, row.id):
            read = await view.tx(attempt.tx_id, row.nonce_utxo)
            if isinstance(read, Found):
                if attempt.kind == "cancel":
                    await self._weigh_cancel(view, tip, row, read.value)
                else:
                    await self._record_seen(view, row, read.value)
                return
            if isinstance(read, Unknown):
                if read.why is not Why.NOT_YET:
                    self._unanswered = read.reason
                is_open = True
        if not is_open:
            self.unread.discard(row.id)
        read = await self._rival(view, row)
        if isinstance(read, Found):
            await self._weigh_cancel(view, tip, row, read.value)
        elif not view.stands_alone or not (is_open or isinstance(read, Unknown)):
            self._deep_seen.forget(row.id)  # earlier reads were denied since, or not confirmed

    async def _rival(self, view: QuorumView, row: PaymentRow) -> Read[TxSeen]:
        """The transaction that keeps the nonce UTxO from ever existing, if it is in the block its payment records.

        Until that payment was seen in that block, the ledger would not show why this one is void.
        """
        rival = None if row.nonce_utxo is None else attempts_and_utxos.rival_of(self._context.conn, row.nonce_utxo)
        if rival is None:
            return NotFound()
        read = await view.tx(rival.shown_by, rival.nonce_utxo)
        if isinstance(read, Found) and read.value.block_hash != rival.block.hash:
            self._unverified.add(rival.id)
            return Unknown("its own payment was not seen in that block yet", Why.NOT_YET)
        return read

    async def _weigh_cancel(self, view: QuorumView, tip: BlockSeen, row: PaymentRow, seen: TxSeen) -> None:
        """Void the payment on positive evidence only (exactly-once.md R8): its cancel is deep enough in a block.

        If only one provider can be asked, it must show that in repeated passes. A transaction that keeps the
        nonce UTxO from ever existing counts like a cancel.
        """
        context = self._context
        now_ms = context.ports.clock.now_ms()
        landed_ms = context.chain.landed_ms(seen.block_slot, now_ms)
        self._has_cancel_in_block = True
        is_deep = tip.height - seen.block_height + 1 >= context.config.void_depth
        if not is_deep or not view.is_final:
            return
        if self._deep_seen.is_enough(row.id, seen.block_hash, tip.hash, now_ms) or not view.stands_alone:
            self._deep_seen.forget(row.id)
            await context.write(
                "void",
                lambda unit: steps.record_void(unit, row.id, seen, landed_ms, context.utxos, view.name, now_ms),
                row.id,
            )

    async def _recheck(self, view: QuorumView, tip: BlockSeen, row: PaymentRow) -> None:
        """Check that a payment's block is still on the chain. Without a verdict the payment stays unverified.

        The payment has lost its block in three cases:
        - Its transaction is in another block.
        - A provider denies both the transaction and the block. The provider must be past the block's height, or
          past the time of the observation.
        - The block exists, but the transaction was denied at three tips, a minute apart. The provider that showed
          it there lied.
        """
        read = await view.tx(row.shown_by, row.nonce_utxo)
        if isinstance(read, Found):
            if (read.value.block_hash, read.value.block_height) != (row.block.hash, row.block.height):
                await self._record_block_lost(row)
                if row.state is not State.VOID:
                    await self._record_seen(view, row, read.value)
            self._unverified.discard(row.id)
        elif isinstance(read, NotFound) and self._is_past(view, tip, row):
            block = await view.block(row.block.hash or "", row.block.slot or 0)
            now_ms = self._context.ports.clock.now_ms()
            is_lie = isinstance(block, Found) and self._denied.is_enough(row.id, row.block.hash, tip.hash, now_ms)
            if is_lie or isinstance(block, NotFound):
                await self._record_block_lost(row, denied_by=view.name if is_lie else None)
                self._unverified.discard(row.id)

    def _is_past(self, view: QuorumView, tip: BlockSeen, row: PaymentRow) -> bool:
        """Whether the provider would show the payment's block by now, if it existed."""
        is_past = tip.height >= (row.block.height or 0) or self._context.chain.is_after(row.updated_at_ms, tip)
        return is_past and view.is_current

    def _deep(self, state: State, tip: BlockSeen, depth: int) -> list[OpenPayment]:
        """Payments in a state whose block is at least this deep."""
        return [
            row
            for row in self._open_payments.on_chain()
            if row.state is state and _depth(row.block_height, tip) >= depth
        ]

    async def _confirm(self, view: QuorumView, tip: BlockSeen, row: PaymentRow) -> None:
        if await self._is_still_there(view, tip, row):
            now_ms, depth = self._context.ports.clock.now_ms(), _depth(row.block.height, tip)
            rules = self._context.config.rules
            landed_ms = self._context.chain.landed_ms(row.block.slot or 0, now_ms)
            await self._context.write(
                "confirm",
                lambda unit: steps.record_confirmed(unit, row.id, depth, rules, landed_ms, now_ms),
                row.id,
            )

    async def _settle(self, view: QuorumView, tip: BlockSeen, row: PaymentRow) -> None:
        if await self._is_still_there(view, tip, row) and view.is_for_good:
            now_ms, depth = self._context.ports.clock.now_ms(), _depth(row.block.height, tip)
            await self._context.write(
                "settle",
                lambda unit: steps.record_settled(unit, row.id, depth, self._context.utxos, now_ms),
                row.id,
            )

    async def _is_still_there(self, view: QuorumView, tip: BlockSeen, row: PaymentRow) -> bool:
        """Whether the payment is still in the block that we recorded. If not, it is rechecked."""
        read = await view.tx(row.shown_by, row.nonce_utxo)
        if isinstance(read, Found) and read.value.block_hash == row.block.hash:
            return True
        self._unverified.add(row.id)
        await self._recheck(view, tip, row)
        return False

    async def _record_seen(self, view: QuorumView, row: PaymentRow, seen: TxSeen) -> None:
        await self._context.write_at(
            "observe",
            lambda unit, now_ms: steps.record_seen(unit, row.id, seen, self._context.utxos, view.name, now_ms),
            row.id,
        )

    async def _record_block_lost(self, row: PaymentRow, denied_by: str | None = None) -> None:
        await self._context.write_at(
            "observe",
            lambda unit, now_ms: steps.record_block_lost(unit, row.id, self._context.utxos, now_ms, denied_by),
            row.id,
        )
        self.urgent.add(row.id)


def _depth(block_height: int | None, tip: BlockSeen) -> int:
    """The depth of a payment's block; the block itself counts 1."""
    return tip.height - (block_height or 0) + 1
