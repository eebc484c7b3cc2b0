"""Compares the providers' list of our UTxOs with the UTxOs that the ledger knows.

A new UTxO in the list is booked as a deposit. A missing one is examined: an external spend, or a deposit that was
rolled back.
Never: concludes from an absence that a UTxO was spent; looks for our own transactions
(agent.chain_sync.confirmations).
"""

from collections.abc import Hashable, Set

from payagent.agent.chain_sync.external_spends import ExternalSpends
from payagent.agent.chain_sync.open_payments import OpenPayments
from payagent.agent.chain_sync.repeated_reads import RepeatedReads
from payagent.agent.chain_sync.rolled_back_deposits import RolledBackDeposits
from payagent.agent.commits import utxo_sync as deposits
from payagent.agent.context import AgentContext
from payagent.chain.provider import BlockSeen, ChainUtxo, Found, Unknown, Why
from payagent.chain.quorum_rules import Listing
from payagent.chain.quorum_view import QuorumView


class UtxoListSync:
    """The part of each pass that reads the UTxO list. It runs after the payments.

    `trouble`: why the list was not read and booked; None if it was. `is_read`: whether it ever was, well enough to
    sign by.
    """

    def __init__(self, context: AgentContext, rows: OpenPayments) -> None:
        self.trouble: str | None = "the wallet's UTxOs were not read yet"
        self.is_read = False
        self.rolled_back = RolledBackDeposits(context, rows)
        self._context = context
        self._open_payments = rows
        self._external_spends = ExternalSpends(context, rows)
        self._new_utxos = RepeatedReads()

    @property
    def is_due(self) -> bool:
        return self.trouble is not None

    async def check(self, view: QuorumView, tip: BlockSeen) -> None:
        """Compare the newest transactions once after a start, take in the list, then check for what it lacks.

        If the list was read, external spends and rolled-back deposits are checked after it.
        """
        context = self._context
        why_not_compared = await self._external_spends.compare(view)
        read = await view.utxos(context.config.own.text)
        self.trouble = read.reason if isinstance(read, Unknown) else why_not_compared
        if not isinstance(read, Found):
            # one list of several is enough to sign with the known UTxOs; nothing is booked from it
            self.is_read |= isinstance(read, Unknown) and read.why is Why.NOT_YET
            return
        known = self._open_payments.utxos()
        now_ms = context.ports.clock.now_ms()
        listing = self._believed(view, read.value, known.keys(), now_ms)
        if deposits.is_stale(listing, known):
            account = context.config.account
            await context.write(
                "deposit", lambda unit: deposits.sync(unit, listing, context.utxos, now_ms, account)
            )
        self.is_read = True
        if not listing.doubtful:
            context.chain.booked = tip
        await self._external_spends.check(view, listing)
        if view.is_current:
            await self.rolled_back.check(view, tip)

    def _believed(self, view: QuorumView, listing: Listing, known: Set[str], now_ms: int) -> Listing:
        """The part of a list that is believed. A lone answer among several providers is not enough for a new UTxO.

        If only one of several providers answers, a new UTxO takes three reads, a minute apart
        (exactly-once.md R8). The others must have been silent for long: they could not undo a false UTxO when they
        answer again.

        If only one provider is configured, its list is believed: a UTxO that it invents pays nobody.
        """
        if not view.is_lonely("utxos"):
            self._new_utxos = RepeatedReads()
            return listing
        new_utxos = {utxo.ref: utxo for utxo in listing.agreed if utxo.ref not in known}
        may_add = view.may_add(is_first=not known)
        unproven = {
            ref
            for ref, utxo in new_utxos.items()
            if not self._new_utxos.is_enough(ref, _worth(utxo), view.tip.hash, now_ms) or not may_add
        }
        self._new_utxos.keep(new_utxos)
        agreed = tuple(utxo for utxo in listing.agreed if utxo.ref not in unproven)
        return Listing(agreed, listing.doubtful | unproven)


def _worth(utxo: ChainUtxo) -> Hashable:
    """Everything about a listed UTxO that is booked."""
    return utxo.lovelace, frozenset(utxo.assets.items()), utxo.has_datum, utxo.has_script, utxo.unreadable
