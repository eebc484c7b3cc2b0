"""The judge: checks the invariants against the true chain, every released byte and the ledger's file.

The invariants have the names of exactly-once.md ("What is checked"):
- I1: one payment for a purchase.
- I2: the ledger equals the chain.
- I3: signed bytes pay what was asked and no more.
- I4: everything ends.
- I5: secrets are kept.
- I6: bytes are durable before they are released, and by one daemon alone.
- I7: attempts never change.
- I8: the same key gets the same answer.
- I9: the ledger's state of a payment is what the chain shows.
- I10: the record is whole.

Never: changes anything; trusts the agent about the chain.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

from payagent.audit.finding import AuditFinding
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.core.aggregate import PaymentRow
from payagent.core.ledger import HELD, WALLET
from payagent.core.money import LOVELACE
from payagent.core.payment.machine import ENDED_WITHOUT_PAYING, ON_CHAIN, State
from payagent.devnet.ledger import DevnetBlock, LedgerError, OutRef, Tx, decode_tx
from payagent.store.audit import books
from payagent.store.db.tables import GENESIS
from payagent.store.db.unit import Connection
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows import journal, payments
from sim.network import Net
from sim.spend_judge import Spend, SpendJudge
from sim.trace import Trace

FEE_MAX_LOVELACE = 900_000
VERIFIED, SEARCHED = 0.1, 0.2
"""How often the ledger is verified in full at a start, and its file is searched for secrets at the end."""

TURNS, TURNS_VERIFIED = ("block_lost", "replace", "cancel", "void"), 3
"""The events after which the ledger is verified at once, and how often in a run for each of them."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A row of an attempt. `purchase` identifies what the client wants, and `invoice_id` the invoice it pays."""

    tx_id: str
    payment: str
    kind: str
    nonce_utxo: str
    cbor: bytes
    purchase: str
    origin: str
    invoice_id: str | None
    is_topup: bool
    account: int = 0


class Market(Protocol):
    """The payments that were truly requested, by the records of those who requested them."""

    def asked(self, origin: str, invoice_id: str | None) -> list[tuple[tuple[bytes, str, int], ...]]:
        """Sets of outputs, (address, asset, units) each; one set is to be paid. Without origin: transfers."""

    def purchase(self, origin: str, invoice_id: str | None) -> str | None:
        """The purchase that an invoice is for, as in `Signed.purchase`; None if unknown."""


_ATTEMPTS = """
SELECT a.rowid, a.tx_id, a.payment_id, a.kind, a.nonce_utxo, a.cbor, i.idempotency_key, i.request,
       COALESCE(v.origin, ''), v.invoice_id, p.topup_id, a.account
FROM attempts a JOIN payments p ON p.id = a.payment_id JOIN intents i ON i.id = p.intent_id
LEFT JOIN invoices v ON v.seq = a.invoice_seq WHERE a.rowid > ? ORDER BY a.rowid
"""


_STATE_BEFORE = """
SELECT state FROM events WHERE payment_id = ? AND state IS NOT NULL
AND seq < (SELECT MIN(seq) FROM events WHERE payment_id = ?) ORDER BY seq DESC LIMIT 1
"""


