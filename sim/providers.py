"""The simulated providers: each has its own late and partial view of the chain. An honest one never lies.

Answers to submissions are built as bytes, as Blockfrost would send them, and parsed by the real classifier.

Never: shows the agent the truth except through its calls.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import inf
from random import Random
from typing import TypeVar

from payagent.chain.provider import (
    AddressTx,
    BlockSeen,
    ChainUtxo,
    Found,
    Genesis,
    Movement,
    NotFound,
    PlutusScript,
    ProtocolParameters,
    Read,
    SubmitAnswer,
    SubmitKind,
    Turn,
    Unknown,
)
from payagent.chain.submit_answers import RawAnswer, TransportError, classify_submit
from payagent.core.address import parse_address
from payagent.core.aggregate import TxSeen
from payagent.core.network import NETWORKS
from payagent.core.token_bucket import Rate
from payagent.devnet.blockfrost_shapes import error, refusal_message
from payagent.devnet.faults import ERRORS
from payagent.devnet.ledger import DevnetBlock, LedgerError, OutRef, TxOut
from payagent.devnet.node import output_of
from sim.branch import Branch
from sim.fault_rates import FaultRates
from sim.network import Net
from sim.trace import Trace

T = TypeVar("T")

LAG_BLOCKS_MAX = 3
LATE_S_MAX = 300.0
CALL_S, PAGES_S = 14.9, 119.0


@dataclass(frozen=True, slots=True)
class Habits:
    """A provider's behaviour in a run: the lie it tells, if any, and until when it is down.

    `stays_s`: how long it stays on a branch that a fork undid, honest and behind. `drips_from_s`: from then on
    every answer except the tip comes at the last moment before the adapter's timeout. `kind`: one of `KINDS`.
    """

    name: str
    lie: str | None = None
    dead_until_s: float = 0.0
    stays_s: float = 0.0
    drips_from_s: float = inf
    kind: str = "plain"


KINDS = ("plain", "many machines", "own index")
"""What a provider can deny. One of many machines says how far the machine is that answers. An index of our address
alone cannot deny a transaction of which it knows no output of ours.
"""

LIES = ("frozen", "denies", "invents_block", "invents_coins", "takes_and_drops", "parameters", "tip_ahead")

MISPLACES = "misplaces"
"""The lie of a sole provider: it drops some submissions and shows them in a real block."""

MISPLACED_S = 100.0
"""How long it tells that lie. This is shorter than a void or a settlement takes, which a sole liar could cause."""


class SimProvider:
    """A `ChainProvider` on the net. `released` gets submitted bytes before anything else happens to them."""

    def __init__(
        self,
        habits: Habits,
        net: Net,
        rng: Random,
        story: Trace,
        mix: Callable[[], FaultRates],
        released: Callable[[bytes, str], None],
    ) -> None:
        self._habits = habits
        self._net = net
        self._rng = rng
        self._story = story
        self._mix = mix
        self._released = released
        self._frozen_height: int | None = None
        self._branch: Branch | None = None
        self._left: Branch | None = None
        self._calls = 0
        self._misplaced: dict[str, tuple[DevnetBlock | None, float]] = {}
        """By transaction: the block it is falsely shown in, and until when."""

    @property
    def name(self) -> str:
        return self._habits.name

    @property
    def rate(self) -> Rate:
        return Rate(10, 500)

    def pace(self, turn: Turn) -> None:
        """Do nothing: each read is one call."""

    async def findings(self, address: str) -> tuple[str, ...]:
        return ()

    async def clock_off_s(self, now_ms: Callable[[], int]) -> Read[int]:
        return Found(0)

    # --- reads

    async def tip(self) -> Read[BlockSeen]:
        def read(top: int) -> Read[BlockSeen]:
            block = self._block_at(top)
            tip = BlockSeen(block.height, block.slot, block.hash, self._net.node.time_s(block.slot))
            if self._lies("tip_ahead"):
                return Found(BlockSeen(tip.height + 500, tip.slot, "ab" * 32, tip.time_s))
            return Found(tip)

        return await self._read(read, 0.0)

    async def genesis(self) -> Read[Genesis]:
        return await self._read(lambda _: Found(Genesis(42, self._net.node.system_start_s, 1)))

    async def parameters(self) -> Read[ProtocolParameters]:
        fee = 4400 if self._lies("parameters") else 44
        return await self._read(lambda _: Found(ProtocolParameters(fee, 155_381, 4310, 16_384, 5000, 1)))

    async def tx(self, tx_id: str, touches: str | None = None) -> Read[TxSeen]:
        def read(top: int) -> Read[TxSeen]:
            if self._lies("denies"):
                return NotFound()
            if self._lies("invents_block"):
                tip = self._net.chain.blocks[max(0, top - 2)]
                return Found(TxSeen(tx_id, "cd" * 32, tip.height, tip.slot))
            block = self._block_of(tx_id, top) or self._misplaces(tx_id, top)
            if block is not None:
                return Found(TxSeen(tx_id, block.hash, block.height, block.slot))
            if self._habits.kind == "own index" and touches is None:
                self._story.reach("an index of our address cannot deny a transaction")
                return Unknown("it knows only what touches our outputs")
            return self._denial(top)

        answer = await self._read(read)
        if not isinstance(answer, Unknown):
            self._net.shown(self.name, tx_id, answer.value.block_hash if isinstance(answer, Found) else None)
        return answer

    async def spender(self, ref: str) -> Read[TxSeen]:
        made, _, index = ref.partition("#")

        def read(top: int) -> Read[TxSeen]:
            if self._block_of(made, top) is None:
                return Unknown("the output is not there")
            out = (made, int(index))
            on_branch = None if self._branch is None else self._branch.spender_of(out)
            tx_id = on_branch or self._net.chain.spender.get(out)
            block = None if tx_id is None or self._lies("denies") else self._block_of(tx_id, top)
            if tx_id is None or block is None:
                return self._denial(top)
            return Found(TxSeen(tx_id, block.hash, block.height, block.slot))

        answer = await self._read(read)
        if isinstance(answer, Found):
            self._net.shown(self.name, answer.value.tx_id, answer.value.block_hash)
        return answer

    async def script_utxos(self, address: str) -> Read[tuple[ChainUtxo, ...]]:
        return Unknown("this kind of provider shows no scripts")

    async def script(self, script_hash: str) -> Read[PlutusScript]:
        return Unknown("this kind of provider shows no scripts")

    async def block(self, block_hash: str, slot: int) -> Read[BlockSeen]:
        def read(top: int) -> Read[BlockSeen]:
            block = self._block(block_hash)
            if self._lies("invents_block") and block_hash == "cd" * 32:
                tip = self._net.chain.blocks[max(0, top - 2)]
                return Found(BlockSeen(tip.height, tip.slot, block_hash, self._net.node.time_s(tip.slot)))
            if block is None or block.height > top or self._lies("denies"):
                return self._denial(top)
            return Found(BlockSeen(block.height, block.slot, block.hash, self._net.node.time_s(block.slot)))

        return await self._read(read)

    async def utxos(self, address: str) -> Read[tuple[ChainUtxo, ...]]:
        raw = _raw(address)

        def read(top: int) -> Read[tuple[ChainUtxo, ...]]:
            behind = self._net.chain.tip.height - top
            if self._rng.random() < self._mix().index_lags:
                behind += self._rng.randint(1, LAG_BLOCKS_MAX)
            if self._branch is not None:
                rows = self._branch.utxos_at(self._net.node, raw)
            else:
                rows = self._net.node.utxos_at(raw, behind) or []
            listed = [self._utxo(ref, out, address) for ref, out in rows]
            if self._lies("invents_coins"):
                listed.append(ChainUtxo("ee" * 32, 0, address, 90_000_000, {}, None, False, False))
            return Found(tuple(listed))

        return await self._read(read, PAGES_S)

    async def transactions(self, address: str, since_s: int) -> Read[tuple[AddressTx, ...]]:
        raw = _raw(address)

        def read(top: int) -> Read[tuple[AddressTx, ...]]:
            rows = []
            tx_ids = dict.fromkeys(self._net.chain.txs_at(raw))
            if self._branch is not None:
                tx_ids |= dict.fromkeys(self._branch.txs_at(self._net.chain, raw))
            for tx_id in tx_ids:
                block = self._block_of(tx_id, top)
                if block is not None and self._net.node.time_s(block.slot) >= since_s:
                    rows.append(AddressTx(tx_id, block.height, self._net.node.time_s(block.slot)))
            return Found(tuple(rows))

        return await self._read(read, PAGES_S)

    async def movement(self, tx_id: str, address: str) -> Read[Movement]:
        raw = _raw(address)

        def read(top: int) -> Read[Movement]:
            if self._block_of(tx_id, top) is None:
                return NotFound()
            on_branch = self._branch.find(tx_id) if self._branch is not None else None
            tx = (on_branch or self._net.chain.tx(tx_id))[0]  # type: ignore[index]
            spent = {ref: self._output_of(ref) for ref in tx.inputs}
            created = {(tx_id, index): out for index, out in enumerate(tx.outputs)}
            return Found(Movement(_values(spent, raw), _values(created, raw)))

        return await self._read(read)

    async def _read(self, read: Callable[[int], Read[T]], within_s: float = CALL_S) -> Read[T]:
        """Answer after the time that a call takes, from a view that may be some blocks old; or do not answer."""
        rng, mix = self._rng, self._mix()
        if asyncio.get_running_loop().time() >= self._habits.drips_from_s:
            await asyncio.sleep(within_s)
        if rng.random() < 0.2:
            await asyncio.sleep(rng.random() * 3)
        if self._is_dead():
            return Unknown("no connection")
        if rng.random() < mix.unknown:
            self._story.reach("a read that could not tell")
            return Unknown("no answer in time")
        self._net.node.tick()
        top = self._net.chain.tip.height
        if rng.random() < mix.tip_lags:
            top = max(0, top - rng.randint(1, LAG_BLOCKS_MAX))
        if self._is_on_branch():
            top = self._branch.top  # type: ignore[union-attr]
        if self._lies("frozen"):
            self._frozen_height = min(top if self._frozen_height is None else self._frozen_height, top)
            top = self._frozen_height
        return read(top)

    def _denial(self, top: int) -> NotFound:
        if self._habits.kind != "many machines":
            return NotFound()
        if top < self._net.chain.tip.height:
            self._story.reach("one machine of many is behind and denies")
        return NotFound(top)

    def _is_on_branch(self) -> bool:
        """Whether it is on an undone branch. It stays there for a while, and never returns to one it has left."""
        if not self._habits.stays_s:
            return False
        chain, newest = self._net.chain, self._net.branch
        if self._branch is None and newest is not self._left:
            self._branch = newest
        if self._branch is not None and not (
            chain.slot < self._branch.since_slot + self._habits.stays_s and self._branch.stands_on(chain)
        ):
            self._branch, self._left = None, newest
        if self._branch is not None:
            self._story.reach("a provider is asked that is on an orphaned branch")
        return self._branch is not None

    def _block_at(self, height: int) -> DevnetBlock:
        if self._branch is not None and height > self._branch.base:
            return self._branch.block_at(height)
        return self._net.chain.blocks[height]

    def _block(self, block_hash: str) -> DevnetBlock | None:
        block = self._net.chain.block(block_hash)
        if self._branch is not None and (block is None or block.height > self._branch.base):
            return self._branch.block(block_hash)
        return block

    def _block_of(self, tx_id: str, top: int) -> DevnetBlock | None:
        if self._branch is not None:
            if (on_branch := self._branch.find(tx_id)) is not None:
                return on_branch[1]
            top = self._branch.base
        found = self._net.chain.tx(tx_id)
        if found is None or found[1] is None or found[1].height > top:
            return None
        return found[1]

    def _output_of(self, ref: OutRef) -> TxOut | None:
        chain = self._net.chain
        return output_of(chain, ref) if self._branch is None else self._branch.output_of(chain, ref)

    def _misplaces(self, tx_id: str, top: int) -> DevnetBlock | None:
        now_s = asyncio.get_running_loop().time()
        block, until_s = self._misplaced.get(tx_id, (None, 0.0))
        if block is None and until_s:
            block, until_s = self._misplaced[tx_id] = self._block_at(top), now_s + MISPLACED_S
        if block is None or now_s >= until_s or self._net.chain.block(block.hash) is None:
            return None
        self._story.reach(f"a provider lies: {MISPLACES}")
        return block

    def _utxo(self, ref: OutRef, out: TxOut, address: str) -> ChainUtxo:
        return ChainUtxo(
            ref[0],
            ref[1],
            address,
            out.lovelace,
            dict(out.assets),
            None,
            out.datum_hash is not None or out.inline_datum is not None,
            out.reference_script is not None,
        )

    def _lies(self, lie: str) -> bool:
        is_lying = self._habits.lie == lie
        if is_lying:
            self._story.reach(f"a provider lies: {lie}")
        return is_lying

    def _is_dead(self) -> bool:
        return asyncio.get_running_loop().time() < self._habits.dead_until_s

    # --- submission

    async def submit(self, raw: bytes, tx_id: str) -> SubmitAnswer:
        self._released(raw, self.name)
        rng = self._rng
        if rng.random() < 0.3:
            await asyncio.sleep(rng.random() * 4)
        answer = classify_submit(await self._take(raw, tx_id), tx_id)
        if answer.kind is SubmitKind.SPENT_ALL:
            is_there = self._net.chain.tx(tx_id) is not None
            self._story.reach(f"all inputs are spent, and it is {'ours' if is_there else 'not ours'}")
        self._story.tell(f"{self.name} answers {answer.kind} of {tx_id[:8]}")
        return answer

    async def _take(self, raw: bytes, tx_id: str) -> RawAnswer:
        """The true result of a submission, and the answer about it, which may differ."""
        mix, net = self._mix(), self._net
        if self._is_dead():
            return RawAnswer(error=TransportError.CONNECT, body_sent=False)
        if self._lies("takes_and_drops") or self._drawn("a provider says yes and drops it", mix.dropped):
            return _json(200, tx_id)
        if self._habits.lie == MISPLACES and tx_id not in self._misplaced:
            is_lie = self._rng.random() < 0.5
            self._misplaced[tx_id] = None, inf if is_lie else 0.0
            if is_lie:
                return _json(200, tx_id)
        if self._drawn("a request that was lost", mix.lost_request):
            return RawAnswer(error=TransportError.TIMEOUT, body_sent=True)
        if self._drawn("a submission taken late", mix.late_accept):
            later_s = self._rng.random() * LATE_S_MAX
            asyncio.get_running_loop().call_later(later_s, net.submit_quietly, raw)
            return _problem("gateway_timeout")
        if self._drawn("a full mempool", mix.mempool_full):
            return _problem("full")
        if self._drawn("a provider's limit", mix.over_limit):
            return _problem(self._rng.choice(("rate", "quota", "banned")))
        if self._drawn("a provider's 500", mix.broken):
            if self._rng.random() < 0.5:
                net.submit_quietly(raw)
            return _problem("server")
        honest = self._submit(raw)
        if self._drawn("a reply that was lost", mix.lost_reply):
            if tx_id in net.chain.mempool:
                self._story.reach("a reply was lost of what was taken")
                net.unanswered[tx_id] = None
            return RawAnswer(error=TransportError.RESET, body_sent=True)
        if honest.status == 200 and self._drawn("a provider names another id", mix.other_id):
            return _json(200, "0" * 64)
        return honest

    def _submit(self, raw: bytes) -> RawAnswer:
        try:
            return _json(200, self._net.submit(raw))
        except LedgerError as refused:
            return _json(400, error(400, "Bad Request", refusal_message(refused)))

    def _drawn(self, event: str, rate: float) -> bool:
        if self._rng.random() >= rate:
            return False
        self._story.reach(event)
        return True

    async def aclose(self) -> None:
        return


def _json(status: int, body: object) -> RawAnswer:
    return RawAnswer(status, json.dumps(body).encode())


def _problem(name: str) -> RawAnswer:
    status, title, message = ERRORS[name]
    return _json(status, error(status, title, message))


def _values(outs: "dict[OutRef, TxOut | None] | dict[OutRef, TxOut]", raw: bytes) -> dict[str, dict[str, int]]:
    return {
        f"{ref[0]}#{ref[1]}": {"lovelace": out.lovelace, **out.assets}
        for ref, out in outs.items()
        if out is not None and out.address == raw
    }


@cache
def _raw(address: str) -> bytes:
    return parse_address(address, NETWORKS["devnet"]).raw
