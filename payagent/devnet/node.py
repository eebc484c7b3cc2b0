"""The devnet's node: one chain, its clock, its faults, and transactions that a fault delays.

Both HTTP APIs share it. The wall clock is a port, and callers make the blocks. It is not thread-safe: one event
loop (or one simulator) owns it.

Never: does I/O.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from payagent.devnet.faults import LATER, NOW, Fault, Switches
from payagent.devnet.ledger import Chain, DevnetBlock, LedgerError, OutRef, Params, Tx, TxOut, decode_tx

SLOT_LENGTH_MS = 1000


@dataclass(frozen=True, slots=True)
class Seen:
    """A transaction as this node sees it. `depth` 1 is the tip, 0 the mempool (then `time_ms` is None)."""

    tx: Tx
    depth: int
    time_ms: int | None


class Node:
    """A chain on a slot clock. Slot 0 begins at `system_start_s`, the second in which the node was made."""

    def __init__(self, now_ms: Callable[[], int], switches: Switches) -> None:
        self.now_ms = now_ms
        self.switches = switches
        self.system_start_s = now_ms() // 1000
        self.chain = Chain(Params(system_start_ms=self.system_start_s * 1000), network_id=0)
        self.held: list[tuple[int, bytes]] = []
        """Transactions that a fault delays, each with the height at which it is due."""

    def tick(self) -> None:
        """Advance the chain to the current slot."""
        self.chain.tick((self.now_ms() - self.system_start_s * 1000) // SLOT_LENGTH_MS)

    def time_s(self, slot: int) -> int:
        """When a slot began, in POSIX seconds."""
        return self.system_start_s + slot

    def submit(self, raw: bytes, fault: Fault | None = None) -> str:
        """Accept, delay or silently drop a transaction. Returns its id. Raises `LedgerError`."""
        self.tick()
        if fault is None or fault.accept == NOW:
            return self.chain.submit(raw)
        tx_id = decode_tx(raw).tx_id
        if fault.accept == LATER:
            self.held.append((self.chain.tip.height + fault.blocks, raw))
        return tx_id

    def faucet(
        self,
        address: bytes,
        lovelace: int,
        assets: Mapping[str, int],
        datum_hash: bytes | None = None,
        script: bytes | None = None,
    ) -> str:
        """Create money in the next block. Returns the transaction's id. Raises `LedgerError`."""
        self.tick()
        return self.chain.faucet(address, lovelace, assets, datum_hash, script)

    def make_blocks(self, count: int) -> list[DevnetBlock]:
        """Make blocks at the current slot. After each one, delayed transactions that are due enter the mempool."""
        made = []
        for _ in range(count):
            self.tick()
            made.append(self.chain.make_block())
            self._release()
        return made

    def _release(self) -> None:
        height = self.chain.tip.height
        due = [raw for due_height, raw in self.held if due_height <= height]
        self.held = [(due_height, raw) for due_height, raw in self.held if due_height > height]
        for raw in due:
            try:
                self.chain.submit(raw)
            except LedgerError:
                continue  # a real node would drop it silently too: its sender got an answer long ago

    def seen(self, tx_id: str) -> Seen | None:
        """Where the merchant's own node sees a transaction; None if nowhere."""
        found = self.chain.tx(tx_id)
        if found is None:
            return None
        tx, block = found
        if block is None:
            return Seen(tx, 0, None)
        return Seen(tx, self.chain.tip.height - block.height + 1, self.time_s(block.slot) * 1000)

    def waiting(self) -> list[Tx]:
        """The transactions in the mempool."""
        return list(self.chain.mempool.values())

    def utxos_at(self, address: bytes, behind: int) -> list[tuple[OutRef, TxOut]] | None:
        """The UTxOs an index `behind` blocks late lists at an address; None if the address was unused then."""
        if behind == 0:
            return self.chain.utxos_at(address) if self.chain.txs_at(address) else None
        cutoff = max(0, self.chain.tip.height - behind)
        made = [tx_id for tx_id in self.chain.txs_at(address) if self._height(tx_id) <= cutoff]
        refs = [(tx_id, index) for tx_id in made for index in range(len(self._outputs(tx_id)))]
        unspent = [ref for ref in refs if self._height(self.chain.spender.get(ref, "")) > cutoff]
        rows = [(ref, self._outputs(ref[0])[ref[1]]) for ref in unspent]
        return [(ref, out) for ref, out in rows if out.address == address] if made else None

    def _height(self, tx_id: str) -> int:
        found = self.chain.tx(tx_id)
        return found[1].height if found and found[1] else self.chain.tip.height + 1

    def _outputs(self, tx_id: str) -> tuple[TxOut, ...]:
        found = self.chain.tx(tx_id)
        return found[0].outputs if found else ()


def output_of(chain: Chain, ref: OutRef) -> TxOut | None:
    """The output that a reference names, spent or not."""
    found = chain.tx(ref[0])
    return None if found is None else found[0].outputs[ref[1]]
