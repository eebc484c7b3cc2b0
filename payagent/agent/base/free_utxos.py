"""Changes the index of available UTxOs inside a job. If the job or its commit fails, the change is undone.

Never: changes the index outside a job of the writer's thread.
"""

from dataclasses import dataclass
from functools import partial

from payagent.core.aggregate import UtxoRow
from payagent.core.changes import Free
from payagent.core.utxo import FreeSet, UtxoState
from payagent.store.db.unit import Unit
from payagent.wallet.utxo_index import Utxo, UtxoIndex


def utxo_of(row: UtxoRow) -> Utxo:
    return Utxo(row.tx_id, row.output_index, row.lovelace, tuple(row.assets.items()))


def row_of_utxo(utxo: Utxo) -> UtxoRow:
    """The UTxO as the ledger has it while it is free."""
    return UtxoRow(
        *(utxo.ref, utxo.tx_id, utxo.index, utxo.lovelace, dict(utxo.assets)), *("", UtxoState.AVAILABLE, None)
    )


@dataclass(frozen=True, slots=True)
class FreeUtxoIndex:
    """The free set, as `store.executor` changes it."""

    utxos: UtxoIndex

    def change(self, unit: Unit, change: Free) -> None:
        """Put a UTxO in, or take it out if it is there."""
        if change.what is FreeSet.PUT:
            self.utxos.add(utxo_of(change.utxo))
            unit.undo(partial(self.utxos.remove, change.utxo.ref))
        elif change.utxo.ref in self.utxos:
            unit.undo(partial(self.utxos.add, self.utxos.remove(change.utxo.ref)))
