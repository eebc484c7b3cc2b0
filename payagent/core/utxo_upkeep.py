"""Upkeep: decides which UTxOs the wallet splits or gathers by itself, so payments rarely wait for a block.

Start with `decide`. A payment spends a UTxO, and the next payments may spend its change before a block confirms
it, up to a limit. So the number of UTxOs bounds how many payments the wallet can make before the next block.
`decide` returns the transaction that is worth its fee now:
- a split of one UTxO, if there are too few for the payments that wait or that recently began at once;
- a gathering of dust that no payment would use.

Without recent or waiting payments, nothing is split.

Never: selects UTxOs for a payment; depends on how a transaction is built.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

DAY_MS = 86_400_000
AT_ONCE_MS = 60_000
"""Payments that begin within this time count as at once: the change of the first may be in no block yet."""

UTXOS_MAX = 150
"""The most UTxOs that a split makes: 11 kB of the 16 kB that a transaction may have."""

SEVERAL = 3
"""Each new UTxO can make at least this many typical payments. A UTxO for one payment is not worth its fee."""

GATHERED_LEAST, GATHERED_MOST = 50, 200
"""The least and the most dust UTxOs to gather at once. More are left for the next run."""

GAIN = 20
"""Gathering must free at least this many times its fee."""

ORDERS_A_DAY = 24
GATHERED_EVERY_MS = DAY_MS
QUIET_MS = 3_600_000
"""Dust is gathered when no payment has begun for this long."""

DUST_LOVELACE = 2_000_000
"""A UTxO below this is dust: it can pay at most one smallest output, without change."""

KEPT_LOVELACE = 1_000_000
"""The least lovelace of a change UTxO."""

ASSET_LOVELACE = 323_250
"""The most that each asset adds to that: `_ASSET_BYTES` at 4,310 lovelace per byte."""

FEE_LOVELACE = 300_000
"""Allowance for the fee of a payment."""

_BARE_BYTES, _INPUT_BYTES, _OUTPUT_BYTES, _ASSET_BYTES = 350, 40, 69, 75
_VALUE_BYTES, _TRANSACTION_BYTES = 4_500, 15_000
"""Upper bounds in bytes for the parts of a transaction, for a value, and for a whole transaction."""


@dataclass(frozen=True, slots=True)
class Held:
    """A UTxO of the wallet.

    `left`: how many payments in a row may spend it and its change before the next block. 0 while none may.
    """

    ref: str
    lovelace: int
    left: int
    assets: frozenset[str] = frozenset()
    is_in_block: bool = True

    @property
    def spare_lovelace(self) -> int:
        """Lovelace above what must stay in its change."""
        return self.lovelace - KEPT_LOVELACE - ASSET_LOVELACE * len(self.assets)


@dataclass(frozen=True, slots=True)
class RecentPayment:
    """A payment that was requested recently.

    `lovelace`: what it took, with its fee. None if it was refused because no UTxO was available.
    `merchant_submits`: it can spend only UTxOs that are in a block.
    """

    at_ms: int
    lovelace: int | None
    merchant_submits: bool = False


@dataclass(frozen=True, slots=True)
class Demand:
    """How many payments come at once or wait now, and the lovelace of a typical and the largest one.

    `merchant_submits_at_once`: how many payments that the merchant submits came at once; 0 unless one was refused
    for lack of a UTxO.
    `is_quiet`: dust may be gathered.
    """

    at_once: int = 0
    merchant_submits_at_once: int = 0
    waiting: int = 0
    typical_lovelace: int = 0
    largest_lovelace: int = 0
    is_quiet: bool = False

    @property
    def cost_lovelace(self) -> int:
        return self.typical_lovelace + FEE_LOVELACE


@dataclass(frozen=True, slots=True)
class Budget:
    """What upkeep may still spend on fees, and the fee of a transaction: base plus an amount per byte."""

    left_lovelace: int
    base_lovelace: int
    byte_lovelace: int

    def fee_lovelace(self, size: int) -> int:
        return self.base_lovelace + self.byte_lovelace * size

    @property
    def outputs_max(self) -> int:
        """The most UTxOs that a split can make within the remaining budget."""
        return (self.left_lovelace - self.fee_lovelace(_BARE_BYTES)) // (self.byte_lovelace * _OUTPUT_BYTES)


@dataclass(frozen=True, slots=True)
class Split:
    """Split one UTxO into `count` UTxOs of `each_lovelace`, plus one with the rest."""

    ref: str
    count: int
    each_lovelace: int


@dataclass(frozen=True, slots=True)
class Gather:
    """Gather these UTxOs into one."""

    refs: tuple[str, ...]


def demand_of(begun: Sequence[RecentPayment], waiting: Sequence[int], *, is_quiet: bool) -> Demand:
    """Compute the demand from recent payments, in any order, and the lovelace of each waiting payment."""
    paid = [payment.lovelace for payment in begun if payment.lovelace is not None]
    merchant_submitted = [payment for payment in begun if payment.merchant_submits]
    lacked_utxo = any(payment.lovelace is None for payment in merchant_submitted)
    amounts = list(waiting) or paid
    return Demand(
        at_once=_most_at_once(payment.at_ms for payment in begun),
        merchant_submits_at_once=_most_at_once(payment.at_ms for payment in merchant_submitted)
        if lacked_utxo
        else 0,
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


def decide(demand: Demand, utxos: Sequence[Held], dust: Sequence[Held], budget: Budget) -> Split | Gather | None:
    """Return the split or gathering that is worth its fee now, or None.

    `utxos`: those that payments may spend, or the largest of them.
    `dust`: the smallest UTxOs that no payment needs.
    """
    return _split(demand, utxos, budget) or _gather(demand, dust, budget)


def room(demand: Demand, utxos: Iterable[Held]) -> int:
    """How many payments could start now, each with its own UTxO."""
    return sum(_carries(utxo.spare_lovelace, utxo.left, demand) > 0 for utxo in utxos)


def _carries(spare_lovelace: int, left: int, demand: Demand) -> int:
    """How many typical payments a UTxO can make before the next block."""
    return max(0, min(left, spare_lovelace // demand.cost_lovelace))


def _split(demand: Demand, utxos: Sequence[Held], budget: Budget) -> Split | None:
    """Return the split that gains most, if the UTxOs can make fewer payments than are needed."""
    if not demand.typical_lovelace:
        return None
    lacks_utxos = _suited(demand, utxos) < demand.merchant_submits_at_once
    if not lacks_utxos and not _is_low(demand, utxos):
        return None
    best, best_gain = None, 0
    for utxo in utxos:
        split = _split_of(utxo, demand, budget)
        gain = 0 if split is None else _gain(utxo, split, demand, lacks_utxos=lacks_utxos)
        if gain > best_gain:
            best, best_gain = split, gain
    return best


def _is_low(demand: Demand, utxos: Sequence[Held]) -> bool:
    """Whether the UTxOs can make fewer payments than wait now.

    If none wait: fewer than came at once before, and suited UTxOs are less than half of that. More would not need
    a split, because the next block confirms all change.
    """
    carried = sum(_carries(utxo.spare_lovelace, utxo.left, demand) for utxo in utxos)
    if demand.waiting:
        return carried < demand.waiting
    return carried < demand.at_once and 2 * _suited(demand, utxos) < min(demand.at_once, UTXOS_MAX)


def _suited(demand: Demand, utxos: Iterable[Held]) -> int:
    """How many UTxOs, pending ones included, are large enough for a typical payment."""
    return sum(utxo.spare_lovelace >= demand.cost_lovelace for utxo in utxos)


def _split_of(utxo: Held, demand: Demand, budget: Budget) -> Split | None:
    """Split into as many UTxOs as are needed, each for several payments. The rest stays in the change."""
    spare = utxo.spare_lovelace - budget.fee_lovelace(_BARE_BYTES)
    output_lovelace = budget.byte_lovelace * _OUTPUT_BYTES
    least = KEPT_LOVELACE + SEVERAL * demand.cost_lovelace
    needed = max(demand.at_once, demand.waiting)
    count = min(UTXOS_MAX, needed, budget.outputs_max, spare // (least + output_lovelace))
    if count < 2:
        return None
    for_all_left = KEPT_LOVELACE + demand.cost_lovelace * max(SEVERAL, utxo.left)
    for_largest = KEPT_LOVELACE + demand.largest_lovelace + FEE_LOVELACE
    return Split(utxo.ref, count, min(spare // count - output_lovelace, max(for_all_left, for_largest)))


def _gain(utxo: Held, split: Split, demand: Demand, *, lacks_utxos: bool) -> int:
    """How many more payments the split allows; 0 if it does not at least double them, unless UTxOs are lacking."""
    left = utxo.left if utxo.is_in_block and not demand.waiting else utxo.left - 1
    before = _carries(utxo.spare_lovelace, utxo.left, demand)
    after = split.count * _carries(split.each_lovelace - KEPT_LOVELACE, left, demand)
    return after - before if after >= 2 * before or lacks_utxos else 0


def _gather(demand: Demand, dust: Iterable[Held], budget: Budget) -> Gather | None:
    """Return the dust that fits into one transaction, in quiet times, if it frees `GAIN` times the fee."""
    if not demand.is_quiet:
        return None
    refs: list[str] = []
    assets: frozenset[str] = frozenset()
    lovelace, size = 0, _BARE_BYTES
    for utxo in dust:
        more = assets | utxo.assets
        size = _BARE_BYTES + _INPUT_BYTES * (len(refs) + 1) + _ASSET_BYTES * len(more)
        if size > _TRANSACTION_BYTES or len(refs) == GATHERED_MOST:
            break
        if utxo.lovelace < DUST_LOVELACE + ASSET_LOVELACE * len(utxo.assets):
            refs, assets, lovelace = [*refs, utxo.ref], more, lovelace + utxo.lovelace
    if len(refs) < GATHERED_LEAST:
        return None
    outputs = 1 + _ASSET_BYTES * len(assets) // _VALUE_BYTES
    fee = budget.fee_lovelace(size + _OUTPUT_BYTES * outputs)
    freed = lovelace - KEPT_LOVELACE * outputs - ASSET_LOVELACE * len(assets)
    return Gather(tuple(refs)) if fee <= budget.left_lovelace and freed >= GAIN * fee else None
