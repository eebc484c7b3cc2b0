"""The true chain and the adversary: blocks, forks at old slots, and rebroadcasts of anything ever released.

Never: invents a transaction; every block is valid by the devnet's ledger.
"""

from collections.abc import Callable
from random import Random

from payagent.devnet.faults import Switches
from payagent.devnet.ledger import DevnetBlock, LedgerError, Tx, check_tx, decode_tx
from payagent.devnet.node import Node
from sim.branch import Branch
from sim.fault_rates import FaultRates
from sim.forks import mint_fork_block, return_deposit
from sim.trace import Trace

DEEP = 16
BLOCK_MEAN_S = 20.0
_EXTRA_BLOCKS_MAX = 3


class Net:
    """The chain that honest providers and merchants see, sooner or later."""

    def __init__(
        self, rng: Random, story: Trace, mix: Callable[[], FaultRates], now_ms: Callable[[], int], fork_max: int
    ) -> None:
        self._rng = rng
        self._story = story
        self._mix = mix
        self.fork_max = fork_max
        self.node = Node(now_ms, Switches())
        self.chain = self.node.chain
        self.hoard: dict[str, Tx] = {}
        self.branch: Branch | None = None
        """The blocks that the last fork undid."""

        self.orphans: dict[str, int] = {}
        """Blocks that a fork undid, with their depth then."""
        self.taken: dict[str, None] = {}
        """Transactions that were ever in a mempool or a block."""
        self.unanswered: dict[str, None] = {}
        """Transactions that a provider accepted but whose answer was lost."""
        self._shown: dict[str, tuple[str, str | None]] = {}
        self.lost_deposits: dict[str, Tx] = {}
        """Deposits that a fork removed, perhaps for good."""
        self.is_dry: Callable[[], bool] = lambda: False
        """Whether blocks are full of other people's transactions."""
        self.on_blocks: Callable[[list[DevnetBlock]], None] = lambda blocks: None

    def release(self, raw: bytes) -> Tx:
        """Bytes have left the process, so from now on anyone may have them."""
        tx = decode_tx(raw)
        self.hoard.setdefault(tx.tx_id, tx)
        return tx

    def submit(self, raw: bytes) -> str:
        """Submit to the mempool. Returns the id. Raises `LedgerError`."""
        self.node.tick()
        tx_id = self.chain.submit(raw)
        self.taken[tx_id] = None
        return tx_id

    def submit_quietly(self, raw: bytes) -> None:
        """Submit and ignore refusals."""
        try:
            self.submit(raw)
        except LedgerError:
            return

    def shown(self, provider: str, tx_id: str, block_hash: str | None) -> None:
        """Record that a provider shows a transaction in a block, or denies it (None)."""
        other, before = self._shown.get(tx_id, (provider, block_hash))
        if other != provider and before != block_hash:
            self._story.reach("two providers disagree about a transaction")
        self._shown[tx_id] = (provider, block_hash)

    def next_block_s(self) -> float:
        return max(1.0, self._rng.expovariate(1 / BLOCK_MEAN_S))

    def make_block(self) -> None:
        """Make a block, perhaps without the waiting transactions, or a fork instead."""
        mix, rng = self._mix(), self._rng
        self.node.tick()
        if rng.random() < mix.rebroadcast:
            self._rebroadcast()
        if self.chain.mempool and rng.random() < mix.evicted:
            self._evict()
        if rng.random() < mix.fork and self.chain.tip.height > 0:
            self._fork()
            return
        is_empty = rng.random() < mix.empty_block or self.is_dry()
        back = self._deposit_back()
        minted = mint_fork_block(self.chain, back, None) if is_empty or back else self.chain.make_block()
        self._tell(minted)
        self.on_blocks([minted])

    def _deposit_back(self) -> list[bytes]:
        """Choose a removed deposit to be sent again, or none."""
        if not self.lost_deposits or self._rng.random() >= self._mix().deposit_back:
            return []
        tx = self.lost_deposits.pop(self._rng.choice(list(self.lost_deposits)))
        self._story.reach("a deposit comes back that a fork took away")
        return [tx.raw]

    def _rebroadcast(self) -> None:
        for tx in list(self.hoard.values()):
            if tx.tx_id not in self.chain.mempool and self._rng.random() < 0.5:
                self.submit_quietly(tx.raw)

    def _evict(self) -> None:
        """Drop a transaction from the mempool, as a full or restarted node does."""
        tx_id = self._rng.choice(list(self.chain.mempool))
        left = [tx for name, tx in self.chain.mempool.items() if name != tx_id]
        self.chain.refill(left)
        self._story.tell(f"mempool drops {tx_id[:8]}")
        self._story.reach("a mempool drops a transaction")

    def _fork(self) -> None:
        """Another branch wins. Its blocks are at old slots and may contain anything that was ever released."""
        rng, chain = self._rng, self.chain
        most = min(self.fork_max, chain.tip.height)
        depth = rng.randint(DEEP, max(DEEP, most)) if rng.random() < self._mix().deep_fork else rng.randint(1, 3)
        depth = min(depth, most)
        undone = chain.rollback(depth)
        self.branch = Branch(undone, chain.slot)
        self.orphans |= {block.hash: depth - number for number, block in enumerate(undone)}
        lost = {tx.tx_id for block in undone for tx in block.txs}
        self._story.tell(f"fork: {depth} blocks undone with {sorted(name[:8] for name in lost)}")
        self._story.reach("a fork of 16 blocks or more" if depth >= DEEP else "a fork of less than 16 blocks")
        for tx in (tx for block in undone for tx in block.txs if not tx.inputs):
            if rng.random() < self._mix().deposit_lost:
                self.lost_deposits[tx.tx_id] = tx
                self._story.reach("a fork takes a deposit away")
            else:
                return_deposit(self.chain, tx)
        minted = [self._mint(slot) for slot in self._slots(depth + rng.randint(0, _EXTRA_BLOCKS_MAX))]
        self.on_blocks(minted)

    def _slots(self, count: int) -> list[int]:
        first, last = self.chain.tip.slot + 1, self.chain.slot
        if last <= first:
            return [self.chain.slot]
        return sorted(self._rng.randint(first, last) for _ in range(count))

    def _mint(self, slot: int) -> DevnetBlock:
        """A block of the other branch. Its producer knows some of the released transactions, in some order."""
        chosen: list[bytes] = []
        slot = max(slot, self.chain.tip.slot)
        for tx in self._rng.sample(list(self.hoard.values()), len(self.hoard)):
            if self._rng.random() < 0.3 and self._fits(tx, slot):
                chosen.append(tx.raw)
                break
        minted = mint_fork_block(self.chain, chosen, slot)
        for tx in minted.txs:
            if tx.ttl_slot is not None and tx.ttl_slot <= self.chain.slot:
                self._story.reach("a transaction lands on a fork after its time limit")
        self._tell(minted)
        return minted

    def _fits(self, tx: Tx, slot: int) -> bool:
        if self.chain.tx(tx.tx_id) is not None and self.chain.tx(tx.tx_id)[1] is not None:  # type: ignore[index]
            return False
        if tx.ttl_slot is not None and tx.ttl_slot <= slot:
            return False
        return all(ref in self.chain.utxos for ref in tx.inputs) and self._is_script_content(tx, slot)

    def _is_script_content(self, tx: Tx, slot: int) -> bool:
        """Whether the scripts of a transaction, if it has any, let it into a block of this slot."""
        if not tx.script_parts.redeemers:
            return True
        try:
            check_tx(tx, self.chain.utxos, slot, self.chain.params)
        except LedgerError:
            return False
        return True

    def _tell(self, block: DevnetBlock) -> None:
        for tx in block.txs:
            self.taken[tx.tx_id] = None
            if tx.tx_id in self.unanswered:
                del self.unanswered[tx.tx_id]
                self._story.reach("a transaction lands whose reply was lost")
        if block.txs:
            tx_names = " ".join(tx.tx_id[:8] for tx in block.txs)
            self._story.tell(f"block {block.height} at slot {block.slot}: {tx_names}")
