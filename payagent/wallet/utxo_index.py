"""The wallet's available UTxOs, indexed so that coin selection never scans all of them.

The caller adds only UTxOs of our key without datum or script that nothing else reserves. They are confirmed, or
pending change.

Never: decides which UTxOs are available.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import merge
from types import MappingProxyType

from payagent.core.money import LOVELACE

_Entry = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Utxo:
    """One unspent output of ours: `lovelace`, and `assets` as (policy and name in hex, units) pairs."""

    tx_id: str
    index: int
    lovelace: int
    assets: tuple[tuple[str, int], ...] = ()
    ref: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ref", f"{self.tx_id}#{self.index}")


class UtxoIndex:
    """The available UTxOs. Each operation costs a binary search.

    The order is by amount and then by reference, never by arrival, so the same UTxOs give the same results.
    Not thread-safe: one thread owns it.
    """

    __slots__ = ("_by_asset", "_by_ref", "_mixed", "_pure", "_totals")

    def __init__(self, utxos: Iterable[Utxo] = ()) -> None:
        self._by_ref: dict[str, Utxo] = {}
        self._pure: list[_Entry] = []
        self._mixed: list[_Entry] = []
        self._by_asset: dict[str, list[_Entry]] = {}
        self._totals: dict[str, int] = {}
        for utxo in utxos:
            self._enter(utxo, list.append)
        for entries in (self._pure, self._mixed, *self._by_asset.values()):
            entries.sort()

    def __len__(self) -> int:
        return len(self._by_ref)

    def __contains__(self, ref: object) -> bool:
        return ref in self._by_ref

    def __getitem__(self, ref: str) -> Utxo:
        return self._by_ref[ref]

    def __iter__(self) -> Iterator[Utxo]:
        return iter(self._by_ref.values())

    @property
    def totals(self) -> Mapping[str, int]:
        """Units per asset, lovelace included. Assets with none are absent."""
        return MappingProxyType(self._totals)

    def add(self, utxo: Utxo) -> None:
        """Add a UTxO. Raises KeyError if it is already there."""
        self._enter(utxo, insort)

    def remove(self, ref: str) -> Utxo:
        """Remove a UTxO and return it. Raises KeyError if it is not there."""
        utxo = self._by_ref.pop(ref)
        _cut(self._mixed if utxo.assets else self._pure, (utxo.lovelace, ref))
        self._count(LOVELACE, -utxo.lovelace)
        for asset, units in utxo.assets:
            entries = self._by_asset[asset]
            _cut(entries, (units, ref))
            if not entries:
                del self._by_asset[asset]
            self._count(asset, -units)
        return utxo

    def pure_from(self, lovelace: int) -> Iterator[Utxo]:
        """UTxOs of pure ADA with at least `lovelace`, smallest first."""
        return self._upwards(self._pure, lovelace)

    def asset_from(self, asset: str, units: int) -> Iterator[Utxo]:
        """UTxOs with at least `units` of an asset, fewest units first."""
        return self._upwards(self._by_asset.get(asset, []), units)

    def pure_largest(self) -> Iterator[Utxo]:
        """UTxOs of pure ADA, largest first."""
        return self._named(reversed(self._pure))

    def mixed_largest(self) -> Iterator[Utxo]:
        """UTxOs with other assets, most lovelace first."""
        return self._named(reversed(self._mixed))

    def largest(self) -> Iterator[Utxo]:
        """All UTxOs, most lovelace first."""
        return self._named(merge(reversed(self._pure), reversed(self._mixed), reverse=True))

    def smallest(self) -> Iterator[Utxo]:
        """All UTxOs, least lovelace first."""
        return self._named(merge(self._pure, self._mixed))

    def asset_largest(self, asset: str) -> Iterator[Utxo]:
        """UTxOs with an asset, most units first."""
        return self._named(reversed(self._by_asset.get(asset, [])))

    def _enter(self, utxo: Utxo, put: Callable[[list[_Entry], _Entry], None]) -> None:
        if utxo.ref in self._by_ref:
            raise KeyError(f"UTxO {utxo.ref} is there already")
        self._by_ref[utxo.ref] = utxo
        put(self._mixed if utxo.assets else self._pure, (utxo.lovelace, utxo.ref))
        self._count(LOVELACE, utxo.lovelace)
        for asset, units in utxo.assets:
            put(self._by_asset.setdefault(asset, []), (units, utxo.ref))
            self._count(asset, units)

    def _count(self, asset: str, units: int) -> None:
        total = self._totals.get(asset, 0) + units
        if total:
            self._totals[asset] = total
        else:
            self._totals.pop(asset, None)

    def _named(self, entries: Iterable[_Entry]) -> Iterator[Utxo]:
        return (self._by_ref[ref] for _, ref in entries)

    def _upwards(self, entries: list[_Entry], amount: int) -> Iterator[Utxo]:
        for place in range(bisect_left(entries, (amount, "")), len(entries)):
            yield self._by_ref[entries[place][1]]


def _cut(entries: list[_Entry], entry: _Entry) -> None:
    del entries[bisect_left(entries, entry)]
