"""A chain provider over Blockfrost's HTTP API: blockfrost.io, or a compatible server at another base URL.

This is the only home of blockfrost-python. It holds the requests and their order. `provider_client` makes the
calls, `blockfrost_parse` reads the answers. The library supplies the URL, the headers and the paging; its own
requests have no timeout and read an answer of any length (decision 0025).
Never: raises because of something a provider did; shows the project id.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from blockfrost import BlockFrostApi

from payagent.chain.adapter import parsed, require_form
from payagent.chain.address_history import spender_by_history
from payagent.chain.address_pages import Pages
from payagent.chain.blockfrost_parse import (
    PAGE_ROWS,
    is_own_404,
    parse_address_txs,
    parse_block,
    parse_genesis,
    parse_movements,
    parse_parameters,
    parse_spender,
    parse_tip,
    parse_tx,
    parse_utxos,
    parse_validity,
    refs,
)
from payagent.chain.json_answers import HASH
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
    Turn,
    Unknown,
    at_once,
)
from payagent.chain.provider_client import ProviderClient
from payagent.chain.submit_answers import ANSWER_MAX_BYTES, SHORT_MAX_BYTES, RawAnswer, classify_submit
from payagent.core.aggregate import TxSeen
from payagent.core.money import MAX_LOVELACE, parse_count
from payagent.core.problems import Refused
from payagent.core.token_bucket import Rate
from payagent.settings.field_types import parse_base_url
from payagent.settings.schema import ProviderSettings

T = TypeVar("T")

RATE = Rate(10, 500)

_MAX_PAGES = 1000
_MAX_TX_PAGES = 10_000
_MAX_TOKENS = 500_000
_MAX_PASSES = 4

_NO_PATH = b"Invalid path"
"""The start of Blockfrost's 400 body for a path that it does not have."""

