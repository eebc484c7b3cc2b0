"""The whole of an address as of one tip: its transactions, what each moved there, and its unspent outputs.

May import: chain.provider, asyncio. Never: a part of it for the whole; asks so fast that nobody else gets an
answer.

What a transaction moved never changes, so it is read once; what is on the chain does, so that is read again until
the tip was the same before and after. `Unknown` when that does not come about, or something could not be read.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from payagent.chain.provider import AddressTx, ChainProvider, ChainUtxo, Found, Movement, Read, Tip, Unknown

T = TypeVar("T")

AT_REST_PASSES = 8
INDEX_LAG_S = 600
"""How far below a tip that is still there the listing is read again."""

PAUSES_S = (0.5, 1, 5, 20, 60, 60)
"""How long after a try that told nothing the next one comes: a provider wants a pause, or is away for a while.

As long as little was read only the first two count: another provider may be asked then.
"""

PACED_AFTER = 200
PACE_S = 0.1
"""A provider lets through some hundreds of calls at once and ten a second after that; the watch needs them too."""


@dataclass(frozen=True, slots=True)
class History:
    """Oldest first, from the time on that was asked for; the unspent outputs are all that there are."""

    tip: Tip
    transactions: tuple[AddressTx, ...]
    movements: Mapping[str, Movement]
    utxos: tuple[ChainUtxo, ...]


async def read_history(source: ChainProvider, address: str, since_s: int) -> History | Unknown:
    """The history, or why there is none."""
    movements: dict[str, Movement] = {}
    listed: tuple[AddressTx, ...] = ()
    below: Tip | None = None
    for _ in range(AT_REST_PASSES):
        tip = await _answered(source.tip, len(movements))
        if not isinstance(tip, Found):
            return _unknown("tip", tip)
        if below is not None and not isinstance(await source.block(below.hash), Found):
            below = None
        from_s = since_s if below is None else max(since_s, below.time_s - INDEX_LAG_S)
        fresh = await _answered(partial(source.transactions, address, from_s), len(movements))
        if not isinstance(fresh, Found):
            return _unknown("transactions", fresh)
        listed = (*(tx for tx in listed if below is not None and tx.time_s < from_s), *fresh.value)
        doubt = await _read_movements(source, address, fresh.value, movements)
        utxos = doubt or await _answered(partial(source.utxos, address), len(movements))
        if not isinstance(utxos, Found):
            return _unknown("utxos", utxos)
        if await source.tip() == tip and all(tx.tx_id in movements for tx in listed):
            moved = {tx.tx_id: movements[tx.tx_id] for tx in listed}
            return History(tip.value, listed, moved, utxos.value)
        below = tip.value
    return Unknown("the chain did not stand still while it was read")


async def _read_movements(
    source: ChainProvider, address: str, listed: tuple[AddressTx, ...], movements: dict[str, Movement]
) -> Unknown | None:
    """Add what is not known yet. One that is not found is left out: a fork took it since it was listed."""
    for tx in listed:
        if tx.tx_id not in movements:
            if len(movements) >= PACED_AFTER:
                await asyncio.sleep(PACE_S)
            moved = await _answered(partial(source.movement, tx.tx_id, address), len(movements))
            if isinstance(moved, Unknown):
                return moved
            if isinstance(moved, Found):
                movements[tx.tx_id] = moved.value
    return None


async def _answered(ask: Callable[[], Awaitable[Read[T]]], count: int) -> Read[T]:
    """One read; tried again after pauses where there was no answer: the more was read, the longer ones."""
    for pause_s in PAUSES_S if count >= PACED_AFTER else PAUSES_S[:2]:
        read = await ask()
        if not isinstance(read, Unknown):
            return read
        await asyncio.sleep(pause_s)
    return await ask()


def _unknown(what: str, read: object) -> Unknown:
    return read if isinstance(read, Unknown) else Unknown(f"{what}: the provider has none")
