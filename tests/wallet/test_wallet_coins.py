"""The index of free coins gives the answers that walking over all coins would give."""

import random

import pytest
from wallet.worlds import ASSETS, random_wallet

from payagent.wallet.utxo_index import Utxo, UtxoIndex


def by_lovelace(coins: list[Utxo]) -> list[Utxo]:
    return sorted(coins, key=lambda coin: (coin.lovelace, coin.ref))


def agrees(index: UtxoIndex, coins: list[Utxo], rnd: random.Random) -> None:
    pure = [coin for coin in by_lovelace(coins) if not coin.assets]
    mixed = [coin for coin in by_lovelace(coins) if coin.assets]
    bound = rnd.choice(coins).lovelace + rnd.choice([-1, 0, 1]) if coins else 5
    assert len(index) == len(coins)
    assert list(index.pure_from(bound)) == [coin for coin in pure if coin.lovelace >= bound]
    assert list(index.pure_largest()) == pure[::-1]
    assert list(index.mixed_largest()) == mixed[::-1]
    assert list(index.largest()) == by_lovelace(coins)[::-1]
    assert list(index.smallest()) == by_lovelace(coins)
    name = rnd.choice(ASSETS)
    holders = sorted((dict(coin.assets)[name], coin.ref) for coin in coins if name in dict(coin.assets))
    assert [coin.ref for coin in index.asset_largest(name)] == [ref for _, ref in reversed(holders)]
    assert [coin.ref for coin in index.asset_from(name, 256)] == [ref for units, ref in holders if units >= 256]
    totals: dict[str, int] = {}
    for coin in coins:
        for asset, units in (("lovelace", coin.lovelace), *coin.assets):
            totals[asset] = totals.get(asset, 0) + units
    assert dict(index.totals) == totals


@pytest.mark.parametrize("seed", range(5))
def test_adding_and_removing_keep_every_answer_right(seed: int) -> None:
    rnd = random.Random(seed)
    coins = random_wallet(rnd, 120)
    index = UtxoIndex(coins[:60])
    held = coins[:60]
    for coin in coins[60:]:
        index.add(coin)
        held.append(coin)
        gone = held.pop(rnd.randrange(len(held)))
        assert gone.ref in index
        assert index[gone.ref] == gone
        assert index.remove(gone.ref) == gone
        assert gone.ref not in index
        agrees(index, held, rnd)
    for coin in list(index):
        index.remove(coin.ref)
    agrees(index, [], rnd)


def test_a_coin_is_there_once() -> None:
    coin = Utxo("ab" * 32, 3, 2_000_000)
    index = UtxoIndex([coin])
    with pytest.raises(KeyError):
        index.add(coin)
    with pytest.raises(KeyError):
        index.remove("cd" * 32 + "#3")
    assert dict(index.totals) == {"lovelace": 2_000_000}
    assert coin.ref == "ab" * 32 + "#3"


@pytest.mark.parametrize("gone", range(4))
def test_of_coins_with_the_same_amounts_the_one_that_is_named_goes(gone: int) -> None:
    alike = [Utxo(f"{n:064x}", 0, 2_000_000, ((ASSETS[1], 5),)) for n in range(4)]
    index = UtxoIndex(alike)
    index.remove(alike.pop(gone).ref)
    assert list(index.asset_from(ASSETS[1], 5)) == alike
    assert list(index.asset_largest(ASSETS[1])) == list(index.mixed_largest()) == alike[::-1]
