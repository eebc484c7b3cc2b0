"""Read the whole history of the wallet's addresses as of one tip: its transactions, their movements and its UTxOs.

A transaction's movement never changes, so it is read once. The list of transactions and the UTxOs can change. They
are read again until the tip is the same before and after the read, and both fit. The result is `Unknown` if they
keep changing or a read fails.
Never: returns a part as if it were the whole; calls so fast that other reads get no answer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from payagent.chain.adapter import Unanswered
from payagent.chain.provider import (
    AddressTx,
    BlockSeen,
    ChainReader,
    ChainUtxo,
    Found,
    Movement,
    NotFound,
    Read,
    T,
    Unknown,
)
from payagent.core.aggregate import TxSeen

_Touched = tuple[str, str]
"""A transaction, and one of its addresses."""

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

    tip: BlockSeen
    transactions: tuple[AddressTx, ...]
    movements: Mapping[str, Movement]
    utxos: tuple[ChainUtxo, ...]


async def read_history(provider: ChainReader, addresses: Sequence[str], since_s: int) -> History | Unknown:
    """Read the history of the wallet's addresses as one, or say why it could not be read."""
    try:
        return await _at_rest(provider, addresses, since_s)
    except Unanswered as failed:
        return failed.read if isinstance(failed.read, Unknown) else Unknown(str(failed))


async def _at_rest(provider: ChainReader, addresses: Sequence[str], since_s: int) -> History | Unknown:
    movements: dict[_Touched, Movement] = {}
    listed: dict[_Touched, AddressTx] = {}
    earlier_tip: BlockSeen | None = None
    for _ in range(AT_REST_PASSES):
        tip = _found("tip", await _answered(provider.tip, len(movements)))
        if earlier_tip is not None and not isinstance(
            await provider.block(earlier_tip.hash, earlier_tip.slot), Found
        ):
            earlier_tip = None
        from_s = since_s if earlier_tip is None else max(since_s, earlier_tip.time_s - INDEX_LAG_S)
        listed = {one: tx for one, tx in listed.items() if earlier_tip is not None and tx.time_s < from_s}
        utxos: list[ChainUtxo] = []
        for address in addresses:
            newer = await _answered(partial(provider.transactions, address, from_s), len(movements))
            newer_here = {(tx.tx_id, address): tx for tx in _found("transactions", newer)}
            await _read_movements(provider, newer_here, movements)
            listed |= newer_here
            unspent = _found("utxos", await _answered(partial(provider.utxos, address), len(movements)))
            utxos += unspent
        if await provider.tip() == Found(tip) and listed.keys() <= movements.keys():
            history = _as_one(tip, listed, movements, utxos)
            if _is_of_one_block(history, is_whole=not since_s):
                return history
        earlier_tip = tip
    return Unknown("the chain kept changing while it was read, or its lists are of different blocks")


async def spender_by_history(provider: ChainReader, ref: str, address: str) -> Read[TxSeen]:
    """Return the transaction that spends an output at an address, for a provider that does not say it.

    Raises `Unanswered`.
    """
    made = _found("spender", await provider.tx(ref.partition("#")[0]))
    block = _found("spender", await provider.block(made.block_hash, made.block_slot))
    for tx in _found("spender", await provider.transactions(address, block.time_s)):
        moved = await provider.movement(tx.tx_id, address)
        if isinstance(moved, Unknown):
            return moved
        if isinstance(moved, Found) and ref in moved.value.spent:
            return await provider.tx(tx.tx_id, ref)
    return NotFound()


def _as_one(
    tip: BlockSeen,
    listed: Mapping[_Touched, AddressTx],
    movements: Mapping[_Touched, Movement],
    utxos: Sequence[ChainUtxo],
) -> History:
    """A transaction between two of the addresses is one transaction, with what it moved at both."""
    moved: dict[str, Movement] = {}
    in_order = sorted(listed.items(), key=lambda item: item[1].block_height)
    for (tx_id, address), _ in in_order:
        before, here = moved.get(tx_id, Movement({}, {})), movements[tx_id, address]
        moved[tx_id] = Movement({**before.spent, **here.spent}, {**before.made, **here.made})
    transactions = {tx_id: tx for (tx_id, _), tx in in_order}
    return History(tip, tuple(transactions.values()), moved, tuple(utxos))


def _is_of_one_block(history: History, *, is_whole: bool) -> bool:
    """Whether the listed transactions leave the listed outputs: each list may come from another machine."""
    made = {ref for movement in history.movements.values() for ref in movement.made}
    spent = {ref for movement in history.movements.values() for ref in movement.spent}
    unspent = {f"{utxo.tx_id}#{utxo.index}" for utxo in history.utxos}
    return made - spent == unspent & made and not unspent & spent and not (is_whole and unspent - made)


async def _read_movements(
    provider: ChainReader, listed: Iterable[_Touched], movements: dict[_Touched, Movement]
) -> None:
    """Add the movements not read yet. One that is not found is left out: a fork removed it after it was listed."""
    for tx_id, address in listed:
        if (tx_id, address) not in movements:
            if len(movements) >= PACED_AFTER:
                await asyncio.sleep(PACE_S)
            moved = await _answered(partial(provider.movement, tx_id, address), len(movements))
            if not isinstance(moved, NotFound):
                movements[tx_id, address] = _found("movement", moved)


async def _answered(ask: Callable[[], Awaitable[Read[T]]], count: int) -> Read[T]:
    """Read once, and again after each pause while the result is Unknown. Long reads get longer pauses."""
    for pause_s in PAUSES_S if count >= PACED_AFTER else PAUSES_S[:2]:
        read = await ask()
        if not isinstance(read, Unknown):
            return read
        await asyncio.sleep(pause_s)
    return await ask()


def _found(kind: str, read: Read[T]) -> T:
    if isinstance(read, Found):
        return read.value
    raise Unanswered(read if isinstance(read, Unknown) else Unknown(f"{kind}: the provider has none"))
