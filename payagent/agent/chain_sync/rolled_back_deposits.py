"""Handles deposits that a rollback took away, and the payments that spend them or descend from them.

A transaction that the chain does not know now may come back: anyone who has it can submit it again. So the ledger
follows the chain, an alert is raised, and the payment waits with its hold. Proof is a block past the TTL of
everything signed for the payment, too deep for any rollback. Then none of it can land any more
(exactly-once.md, "A deposit that is rolled back").

Never: takes an outage for a denial; signs.
"""

from payagent.agent.base.log import log
from payagent.agent.chain_sync.open_payments import LOOKED_FOR, OpenPayments
from payagent.agent.chain_sync.repeated_reads import RepeatedReads
from payagent.agent.commits import payment_transitions as steps
from payagent.agent.commits import utxo_sync as deposits
from payagent.agent.context import AgentContext
from payagent.chain.provider import BlockSeen, Found, NotFound
from payagent.chain.quorum_view import QuorumView
from payagent.core.aggregate import PaymentRow, TxSeen, UtxoRow
from payagent.core.payment.machine import State
from payagent.store.db.unit import Unit
from payagent.store.executor import clear_alert, raise_alert
from payagent.store.rows import alerts, attempts_and_utxos, events, payments, writes

ALERT_KIND = "deposit_rolled_back"
ALERT_SUBJECT = "deposit:"
"""Followed by the payment's id. Alerts are sealed, so an older one may have another word in its place."""


