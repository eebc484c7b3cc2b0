"""The devnet's chain: a mempool, blocks, rollbacks and forks over the rules that a payment meets.

Start at `Chain`. Pure: slots come in as arguments, and the same calls give the same blocks. Every block records
what it spent and made, so a rollback needs no copy of the whole state. Import these names from here: `TxOut`,
`Tx`, `Params`, `LedgerError`, `decode_tx`, `check_tx`, `Chain`, `DevnetBlock`.

Never: does I/O; uses a clock or randomness; imports the wallet or pycardano.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

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


@dataclass(slots=True)
class _Undo:
    """What one block changed: outputs spent, outputs made, and addresses whose history grew."""

    spent: list[tuple[OutRef, TxOut]] = field(default_factory=list)
    made: list[OutRef] = field(default_factory=list)
    touched: list[bytes] = field(default_factory=list)


class _View(Mapping[OutRef, TxOut]):
    """The unspent outputs after applying some unconfirmed transactions."""

    def __init__(self, base: Mapping[OutRef, TxOut]) -> None:
        self._base = base
        self._made: dict[OutRef, TxOut] = {}
        self._spent: set[OutRef] = set()

    def apply(self, tx: Tx) -> None:
        self._spent.update(tx.inputs)
        for index, out in enumerate(tx.outputs):
            self._made[(tx.tx_id, index)] = out

    def __getitem__(self, ref: OutRef) -> TxOut:
        if ref in self._spent:
            raise KeyError(ref)
        made = self._made.get(ref)
        return self._base[ref] if made is None else made

    def __contains__(self, ref: object) -> bool:
        return ref not in self._spent and (ref in self._made or ref in self._base)

    def __iter__(self) -> Iterator[OutRef]:
        return (ref for ref in {**self._base, **self._made} if ref not in self._spent)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Chain:
    """The devnet's state. Block 0 is an empty genesis and cannot be undone.

    `slot` is the clock, `blocks` the canonical chain by height, `mempool` the waiting transactions in order.
    """

    def __init__(self, params: Params, network_id: int, start_slot: int = 0) -> None:
        self.params = replace(params, network_id=network_id)
        self.slot = start_slot
        self.mempool: dict[str, Tx] = {}
        self._utxos: dict[OutRef, TxOut] = {}
        self._refs_at: dict[bytes, dict[OutRef, None]] = {}
        self._tx_ids_at: dict[bytes, list[str]] = {}
        self._spender: dict[OutRef, str] = {}
        self._place: dict[str, tuple[int, int]] = {}
        self._by_hash: dict[str, DevnetBlock] = {}
        self._undos: list[_Undo] = []
        self._view = _View(self._utxos)
        self._faucet_ids: set[str] = set()
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

    def utxo(self, ref: OutRef) -> TxOut | None:
        """An output that is unspent as of the tip; None if it is spent or unknown."""
        return self._utxos.get(ref)

    def utxos_at(self, address: bytes) -> list[tuple[OutRef, TxOut]]:
        """The unspent outputs at an address as of the tip, oldest first. The mempool does not count."""
        return [(ref, self._utxos[ref]) for ref in self._refs_at.get(address, ())]

    def txs_at(self, address: bytes) -> tuple[str, ...]:
        """The ids of confirmed transactions that pay to or spend from an address, oldest first."""
        return tuple(self._tx_ids_at.get(address, ()))

    def spender_of(self, ref: OutRef) -> str | None:
        """The id of the confirmed transaction that spends this output; None if none does."""
        return self._spender.get(ref)

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
    ) -> str:
        """Create money in a transaction without inputs or fee. Returns its id in hex.

        It waits in the mempool, lands in the next block, and is part of the history like any other transaction.
        Raises `LedgerError` if no chain could hold the output (too small, too big, wrong network).
        """
        tx = decode_tx(_faucet_bytes(address, lovelace, assets or {}, datum_hash, len(self._faucet_ids) + 1))
        check_outputs(tx, self.params)
        self._faucet_ids.add(tx.tx_id)
        self._admit(tx)
        return tx.tx_id

    def return_deposit(self, tx: Tx) -> None:
        """Put a faucet transaction whose block was undone back into the mempool."""
        if tx.tx_id in self._faucet_ids and self.tx(tx.tx_id) is None:
            self._admit(tx)

    def tick(self, slot: int) -> None:
        """Advance the clock, never back. Expired transactions leave the mempool."""
        if slot > self.slot:
            self.slot = slot
            self.refill(self.mempool.values())

    def _admit(self, tx: Tx) -> None:
        self.mempool[tx.tx_id] = tx
        self._view.apply(tx)

    def refill(self, txs: Iterable[Tx]) -> None:
        """Replace the mempool by those of the given transactions that are still valid, in order.

        Leaving one out drops it, as a node may drop a transaction from its mempool.
        """
        waiting = tuple(txs)
        self.mempool = {}
        self._view = _View(self._utxos)
        for tx in waiting:
            if self._still_valid(tx, self._view):
                self._admit(tx)

    def _still_valid(self, tx: Tx, view: _View) -> bool:
        if tx.tx_id in self._place or tx.tx_id in self.mempool:
            return False
        try:
            recheck_tx(tx, view, self.slot, self.params)
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
        return self._extend(self.slot, chosen)

    def mint_fork_block(self, txs: Sequence[bytes], slot: int | None) -> DevnetBlock:
        """Make another producer's block with the given transactions, at a slot from the tip's to the current.

        Raises `LedgerError`, with nothing changed, if a transaction is not valid there, and `ValueError` for a
        slot outside that range.
        """
        at_slot = self.slot if slot is None else slot
        if not self.tip.slot <= at_slot <= self.slot:
            raise ValueError(f"slot {at_slot} is not within {self.tip.slot}..{self.slot}")
        view = _View(self._utxos)
        chosen = []
        for raw in txs:
            tx = decode_tx(raw)
            self._check_for_block(tx, view, at_slot)
            view.apply(tx)
            chosen.append(tx)
        return self._extend(at_slot, chosen)

    def _check_for_block(self, tx: Tx, view: _View, slot: int) -> None:
        if tx.tx_id not in self._faucet_ids:
            check_tx(tx, view, slot, self.params)
        elif tx.tx_id in self._place or (tx.tx_id, 0) in view:
            raise LedgerError("BadInputsUTxO", "this faucet transaction is in the chain already")

    def rollback(self, depth: int, *, readd: bool = False) -> tuple[DevnetBlock, ...]:
        """Undo the last `depth` blocks. Returns them, oldest first.

        The clock stays. As with real nodes, their transactions are lost, unless `readd` puts them at the front of
        the mempool. Mempool transactions that became invalid leave. New blocks have other hashes than the undone
        ones. Raises `ValueError` if fewer blocks stand above genesis.
        """
        if not 0 <= depth < len(self.blocks):
            raise ValueError(f"{depth} blocks cannot be undone, {len(self.blocks) - 1} stand above genesis")
        undone, restored = [], set()
        for _ in range(depth):
            undone.append(self.blocks[-1])
            restored |= self._undo_tip()
        undone.reverse()
        for address in restored:
            self._sort_refs(address)
        self._forks += 1
        lost = [tx for block in undone for tx in block.txs] if readd else []
        self.refill([*lost, *self.mempool.values()])
        return tuple(undone)

    def _extend(self, slot: int, txs: Sequence[Tx]) -> DevnetBlock:
        block = self._append(self.tip.hash, slot, tuple(txs))
        self.refill(self.mempool.values())
        return block

    def _append(self, prev_hash: str, slot: int, txs: tuple[Tx, ...]) -> DevnetBlock:
        height = len(self.blocks)
        block_hash = _block_hash(prev_hash, slot, height, self._forks, txs)
        block = DevnetBlock(block_hash, height, slot, prev_hash, txs)
        undo = _Undo()
        for index, tx in enumerate(txs):
            self._place[tx.tx_id] = (height, index)
            self._apply(tx, undo)
        self.blocks.append(block)
        self._by_hash[block_hash] = block
        self._undos.append(undo)
        return block

    def _apply(self, tx: Tx, undo: _Undo) -> None:
        touched: dict[bytes, None] = {}
        for ref in tx.inputs:
            out = self._utxos.pop(ref)
            del self._refs_at[out.address][ref]
            self._spender[ref] = tx.tx_id
            undo.spent.append((ref, out))
            touched[out.address] = None
        for index, out in enumerate(tx.outputs):
            ref = (tx.tx_id, index)
            self._utxos[ref] = out
            self._refs_at.setdefault(out.address, {})[ref] = None
            undo.made.append(ref)
            touched[out.address] = None
        for address in touched:
            self._tx_ids_at.setdefault(address, []).append(tx.tx_id)
        undo.touched.extend(touched)

    def _undo_tip(self) -> set[bytes]:
        """Undo the last block. Returns the addresses that got outputs back."""
        block, undo = self.blocks.pop(), self._undos.pop()
        del self._by_hash[block.hash]
        for tx in block.txs:
            del self._place[tx.tx_id]
        for ref, out in undo.spent:
            self._utxos[ref] = out
            self._refs_at[out.address][ref] = None
            del self._spender[ref]
        for ref in undo.made:
            out = self._utxos.pop(ref)
            del self._refs_at[out.address][ref]
        for address in undo.touched:
            self._tx_ids_at[address].pop()
        return {out.address for _, out in undo.spent}

    def _sort_refs(self, address: bytes) -> None:
        refs = self._refs_at[address]
        self._refs_at[address] = dict.fromkeys(sorted(refs, key=lambda ref: (*self._place[ref[0]], ref[1])))


def _block_hash(prev_hash: str, slot: int, height: int, forks: int, txs: Iterable[Tx]) -> str:
    parts = (prev_hash, str(slot), str(height), str(forks), *(tx.tx_id for tx in txs))
    return hash_256("|".join(parts).encode()).hex()


def _faucet_bytes(
    address: bytes, lovelace: int, assets: Mapping[str, int], datum_hash: bytes | None, number: int
) -> bytes:
    """A transaction of one output and no inputs. Its number, in the metadata, makes its id unique."""
    value = cbor.head(cbor.UINT, lovelace)
    if assets:
        value = b"\x82" + value + _assets_bytes(assets)
    fields = [cbor.byte_string(address), value]
    if datum_hash is not None:
        fields.append(cbor.byte_string(datum_hash))
    output = cbor.head(cbor.ARRAY, len(fields)) + b"".join(fields)
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
