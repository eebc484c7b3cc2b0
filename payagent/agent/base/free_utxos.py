"""The free coins in memory, changed inside a job: every change is undone if the job or its commit is.

May import: wallet.utxo_index, store. Never: touches the coins outside a job of the writer's thread.
"""

from payagent.store.db.unit import Unit
from payagent.store.rows.attempts_and_utxos import CoinRow
from payagent.wallet.utxo_index import Utxo, UtxoIndex


def utxo_of(row: CoinRow) -> Utxo:
    return Utxo(row.tx_id, row.output_index, row.lovelace, tuple(row.assets.items()))


def make_available(unit: Unit, coins: UtxoIndex, row: CoinRow) -> None:
    """Make a coin spendable."""
    coin = utxo_of(row)
    coins.add(coin)

    def undo() -> None:
        coins.remove(coin.ref)

    unit.undo(undo)


def make_unavailable(unit: Unit, coins: UtxoIndex, ref: str) -> None:
    """Make a coin unavailable to selection."""
    coin = coins.remove(ref)
    unit.undo(lambda: coins.add(coin))
