"""A branch that a fork undid, as a provider shows it that has not switched to the winning branch.

Never: shows anything that no producer made.
"""

from dataclasses import dataclass

from payagent.devnet.ledger import Chain, DevnetBlock, OutRef, Tx, TxOut
from payagent.devnet.node import Node, output_of


@dataclass(frozen=True, slots=True)
class Branch:
    """The undone blocks, and when they were undone. Below them, the branch shares the canonical chain."""

    blocks: tuple[DevnetBlock, ...]
    since_slot: int

    @property
    def base(self) -> int:
        return self.blocks[0].height - 1

    @property
    def top(self) -> int:
        return self.blocks[-1].height

    def stands_on(self, chain: Chain) -> bool:
        """Whether the chain still has the block that the branch grew from."""
        below = chain.block(self.base)
        return below is not None and below.hash == self.blocks[0].prev_hash

    def block_at(self, height: int) -> DevnetBlock:
        return self.blocks[height - self.base - 1]

    def block(self, block_hash: str) -> DevnetBlock | None:
        return next((block for block in self.blocks if block.hash == block_hash), None)

    def find(self, tx_id: str) -> tuple[Tx, DevnetBlock] | None:
        return next(((tx, block) for block in self.blocks for tx in block.txs if tx.tx_id == tx_id), None)

    def spender_of(self, ref: OutRef) -> str | None:
        """The id of the transaction on the branch that spends an output."""
        return next((tx.tx_id for block in self.blocks for tx in block.txs if ref in tx.inputs), None)

    def output_of(self, chain: Chain, ref: OutRef) -> TxOut | None:
        """The output that a reference names, made on this branch or below it."""
        found = self.find(ref[0])
        return output_of(chain, ref) if found is None else found[0].outputs[ref[1]]

    def utxos_at(self, node: Node, address: bytes) -> list[tuple[OutRef, TxOut]]:
        """The unspent outputs at an address at the branch's tip."""
        rows = dict(node.utxos_at(address, node.chain.tip.height - self.base) or [])
        for tx in (tx for block in self.blocks for tx in block.txs):
            for ref in tx.inputs:
                rows.pop(ref, None)
            created = {(tx.tx_id, index): out for index, out in enumerate(tx.outputs) if out.address == address}
            rows |= created
        return list(rows.items())

    def txs_at(self, chain: Chain, address: bytes) -> list[str]:
        """The ids of the branch's transactions that pay to or spend from an address."""
        return [
            tx.tx_id
            for block in self.blocks
            for tx in block.txs
            if any(out.address == address for out in tx.outputs)
            or any(
                out is not None and out.address == address
                for out in (self.output_of(chain, ref) for ref in tx.inputs)
            )
        ]
