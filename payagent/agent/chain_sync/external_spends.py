"""Handles external spends: a UTxO of ours was spent by a transaction that the ledger does not know.

Either another program has the wallet's words, or the whole data folder was rolled back. A UTxO missing from the
providers' list is a reason to search and proves nothing. A transaction in a block that spends it is proof.

The ledger then follows that transaction. Signing is frozen until an operator unfreezes the wallet, because the
other program may spend the UTxOs of a payment. After every start the wallet's newest transactions are compared
with the ledger before anything is signed.

Never: concludes anything from an absence; unfreezes by itself.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

from payagent.agent.base.chain_view import QUIET_MS
from payagent.agent.base.log import log
from payagent.agent.chain_sync.open_payments import OpenPayments
from payagent.agent.chain_sync.recovery import (
    ALERT,
    LAG_S,
    ExternalSpend,
    ExternalSpendSearch,
    Why,
    settle,
    take_in,
)
from payagent.agent.chain_sync.repeated_reads import RepeatedReads
from payagent.agent.commits import payment_transitions as steps
from payagent.agent.context import AgentContext
from payagent.chain.provider import Found, NotFound, Read, Unknown
from payagent.chain.quorum_rules import Listing
from payagent.chain.quorum_view import QuorumView
from payagent.core.aggregate import ExternalSpendRow, TxSeen
from payagent.core.changes import AddExternalSpend
from payagent.core.payment.apply import lose_external_spend as lose_spend
from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.core.retry_schedule import backoff
from payagent.store.db.unit import Unit
from payagent.store.executor import clear_alert, write
from payagent.store.load import load_utxos
from payagent.store.rows import alerts, onchain, writes

SEARCH_EVERY_MS = 60_000
"""How soon the same UTxOs are searched for again: the spending transaction may not be indexed yet."""

SEARCH_EVERY_MAX_MS = 3_600_000
SEARCHES_AT_FIRST = 6
"""Searches at that interval. Then each search that finds nothing doubles it, up to an hour.

