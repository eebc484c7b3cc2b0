"""The devnet's chain: a mempool, blocks, rollbacks and forks over the rules that a payment meets.

Start at `Chain`. Pure: slots come in as arguments, and the same calls give the same blocks. A rollback undoes a
block by its transactions, so it needs no copy of the whole state. Import these names from here: `TxOut`, `Tx`,
`Params`, `LedgerError`, `decode_tx`, `check_tx`, `Chain`, `DevnetBlock`.

Never: does I/O; uses a clock or randomness; imports the wallet or pycardano.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from payagent.devnet import cbor
from payagent.devnet.decode import decode_tx, hash_256
from payagent.devnet.ledger_types import UNSUPPORTED, LedgerError, OutRef, Params, Tx, TxOut
from payagent.devnet.rules import check_mempool, check_outputs, check_tx, recheck_tx

__all__ = [
    "UNSUPPORTED",
    "Chain",
    "DevnetBlock",
    "LedgerError",
    "OutRef",
    "Params",
    "Tx",
    "TxOut",
    "check_tx",
    "decode_tx",
]


@dataclass(frozen=True, slots=True)
class DevnetBlock:
    """One block. `hash` and `prev_hash` are hex."""

    hash: str
    height: int
    slot: int
    prev_hash: str
    txs: tuple[Tx, ...]


class Chain:
    """The devnet's state. Block 0 is an empty genesis and cannot be undone.

    `slot` is the clock, `blocks` the canonical chain by height, `mempool` the waiting transactions in order,
    `utxos` the unspent outputs as of the tip, `spender` the id of the confirmed transaction that spends an output.
    """

    def __init__(self, params: Params, network_id: int, start_slot: int = 0) -> None:
        self.params = replace(params, network_id=network_id)
        self.slot = start_slot
        self.mempool: dict[str, Tx] = {}
        self.utxos: dict[OutRef, TxOut] = {}
        self._refs_at: dict[bytes, set[OutRef]] = {}
        self._tx_ids_at: dict[bytes, list[str]] = {}
        self.spender: dict[OutRef, str] = {}
        self._place: dict[str, tuple[int, int]] = {}
        self._by_hash: dict[str, DevnetBlock] = {}
        self._view: dict[OutRef, TxOut] = {}
        self.faucet_ids: set[str] = set()
        self._forks = 0
        self.blocks: list[DevnetBlock] = []
        self._append("00" * 32, start_slot, ())

    # --- reads ---

    @property
    def tip(self) -> DevnetBlock:
        """The highest block."""
        return self.blocks[-1]

    def block(self, hash_or_height: str | int) -> DevnetBlock | None:
        """The canonical block with this hash (hex) or height; None if there is none."""
        if isinstance(hash_or_height, str):
            return self._by_hash.get(hash_or_height)
        return self.blocks[hash_or_height] if 0 <= hash_or_height < len(self.blocks) else None

    def tx(self, tx_id: str) -> tuple[Tx, DevnetBlock | None] | None:
        """A transaction with its block, or with None while it is in the mempool. None if unknown."""
        if (place := self._place.get(tx_id)) is not None:
            block = self.blocks[place[0]]
            return block.txs[place[1]], block
        waiting = self.mempool.get(tx_id)
        return None if waiting is None else (waiting, None)

    def utxos_at(self, address: bytes) -> list[tuple[OutRef, TxOut]]:
        """The unspent outputs at an address as of the tip, oldest first. The mempool does not count."""
        refs = sorted(self._refs_at.get(address, ()), key=lambda ref: (*self._place[ref[0]], ref[1]))
        return [(ref, self.utxos[ref]) for ref in refs]

    def txs_at(self, address: bytes) -> tuple[str, ...]:
        """The ids of confirmed transactions that pay to or spend from an address, oldest first."""
        return tuple(self._tx_ids_at.get(address, ()))

    # --- the mempool ---

    def submit(self, raw: bytes) -> str:
        """Add a transaction to the mempool. Returns its id in hex.

        It is checked against the tip with the mempool applied, so a chain of transactions can be submitted in
        order. Raises `LedgerError`. A known transaction is refused with `ConwayMempoolFailure`, as a node does.
        """
        tx = decode_tx(raw)
        check_mempool(tx, self._view)
        check_tx(tx, self._view, self.slot, self.params)
        self._admit(tx)
        return tx.tx_id

    def faucet(
        self,
        address: bytes,
        lovelace: int,
        assets: Mapping[str, int] | None = None,
        datum_hash: bytes | None = None,
        script: bytes | None = None,
    ) -> str:
        """Create money in a transaction without inputs or fee. Returns its id in hex.

        It waits in the mempool, lands in the next block, and is part of the history like any other transaction.
        Raises `LedgerError` if no chain could hold the output (too small, too big, wrong network).
        """
        tx = decode_tx(
            _faucet_bytes(address, lovelace, assets or {}, datum_hash, script, len(self.faucet_ids) + 1)
        )
        check_outputs(tx, self.params)
        self.faucet_ids.add(tx.tx_id)
        self._admit(tx)
        return tx.tx_id

    def tick(self, slot: int) -> None:
        """Advance the clock, never back. Expired transactions leave the mempool."""
        if slot > self.slot:
            self.slot = slot
            self.refill(self.mempool.values())

    def _admit(self, tx: Tx) -> None:
        self.mempool[tx.tx_id] = tx
        apply_tx(tx, self._view)

    def refill(self, txs: Iterable[Tx]) -> None:
        """Replace the mempool by those of the given transactions that are still valid, in order.

        Leaving one out drops it, as a node may drop a transaction from its mempool.
        """
        waiting = tuple(txs)
        self.mempool = {}
        self._view = dict(self.utxos)
        for tx in waiting:
            if self._still_valid(tx):
                self._admit(tx)

    def _still_valid(self, tx: Tx) -> bool:
        if tx.tx_id in self._place or tx.tx_id in self.mempool:
            return False
        try:
            recheck_tx(tx, self._view, self.slot, self.params)
        except LedgerError:
            return False
        return True

    # --- blocks ---

    def make_block(self) -> DevnetBlock:
        """Make a block at the current slot from the mempool's first transactions, up to the size limit.

        As in a node, the first one that does not fit ends the block.
        """
        chosen, size = [], 0
        for tx in self.mempool.values():
            size += tx.size_bytes
            if size > self.params.max_block_size_bytes:
                break
            chosen.append(tx)
        return self.extend(self.slot, chosen)

    def rollback(self, depth: int, *, readd: bool = False) -> tuple[DevnetBlock, ...]:
        """Undo the last `depth` blocks. Returns them, oldest first.

        The clock stays. As with real nodes, their transactions are lost, unless `readd` puts them at the front of
        the mempool. Mempool transactions that became invalid leave. New blocks have other hashes than the undone
        ones. Raises `ValueError` if fewer blocks stand above genesis.
        """
        if not 0 <= depth < len(self.blocks):
            raise ValueError(f"{depth} blocks cannot be undone, {len(self.blocks) - 1} stand above genesis")
        undone = self.blocks[len(self.blocks) - depth :]
        for _ in range(depth):
            self._undo_tip()
        self._forks += 1
        lost = [tx for block in undone for tx in block.txs] if readd else []
        self.refill([*lost, *self.mempool.values()])
        return tuple(undone)

    def extend(self, slot: int, txs: Sequence[Tx]) -> DevnetBlock:
        """Make a block of these transactions, which must be valid there, at a slot from the tip's on."""
        block = self._append(self.tip.hash, slot, tuple(txs))
        self.refill(self.mempool.values())
        return block

    def _append(self, prev_hash: str, slot: int, txs: tuple[Tx, ...]) -> DevnetBlock:
        height = len(self.blocks)
        block_hash = _block_hash(prev_hash, slot, height, self._forks, txs)
        block = DevnetBlock(block_hash, height, slot, prev_hash, txs)
        self.blocks.append(block)
        self._by_hash[block_hash] = block
        for index, tx in enumerate(txs):
            self._place[tx.tx_id] = (height, index)
            self._apply(tx)
        return block

    def _apply(self, tx: Tx) -> None:
        for address in self._addresses(tx):
            self._tx_ids_at.setdefault(address, []).append(tx.tx_id)
        for ref in tx.inputs:
            self._refs_at[self.utxos[ref].address].remove(ref)
            self.spender[ref] = tx.tx_id
        for index, out in enumerate(tx.outputs):
            self._refs_at.setdefault(out.address, set()).add((tx.tx_id, index))
        apply_tx(tx, self.utxos)

    def _undo_tip(self) -> None:
        for tx in reversed(self.tip.txs):
            for address in self._addresses(tx):
                self._tx_ids_at[address].pop()
            for index, out in enumerate(tx.outputs):
                self._refs_at[out.address].remove((tx.tx_id, index))
                del self.utxos[tx.tx_id, index]
            for ref in tx.inputs:
                self.utxos[ref] = self._made(ref)
                self._refs_at[self.utxos[ref].address].add(ref)
                del self.spender[ref]
            del self._place[tx.tx_id]
        del self._by_hash[self.blocks.pop().hash]

    def _addresses(self, tx: Tx) -> set[bytes]:
        """The addresses that a transaction of a block spends from or pays to."""
        return {out.address for out in (*map(self._made, tx.inputs), *tx.outputs)}

    def _made(self, ref: OutRef) -> TxOut:
        """An output of a transaction in a block, spent or not."""
        height, index = self._place[ref[0]]
        return self.blocks[height].txs[index].outputs[ref[1]]


