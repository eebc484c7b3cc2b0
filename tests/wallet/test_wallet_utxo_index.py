"""The index of available UTxOs gives the same answers as a scan of all UTxOs."""

import random

import pytest
from kit.wallet import ASSETS, random_wallet

from payagent.wallet.utxo_index import Utxo, UtxoIndex


def by_lovelace(utxos: list[Utxo]) -> list[Utxo]:
    return sorted(utxos, key=lambda utxo: (utxo.lovelace, utxo.ref))


def agrees(index: UtxoIndex, utxos: list[Utxo], rnd: random.Random) -> None:
    pure = [utxo for utxo in by_lovelace(utxos) if not utxo.assets]
    mixed = [utxo for utxo in by_lovelace(utxos) if utxo.assets]
    bound = rnd.choice(utxos).lovelace + rnd.choice([-1, 0, 1]) if utxos else 5
    assert len(index) == len(utxos)
    assert list(index.pure_from(bound)) == [utxo for utxo in pure if utxo.lovelace >= bound]
    assert list(index.pure_largest()) == pure[::-1]
    assert list(index.mixed_largest()) == mixed[::-1]
    assert list(index.largest()) == by_lovelace(utxos)[::-1]
    assert list(index.smallest()) == by_lovelace(utxos)
    name = rnd.choice(ASSETS)
    holders = sorted((dict(utxo.assets)[name], utxo.ref) for utxo in utxos if name in dict(utxo.assets))
    assert [utxo.ref for utxo in index.asset_largest(name)] == [ref for _, ref in reversed(holders)]
    assert [utxo.ref for utxo in index.asset_from(name, 256)] == [ref for units, ref in holders if units >= 256]
    totals: dict[str, int] = {}
    for utxo in utxos:
        for asset, units in (("lovelace", utxo.lovelace), *utxo.assets):
            totals[asset] = totals.get(asset, 0) + units
    assert dict(index.totals) == totals


@pytest.mark.parametrize("seed", range(5))
def test_the_index_stays_right_as_utxos_are_added_and_removed(seed: int) -> None:
    rnd = random.Random(seed)
    utxos = random_wallet(rnd, 120)
    index = UtxoIndex(utxos[:60])
    held = utxos[:60]
    for utxo in utxos[60:]:
        index.add(utxo)
        held.append(utxo)
        gone = held.pop(rnd.randrange(len(held)))
        assert gone.ref in index
        assert index[gone.ref] == gone
        assert index.remove(gone.ref) == gone
        assert gone.ref not in index
        agrees(index, held, rnd)
    for utxo in list(index):
        index.remove(utxo.ref)
    agrees(index, [], rnd)


def test_a_utxo_can_be_added_only_once() -> None:
    utxo = Utxo("ab" * 32, 3, 2_000_000)
    index = UtxoIndex([utxo])
    with pytest.raises(KeyError):
        index.add(utxo)
    with pytest.raises(KeyError):
        index.remove("cd" * 32 + "#3")
    assert dict(index.totals) == {"lovelace": 2_000_000}
    assert utxo.ref == "ab" * 32 + "#3"


@pytest.mark.parametrize("gone", range(4))
def test_removing_one_of_several_equal_utxos_removes_the_named_one(gone: int) -> None:
    alike = [Utxo(f"{n:064x}", 0, 2_000_000, ((ASSETS[1], 5),)) for n in range(4)]
    index = UtxoIndex(alike)
    index.remove(alike.pop(gone).ref)
    assert list(index.asset_from(ASSETS[1], 5)) == alike
    assert list(index.asset_largest(ASSETS[1])) == list(index.mixed_largest()) == alike[::-1]
