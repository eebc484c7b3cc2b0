"""The free coins in memory, changed inside a job: every change is undone if the job or its commit is.

May import: wallet.utxo_index, store. Never: touches the coins outside a job of the writer's thread.
"""

from payagent.store.db.unit import Unit
from payagent.store.rows.attempts_and_utxos import CoinRow
from payagent.wallet.utxo_index import Coin, Coins


def coin_of(row: CoinRow) -> Coin:
    return Coin(row.tx_id, row.output_index, row.lovelace, tuple(row.assets.items()))


def put(unit: Unit, coins: Coins, row: CoinRow) -> None:
    """Make a coin spendable."""
    coin = coin_of(row)
    coins.add(coin)

    def undo() -> None:
        coins.remove(coin.ref)

    unit.undo(undo)


def take(unit: Unit, coins: Coins, ref: str) -> None:
    """Make a coin unavailable to selection."""
    coin = coins.remove(ref)
    unit.undo(lambda: coins.add(coin))
