"""A chain provider over Koios: community servers behind one name, each with PostgREST over its own db-sync.

It holds the requests and their order; `koios_parse` reads the answers. Two calls may reach two machines, and one
may be many blocks behind the other. So a machine denies only what it lacks beside a witness in the same answer: a
block and a transaction in it that lie 100 blocks deep. The answer has the number of blocks since the witness, and
so the height that the machine has reached.
Never: raises because of something a server did; reads an empty answer as a denial; shows the token.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, NamedTuple
from urllib.parse import urlencode

from payagent.chain.adapter import (
    Adapter,
    OwnServers,
    Timeouts,
    Unanswered,
    bounded,
    has_asked,
    limit_of,
    parsed,
    require_form,
    server_ms,
    value_of,
    whole,
)
from payagent.chain.address_history import spender_by_history
from payagent.chain.json_answers import HASH
from payagent.chain.koios_parse import (
    KoiosBlock,
    parse_address_txs,
    parse_blocks,
    parse_confirmations,
    parse_deep_block,
    parse_genesis,
    parse_movement,
    parse_output,
    parse_parameters,
    parse_tip,
    parse_tx,
    parse_tx_of_block,
    parse_utxos,
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
    SubmitKind,
    T,
    Unknown,
    Why,
)
from payagent.chain.submit_answers import ANSWER_MAX_BYTES, SHORT_MAX_BYTES, RawAnswer, classify_submit
from payagent.core.aggregate import TxSeen
from payagent.core.problems import Refused
from payagent.core.token_bucket import Rate

RATE = Rate(5, 50)

RATE_PAUSE_S = 60
"""Koios allows 100 calls in 10 s, and after more answers with 429 for a minute, without Retry-After."""

UTXO_ROWS = 50
"""Outputs per call. An output full of assets with short names is 270 kB of JSON."""

TX_ROWS = 1000
"""Transactions per call; Koios gives no more rows."""

WITNESS_DEPTH = 100

_SPARE_BLOCKS = 10_000
"""A devnet makes many blocks in one slot."""

_MAX_TRIES = 3
_MAX_PASSES = 4
_MAX_PAGES = 1000

_ADDRESS = re.compile(r"[0-9a-zA-Z_]{1,200}", re.ASCII)
_TOKEN = re.compile(r"[!-~]{1,4000}", re.ASCII)
_UTXO_COLUMNS = (
    "tx_hash,tx_index,address,value,datum_hash,inline_datum,reference_script,asset_list,block_height,is_spent"
)
_NOT_YET = Unknown("one of its machines is behind another", Why.NOT_YET)


class _Witness(NamedTuple):
    """A block that every machine has unless it is far behind, and a transaction in it."""

    block_hash: str
    height: int
    tx_id: str


@dataclass(frozen=True, slots=True)
class _Listing(Generic[T]):
    """A list of the API: its path, the columns that order its rows, and the values of these in a row."""

    path: str
    columns: tuple[str, str]
    key_of: Callable[[T], tuple[Any, Any]]
    parse: Callable[[Any], tuple[T, ...]]
    page_rows: int


_TRANSACTIONS = _Listing(
    "/address_txs",
    ("block_height", "tx_hash"),
    lambda row: (row.block_height, row.tx_id),
    parse_address_txs,
    TX_ROWS,
)


class Koios(Adapter):
    """A `ChainProvider` for a server that speaks Koios's API. `base_url` is complete; `token` may be None."""

    def __init__(
        self,
        name: str,
        base_url: str,
        token: str | None,
        rate: Rate | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        if token is not None and not _TOKEN.fullmatch(token):
            raise Refused("config_invalid", f"provider {name}: the token is not visible ASCII")
        super().__init__(name, rate, timeouts)
        self._url, self._secret = base_url, token
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._witness: _Witness | None = None

    @bounded
    async def tip(self) -> Read[BlockSeen]:
        """Return the newest block that two answers show: the second may be another machine's."""
        for _ in range(_MAX_TRIES):
            newest, _ = await self._tip()
            if (shown := (await self._blocks(newest.hash)).get(newest.hash)) is not None:
                return (
                    Found(newest) if shown.seen == newest else Unknown("it shows two places for its newest block")
                )
        return _NOT_YET

    async def _server_ms(self) -> int:
        return server_ms(await self._call("/tip", None), "/tip")

    @bounded
    async def genesis(self) -> Read[Genesis]:
        return Found(await self._ask("/genesis", parse_genesis))

    @bounded
    async def parameters(self) -> Read[ProtocolParameters]:
        _, epoch = await self._tip()
        return Found(await self._ask("/epoch_params", partial(parse_parameters, epoch=epoch), _epoch_no=epoch))

    @bounded
    async def tx(self, tx_id: str, touches: str | None = None) -> Read[TxSeen]:
        require_form(HASH, tx_id)
        seen = await self._ask(
            "/tx_info",
            partial(parse_tx, tx_id=tx_id),
            {"_tx_hashes": [tx_id]},
            select="tx_hash,block_hash,block_height,absolute_slot",
        )
        return await self._denied_tx(tx_id) if seen is None else Found(seen)

    @bounded
    async def block(self, block_hash: str, slot: int) -> Read[BlockSeen]:
        require_form(HASH, block_hash)
        found = (await self._blocks(block_hash)).get(block_hash)
        if found is not None:
            return Found(found.seen)
        witness = await self._deep_witness()
        shown = await self._blocks(block_hash, witness.block_hash)
        confirmations = {hash_: block.confirmations for hash_, block in shown.items()}
        return self._denied(block_hash, witness.block_hash, witness.height, confirmations)

    @bounded
    async def spender(self, ref: str) -> Read[TxSeen]:
        """Return who spends an output. Koios does not say by whom, so a spent one's spender is searched for.

        An unspent one is denied as of the block that made it: the answer does not tell how far the machine is.
        """
        tx_id, _, index = ref.partition("#")
        require_form(HASH, tx_id)
        address, height, is_spent = await self._ask(
            "/utxo_info",
            partial(parse_output, tx_id=tx_id, index=int(index)),
            {"_utxo_refs": [ref]},
            select="tx_hash,tx_index,address,block_height,is_spent",
        )
        if not is_spent:
            return NotFound(height)
        read = await spender_by_history(self, ref, address)
        return _NOT_YET if isinstance(read, NotFound) else read

    @bounded
    async def utxos(self, address: str) -> Read[tuple[ChainUtxo, ...]]:
        """Return every unspent output, with its tokens: without `_extended`, they would be missing."""
        require_form(_ADDRESS, address)
        listing = _Listing(
            "/address_utxos",
            ("tx_hash", "tx_index"),
            lambda row: (row.tx_id, row.index),
            partial(parse_utxos, address=address),
            UTXO_ROWS,
        )
        rows = await self._list(listing, {"_addresses": [address], "_extended": True}, select=_UTXO_COLUMNS)
        return whole(rows, listing.path)

    @bounded
    async def transactions(self, address: str, since_s: int) -> Read[tuple[AddressTx, ...]]:
        """Return the transactions since a time and up to one tip.

        A slot of one second holds one block at most, so the blocks since then are no more than the seconds. The
        height only saves the server work.
        """
        require_form(_ADDRESS, address)
        newest, _ = await self._tip()
        passed = max(newest.time_s - since_s, 0) + _SPARE_BLOCKS
        body = {"_addresses": [address], "_after_block_height": max(newest.height - passed, 0)}
        rows = await self._list(
            _TRANSACTIONS,
            body,
            select="tx_hash,block_height,block_time",
            block_time=f"gte.{since_s}",
            block_height=f"lte.{newest.height}",
        )
        return Found(tuple(sorted(rows, key=_TRANSACTIONS.key_of)))

    @bounded
    async def movement(self, tx_id: str, address: str) -> Read[Movement]:
        """Return what a transaction moved. What one whose script failed moved is Unknown."""
        require_form(HASH, tx_id)
        moved = await self._ask(
            "/tx_info",
            partial(parse_movement, tx_id=tx_id, address=address),
            {"_tx_hashes": [tx_id], "_inputs": True, "_assets": True, "_scripts": True},
            max_bytes=ANSWER_MAX_BYTES,
            select="tx_hash,inputs,outputs,plutus_contracts",
        )
        return await self._denied_tx(tx_id) if moved is None else Found(moved)

    async def submit(self, raw: bytes, tx_id: str) -> SubmitAnswer:
        require_form(HASH, tx_id)
        answer = await self._post(raw, self._timeouts.submit_s)
        classified = classify_submit(answer, tx_id, self._secret)
        if answer.status == 413:
            return replace(classified, detail="http 413: too long for Koios without a token, or for this token")
        if classified.kind is SubmitKind.RATE and classified.retry_after_s is None:
            return replace(classified, retry_after_s=RATE_PAUSE_S)
        return classified

    async def findings(self, address: str) -> tuple[str, ...]:
        """Submit one byte, no transaction. Submissions go to another program than reads."""
        answer = await self._post(b"\xff", self._timeouts.call_s)
        return ("it has no /submittx: it takes no transactions",) if answer.status in (404, 405) else ()

    # --- how far a machine has come ---

    async def _denied_tx(self, tx_id: str) -> NotFound | Unknown:
        witness = await self._deep_witness()
        body = {"_tx_hashes": [tx_id, witness.tx_id]}
        confirmations = await self._ask("/tx_status", parse_confirmations, body)
        return self._denied(tx_id, witness.tx_id, witness.height, confirmations)

    def _denied(
        self, missing: str, witness: str, height: int, confirmations: Mapping[str, int | None]
    ) -> NotFound | Unknown:
        """Deny a hash as of the height of the machine that lacks it. The witness at `height` shows how high.

        `confirmations` are the numbers of blocks since the block of each, as that machine has them.
        """
        since_witness = confirmations.get(witness)
        if since_witness is None:
            self._witness = None
        if since_witness is None or confirmations.get(missing) is not None:
            return _NOT_YET
        return NotFound(height + since_witness)

    async def _deep_witness(self) -> _Witness:
        """Find a witness, and keep it. A chain that has none so deep gives one of its newest block."""
        if self._witness is None:
            newest, _ = await self._tip()
            for height in (newest.height - WITNESS_DEPTH, newest.height):
                block = await self._ask(  # the newest block comes first; an order would make the server sort all
                    "/blocks",
                    parse_deep_block,
                    select="hash,block_height",
                    tx_count="gt.0",
                    block_height=f"lte.{height}",
                    limit=1,
                )
                if block is not None:
                    tx_id = await self._ask(
                        "/block_txs",
                        partial(parse_tx_of_block, block_hash=block[0]),
                        {"_block_hashes": [block[0]]},
                        select="block_hash,tx_hash",
                        limit=1,
                    )
                    self._witness = _Witness(*block, tx_id)
                    break
            else:
                raise Unanswered(Unknown("/blocks: no block with a transaction"))
        return self._witness

    # --- calls ---

    async def _tip(self) -> tuple[BlockSeen, int]:
        return await self._ask("/tip", parse_tip)

    async def _blocks(self, *hashes: str) -> Mapping[str, KoiosBlock]:
        return await self._ask(
            "/block_info",
            parse_blocks,
            {"_block_hashes": hashes},
            select="hash,abs_slot,block_height,block_time,num_confirmations",
        )

    async def _list(self, listing: _Listing[T], body: Mapping[str, object], **query: str) -> tuple[T, ...]:
        """Read all rows, in one call or in two equal passes.

        Two pages may be of two machines, or a block may come between them. A row that moved out of sight in one
        pass is missing in one of the two.
        """
        previous: tuple[T, ...] | None = None
        for _ in range(_MAX_PASSES):
            rows = await self._pages(listing, body, query)
            if len({listing.key_of(row) for row in rows}) != len(rows):
                raise Unanswered(Unknown(f"{listing.path}: a row is listed twice"))
            if len(rows) < listing.page_rows or rows == previous:
                return rows
            previous = rows
        raise Unanswered(Unknown(f"{listing.path}: the rows kept changing while their pages were read"))

    async def _pages(
        self, listing: _Listing[T], body: Mapping[str, object], query: Mapping[str, str]
    ) -> tuple[T, ...]:
        """Read page after page, each from the last row of the one before: the server keeps no order of its own."""
        rows: list[T] = []
        after: dict[str, str] = {}
        order = {"order": ",".join(listing.columns), "limit": str(listing.page_rows)}
        for _ in range(_MAX_PAGES):
            page = await self._ask(
                listing.path, listing.parse, body, max_bytes=ANSWER_MAX_BYTES, **query, **order, **after
            )
            rows += page
            if len(page) < listing.page_rows:
                return tuple(rows)
            after = {"or": _after(listing.columns, listing.key_of(rows[-1]))}
        raise Unanswered(Unknown(f"{listing.path}: more than {_MAX_PAGES} pages"))

    async def _ask(
        self,
        path: str,
        parse: Callable[[Any], T],
        body: Mapping[str, object] | None = None,
        *,
        max_bytes: int = SHORT_MAX_BYTES,
        **query: str | int,
    ) -> T:
        """Ask and parse. Each call of a read but its first takes a turn."""
        if has_asked.get() and not await self._turn():
            raise Unanswered(Unknown(f"{path}: out of calls"))
        has_asked.set(True)
        answer = await self._call(path, body, max_bytes, **query)
        read = await parsed(answer, parse)
        if isinstance(read, Unknown):
            pause_s = RATE_PAUSE_S if read.why is Why.RATE else None
            read = Unknown(f"{path}: {read.reason}", read.why, read.retry_after_s or pause_s)
        return value_of(read)

    async def _call(
        self,
        path: str,
        body: Mapping[str, object] | None,
        max_bytes: int = SHORT_MAX_BYTES,
        **query: str | int,
    ) -> RawAnswer:
        url = self._url + path
        if body is None:
            return await self._http.get(url, self._headers, query, self._timeouts.call_s, max_bytes)
        raw = json.dumps(body, separators=(",", ":")).encode()
        headers = {**self._headers, "Content-Type": "application/json"}
        return await self._http.post(f"{url}?{urlencode(query)}", headers, raw, self._timeouts.call_s, max_bytes)

    async def _post(self, raw: bytes, deadline_s: float) -> RawAnswer:
        headers = {**self._headers, "Content-Type": "application/cbor"}
        return await self._http.post(f"{self._url}/submittx", headers, raw, deadline_s, SHORT_MAX_BYTES)


def _after(columns: tuple[str, str], key: tuple[object, object]) -> str:
    """The filter for the rows after a key of two columns."""
    (major, minor), (high, low) = columns, key
    return f"({major}.gt.{high},and({major}.eq.{high},{minor}.gt.{low}))"


_OWN_SERVERS = OwnServers(".koios.rest", "/api/v1", "https://HOST.koios.rest/api/v1, the base URL of Koios's API")
KIND = ProviderKind(
    lambda name, settings, network, secret: Koios(name, settings.base_url, secret, limit_of(network, RATE)),
    {
        "mainnet": "https://api.koios.rest/api/v1",
        "preprod": "https://preprod.koios.rest/api/v1",
        "preview": "https://preview.koios.rest/api/v1",
        "devnet": "http://127.0.0.1:8490/koios/api/v1",
    },
    _OWN_SERVERS.parse_url,
    needs_secret=lambda _url: False,
)
