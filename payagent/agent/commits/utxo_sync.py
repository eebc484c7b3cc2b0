"""Compares the ledger's UTxOs with a provider's complete list, on the writer's thread. Start at `sync`.

A UTxO of a transaction that is not ours is a deposit and enters the ledger. A UTxO that the list lacks may be
unspent: it becomes `missing` until it is listed again (rule 4). A reserved one may have been spent by its own
payment, so its absence counts only when that payment is replaced. A deposit is reversed only when providers
repeatedly deny its transaction. A reserved UTxO then becomes `rolled_back`.
May import: core, chain.provider, chain.quorum_rules, wallet.utxo_index, store, agent.base. Never: concludes
anything from an absence.
"""

from collections.abc import Mapping

from payagent.agent.base.free_utxos import make_available, make_unavailable
from payagent.chain.provider import ChainUtxo
from payagent.chain.quorum_rules import Listing
from payagent.core import ledger
from payagent.core.aggregate import UtxoRow
from payagent.core.money import LOVELACE
from payagent.store.db.unit import Unit
from payagent.store.rows import attempts_and_utxos, writes
from payagent.wallet.utxo_index import UtxoIndex

_LISTED_STATES = ("available", "locked")
"""States of UTxOs that a complete list has to contain."""


def sync(unit: Unit, listing: Listing, utxos: UtxoIndex, now_ms: int) -> int:
    """Apply a complete list of our UTxOs. Returns the number of new deposits.

    A UTxO on which providers disagree stays as it is: neither a deposit nor missing.
    """
    states = attempts_and_utxos.utxo_states(unit.conn)
    seen = set(listing.doubtful)
    deposits = 0
    for utxo in listing.agreed:
        ref = utxo.ref
        seen.add(ref)
        if ref not in states:
            deposits += _deposit(unit, ref, utxo, utxos, now_ms)
        elif states[ref] == "missing":
            row = attempts_and_utxos.utxo(unit.conn, ref)
            writes.set_utxo_state(unit, ref, "locked" if _is_locked(utxo) else "available")
            if not _is_locked(utxo) and row is not None and row.reserved_for is None:
                make_available(unit, utxos, row)
    for ref in [ref for ref, state in states.items() if state in _LISTED_STATES and ref not in seen]:
        row = attempts_and_utxos.utxo(unit.conn, ref)
        if row is not None and (row.state == "locked" or row.reserved_for is not None or ref in utxos):
            writes.set_utxo_state(unit, ref, "missing")
            if ref in utxos:
                make_unavailable(unit, utxos, ref)
    return deposits


def take_back(unit: Unit, ref: str, now_ms: int) -> None:
    """Reverse a deposit whose transaction was rolled back, and delete its UTxO.

    A UTxO that a payment has reserved is kept as `rolled_back`. If the transaction lands later, it is a new
    deposit.
    """
    row = attempts_and_utxos.utxo(unit.conn, ref)
    if row is None or row.state != "missing":
        return
    writes.write_entry(unit, ledger.deposit_reversed({LOVELACE: row.lovelace, **row.assets}), now_ms, ref=ref)
    if row.reserved_for is None:
        writes.forget_utxo(unit, ref)
    else:
        writes.set_utxo_state(unit, ref, "rolled_back")


def is_back(unit: Unit, ref: str, now_ms: int) -> bool:
    """Book a reversed deposit again, now that its UTxO is listed. Returns False if it was not reversed."""
    row = attempts_and_utxos.utxo(unit.conn, ref)
    if row is None or row.state != "rolled_back":
        return False
    writes.write_entry(unit, ledger.deposit({LOVELACE: row.lovelace, **row.assets}), now_ms, ref=ref)
    writes.set_utxo_state(unit, ref, "missing")
    return True


def is_stale(listing: Listing, states: Mapping[str, str]) -> bool:
    """Whether the list differs from the ledger's UTxOs (`states`: by ref), so that `sync` has to write."""
    refs = {utxo.ref for utxo in listing.agreed}
    if any(states.get(ref, "missing") == "missing" for ref in refs):
        return True
    refs |= listing.doubtful
    return any(state in _LISTED_STATES and ref not in refs for ref, state in states.items())


def _deposit(unit: Unit, ref: str, utxo: ChainUtxo, utxos: UtxoIndex, now_ms: int) -> int:
    is_locked = _is_locked(utxo)
    if attempts_and_utxos.utxo(unit.conn, ref) is not None:
        if not is_back(unit, ref, now_ms):
            return 0
        writes.set_utxo_state(unit, ref, "locked" if is_locked else "available")
        return 1
    row = UtxoRow(
        ref,
        utxo.tx_id,
        utxo.index,
        utxo.lovelace,
        dict(utxo.assets),
        "deposit",
        "locked" if is_locked else "available",
        None,
    )
    writes.add_utxo(unit, row)
    # an unreadable output is booked with the part that can be counted
    writes.write_entry(unit, ledger.deposit({LOVELACE: utxo.lovelace, **utxo.assets}), now_ms, ref=ref)
    if not is_locked:
        make_available(unit, utxos, row)
    return 1


def _is_locked(utxo: ChainUtxo) -> bool:
    """Whether payagent never spends it: it holds a datum, a script, or something unreadable."""
    return utxo.has_datum or utxo.has_script or utxo.unreadable
