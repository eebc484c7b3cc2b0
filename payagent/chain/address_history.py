"""Read the whole history of an address as of one tip: its transactions, their movements and its UTxOs.

A transaction's movement never changes, so it is read once. The list of transactions and the UTxOs can change. They
are read again until the tip is the same before and after the read. The result is `Unknown` if the tip keeps
changing or a read fails.
May import: chain.provider, asyncio.
Never: returns a part as if it were the whole; calls so fast that other reads get no answer.
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
"""How far below an earlier tip the list is read again when that tip is still on the chain."""

PAUSES_S = (0.5, 1, 5, 20, 60, 60)
"""Pauses after a read that was Unknown: the provider wants a pause, or is away for a while.

Until `PACED_AFTER` movements were read, only the first two count: the caller can still ask another provider.
"""

PACED_AFTER = 200
PACE_S = 0.1
"""Blockfrost allows 500 calls at once and then 10 per second. The chain sync needs calls too."""


@dataclass(frozen=True, slots=True)
class History:
    """Transactions since the requested time, oldest first, and all unspent outputs."""

    tip: Tip
    transactions: tuple[AddressTx, ...]
    movements: Mapping[str, Movement]
    utxos: tuple[ChainUtxo, ...]


async def read_history(provider: ChainProvider, address: str, since_s: int) -> History | Unknown:
    """Read the history, or say why it could not be read."""
    movements: dict[str, Movement] = {}
    listed: tuple[AddressTx, ...] = ()
    earlier_tip: Tip | None = None
    for _ in range(AT_REST_PASSES):
        tip = await _answered(provider.tip, len(movements))
        if not isinstance(tip, Found):
            return _unknown("tip", tip)
        if earlier_tip is not None and not isinstance(await provider.block(earlier_tip.hash), Found):
            earlier_tip = None
        from_s = since_s if earlier_tip is None else max(since_s, earlier_tip.time_s - INDEX_LAG_S)
        newer = await _answered(partial(provider.transactions, address, from_s), len(movements))
        if not isinstance(newer, Found):
            return _unknown("transactions", newer)
        listed = (*(tx for tx in listed if earlier_tip is not None and tx.time_s < from_s), *newer.value)
        failure = await _read_movements(provider, address, newer.value, movements)
        utxos = failure or await _answered(partial(provider.utxos, address), len(movements))
        if not isinstance(utxos, Found):
            return _unknown("utxos", utxos)
        if await provider.tip() == tip and all(tx.tx_id in movements for tx in listed):
            moved = {tx.tx_id: movements[tx.tx_id] for tx in listed}
            return History(tip.value, listed, moved, utxos.value)
        earlier_tip = tip.value
    return Unknown("the chain kept changing while it was read")


async def _read_movements(
    provider: ChainProvider, address: str, listed: tuple[AddressTx, ...], movements: dict[str, Movement]
) -> Unknown | None:
    """Add the movements not read yet. One that is not found is left out: a fork removed it after it was listed."""
    for tx in listed:
        if tx.tx_id not in movements:
            if len(movements) >= PACED_AFTER:
                await asyncio.sleep(PACE_S)
            moved = await _answered(partial(provider.movement, tx.tx_id, address), len(movements))
            if isinstance(moved, Unknown):
                return moved
            if isinstance(moved, Found):
                movements[tx.tx_id] = moved.value
    return None


async def _answered(ask: Callable[[], Awaitable[Read[T]]], count: int) -> Read[T]:
    """Read once, and again after each pause while the result is Unknown. Long reads get longer pauses."""
    for pause_s in PAUSES_S if count >= PACED_AFTER else PAUSES_S[:2]:
        read = await ask()
        if not isinstance(read, Unknown):
            return read
        await asyncio.sleep(pause_s)
    return await ask()


def _unknown(kind: str, read: object) -> Unknown:
    return read if isinstance(read, Unknown) else Unknown(f"{kind}: the provider has none")