class Judge:
    """The judge of one run."""

    def __init__(self, net: Net, story: Trace, owner: Owner, market: Market, cap_units: int, rng: Random) -> None:
        self._net = net
        self._story = story
        self._owner = owner
        self._own = frozenset(one.raw for one in (owner.address, *owner.accounts.values()))
        self._market = market
        self._last_row = 0
        self.signed: dict[str, Signed] = {}
        self._durable: set[str] = set()
        self._released: dict[str, Tx] = {}
        self._spends: dict[str, Spend] = {}
        self._by_purchase: dict[str, list[str]] = {}
        self._answers: dict[str, str] = {}
        self._accepted: dict[str, None] = {}
        self._nonce_utxos: dict[str, str] = {}
        self._forgotten: dict[str, Signed] = {}
        self._is_put_back = False
        self._turns: dict[str, set[int]] = {event: set() for event in TURNS}
        self._rng = rng
        self._spending = SpendJudge(story, cap_units)

    # --- the record

    def committed(self, conn: Connection, *, synced: bool) -> None:
        """Check the attempts that a commit added. `synced`: a death can no longer remove them."""
        for row in conn.execute(_ATTEMPTS, (self._last_row,)).fetchall():
            self._last_row = row[0]
            request = (row[7] or "").rpartition(" ")[2]
            purchase = row[6] if row[10] is not None or not request else request
            is_topup = row[10] is not None
            signed = Signed(row[1], row[2], row[3], row[4], row[5], purchase, row[8], row[9], is_topup, row[11])
            first_signed = self.signed.setdefault(signed.tx_id, signed)
            if first_signed.cbor != signed.cbor:
                self._story.violate("I7", f"the attempt {signed.tx_id[:8]} has other bytes than before")
            self._story.tell(
                f"{signed.kind} {signed.tx_id[:8]} of {signed.payment} is signed, "
                f"nonce UTxO {signed.nonce_utxo[:8]}"
            )
            if first_signed is signed:
                self._check_bytes(signed)
                self._check_past(signed)
            if synced:
                self._durable.add(signed.tx_id)
        self._verify_turn(conn)

    def _verify_turn(self, conn: Connection) -> None:
        """Verify the books right after a payment turned: what is wrong then may be mended by what follows."""
        for seq, event in conn.execute("SELECT seq, event FROM events ORDER BY seq DESC LIMIT 3").fetchall():
            if event in TURNS and seq not in self._turns[event] and len(self._turns[event]) < TURNS_VERIFIED:
                self._turns[event].add(seq)
                self._verify(conn)

    def put_back(self, conn: Connection) -> None:
        """The ledger was replaced by an older copy. Only the signer's record and the chain know what it lacks.

        Purchases that only the lost rows recorded may be bought again (exactly-once.md).
        """
        recorded = {row[0] for row in conn.execute("SELECT tx_id FROM attempts")}
        lost = {tx_id: signed for tx_id, signed in self.signed.items() if tx_id not in recorded}
        self._forgotten |= {tx_id: signed for tx_id, signed in lost.items() if tx_id in self._released}
        for tx_id in lost:
            del self.signed[tx_id]
            self._spends.pop(tx_id, None)
        for purchase, tx_ids in self._by_purchase.items():
            self._by_purchase[purchase] = [tx_id for tx_id in tx_ids if tx_id not in lost]
        payment_ids = {row[0] for row in conn.execute("SELECT id FROM payments")}
        self._accepted = {name: None for name in self._accepted if name in payment_ids}
        self._answers = {purchase: name for purchase, name in self._answers.items() if name in payment_ids}
        self._is_put_back = bool(self._forgotten)
        self._story.tell(f"the ledger put back lacks {sorted(tx_id[:8] for tx_id in self._forgotten)}")
        if self._forgotten:
            self._story.reach("a ledger is put back that lacks what was sent")

    def begun(self, behind: str | None) -> None:
        """A daemon is ready to sign, or is behind (`behind` says why)."""
        if self._is_put_back and behind is None:
            self._story.violate("I1", "the ledger is older than what was signed, and nobody noticed")
        self._is_put_back = False

    def _check_past(self, signed: Signed) -> None:
        """I1 for a restored ledger: nothing is signed while a transaction that it lacks could still land."""
        if (nonce_utxo := self._nonce_utxos.setdefault(signed.payment, signed.nonce_utxo)) != signed.nonce_utxo:
            self._story.violate(
                "I1", f"{signed.payment} had the nonce UTxO {nonce_utxo[:8]}, now {signed.nonce_utxo[:8]}"
            )
        slot = self._net.chain.tip.slot
        for tx_id, lost in self._forgotten.items():
            ttl_slot = self._net.hoard[tx_id].ttl_slot or 0
            is_open = lost.kind == "pay" and slot < ttl_slot and not self._is_in_block(tx_id)
            if is_open and lost.account == signed.account:
                reason = f"{tx_id[:8]} is forgotten and could land till {ttl_slot}"
                self._story.violate("I1", f"{signed.tx_id[:8]} is signed at slot {slot}, {reason}")

    def reborn(self, conn: Connection) -> None:
        """A daemon starts on the ledger that a death left. Check that it is whole and holds everything durable."""
        self._last_row = 0
        recorded = {row[0] for row in conn.execute("SELECT tx_id FROM attempts")}
        for tx_id in self._released:
            if tx_id in self.signed and tx_id not in recorded:
                self._story.violate("I6", f"{tx_id[:8]} was released, and the ledger does not know it any more")
        self._check_chain_of_events(conn)
        if self._rng.random() < VERIFIED:
            self._story.reach("the books that a death left are verified")
            self._verify(conn)
        for payment_id in self._accepted:
            if conn.execute("SELECT 1 FROM payments WHERE id = ?", (payment_id,)).fetchone() is None:
                self._story.violate("I4", f"{payment_id} was accepted, and is not in the ledger")

    def _check_chain_of_events(self, conn: Connection) -> None:
        last_seq, last_hash = 0, GENESIS
        for seq, prev_hash, own_hash, text in books.event_texts(conn):
            if (seq, prev_hash, own_hash) != (last_seq + 1, last_hash, hashlib.sha256(text).hexdigest()):
                self._story.violate("I10", f"event {seq} does not follow from the one before")
            last_seq, last_hash = seq, own_hash

    # --- released bytes

    def released(self, raw: bytes, where: str) -> None:
        """Bytes are sent to a provider or a merchant."""
        tx = self._net.release(raw)
        if tx.tx_id not in self._durable:
            self._story.violate("I6", f"{tx.tx_id[:8]} goes to {where} and is not durable")
        if tx.tx_id in self._released:
            if self._released[tx.tx_id].raw != raw:
                self._story.violate("I7", f"{tx.tx_id[:8]} is sent again with other bytes")
            return
        self._released[tx.tx_id] = tx
        signed = self.signed.get(tx.tx_id)
        if signed is None:
            return
        self._spends[tx.tx_id] = Spend(signed.payment, signed.origin, signed.kind == "cancel", tx, self._own)
        if signed.kind == "pay":
            self._check_conflicts(tx, signed)

    def _check_bytes(self, signed: Signed) -> None:
        """I3: the transaction pays one of the requested sets, the rest to ourselves, at a plausible fee."""
        try:
            tx = decode_tx(signed.cbor)
        except LedgerError as error:  # a mint, a certificate or a withdrawal too
            self._story.violate("I3", f"{signed.tx_id[:8]} is no payment: {error}")
            return
        paid = sorted(
            (out.address, *_of_asset(out.lovelace, out.assets))
            for out in tx.outputs
            if out.address not in self._own
        )
        if tx.fee_lovelace > FEE_MAX_LOVELACE:
            self._story.violate("I3", f"{tx.tx_id[:8]} has a fee of {tx.fee_lovelace}")
        if signed.nonce_utxo not in {f"{ref[0]}#{ref[1]}" for ref in tx.inputs}:
            self._story.violate("I1", f"{tx.tx_id[:8]} does not spend its payment's nonce UTxO")
        if signed.kind == "cancel":
            if paid:
                self._story.violate("I3", f"{tx.tx_id[:8]} takes coins back and pays somebody")
            return
        requested = [sorted(outputs) for outputs in self._market.asked(signed.origin, signed.invoice_id)]
        invoice_purchase = self._market.purchase(signed.origin, signed.invoice_id)
        if invoice_purchase is not None and not signed.is_topup and invoice_purchase != signed.purchase:
            self._story.violate("I1", f"{tx.tx_id[:8]} pays an invoice for another purchase")
        if paid not in requested:
            self._story.violate("I3", f"{tx.tx_id[:8]} pays {paid}, asked was {requested}")

    def _check_conflicts(self, tx: Tx, signed: Signed) -> None:
        """I1 over all forks: of two transactions for one purchase, no chain can ever hold both."""
        others = self._by_purchase.setdefault(signed.purchase, [])
        own_lineage = self._lineage(tx)
        for other in others:
            lineage = self._lineage(self._released[other])
            if not (_exclude(own_lineage, lineage) or self._is_overtaken(lineage) or self._is_too_late(lineage)):
                self._story.violate(
                    "I1", f"{tx.tx_id[:8]} and {other[:8]} are for {signed.purchase[:16]}, and both could land"
                )
        others.append(tx.tx_id)

    def _lineage(self, tx: Tx) -> dict[str, Tx]:
        """A transaction and all its released ancestors, which must be on the chain before it."""
        lineage: dict[str, Tx] = {}
        waiting = [tx]
        while waiting:
            ancestor = waiting.pop()
            if ancestor.tx_id not in lineage:
                lineage[ancestor.tx_id] = ancestor
                waiting += [self._net.hoard[ref[0]] for ref in ancestor.inputs if ref[0] in self._net.hoard]
        return lineage

    def _is_overtaken(self, lineage: Mapping[str, Tx]) -> bool:
        """Whether another transaction spent one of the inputs, in a block too deep for any fork."""
        chain = self._net.chain
        final = chain.tip.height - self._net.fork_max
        for tx in lineage.values():
            spenders = [chain.spender.get(ref) for ref in tx.inputs]
            spending = [chain.tx(spender) for spender in spenders if spender and spender != tx.tx_id]
            blocks = [found[1] for found in spending if found is not None]
            if any(block is not None and block.height <= final for block in blocks):
                return True
        return False

    def _is_too_late(self, lineage: Mapping[str, Tx]) -> bool:
        """Whether one of the transactions is on no chain and has expired by a block that no fork can undo."""
        chain = self._net.chain
        final = chain.block(max(0, chain.tip.height - self._net.fork_max))
        return any(
            final is not None
            and tx.ttl_slot is not None
            and tx.ttl_slot <= final.slot
            and not self._is_in_block(tx.tx_id)
            for tx in lineage.values()
        )

    # --- the chain

    def blocks_made(self, blocks: Iterable[DevnetBlock]) -> None:
        """I1 on the current chain."""
        signed_here = [tx for block in blocks for tx in block.txs if tx.tx_id in self.signed]
        for tx in signed_here:
            signed = self.signed[tx.tx_id]
            landed = [other for other in self._by_purchase.get(signed.purchase, []) if self._is_in_block(other)]
            if len(landed) > 1:
                self._story.violate("I1", f"{signed.purchase[:16]} is paid by {[name[:8] for name in landed]}")

    def _is_in_block(self, tx_id: str) -> bool:
        found = self._net.chain.tx(tx_id)
        return found is not None and found[1] is not None

    def landed_invoices(self) -> list[tuple[str, str | None]]:
        """(origin, invoice id) of each transaction on the chain that pays a merchant."""
        paying = [signed for signed in self.signed.values() if signed.kind == "pay" and signed.origin]
        return [(signed.origin, signed.invoice_id) for signed in paying if self._is_in_block(signed.tx_id)]

    # --- answers to clients

    def answered(self, purchase: str, payment_id: str, conn: Connection | None) -> None:
        """I8: one purchase has one payment until that payment ended without paying.

        If a fork brings an earlier payment's transaction back, that payment is reported again. Its successor
        spends an output of the earlier one's end, so it can no longer land. A fork can also bring the earlier
        payment back before a late answer of its successor arrives; then it counts that it had ended when the
        successor was made. `conn` is None if the daemon has died since its answer; then the next one is checked.
        """
        self._accepted[payment_id] = None
        before = self._answers.get(purchase)
        if before is not None and before != payment_id:
            if conn is None:
                return
            row, now = payments.payment(conn, before), payments.payment(conn, payment_id)
            is_back = row is not None and now is not None and now.seq < row.seq and now.state in ON_CHAIN
            has_ended = row is not None and row.state in ENDED_WITHOUT_PAYING
            if not (is_back or has_ended or _had_ended(conn, before, payment_id)):
                state = None if row is None else row.state
                self._story.violate("I8", f"{purchase[:16]} was {before} ({state}), now it is {payment_id}")
        self._answers[purchase] = payment_id

    # --- the end

    def at_rest(self, conn: Connection) -> None:
        """Faults stopped long ago: everything has ended, the ledger equals the chain, and verify finds nothing."""
        for row in payments.payments_in(conn, tuple(State)):
            self._check_end(conn, row)
        self._check_books(conn)
        self._verify(conn)

    def _verify(self, conn: Connection) -> None:
        for result in verify(conn, self._owner):
            if isinstance(result, AuditFinding):
                self._story.violate("I10", f"verify: {result.table} {result.row}: {result.what}")

    def search(self, path: Path) -> None:
        """I5 for the ledger's file, with what this and all earlier daemons wrote to it."""
        if self._rng.random() < SEARCHED:
            self._story.reach("a ledger is searched for secrets")
            for file in (path, path.with_name(f"{path.name}-wal")):
                self._story.keeps_secrets("the ledger", file.read_bytes())

    def _check_end(self, conn: Connection, row: PaymentRow) -> None:
        landed = [a for a in queries.attempts(conn, row.id) if self._is_in_block(a.tx_id)]
        pays = [a.tx_id for a in landed if a.kind == "pay"]
        is_paid = row.state in ON_CHAIN
        if is_paid is not bool(pays):
            self._story.violate("I9", f"{row.id} is {row.state}, on the chain are {[t[:8] for t in pays]}")
        if row.state not in (State.SETTLED, *ENDED_WITHOUT_PAYING):
            self._story.violate("I4", f"{row.id} is still {row.state}")
        self._check_payment(conn, row.id, [a.tx_id for a in landed])

    def _check_payment(self, conn: Connection, payment_id: str, landed: list[str]) -> None:
        self._spending.at_rest(conn, payment_id, [self._spends[tx_id] for tx_id in landed])

    def _check_books(self, conn: Connection) -> None:
        """I2, to the unit."""
        booked: dict[str, int] = {}
        held: dict[str, int] = {}
        for account, asset, units in journal.balances(conn):
            if (name := account.partition("/")[0]) in (WALLET, HELD):
                booked[asset] = booked.get(asset, 0) + units
            if name == HELD and units:
                held[asset] = held.get(asset, 0) + units
        true: dict[str, int] = {}
        states = dict(conn.execute("SELECT ref, state FROM utxos").fetchall())
        utxos = (utxo for own in sorted(self._own) for utxo in self._net.chain.utxos_at(own))
        for (tx_id, index), out in utxos:
            state = states.get(f"{tx_id}#{index}")
            if state != ("available" if out.datum_hash is None else "locked"):
                self._story.violate("I2", f"{tx_id[:8]}#{index} is ours on the chain, and {state} in the ledger")
            for asset, units in ((LOVELACE, out.lovelace), *out.assets.items()):
                true[asset] = true.get(asset, 0) + units
        if booked != true:
            self._story.violate("I2", f"the books say {booked}, the chain has {true}")
        if held:
            self._story.violate("I2", f"{held} is held, and nothing is in flight")

    def outflow_is_booked(self, conn: Connection) -> None:
        """I2 and I3 at all times, per payment."""
        landed = [spend for tx_id, spend in self._spends.items() if self._is_in_block(tx_id)]
        self._spending.outflow_is_booked(conn, landed)


def outputs_asked(outputs: Iterable[tuple[bytes, int]], asset: str) -> tuple[tuple[bytes, str, int], ...]:
    return tuple((address, asset, units) for address, units in outputs)


def _of_asset(lovelace: int, assets: Mapping[str, int]) -> tuple[str, int]:
    """The asset and units that an output is for. With a token, its lovelace is only the min-ADA."""
    return next(iter(assets.items())) if assets else (LOVELACE, lovelace)


def _had_ended(conn: Connection, payment_id: str, successor_id: str) -> bool:
    """Whether a payment had ended without paying when its successor was made."""
    row = conn.execute(_STATE_BEFORE, (payment_id, successor_id)).fetchone()
    return row is not None and row[0] in ENDED_WITHOUT_PAYING


def _exclude(first: Mapping[str, Tx], second: Mapping[str, Tx]) -> bool:
    """Whether no chain can hold both sets: two different transactions of them spend one output."""
    spent: dict[OutRef, str] = {ref: tx.tx_id for tx in first.values() for ref in tx.inputs}
    return any(spent.get(ref, tx.tx_id) != tx.tx_id for tx in second.values() for ref in tx.inputs)
