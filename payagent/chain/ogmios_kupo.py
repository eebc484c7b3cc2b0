"""A chain provider over the operator's own node: Ogmios speaks for the node, Kupo indexes the wallet's addresses.

It holds the requests and their order; `ogmios_kupo_parse` reads the answers. Kupo lists the outputs of the
addresses that it watches, with the blocks that made and spent them, but without heights. Ogmios says which blocks
are on the node's chain, and how high. Kupo keeps the row of a spent output, unless it runs with --prune-utxo.
Never: raises because of something a server did; asks Kupo to watch an address; believes Kupo's list of an address
that it does not watch.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from payagent.chain.adapter import (
    Adapter,
    Timeouts,
    Unanswered,
    bounded,
    parsed,
    require_form,
    server_ms,
    value_of,
    whole,
)
from payagent.chain.json_answers import HASH, understood
from payagent.chain.ogmios_kupo_parse import (
    NO_INTERSECTION,
    NOT_A_TRANSACTION,
    Match,
    Point,
    classify,
    error_code,
    height_below,
    parse_checkpoint,
    parse_epoch,
    parse_genesis,
    parse_intersection,
    parse_ledger,
    parse_matches,
    parse_parameters,
    parse_patterns,
)
from payagent.chain.provider import (
    AddressTx,
    BlockSeen,
    ChainUtxo,
    Found,
    Genesis,
    Movement,
    NotFound,
    ProtocolParameters,
    ProviderKind,
    Read,
    SubmitAnswer,
    T,
    Unknown,
    Why,
)
from payagent.chain.submit_answers import ANSWER_MAX_BYTES, SHORT_MAX_BYTES, RawAnswer
from payagent.core.aggregate import TxSeen
from payagent.core.network import SLOT_CLOCKS, SlotClock
from payagent.settings.field_types import parse_base_url

_SOCKET_S = 10.0
_SOCKET_MAX_BYTES = 4 * 1024 * 1024
_MAX_PASSES = 4
_MAX_HEIGHTS = 100_000

_LAST_SLOT = 10**12
"""A slot after every block. Kupo names the nearest block before a slot."""

_JSON = {"Accept": "application/json", "Content-Type": "application/json"}
_ADDRESS = re.compile(r"[0-9a-z_]{1,200}", re.ASCII)
_START_KUPO = "start it with --match {} and --since a block before the wallet's first deposit"
_NOT_YET = Unknown("the node does not have a block of the index", Why.NOT_YET)


class OgmiosKupo(Adapter):
    """A `ChainProvider` for an Ogmios at `base_url` and a Kupo at `index_url`, both the operator's own."""

    def __init__(
        self, name: str, base_url: str, index_url: str, network: str, timeouts: Timeouts | None = None
    ) -> None:
        super().__init__(name, None, timeouts)
        self._ogmios, self._kupo = f"{base_url}/", index_url
        self._slots = SLOT_CLOCKS.get(network)
        self._heights: dict[str, int] = {}
        self._lacks_row = False
        self._address: str | None = None
        """The wallet's address, once Kupo was seen to watch it. Before, it can deny nothing."""

    @bounded
    async def tip(self) -> Read[BlockSeen]:
        newest = await self._newest()
        block = await self.block(newest.hash, newest.slot)
        return _NOT_YET if isinstance(block, NotFound) else block

    async def _server_ms(self) -> int:
        return server_ms(
            await self._post("queryNetwork/startTime", self._timeouts.call_s, SHORT_MAX_BYTES), "Ogmios"
        )

    @bounded
    async def genesis(self) -> Read[Genesis]:
        return Found(await self._genesis())

    @bounded
    async def parameters(self) -> Read[ProtocolParameters]:
        """Return the parameters. Ogmios gives their epoch apart, so it is asked before and after."""
        epoch = await self._ask("queryLedgerState/epoch", parse_epoch)
        parse = partial(parse_parameters, epoch=epoch)
        found = await self._ask("queryLedgerState/protocolParameters", parse)
        if await self._ask("queryLedgerState/epoch", parse_epoch) != epoch:
            return Unknown("Ogmios: the epoch ended while the parameters were read")
        return Found(found)

    @bounded
    async def utxos(self, address: str) -> Read[tuple[ChainUtxo, ...]]:
        _, rows = await self._list(address, f"{address}?unspent")
        if any(row.spend is not None or row.utxo.address != address for row in rows):
            return Unknown("Kupo: an output that is spent or of another address")
        return whole(tuple(row.utxo for row in reversed(rows)), "Kupo")

    @bounded
    async def transactions(self, address: str, since_s: int) -> Read[tuple[AddressTx, ...]]:
        """Return the transactions since a time: what made and what spent an output of the address.

        The height of a block may take calls. Heights stay known, so the next call continues after Unknown.
        """
        slots = await self._slot_clock()
        since_slot = slots.slot_at(since_s * 1000)
        fields = ("created_after", "spent_after") if since_slot > 0 else ()  # Kupo takes no slot below 1
        _, rows = await self._list(
            address, *([f"{address}?{field}={since_slot}" for field in fields] or [address])
        )
        made = [(row.utxo.tx_id, row.made) for row in reversed(rows)]
        spent = [(row.spend.tx_id, row.spend.point) for row in rows if row.spend is not None]
        found = {}
        for tx_id, point in dict.fromkeys(made + spent):
            if tx_id in found:
                return Unknown("Kupo: a transaction in two blocks")
            if point.slot >= since_slot:
                height = self._heights.get(point.hash) or await self._height(point)
                found[tx_id] = AddressTx(tx_id, height, slots.time_ms(point.slot) // 1000)
        return Found(tuple(sorted(found.values(), key=lambda tx: tx.block_height)))

    @bounded
    async def movement(self, tx_id: str, address: str) -> Read[Movement]:
        """Return what a transaction moved: the outputs that it made, and those that name it as their spender."""
        require_form(HASH, tx_id)
        first = await self._matches(f"*@{tx_id}")
        slot = first[0].made.slot if first else 0
        spent = f"{address}?spent_after={slot}" if slot else f"{address}?spent"
        _, rows = await self._list(address, f"*@{tx_id}", spent)
        made = [row for row in rows if row.utxo.tx_id == tx_id]
        by_it = [row for row in rows if row.spend is not None and row.spend.tx_id == tx_id]
        if any(row.made.slot != slot for row in made) or not (made or by_it):
            return Unknown("Kupo: the index has nothing of this transaction, or it moved to another block")
        return Found(
            Movement(
                spent={row.utxo.ref: row.units for row in by_it if row.utxo.address == address},
                made={row.utxo.ref: row.units for row in made if row.utxo.address == address},
            )
        )

    @bounded
    async def tx(self, tx_id: str, touches: str | None = None) -> Read[TxSeen]:
        """Return the block of a transaction, by an output that it made or, if Kupo has none, by what it touches.

        An output of ours that Kupo does not have is on no chain, and neither is what spends it. Only a Kupo that
        was told to forget spent outputs lacks others, and those at the earliest 36 hours after they were spent.
        """
        require_form(HASH, tx_id)
        made = await self._matches(f"*@{tx_id}")
        if made and {(row.utxo.tx_id, row.made) for row in made} == {(tx_id, made[0].made)}:
            return await self._seen(tx_id, made[0].made)
        nothing = Unknown("Kupo: the index has nothing of this transaction")
        if made or touches is None:
            return nothing
        newest, rows = await self._steady(_query_of(touches))
        if rows and rows[0].spend is not None and rows[0].spend.tx_id == tx_id:
            return await self._seen(tx_id, rows[0].spend.point)
        if self._address is None:
            return nothing
        await self._require_watched(self._address)
        self._lacks_row |= not rows
        return NotFound(await self._height(newest))

    @bounded
    async def block(self, block_hash: str, slot: int) -> Read[BlockSeen]:
        """Say whether a block is on the node's chain. A denial is as of the node's newest block."""
        require_form(HASH, block_hash)
        slots, point = await self._slot_clock(), Point(slot, block_hash)
        parse = partial(parse_intersection, point=point)
        is_on_chain, tip, tip_height = await self._ask("findIntersection", parse, points=[_as_ogmios(point)])
        if not is_on_chain:
            return NotFound(tip_height)
        height = tip_height if tip == point else self._heights.get(block_hash)
        if height is None:
            height = await self._height_by_next(point)
        if len(self._heights) >= _MAX_HEIGHTS:
            self._heights.clear()
        self._heights[block_hash] = height
        return Found(BlockSeen(height, slot, block_hash, slots.time_ms(slot) // 1000))

    @bounded
    async def spender(self, ref: str) -> Read[TxSeen]:
        """Return the transaction that spends an output. A denial is as of Kupo's newest block."""
        newest, rows = await self._steady(_query_of(ref))
        if [row.utxo.ref for row in rows] != [ref]:
            self._lacks_row = True
            return Unknown("Kupo: the index has no row of this output")
        if (spend := rows[0].spend) is not None:
            return await self._seen(spend.tx_id, spend.point)
        return NotFound(await self._height(newest))

    async def submit(self, raw: bytes, tx_id: str) -> SubmitAnswer:
        require_form(HASH, tx_id)
        return classify(await self._post_tx(raw, self._timeouts.submit_s), tx_id)

    async def findings(self, address: str) -> tuple[str, ...]:
        """Submit one byte, no transaction, and compare what Kupo has of the address with the node's own list."""
        found = []
        if error_code(await self._post_tx(b"\xff", self._timeouts.call_s)) != NOT_A_TRANSACTION:
            found.append("Ogmios takes no transactions")
        if not address:
            return tuple(found)
        try:
            in_ledger = await self._ask("queryLedgerState/utxo", parse_ledger, addresses=[address])
            _, rows = await self._list(address, address)
            if self._lacks_row or in_ledger - {row.utxo.ref for row in rows}:
                found.append(f"Kupo lacks outputs: {_START_KUPO.format(address)}, and without --prune-utxo")
        except Unanswered as failed:
            found.append(str(failed))
        return tuple(found)

    # --- what both servers say together ---

    async def _seen(self, tx_id: str, point: Point) -> Read[TxSeen]:
        return Found(TxSeen(tx_id, point.hash, await self._height(point), point.slot))

    async def _height(self, point: Point) -> int:
        """The height of a block of Kupo's that is on the node's chain."""
        block = await self.block(point.hash, point.slot)
        return value_of(_NOT_YET if isinstance(block, NotFound) else block).height

    async def _genesis(self) -> Genesis:
        return await self._ask("queryNetwork/genesisConfiguration", parse_genesis, era="shelley")

    async def _slot_clock(self) -> SlotClock:
        """When slots begin: on a devnet as its genesis says."""
        self._slots = self._slots or SlotClock(0, (await self._genesis()).system_start_s)
        return self._slots

    # --- Kupo ---

    async def _newest(self) -> Point:
        """Kupo's newest block, from its database. The headers of its answers may be ahead of that."""
        return await self._index(f"/checkpoints/{_LAST_SLOT}", parse_checkpoint)

    async def _list(self, address: str, *queries: str) -> tuple[Point, tuple[Match, ...]]:
        """Rows as `_steady` returns them, if Kupo watches the address: otherwise its list would be empty."""
        await self._require_watched(address)
        return await self._steady(*queries)

    async def _require_watched(self, address: str) -> None:
        require_form(_ADDRESS, address)
        if not await self._index(f"/patterns/{address}", parse_patterns):
            raise Unanswered(Unknown(f"Kupo does not watch the address: {_START_KUPO.format(address)}"))
        self._address = address

    async def _steady(self, *queries: str) -> tuple[Point, tuple[Match, ...]]:
        """Rows, and the newest block that all are as of. A rollback between two calls would mix two states."""
        newest = await self._newest()
        for _ in range(_MAX_PASSES):
            rows = [row for query in queries for row in await self._matches(query)]
            before, newest = newest, await self._newest()
            if newest == before:
                return newest, tuple(rows)
        raise Unanswered(Unknown("Kupo: its newest block kept changing"))

    async def _matches(self, query: str) -> tuple[Match, ...]:
        return await self._index(f"/matches/{query}", parse_matches)

    async def _index(self, path: str, parse: Callable[[Any], T]) -> T:
        """Ask Kupo."""
        answer = await self._http.get(f"{self._kupo}{path}", _JSON, {}, self._timeouts.call_s, ANSWER_MAX_BYTES)
        return _found("Kupo", await parsed(answer, parse))

    # --- Ogmios ---

    async def _ask(self, method: str, parse: Callable[[Any], T], **params: object) -> T:
        """Ask Ogmios. That a block is not on the node's chain is an error of Ogmios', and an answer."""
        answer = await self._post(method, self._timeouts.call_s, ANSWER_MAX_BYTES, **params)
        if answer.status == 400 and error_code(answer) == NO_INTERSECTION:
            answer = replace(answer, status=200)
        return _found("Ogmios", await parsed(answer, parse))

    async def _post_tx(self, raw: bytes, deadline_s: float) -> RawAnswer:
        transaction = {"cbor": raw.hex()}
        return await self._post("submitTransaction", deadline_s, SHORT_MAX_BYTES, transaction=transaction)

    async def _post(self, method: str, deadline_s: float, max_bytes: int, **params: object) -> RawAnswer:
        raw = _request(method, **params)
        return await self._http.post(self._ogmios, _JSON, raw, deadline_s, max_bytes)

    async def _height_by_next(self, point: Point) -> int:
        """The height of a block that is not the node's newest: the height of the next, less one.

        Ogmios goes from block to block, so this takes a conversation: go to the block, be told so, and go on.
        """
        if not await self._turn():
            raise Unanswered(Unknown("Ogmios: out of calls"))
        following = _request("nextBlock")
        messages = (_request("findIntersection", points=[_as_ogmios(point)]), following, following)
        answer = await self._http.converse(self._ogmios, messages, _SOCKET_S, _SOCKET_MAX_BYTES)
        read = understood(replace(answer, body=b"0"), lambda _: height_below(answer.body, point.hash))
        return _found("Ogmios", read)


def _request(method: str, **params: object) -> bytes:
    given = {"params": params} if params else {}
    return json.dumps({"jsonrpc": "2.0", "method": method, **given}).encode()


def _query_of(ref: str) -> str:
    """Kupo's pattern for one output."""
    tx_id, _, index = ref.partition("#")
    require_form(HASH, tx_id)
    return f"{int(index)}@{tx_id}"


def _as_ogmios(point: Point) -> dict[str, object]:
    return {"slot": point.slot, "id": point.hash}


def _found(server: str, read: Read[T]) -> T:
    """Return what a server answered, or raise. By its status it denies nothing."""
    return value_of(replace(read, reason=f"{server}: {read.reason}") if isinstance(read, Unknown) else read)


_NETWORKS = ("mainnet", "preprod", "preview")
KIND = ProviderKind(
    lambda name, settings, network, _secret: OgmiosKupo(
        name, settings.base_url, settings.index_url or "", network
    ),
    {**dict.fromkeys(_NETWORKS, "http://127.0.0.1:1337"), "devnet": "http://127.0.0.1:8490/ogmios"},
    parse_base_url,
    needs_secret=lambda _url: False,
    index_urls={**dict.fromkeys(_NETWORKS, "http://127.0.0.1:1442"), "devnet": "http://127.0.0.1:8490/kupo"},
)