A provider's list may lack a UTxO for days, and each search lists all transactions since that UTxO arrived.
"""

RECHECKS_MAX = 10
"""Most rechecks in one pass: a pass comes every 20 to 40 seconds, and providers count requests by the day."""


async def unfreeze(context: AgentContext, app_id: str, seen: Collection[str] | None = None) -> tuple[str, ...]:
    """Resume signing: an operator confirms that only payagent uses the wallet. Returns the freezing transactions.

    `seen`: the transactions that the operator has reviewed, if given. Refused: `external_spend_new`, if another
    one has frozen the wallet too; it may have arrived meanwhile.
    """

    def job(unit: Unit, now_ms: int) -> tuple[str, ...]:
        frozen_by = onchain.frozen_by(unit.conn)
        unseen = [] if seen is None else [tx_id for tx_id in frozen_by if tx_id not in seen]
        if unseen:
            raise Refused(
                "external_spend_new",
                f"still frozen: transaction {unseen[-1]} also spent the wallet's UTxOs, and was not reviewed",
            )
        if frozen_by:
            last = frozen_by[-1]
            writes.note(unit, None, "unfrozen", None, now_ms, {"app": app_id, "tx_id": last, "txs": frozen_by})
            for subject in alerts.raised(unit.conn, ALERT):
                clear_alert(unit, subject, {"detail": "an operator unfroze the wallet", "tx": last}, now_ms)
        return frozen_by

    frozen_by = await context.write_at("unfreeze", job) if onchain.frozen_by(context.conn) else ()
    context.chain.external_spends = onchain.frozen_by(context.conn)
    return frozen_by


class ExternalSpends:
    """The part of each pass that handles external spends. It runs after the payments and the UTxO list."""

    def __init__(self, context: AgentContext, rows: OpenPayments) -> None:
        self._context = context
        self._open_payments = rows
        self._search = ExternalSpendSearch(context)
        self._account = context.config.account
        self._last_slot = onchain.last_slot(context.conn, self._account)
        self._suspects: set[str] = set()
        self._searched_ms = 0
        self._empty_searches = 0
        self._last_rechecked = (0, "")
        self._seen_deep: set[tuple[str, str]] = set()
        self._deep_seen = RepeatedReads()
        self._shown_by_one = RepeatedReads()

    async def compare(self, view: QuorumView) -> str | None:
        """Compare the wallet's transactions since the ledger's newest block with the ledger, once after a start.

        Returns why that could not be done yet; None when it was done. An external spend is booked and freezes
        signing if the providers agree on it. If a single provider shows one, payagent waits for three tips, a
        minute apart. While the ledger is behind, agent.chain_sync.recovery reads more than this would.
        """
        context, chain = self._context, self._context.chain
        if chain.is_compared or chain.behind is not None:
            return None
        if chain.unproven is not None:
            return chain.unproven  # a spend that the ledger lacks may be one of ours
        slots, slot = chain.slots, self._last_slot
        since_s = 0 if slots is None or slot is None else slots.time_ms(slot) // 1000 - LAG_S
        if not view.is_current:
            return "the newest block is old, or lower than one before"
        read = await view.has_unknown_spend(context.config.own.text, since_s, self._is_known)
        if not isinstance(read, Found):
            return read.reason if isinstance(read, Unknown) else "a transaction that is listed is not found"
        spends = await self._search.find(view, since_s) if read.value else []
        if spends is None:
            return self._search.why or "the wallet's transactions could not be read"
        now_ms = context.ports.clock.now_ms()
        for spend in spends:
            await self._take_in(spend, now_ms)
        if read.value and not spends and not self._shown_by_one.is_enough("", "", view.tip.hash, now_ms):
            return "only one provider shows a spend that the ledger does not know"
        chain.is_compared = all(self._is_known(spend.seen.tx_id) for spend in spends)
        return None if chain.is_compared else "a spend that the ledger does not know could not be recorded"

    def _is_known(self, tx_id: str) -> bool:
        """Whether the ledger has the transaction: as an attempt, or as an external spend that is on the chain."""
        conn = self._context.conn
        return onchain.is_ours(conn, tx_id) or onchain.is_external_spend_on_chain(conn, tx_id, self._account)

    async def check(self, view: QuorumView, listing: Listing) -> None:
        """Recheck known external spends, search for unknown ones, and void the payments that they overtook."""
        if view.is_current:
            await self._recheck(view)
        if self._context.chain.behind is None and self._context.chain.unproven is None:
            await self._find(view, {utxo.ref for utxo in listing.agreed} | listing.doubtful)
        if view.is_final:
            await self._weigh(view)

    async def _find(self, view: QuorumView, listed: set[str]) -> None:
        context = self._context
        now_ms = context.ports.clock.now_ms()
        suspects = {
            ref for ref, state in self._open_payments.utxos().items() if state == "missing" and ref not in listed
        }
        self._suspects &= suspects  # one that was listed again counts as new when it is missing again
        is_news = not suspects <= self._suspects
        if not suspects or not (is_news or self._is_search_due(now_ms)):
            return
        spends: Sequence[ExternalSpend] | None = ()
        if await self._may_be_spent(view, suspects):
            spends = await self._search.find(view, await self._since_s(view, suspects))
        if spends is None:
            return
        for spend in spends:
            await self._take_in(spend, now_ms)
        self._empty_searches = 0 if is_news or spends else self._empty_searches + 1
        self._suspects, self._searched_ms = suspects, now_ms

    async def _may_be_spent(self, view: QuorumView, suspects: set[str]) -> bool:
        """Whether a transaction that the ledger does not know spends one of them, or that is not clear."""
        for ref in sorted(suspects):
            read = await view.spender(ref)
            if isinstance(read, Unknown) or (isinstance(read, Found) and not self._is_known(read.value.tx_id)):
                return True
        return False

    def _is_search_due(self, now_ms: int) -> bool:
        failures = self._empty_searches - SEARCHES_AT_FIRST + 1
        return not 0 <= now_ms - self._searched_ms < backoff(SEARCH_EVERY_MS, SEARCH_EVERY_MAX_MS, failures)

    async def _since_s(self, view: QuorumView, suspects: set[str]) -> int:
        """The time of the block that made the first suspect, by the chain's clock: ours may have been ahead."""
        context, slots = self._context, self._context.chain.slots
        times_s = [onchain.known_since_ms(context.conn, suspects) // 1000]
        for tx_id in sorted({ref.partition("#")[0] for ref in suspects}):
            read = await view.tx(tx_id)
            if isinstance(read, Found) and slots is not None:
                times_s.append(slots.time_ms(read.value.block_slot) // 1000)
        return min(times_s) - LAG_S

    async def _take_in(self, spend: ExternalSpend, now_ms: int) -> None:
        context = self._context
        why = self._why(spend.seen)
        if onchain.is_external_spend_on_chain(context.conn, spend.seen.tx_id, self._account):
            return
        event = await context.write(
            "external_spend", lambda unit: take_in(unit, spend, why, context.utxos, now_ms, self._account)
        )
        context.chain.external_spends = onchain.frozen_by(context.conn)
        if event is not None:
            log.warning(f"wallet.{event}", tx=spend.seen.tx_id, utxos=sorted(spend.moved.spent))

    def _why(self, seen: TxSeen) -> Why:
        """The event for a spend. A restored ledger has forgotten what it signed before, and that lands first."""
        chain = self._context.chain
        if chain.restored_at_ms is None or chain.slots is None:
            return "external_spend"
        is_older = seen.block_slot <= chain.slots.slot_at(chain.restored_at_ms + QUIET_MS)
        return "forgotten_spend" if is_older else "external_spend"

    async def _recheck(self, view: QuorumView) -> None:
        """Check whether external spends lost their block; one may be in another block already.

        Each is looked up until it was read in its block, deeper than any rollback reaches. There may be thousands,
        so each pass looks up some, in turn.
        """
        context = self._context
        settled_height = onchain.external_spends_settled(context.conn, self._account)
        rows = onchain.external_spends_on_chain(context.conn, settled_height + 1, self._account)
        deep = view.tip.height - context.config.settle_depth
        for row in self._due(rows):
            self._last_rechecked = _place(row)
            read = await view.tx(row.tx_id, row.inputs[0])
            if isinstance(read, Found) and read.value.block_hash == row.block_hash:
                if view.is_for_good and row.block_height <= deep:
                    self._seen_deep.add((row.tx_id, row.block_hash))
            else:
                await self._lose_if_gone(view, row, read)
        unread = [row.block_height for row in rows if (row.tx_id, row.block_hash) not in self._seen_deep]
        settled = min([deep, *(height - 1 for height in unread)])
        if view.is_for_good and any(row.block_height <= settled for row in rows):
            await self._settle(settled)
            self._seen_deep -= {(row.tx_id, row.block_hash) for row in rows if row.block_height <= settled}

    def _due(self, rows: Sequence[ExternalSpendRow]) -> list[ExternalSpendRow]:
        """The external spends to look up now, beginning after the one that was looked up last."""
        due = [row for row in rows if (row.tx_id, row.block_hash) not in self._seen_deep]
        due.sort(key=lambda row: (_place(row) <= self._last_rechecked, _place(row)))
        return due[:RECHECKS_MAX]

    async def _lose_if_gone(self, view: QuorumView, row: ExternalSpendRow, read: Read[TxSeen]) -> None:
        """Record the block as lost if the transaction is in another one, or is denied together with its block."""
        is_gone = (
            isinstance(read, NotFound)
            and view.tip.height >= row.block_height
            and isinstance(await view.block(row.block_hash, row.block_slot), NotFound)
        )
        if is_gone or isinstance(read, Found):
            await self._context.write_at(
                "external_spend", lambda unit, now_ms: lose_external_spend(unit, row, view.name, now_ms)
            )
            self._suspects = set()

    async def _settle(self, height: int) -> None:
        await self._context.write_at(
            "external_spend", lambda unit, now_ms: settle(unit, height, now_ms, self._account)
        )

    async def _weigh(self, view: QuorumView) -> None:
        """Void a payment whose nonce UTxO an external spend took, on positive evidence (exactly-once.md R8)."""
        context = self._context
        now_ms = context.ports.clock.now_ms()
        overtaken = onchain.overtaken(context.conn, self._account)
        tx_ids = {tx_id for _, tx_id in overtaken}
        spends = {row.tx_id: row for row in onchain.external_spend_named(context.conn, tx_ids, self._account)}
        for payment_id, tx_id in overtaken:
            row = spends[tx_id]
            if view.tip.height - row.block_height + 1 < context.config.void_depth:
                continue
            read = await view.spender(row.inputs[0])
            if not isinstance(read, Found) or read.value[:2] != (tx_id, row.block_hash):
                if not (view.stands_alone and isinstance(read, Unknown)):
                    self._deep_seen.forget(payment_id)
                continue
            is_enough = self._deep_seen.is_enough(payment_id, row.block_hash, view.tip.hash, now_ms)
            if is_enough or not view.stands_alone:
                self._deep_seen.forget(payment_id)
                job = partial(overtake, context=context, payment_id=payment_id, row=row, now_ms=now_ms)
                rejected = await context.write("void", job, payment_id)
                if rejected is not None:
                    context.metrics.refusals[rejected.code] += 1


def _place(row: ExternalSpendRow) -> tuple[int, str]:
    """The order in which external spends are rechecked: lowest block first."""
    return row.block_height, row.tx_id


def lose_external_spend(unit: Unit, row: ExternalSpendRow, provider: str, now_ms: int) -> None:
    """An external spend lost its block. What an attempt of ours in another block has spent since stays spent."""
    utxos = load_utxos(unit.conn, row.inputs)
    spent = {ref: own.row.state for ref, own in utxos.items() if own.spent_by == row.tx_id}
    lost = AddExternalSpend(replace(row, is_on_chain=False), provider)
    write(unit, lose_spend(utxos, lost, spent), now_ms)


def overtake(
    unit: Unit, context: AgentContext, payment_id: str, row: ExternalSpendRow, now_ms: int
) -> Refused | None:
    """Void a payment whose nonce UTxO an external spend took (C7): no attempt can land, so its hold is released.

    Its other UTxOs stay reserved until no rollback can reach that block. A payment with nothing signed is rejected
    instead, and the reason is returned.
    """
    why = Refused("external_spend", f"transaction {row.tx_id} outside payagent spent its UTxOs")
    if steps.row_of(unit, payment_id).state is State.RESERVED:
        steps.reject_unsigned(unit, payment_id, context.utxos, why, now_ms)
        return why
    steps.record_overtaken(unit, payment_id, row, why, context.utxos, now_ms)
    return None