class RolledBackDeposits:
    """The part of each pass that follows rolled-back deposits. It runs after the UTxO list, if denials count.

    `stuck`: payments, by id, that can neither land nor be cancelled as things stand. Nothing is signed for them.
    """

    def __init__(self, context: AgentContext, rows: OpenPayments) -> None:
        self.stuck: dict[str, PaymentRow] = {}
        self._context = context
        self._open_payments = rows
        self._denied = RepeatedReads()
        self._alerted: dict[str, str] | None = None

    async def check(self, view: QuorumView, tip: BlockSeen) -> None:
        """Find deposits that are gone, then payments stuck because of them, then stuck payments that are over."""
        conn, account = self._context.conn, self._context.config.account
        for utxo in attempts_and_utxos.missing_deposits(conn, account) if view.is_final else ():
            await self._doubt(view, utxo)
        self.stuck = {}
        if attempts_and_utxos.any_rolled_back(conn):
            rolled_back: dict[str, bool] = {}  # shared, or each chained payment would walk all its ancestors again
            found = (payments.payment(conn, row.id) for row in self._open_payments.open(LOOKED_FOR))
            self.stuck = {
                row.id: row
                for row in found
                if row and attempts_and_utxos.is_rolled_back(conn, row.nonce_utxo, rolled_back)
            }
        await self._update_alerts()
        for row in self.stuck.values() if view.is_final else ():
            await self._weigh(view, tip, row)

    async def _doubt(self, view: QuorumView, utxo: UtxoRow) -> None:
        """Reverse a missing deposit if its transaction is on no chain any more."""
        now_ms = self._context.ports.clock.now_ms()
        if not self._denied.is_due(utxo.ref, view.tip.hash, now_ms):
            return
        read = await view.tx(utxo.tx_id, utxo.ref)
        is_enough = self._denied.is_enough(utxo.ref, isinstance(read, NotFound), view.tip.hash, now_ms)
        if isinstance(read, Found):
            log.warning(
                "utxo.missing", utxo=utxo.ref, why="its transaction is on the chain: spent by somebody else?"
            )
        elif isinstance(read, NotFound) and is_enough:
            self._denied.forget(utxo.ref)
            await self._context.write("deposit", lambda unit: deposits.take_back(unit, utxo.ref, now_ms))

    async def _update_alerts(self) -> None:
        """Raise one alert for each payment that is stuck, and clear it when it no longer is."""
        if self._alerted is None:
            conn, account = self._context.conn, self._context.config.account
            self._alerted = {
                row.id: subject
                for subject in alerts.raised(conn, ALERT_KIND)
                if (row := payments.payment(conn, subject.partition(":")[2])) and row.account == account
            }
        if list(self._alerted) == list(self.stuck):
            return
        alerted = self._alerted

        def job(unit: Unit, now_ms: int) -> None:
            for row in self.stuck.values():
                if row.id not in alerted:
                    _raise(unit, row, now_ms)
            for payment_id, subject in alerted.items():
                if payment_id not in self.stuck:
                    _clear(unit, payment_id, subject, now_ms)

        await self._context.write_at("alert", job)
        self._alerted = {
            payment_id: alerted.get(payment_id, ALERT_SUBJECT + payment_id) for payment_id in self.stuck
        }

    async def _weigh(self, view: QuorumView, tip: BlockSeen, row: PaymentRow) -> None:
        """Void the payment if a block past the TTL of everything signed for it is deeper than any rollback.

        The first such block is recorded, so a restart does not start over. Then the transactions must be denied
        repeatedly, as for everything that cannot be undone.
        """
        context = self._context
        attempts, block = attempts_and_utxos.attempts(context.conn, row.id), _block_of(context, row)
        last_slot = max(attempt.ttl_slot for attempt in attempts)
        if block is None or block.block_slot < last_slot:
            if tip.slot >= last_slot:
                await self._note_block(row, tip)
            return
        is_deep = tip.height - block.block_height + 1 >= context.config.settle_depth
        now_ms = context.ports.clock.now_ms()
        if not is_deep or not view.is_for_good or not self._denied.is_due(row.id, tip.hash, now_ms):
            return
        block_read = await view.block(block.block_hash, block.block_slot)
        reads = [await view.tx(attempt.tx_id, row.nonce_utxo) for attempt in attempts]
        if isinstance(block_read, NotFound):
            await self._note_block(row, tip)
        is_denied = isinstance(block_read, Found) and all(isinstance(read, NotFound) for read in reads)
        if self._denied.is_enough(row.id, is_denied, tip.hash, now_ms) and is_denied:
            self._denied.forget(row.id)
            await context.write(
                "void", lambda unit: steps.record_time_over(unit, row.id, block, context.utxos, now_ms), row.id
            )

    async def _note_block(self, row: PaymentRow, tip: BlockSeen) -> None:
        detail = {"block_hash": tip.hash, "block_height": tip.height, "block_slot": tip.slot}

        def job(unit: Unit, now_ms: int) -> None:
            writes.note(unit, row.id, "time_over", steps.row_of(unit, row.id).state, now_ms, detail)

        await self._context.write_at("alert", job, row.id)


def _block_of(context: AgentContext, row: PaymentRow) -> TxSeen | None:
    """The block recorded as past all TTLs, without a transaction."""
    noted = events.last_note(context.conn, row.id, "time_over")
    return None if noted is None else TxSeen("", **noted)


def _raise(unit: Unit, row: PaymentRow, now_ms: int) -> None:
    facts = {
        "detail": f"a rollback took the deposit that {row.id} spends or descends from: neither what was signed "
        "for it nor a cancel can land, unless the deposit comes back. Its money stays held",
        "payment": row.id,
        "utxo": row.nonce_utxo or "",
    }
    if raise_alert(unit, ALERT_KIND, ALERT_SUBJECT + row.id, facts, now_ms):
        writes.note(unit, row.id, ALERT_KIND, steps.row_of(unit, row.id).state, now_ms, {"utxo": row.nonce_utxo})


def _clear(unit: Unit, payment_id: str, subject: str, now_ms: int) -> None:
    state = steps.row_of(unit, payment_id).state
    facts = {"detail": "it is void" if state is State.VOID else "the deposit is back", "payment": payment_id}
    if clear_alert(unit, subject, facts, now_ms) and state is not State.VOID:
        writes.note(unit, payment_id, "deposit_restored", state, now_ms)