_ADDRESS = re.compile(r"[0-9a-z_]{1,200}", re.ASCII)
_PROJECT_ID = re.compile(r"[!-~]{1,200}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Timeouts in seconds: to connect, for one read, for all pages, for one submission."""

    connect_s: float = 5.0
    call_s: float = 15.0
    pages_s: float = 120.0
    submit_s: float = 30.0


class Blockfrost:
    """A `ChainProvider` for a server that speaks Blockfrost's API.

    `base_url` is complete: the API's paths follow it directly. `project_id` is None if the server needs none. The
    provider belongs to the event loop that first uses it, and must be closed.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        project_id: str | None,
        timeouts: Timeouts | None = None,
        rate: Rate | None = None,
    ) -> None:
        if urlsplit(base_url).scheme not in ("http", "https"):
            raise Refused("config_invalid", f"provider {name}: base_url is not an http(s) URL")
        if project_id is not None and not _PROJECT_ID.fullmatch(project_id):
            raise Refused("config_invalid", f"provider {name}: the project id is not visible ASCII")
        self.name, self.rate = name, rate
        self._timeouts = timeouts or Timeouts()
        self._secret = project_id
        self._http = ProviderClient(self._timeouts.connect_s)
        self._turn: Turn = at_once
        self._resumable: dict[str, Pages] = {}
        # The library reads environment variables for empty arguments, so the fields are set after it.
        self._api = BlockFrostApi(project_id="-", base_url=base_url.removesuffix("/"), api_version="-")
        self._api.project_id, self._api.api_version = project_id, None

    def __repr__(self) -> str:
        return f"Blockfrost({self.name!r})"

    async def tip(self) -> Read[BlockSeen]:
        return await self._read("tip", parse_tip, "/blocks/latest")

    async def clock_off_s(self, now_ms: Callable[[], int]) -> Read[int]:
        asked_ms = now_ms()
        read = await self._read(
            "clock", lambda body: parse_count(body["server_time"], "server_time"), "/health/clock"
        )
        if not isinstance(read, Found):
            return read
        return Found(((asked_ms + now_ms()) // 2 - read.value) // 1000)

    async def genesis(self) -> Read[Genesis]:
        return await self._read("genesis", parse_genesis, "/genesis")

    async def parameters(self) -> Read[ProtocolParameters]:
        return await self._read("parameters", parse_parameters, "/epochs/latest/parameters")

    async def tx(self, tx_id: str, touches: str | None = None) -> Read[TxSeen]:
        require_form(HASH, tx_id)
        return await self._read("tx", lambda body: parse_tx(body, tx_id), f"/txs/{tx_id}")

    async def block(self, block_hash: str, slot: int) -> Read[BlockSeen]:
        return await self._block(block_hash)

    async def spender(self, ref: str) -> Read[TxSeen]:
        tx_id, index = ref.split("#")
        require_form(HASH, tx_id)
        read = await self._read(
            "spender",
            lambda body: parse_spender(body, tx_id, int(index)),
            f"/txs/{tx_id}/utxos",
            max_bytes=ANSWER_MAX_BYTES,
        )
        if not isinstance(read, Found):
            return read if isinstance(read, Unknown) else Unknown("spender: the output is not there")
        if not read.value.is_told:
            return await spender_by_history(self, ref, read.value.address)
        return NotFound() if read.value.tx_id is None else await self.tx(read.value.tx_id)

    async def utxos(self, address: str) -> Read[tuple[ChainUtxo, ...]]:
        """Return every unspent output. A single page is complete by itself; more pages are read in passes.

        Between two pages an output may be spent, and the rows behind it move up past the reader. So a pass counts
        only if no row showed twice and one of these holds: the tip was the same before and after, or the pass
        before saw the same rows. A row that had moved past would be missing in one of the two passes.
        """
        require_form(_ADDRESS, address)
        first = await self._page(address, 1)
        if isinstance(first, NotFound):
            return Found(())
        if isinstance(first, Unknown):
            return first
        if len(first.value) < PAGE_ROWS:
            return _whole(first.value)
        try:
            async with asyncio.timeout(self._timeouts.pages_s):
                return await self._stable_pages(address)
        except TimeoutError:
            return Unknown("utxos: the pages took too long")

    def pace(self, turn: Turn) -> None:
        self._turn = turn

    async def transactions(self, address: str, since_s: int) -> Read[tuple[AddressTx, ...]]:
        """Return the transactions since a time. They are read from the newest back.

        New transactions then make rows show twice, but hide none. A fork can hide one, so pages count only while
        the block that was the tip before them is still on the chain. Pages read before a failure are kept: the
        next call reads newer rows and continues below.
        """
        require_form(_ADDRESS, address)
        try:
            async with asyncio.timeout(self._timeouts.pages_s):
                for _ in range(_MAX_PASSES):
                    before = await self.tip()
                    if not isinstance(before, Found):
                        return Unknown("transactions: the tip could not be read")
                    pages = Pages(before.value.hash, self._resumable.get(address))
                    if (failure := await self._read_down(pages, address, since_s)) is not None:
                        return failure
                    block = await self._block(pages.tip_hash)
                    if isinstance(block, Unknown):
                        return block
                    self._resumable.pop(address, None)
                    if isinstance(block, Found):
                        return Found(pages.since(since_s))
        except TimeoutError:
            return Unknown("transactions: the pages took too long")
        return Unknown("transactions: the chain forked while their pages were read")

    async def movement(self, tx_id: str, address: str) -> Read[Movement]:
        """Return what a transaction moved. Collateral moved only if the transaction's script failed.

        The list does not say whether the script failed, so a second call asks for that. If it failed, nothing but
        collateral moved.
        """
        require_form(HASH, tx_id)
        require_form(_ADDRESS, address)
        listed = await self._read(
            "movement",
            lambda body: parse_movements(body, tx_id, address),
            f"/txs/{tx_id}/utxos",
            max_bytes=ANSWER_MAX_BYTES,
        )
        if not isinstance(listed, Found):
            return listed
        if not listed.value.has_collateral:
            return Found(listed.value.plain)
        is_valid = await self._read("movement", parse_validity, f"/txs/{tx_id}")
        if not isinstance(is_valid, Found):
            return is_valid
        return Found(listed.value.plain if is_valid.value else listed.value.collateral)

    async def submit(self, raw: bytes, tx_id: str) -> SubmitAnswer:
        require_form(HASH, tx_id)
        return classify_submit(await self._post(raw, self._timeouts.submit_s), tx_id, self._secret)

    async def findings(self, address: str) -> tuple[str, ...]:
        """Submit one byte, no transaction. Blockfrost's own backend leaves /tx/submit to another program."""
        answer = await self._post(b"\xff", self._timeouts.call_s)
        if answer.status in (404, 405) or (answer.status == 400 and _NO_PATH in answer.body):
            return ("it has no /tx/submit: serve cardano-submit-api at the same address",)
        return ()

    async def aclose(self) -> None:
        """Abort the calls in progress, which return Unknown, and free the connections."""
        await self._http.aclose()

    async def _read(
        self,
        kind: str,
        parse: Callable[[Any], T],
        path: str,
        *,
        max_bytes: int = SHORT_MAX_BYTES,
        **page: int | str,
    ) -> Read[T]:
        """Ask and parse."""
        answer = await self._http.get(
            self._api.url + path,
            _given(self._api.default_headers),
            _given(self._api.query_parameters(page)),
            self._timeouts.call_s,
            max_bytes,
        )
        read = await parsed(answer, parse, is_own_404)
        return replace(read, reason=f"{kind}: {self._clean(read.reason)}") if isinstance(read, Unknown) else read

    async def _block(self, block_hash: str) -> Read[BlockSeen]:
        require_form(HASH, block_hash)
        return await self._read("block", lambda body: parse_block(body, block_hash), f"/blocks/{block_hash}")

    async def _post(self, raw: bytes, deadline_s: float) -> RawAnswer:
        headers = {**_given(self._api.default_headers), "Content-Type": "application/cbor"}
        return await self._http.post(f"{self._api.url}/tx/submit", headers, raw, deadline_s, SHORT_MAX_BYTES)

    async def _page(self, address: str, page: int) -> Read[tuple[ChainUtxo, ...]]:
        return await self._read(
            "utxos",
            lambda body: parse_utxos(body, address),
            f"/addresses/{address}/utxos",
            max_bytes=ANSWER_MAX_BYTES,
            count=PAGE_ROWS,
            page=page,
        )

    async def _stable_pages(self, address: str) -> Read[tuple[ChainUtxo, ...]]:
        previous: tuple[ChainUtxo, ...] | None = None
        for _ in range(_MAX_PASSES):
            before = await self.tip()
            rows = await self._all_pages(address)
            if isinstance(rows, Unknown):
                return rows
            after = await self.tip()
            is_same_tip = isinstance(before, Found) and isinstance(after, Found) and before.value == after.value
            if len(refs(rows)) == len(rows) and (is_same_tip or rows == previous):
                return _whole(rows)
            previous = rows
        return Unknown("utxos: the rows kept moving while their pages were read")

    async def _all_pages(self, address: str) -> tuple[ChainUtxo, ...] | Unknown:
        rows: list[ChainUtxo] = []
        tokens = 0
        for number in range(1, _MAX_PAGES + 1):
            page = await self._page(address, number)
            if isinstance(page, Unknown):
                return page
            if isinstance(page, NotFound):
                return Unknown(f"utxos: page {number} of an address that had pages is not found")
            rows.extend(page.value)
            tokens += sum(len(row.assets) for row in page.value)
            if tokens > _MAX_TOKENS:
                return Unknown(f"utxos: more than {_MAX_TOKENS} token amounts")
            if len(page.value) < PAGE_ROWS:
                return tuple(rows)
        return Unknown(f"utxos: more than {_MAX_PAGES} pages")

    async def _read_down(self, pages: Pages, address: str, since_s: int) -> Unknown | None:
        """Read pages down to a time, each after its turn. Returns the failure, or None."""
        while pages.number <= _MAX_TX_PAGES:
            if not await self._turn():
                return Unknown("transactions: out of calls")
            page = await self._read(
                "transactions",
                parse_address_txs,
                f"/addresses/{address}/transactions",
                count=PAGE_ROWS,
                page=pages.number,
                order="desc",
            )
            if isinstance(page, Unknown):
                return page
            if isinstance(page, NotFound):
                is_first = pages.number == 1
                return None if is_first else Unknown(f"transactions: page {pages.number} is not found")
            if not pages.take(page.value):
                self._resumable.pop(address, None)
                return Unknown("transactions: the chain forked while their pages were read")
            self._resumable[address] = pages.to_resume()
            if len(page.value) < PAGE_ROWS or pages.reaches(since_s):
                return None
        self._resumable.pop(address, None)
        return Unknown(f"transactions: more than {_MAX_TX_PAGES} pages")

    def _clean(self, text: str) -> str:
        """Remove the project id, which a provider might echo."""
        return text.replace(self._secret, "[project id]") if self._secret else text


def _make(name: str, settings: ProviderSettings, network: str, secret: str | None) -> Blockfrost:
    """A devnet has no rate limit."""
    return Blockfrost(name, settings.base_url, secret, rate=None if network == "devnet" else RATE)


def _is_own_service(url: str) -> bool:
    """Whether a URL is Blockfrost's own service, which answers only with a project id."""
    return (urlsplit(url).hostname or "").endswith(".blockfrost.io")


def _parse_url(text: str) -> str:
    url = parse_base_url(text)
    if _is_own_service(url) and urlsplit(url).path != "/api/v0":
        raise ValueError("write https://cardano-NETWORK.blockfrost.io/api/v0, the base URL of Blockfrost's API")
    return url


KIND = ProviderKind(
    _make,
    {
        "mainnet": "https://cardano-mainnet.blockfrost.io/api/v0",
        "preprod": "https://cardano-preprod.blockfrost.io/api/v0",
        "preview": "https://cardano-preview.blockfrost.io/api/v0",
        "devnet": "http://127.0.0.1:8490/api/v0",
    },
    _parse_url,
    _is_own_service,
)


def _given(fields: Mapping[str, T | None]) -> dict[str, T]:
    """The fields that have a value: the library gives None to what a request does not have."""
    return {name: value for name, value in fields.items() if value is not None}


def _whole(rows: tuple[ChainUtxo, ...]) -> Read[tuple[ChainUtxo, ...]]:
    """All outputs of an address, or Unknown if they hold more lovelace than exists."""
    if sum(row.lovelace for row in rows) > MAX_LOVELACE:
        return Unknown("utxos: more lovelace than exists")
    return Found(rows)
