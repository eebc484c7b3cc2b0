"""Upkeep: which coins the wallet splits or gathers by itself, so that payments rarely wait for a block.

A coin in a block is spent by one payment, and its change by the next ones while it is in none, through so many at
most; so what the wallet can pay before a block comes is bounded by how many coins it has. From what was wanted
lately and what there is, `decide` says what is worth a fee: to split one coin where the coins at hand would not do
for as many payments as came at once before, or wait now; to gather crumbs that no payment would use.
What was never wanted costs nothing: without a past, and with nobody waiting, nothing is split.
May import: the standard library and core. Never: chooses coins for a payment; knows how a transaction is made.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

DAY_MS = 86_400_000
AT_ONCE_MS = 60_000
"""Payments that begin within so long of each other are at once: the change of the first may be in no block yet."""

UTXOS_MAX = 150
"""How many coins a split makes at most: 11 kB of the 16 that a transaction may have."""

SEVERAL = 3
"""How many payments each new coin holds at least: what one payment uses up is not worth making."""

GATHERED_LEAST, GATHERED_MOST = 50, 200
"""Fewer crumbs are left alone; more are left for the next time."""

GAIN = 20
"""What gathering frees is at least so many times its fee."""

ORDERS_A_DAY = 24
GATHERED_EVERY_MS = DAY_MS
QUIET_MS = 3_600_000
"""Crumbs are gathered when no payment has begun for so long."""

DUST_LOVELACE = 2_000_000
"""A coin of less can pay one smallest output at most, with no change."""

KEPT_LOVELACE = 1_000_000
"""What a coin of change holds at least."""

ASSET_LOVELACE = 323_250
"""What one asset more raises that least by at most: `_ASSET_BYTES` at 4310 lovelace."""

FEE_LOVELACE = 300_000
"""Room for the fee of a payment."""

_BARE_BYTES, _INPUT_BYTES, _OUTPUT_BYTES, _ASSET_BYTES = 350, 40, 69, 75
_VALUE_BYTES, _TRANSACTION_BYTES = 4_500, 15_000
"""What the parts of a transaction take at most, and what is put in one."""


@dataclass(frozen=True, slots=True)
class Held:
    """A coin of ours. `left`: so many payments may spend it and then its change, one after the other, before a
    block comes; 0 while none may.
    """

    ref: str
    lovelace: int
    left: int
    assets: frozenset[str] = frozenset()
    is_in_block: bool = True

    @property
    def spare_lovelace(self) -> int:
        """What it has above what must stay in its change."""
        return self.lovelace - KEPT_LOVELACE - ASSET_LOVELACE * len(self.assets)


@dataclass(frozen=True, slots=True)
class RecentPayment:
    """A payment that was wanted. `lovelace`: what it took, with its fee; None where it was refused for lack of a
    free coin. `handed_over`: it takes coins in a block alone.
    """

    at_ms: int
    lovelace: int | None
    handed_over: bool = False


@dataclass(frozen=True, slots=True)
class Demand:
    """How many payments are wanted at once, and wait now; what one takes, and the largest.

    `handed_over`: how many of those at once were handed over, where one was refused for lack of a free coin.
    `is_quiet`: crumbs may be gathered.
    """

    at_once: int = 0
    handed_over: int = 0
    waiting: int = 0
    typical_lovelace: int = 0
    largest_lovelace: int = 0
    is_quiet: bool = False

    @property
    def cost_lovelace(self) -> int:
        return self.typical_lovelace + FEE_LOVELACE


@dataclass(frozen=True, slots=True)
class Budget:
    """What upkeep may still spend on fees, and what a transaction and a byte of it cost."""

    left_lovelace: int
    base_lovelace: int
    byte_lovelace: int

    def fee_lovelace(self, size: int) -> int:
        return self.base_lovelace + self.byte_lovelace * size

    @property
    def outputs_max(self) -> int:
        """How many coins a split can make for what is left."""
        return (self.left_lovelace - self.fee_lovelace(_BARE_BYTES)) // (self.byte_lovelace * _OUTPUT_BYTES)


@dataclass(frozen=True, slots=True)
class Split:
    """Make `count` coins of `each_lovelace` out of one; what is left over is one more."""

    ref: str
    count: int
    each_lovelace: int


@dataclass(frozen=True, slots=True)
class Gather:
    """Make one coin out of these."""

    refs: tuple[str, ...]


def demand_of(begun: Sequence[RecentPayment], waiting: Sequence[int], *, is_quiet: bool) -> Demand:
    """The demand of payments that began lately, in any order, and of those that wait (by what each pays in
    lovelace).
    """
    paid = [one.lovelace for one in begun if one.lovelace is not None]
    handed_over = [one for one in begun if one.handed_over]
    had_none = any(one.lovelace is None for one in handed_over)
    amounts = list(waiting) or paid
    return Demand(
        at_once=_most_at_once(one.at_ms for one in begun),
        handed_over=_most_at_once(one.at_ms for one in handed_over) if had_none else 0,
        waiting=len(waiting),
        typical_lovelace=sorted(amounts)[(len(amounts) - 1) // 2] if amounts else 0,
        largest_lovelace=max((*waiting, *paid), default=0),
        is_quiet=is_quiet,
    )


def _most_at_once(times_ms: Iterable[int]) -> int:
    ordered = sorted(times_ms)
    most = first = 0
    for last, at_ms in enumerate(ordered):
        while at_ms - ordered[first] >= AT_ONCE_MS:
            first += 1
        most = max(most, last - first + 1)
    return most


def decide(demand: Demand, stock: Sequence[Held], dust: Sequence[Held], budget: Budget) -> Split | Gather | None:
    """What is worth its fee now, if anything is.

    `stock`: the coins that payments may spend, the largest of them at least; `crumbs`: the smallest of those that
    no payment needs.
    """
    return _split(demand, stock, budget) or _gather(demand, dust, budget)


def room(demand: Demand, stock: Iterable[Held]) -> int:
    """How many payments could each take a coin of their own now."""
    return sum(_carries(utxo.spare_lovelace, utxo.left, demand) > 0 for utxo in stock)


def _carries(spare_lovelace: int, left: int, demand: Demand) -> int:
    """How many typical payments a coin can make before a block comes."""
    return max(0, min(left, spare_lovelace // demand.cost_lovelace))


def _split(demand: Demand, stock: Sequence[Held], budget: Budget) -> Split | None:
    """Out of the coin that gains most by it, where what there is carries fewer payments than are wanted."""
    if not demand.typical_lovelace:
        return None
    lacks_utxos = _suited(demand, stock) < demand.handed_over
    if not lacks_utxos and not _is_low(demand, stock):
        return None
    best, best_gain = None, 0
    for utxo in stock:
        split = _split_of(utxo, demand, budget)
        gain = 0 if split is None else _gain(utxo, split, demand, lacks_utxos=lacks_utxos)
        if gain > best_gain:
            best, best_gain = split, gain
    return best


def _is_low(demand: Demand, stock: Sequence[Held]) -> bool:
    """Whether there is less than those who wait need; while nobody does, than came at once before, and coins are
    few: with the next block all change is as good as new.
    """
    carried = sum(_carries(utxo.spare_lovelace, utxo.left, demand) for utxo in stock)
    if demand.waiting:
        return carried < demand.waiting
    return carried < demand.at_once and 2 * _suited(demand, stock) < min(demand.at_once, UTXOS_MAX)


def _suited(demand: Demand, stock: Iterable[Held]) -> int:
    """How many coins are large enough for a typical payment, those that are yet to come too."""
    return sum(utxo.spare_lovelace >= demand.cost_lovelace for utxo in stock)


def _split_of(utxo: Held, demand: Demand, budget: Budget) -> Split | None:
    """As many coins as are wanted, of several payments each; what none of them needs stays in the change."""
    spare = utxo.spare_lovelace - budget.fee_lovelace(_BARE_BYTES)
    output_lovelace = budget.byte_lovelace * _OUTPUT_BYTES
    least = KEPT_LOVELACE + SEVERAL * demand.cost_lovelace
    wanted = max(demand.at_once, demand.waiting)
    count = min(UTXOS_MAX, wanted, budget.outputs_max, spare // (least + output_lovelace))
    if count < 2:
        return None
    for_all_left = KEPT_LOVELACE + demand.cost_lovelace * max(SEVERAL, utxo.left)
    for_largest = KEPT_LOVELACE + demand.largest_lovelace + FEE_LOVELACE
    return Split(utxo.ref, count, min(spare // count - output_lovelace, max(for_all_left, for_largest)))


def _gain(utxo: Held, split: Split, demand: Demand, *, lacks_utxos: bool) -> int:
    """How many payments more there can be for it; 0 where they are not twice as many, unless coins are lacking."""
    left = utxo.left if utxo.is_in_block and not demand.waiting else utxo.left - 1
    before = _carries(utxo.spare_lovelace, utxo.left, demand)
    after = split.count * _carries(split.each_lovelace - KEPT_LOVELACE, left, demand)
    return after - before if after >= 2 * before or lacks_utxos else 0


def _gather(demand: Demand, dust: Iterable[Held], budget: Budget) -> Gather | None:
    """The crumbs that fit, in quiet times, where they free far more than the fee."""
    if not demand.is_quiet:
        return None
    refs: list[str] = []
    assets: frozenset[str] = frozenset()
    lovelace, size = 0, _BARE_BYTES
    for one in dust:
        more = assets | one.assets
        size = _BARE_BYTES + _INPUT_BYTES * (len(refs) + 1) + _ASSET_BYTES * len(more)
        if size > _TRANSACTION_BYTES or len(refs) == GATHERED_MOST:
            break
        if one.lovelace < DUST_LOVELACE + ASSET_LOVELACE * len(one.assets):
            refs, assets, lovelace = [*refs, one.ref], more, lovelace + one.lovelace
    if len(refs) < GATHERED_LEAST:
        return None
    outputs = 1 + _ASSET_BYTES * len(assets) // _VALUE_BYTES
    fee = budget.fee_lovelace(size + _OUTPUT_BYTES * outputs)
    freed = lovelace - KEPT_LOVELACE * outputs - ASSET_LOVELACE * len(assets)
    return Gather(tuple(refs)) if fee <= budget.left_lovelace and freed >= GAIN * fee else None
