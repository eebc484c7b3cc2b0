"""The free coins in memory, changed inside a job: every change is undone if the job or its commit is.

May import: wallet.utxo_index, store. Never: touches the coins outside a job of the writer's thread.
"""

from payagent.store.db.unit import Unit
from payagent.store.rows.attempts_and_utxos import UtxoRow
from payagent.wallet.utxo_index import Utxo, UtxoIndex


def utxo_of(row: UtxoRow) -> Utxo:
    return Utxo(row.tx_id, row.output_index, row.lovelace, tuple(row.assets.items()))


def make_available(unit: Unit, utxos: UtxoIndex, row: UtxoRow) -> None:
    """Make a coin spendable."""
    utxo = utxo_of(row)
    utxos.add(utxo)

    def undo() -> None:
        utxos.remove(utxo.ref)

    unit.undo(undo)


def make_unavailable(unit: Unit, utxos: UtxoIndex, ref: str) -> None:
    """Make a coin unavailable to selection."""
    utxo = utxos.remove(ref)
    unit.undo(lambda: utxos.add(utxo))
