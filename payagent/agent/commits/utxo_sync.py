"""Our own view of our UTxOs, brought in step with a provider's complete list, on the writer's thread.

What arrived in transactions that are not ours is a deposit and enters the ledger. What the list lacks is not
thereby spent: such a coin is set aside as `missing` and comes back when it is listed again (rule 4). One that is
reserved may just be spent by its own payment: that it is missing counts when the payment is replaced. Only when
its very transaction is denied, time and again, is the deposit taken back; what is reserved is `vanished` then.
May import: core, chain.provider, chain.quorum_rules, wallet.utxo_index, store, agent.base. Never: concludes
anything from an absence.
"""

from collections.abc import Mapping

from payagent.agent.base.free_utxos import make_available, make_unavailable
from payagent.chain.provider import ChainUtxo
from payagent.chain.quorum_rules import Listing
from payagent.core import ledger
from payagent.core.money import LOVELACE
from payagent.store.db.unit import Unit
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows import writes as records
from payagent.store.rows.attempts_and_utxos import UtxoRow
from payagent.wallet.utxo_index import UtxoIndex

_THERE = ("free", "locked")
"""UtxoIndex in these states have to be listed."""


def sync(unit: Unit, listing: Listing, utxos: UtxoIndex, now_ms: int) -> int:
    """Take in a complete list of our UTxOs; returns the number of deposits that were new.

    What is doubtful, since providers do not list it alike, is left as it is: neither a deposit nor missing.
    """
    known = queries.utxo_states(unit.conn)
    seen = set(listing.doubtful)
    deposits = 0
    for utxo in listing.agreed:
        ref = utxo.ref
        seen.add(ref)
        if ref not in known:
            deposits += _deposit(unit, ref, utxo, utxos, now_ms)
        elif known[ref] == "missing":
            row = queries.utxo(unit.conn, ref)
            records.set_utxo_state(unit, ref, "locked" if _is_locked(utxo) else "free")
            if not _is_locked(utxo) and row is not None and row.reserved_for is None:
                make_available(unit, utxos, row)
    for ref in [ref for ref, state in known.items() if state in _THERE and ref not in seen]:
        row = queries.utxo(unit.conn, ref)
        if row is not None and (row.state == "locked" or row.reserved_for is not None or ref in utxos):
            records.set_utxo_state(unit, ref, "missing")
            if ref in utxos:
                make_unavailable(unit, utxos, ref)
    return deposits


def take_back(unit: Unit, ref: str, now_ms: int) -> None:
    """A deposit whose transaction is gone with its block: the contrary entry, and the coin is forgotten.

    Not one that a payment has: of that it is remembered that it vanished. Should the transaction land after all,
    it is a new deposit.
    """
    row = queries.utxo(unit.conn, ref)
    if row is None or row.state != "missing":
        return
    records.write_entry(unit, ledger.undeposit({LOVELACE: row.lovelace, **row.assets}), now_ms, ref=ref)
    if row.reserved_for is None:
        records.forget_utxo(unit, ref)
    else:
        records.set_utxo_state(unit, ref, "vanished")


def is_back(unit: Unit, ref: str, now_ms: int) -> bool:
    """Book a deposit anew that was taken back, now that its coin is shown again; False when it was not."""
    row = queries.utxo(unit.conn, ref)
    if row is None or row.state != "vanished":
        return False
    records.write_entry(unit, ledger.deposit({LOVELACE: row.lovelace, **row.assets}), now_ms, ref=ref)
    records.set_utxo_state(unit, ref, "missing")
    return True


def is_stale(listing: Listing, known: Mapping[str, str]) -> bool:
    """Whether a list differs from what we know (states by ref) in a way that needs a write."""
    refs = {utxo.ref for utxo in listing.agreed}
    if any(known.get(ref, "missing") == "missing" for ref in refs):
        return True
    refs |= listing.doubtful
    return any(state in _THERE and ref not in refs for ref, state in known.items())


def _deposit(unit: Unit, ref: str, utxo: ChainUtxo, utxos: UtxoIndex, now_ms: int) -> int:
    locked = _is_locked(utxo)
    if queries.utxo(unit.conn, ref) is not None:
        if not is_back(unit, ref, now_ms):
            return 0
        records.set_utxo_state(unit, ref, "locked" if locked else "free")
        return 1
    row = UtxoRow(
        ref,
        utxo.tx_id,
        utxo.index,
        utxo.lovelace,
        dict(utxo.assets),
        "deposit",
        "locked" if locked else "free",
        None,
    )
    records.add_utxo(unit, row)
    # of an unreadable output only what can be counted is booked
    records.write_entry(unit, ledger.deposit({LOVELACE: utxo.lovelace, **utxo.assets}), now_ms, ref=ref)
    if not locked:
        make_available(unit, utxos, row)
    return 1


def _is_locked(utxo: ChainUtxo) -> bool:
    """Never spent: it holds a datum or a script, or what cannot be counted."""
    return utxo.has_datum or utxo.has_script or utxo.unreadable
