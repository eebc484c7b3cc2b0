"""Changes the index of available UTxOs inside a job. If the job or its commit fails, the change is undone.

May import: wallet.utxo_index, store. Never: changes the index outside a job of the writer's thread.
"""

from payagent.store.db.unit import Unit
from payagent.store.rows.attempts_and_utxos import UtxoRow
from payagent.wallet.utxo_index import Utxo, UtxoIndex


def utxo_of(row: UtxoRow) -> Utxo:
    return Utxo(row.tx_id, row.output_index, row.lovelace, tuple(row.assets.items()))


def make_available(unit: Unit, utxos: UtxoIndex, row: UtxoRow) -> None:
    """Add a UTxO to the available ones."""
    utxo = utxo_of(row)
    utxos.add(utxo)

    def undo() -> None:
        utxos.remove(utxo.ref)

    unit.undo(undo)


def make_unavailable(unit: Unit, utxos: UtxoIndex, ref: str) -> None:
    """Remove a UTxO from the available ones, so that coin selection skips it."""
    utxo = utxos.remove(ref)
    unit.undo(lambda: utxos.add(utxo))
