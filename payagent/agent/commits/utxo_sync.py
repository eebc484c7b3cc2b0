"""Compares the ledger's UTxOs with a provider's complete list, on the writer's thread. Start at `sync`.

A UTxO of a transaction that is not ours is a deposit and enters the ledger. A UTxO that the list lacks may be
unspent: it becomes `missing` until it is listed again. A reserved one may have been spent by its own
payment, so its absence counts only when that payment is replaced. A deposit is reversed only when providers
repeatedly deny its transaction. A reserved UTxO then becomes `rolled_back`.
Never: concludes anything from an absence.
"""

from collections.abc import Mapping

from payagent.agent.base.free_utxos import FreeUtxoIndex
from payagent.chain.provider import ChainUtxo
from payagent.chain.quorum_rules import Listing
from payagent.core.changes import Book
from payagent.core.money import LOVELACE
from payagent.core.payment.apply import move_utxo, new_utxo
from payagent.core.utxo import UtxoEvent
from payagent.store.db.unit import Unit
from payagent.store.executor import write
from payagent.store.rows import attempts_and_utxos
from payagent.wallet.utxo_index import UtxoIndex

_LISTED_STATES = ("available", "locked")
"""States of UTxOs that a complete list has to contain."""


def sync(unit: Unit, listing: Listing, utxos: UtxoIndex, now_ms: int, account: int = 0) -> int:
    """Apply a complete list of an account's UTxOs. Returns the number of new deposits.

    A UTxO on which providers disagree stays as it is: neither a deposit nor missing.
    """
    states = attempts_and_utxos.utxo_states(unit.conn, account)
    seen = set(listing.doubtful)
    deposits = 0
    for utxo in listing.agreed:
        ref = utxo.ref
        seen.add(ref)
        if states.get(ref, "missing") == "missing":
            deposits += _listed(unit, utxo, utxos, now_ms, account)
    for ref in [ref for ref, state in states.items() if state in _LISTED_STATES and ref not in seen]:
        row = attempts_and_utxos.utxo(unit.conn, ref)
        if row is not None and (row.state == "locked" or row.reserved_for is not None or ref in utxos):
            write(unit, move_utxo(row, UtxoEvent.UNLISTED), now_ms, FreeUtxoIndex(utxos))
    return deposits


def take_back(unit: Unit, ref: str, now_ms: int) -> None:
    """Reverse a deposit whose transaction was rolled back, and delete its UTxO.

    A UTxO that a payment has reserved is kept as `rolled_back`. If the transaction lands later, it is a new
    deposit.
    """
    row = attempts_and_utxos.utxo(unit.conn, ref)
    if row is not None and row.state == "missing":
        event = UtxoEvent.DENIED if row.reserved_for is None else UtxoEvent.DENIED_RESERVED
        write(unit, move_utxo(row, event), now_ms)


def is_stale(listing: Listing, states: Mapping[str, str]) -> bool:
    """Whether the list differs from the ledger's UTxOs (`states`: by ref), so that `sync` has to write."""
    refs = {utxo.ref for utxo in listing.agreed}
    if any(states.get(ref, "missing") == "missing" for ref in refs):
        return True
    refs |= listing.doubtful
    return any(state in _LISTED_STATES and ref not in refs for ref, state in states.items())


def _listed(unit: Unit, utxo: ChainUtxo, utxos: UtxoIndex, now_ms: int, account: int) -> int:
    """A listed UTxO that the ledger lacks or sets aside. Returns 1 if it is a deposit."""
    event = UtxoEvent.LISTED_LOCKED if _is_locked(utxo) else UtxoEvent.LISTED
    row = attempts_and_utxos.utxo(unit.conn, utxo.ref)
    if row is None:
        # an unreadable output is booked with the part that can be counted
        changes = new_utxo(utxo.ref, {LOVELACE: utxo.lovelace, **utxo.assets}, event, account=account)
    else:
        changes = tuple(move_utxo(row, event, is_reserved=row.reserved_for is not None))
    write(unit, changes, now_ms, FreeUtxoIndex(utxos))
    return sum(isinstance(change, Book) for change in changes)


def _is_locked(utxo: ChainUtxo) -> bool:
    """Whether payagent never spends it: it holds a datum, a script, or something unreadable."""
    return utxo.has_datum or utxo.has_script or utxo.unreadable
