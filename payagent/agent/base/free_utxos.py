"""Changes the index of available UTxOs inside a job. If the job or its commit fails, the change is undone.

Never: changes the index outside a job of the writer's thread.
"""

from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class FreeUtxoIndex:
    """The free set, as `store.executor` changes it."""

    utxos: UtxoIndex

    def change(self, unit: Unit, change: Free) -> None:
        """Put a UTxO in, or take it out if it is there."""
        if change.what is FreeSet.PUT:
            make_available(unit, self.utxos, change.utxo)
        elif change.utxo.ref in self.utxos:
            make_unavailable(unit, self.utxos, change.utxo.ref)