def apply_tx(tx: Tx, utxos: dict[OutRef, TxOut]) -> None:
    """Spend a valid transaction's inputs among these unspent outputs, and add its outputs."""
    for ref in tx.inputs:
        del utxos[ref]
    for index, out in enumerate(tx.outputs):
        utxos[tx.tx_id, index] = out


def _block_hash(prev_hash: str, slot: int, height: int, forks: int, txs: Iterable[Tx]) -> str:
    parts = (prev_hash, str(slot), str(height), str(forks), *(tx.tx_id for tx in txs))
    return hash_256("|".join(parts).encode()).hex()


def _faucet_bytes(
    address: bytes,
    lovelace: int,
    assets: Mapping[str, int],
    datum_hash: bytes | None,
    script: bytes | None,
    number: int,
) -> bytes:
    """A transaction of one output and no inputs. Its number, in the metadata, makes its id unique."""
    value = cbor.head(cbor.UINT, lovelace)
    if assets:
        value = b"\x82" + value + _assets_bytes(assets)
    fields = [cbor.byte_string(address), value]
    if datum_hash is not None:
        fields.append(cbor.byte_string(datum_hash))
    output = cbor.head(cbor.ARRAY, len(fields)) + b"".join(fields)
    if script is not None:
        output = b"\xa3\x00" + fields[0] + b"\x01" + value + b"\x03\xd8\x18" + cbor.byte_string(script)
    aux = b"\xa1" + cbor.head(cbor.UINT, 674) + b"\xa1" + cbor.text_string("faucet") + cbor.head(cbor.UINT, number)
    body = b"\xa4\x00\x80\x01\x81" + output + b"\x02\x00\x07" + cbor.byte_string(hash_256(aux))
    return b"\x84" + body + b"\xa0\xf5" + aux


def _assets_bytes(assets: Mapping[str, int]) -> bytes:
    policies: dict[str, list[tuple[str, int]]] = {}
    for asset, units in assets.items():
        policies.setdefault(asset[:56], []).append((asset[56:], units))
    encoded = cbor.head(cbor.MAP, len(policies))
    for policy, names in policies.items():
        encoded += cbor.byte_string(bytes.fromhex(policy)) + cbor.head(cbor.MAP, len(names))
        for name, units in names:
            encoded += cbor.byte_string(bytes.fromhex(name)) + cbor.head(cbor.UINT, units)
    return encoded
