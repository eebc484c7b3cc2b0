"""A chain provider over Blockfrost's HTTP API: blockfrost.io, or a compatible server at another base URL.

This is the only home of blockfrost-python. It holds the requests and their order. `provider_client` makes the
calls, `blockfrost_parse` reads the answers. The library supplies the URL, the headers and the paging; its own
requests have no timeout and read an answer of any length (decision 0025).
Never: raises because of something a provider did; shows the project id.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from blockfrost import BlockFrostApi

from payagent.chain.adapter import (
    Adapter,
    OwnServers,
    Timeouts,
    Unanswered,
    bounded,
    limit_of,
    parsed,
    require_form,
    value_of,
    whole,
)
from payagent.chain.address_history import spender_by_history
from payagent.chain.address_pages import Pages
from payagent.chain.blockfrost_parse import (
    PAGE_ROWS,
    is_own_404,
    parse_address_txs,
    parse_block,
    parse_cost_model,
    parse_genesis,
    parse_movements,
    parse_parameters,
    parse_script,
    parse_spender,
    parse_tip,
    parse_tx,
    parse_utxos,
    parse_validity,
    refs,
)
from payagent.chain.json_answers import HASH, SCRIPT_HASH
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
    ProviderKind,
    Read,
    SubmitAnswer,
    T,
    Unknown,
)
from payagent.chain.submit_answers import ANSWER_MAX_BYTES, SHORT_MAX_BYTES, RawAnswer, classify_submit
from payagent.core.aggregate import TxSeen
from payagent.core.money import parse_count
from payagent.core.problems import Refused
from payagent.core.token_bucket import Rate

RATE = Rate(10, 500)

_MAX_PAGES = 1000
_MAX_TX_PAGES = 10_000
_MAX_TOKENS = 500_000
_MAX_PASSES = 4

_NO_PATH = b"Invalid path"
"""The start of Blockfrost's 400 body for a path that it does not have."""

_ADDRESS = re.compile(r"[0-9a-z_]{1,200}", re.ASCII)
_PROJECT_ID = re.compile(r"[!-~]{1,200}", re.ASCII)


class Blockfrost(Adapter):
    """A `ChainProvider` for a server that speaks Blockfrost's API.

    `base_url` is complete: the API's paths follow it directly. `project_id` is None if the server needs none.
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
        super().__init__(name, rate, timeouts)
        self._secret = project_id
        self._resumable: dict[str, Pages] = {}
        # The library reads environment variables for empty arguments, so the fields are set after it.
        self._api = BlockFrostApi(project_id="-", base_url=base_url.removesuffix("/"), api_version="-")
        self._api.project_id, self._api.api_version = project_id, None

    async def tip(self) -> Read[BlockSeen]:
        return await self._read("tip", parse_tip, "/blocks/latest")

    async def _server_ms(self) -> int:
        return value_of(
            await self._read(
                "clock", lambda body: parse_count(body["server_time"], "server_time"), "/health/clock"
            )
        )

    async def genesis(self) -> Read[Genesis]:
        return await self._read("genesis", parse_genesis, "/genesis")

    async def parameters(self) -> Read[ProtocolParameters]:
        return await self._read("parameters", parse_parameters, "/epochs/latest/parameters")

    async def tx(self, tx_id: str, touches: str | None = None) -> Read[TxSeen]:
        require_form(HASH, tx_id)
        return await self._read("tx", lambda body: parse_tx(body, tx_id), f"/txs/{tx_id}")

    async def block(self, block_hash: str, slot: int) -> Read[BlockSeen]:
        return await self._block(block_hash)

    @bounded
    async def spender(self, ref: str) -> Read[TxSeen]:
        tx_id, index = ref.split("#")
        require_form(HASH, tx_id)
        read = await self._read(
            "spender",
            lambda body: parse_spender(body, tx_id, int(index)),
            f"/txs/{tx_id}/utxos",
            max_bytes=ANSWER_MAX_BYTES,
        )
        if isinstance(read, NotFound):
            return Unknown("spender: the output is not there")
        spender = value_of(read)
        if not spender.is_told:
            return await spender_by_history(self, ref, spender.address)
        return NotFound() if spender.tx_id is None else await self.tx(spender.tx_id)

    @bounded
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
        is_whole = len(rows := value_of(first)) < PAGE_ROWS
        return whole(rows if is_whole else await self._stable_pages(address), "utxos")

    async def script_utxos(self, address: str) -> Read[tuple[ChainUtxo, ...]]:
        return await self.utxos(address)

    @bounded
    async def script(self, script_hash: str) -> Read[PlutusScript]:
        require_form(SCRIPT_HASH, script_hash)
        script = await self._read(
            "script",
            lambda body: parse_script(body, script_hash),
            f"/scripts/{script_hash}/cbor",
            max_bytes=ANSWER_MAX_BYTES,
        )
        costs = await self._read("parameters", parse_cost_model, "/epochs/latest/parameters")
        return Found(PlutusScript(value_of(script), value_of(costs)))

    @bounded
    async def transactions(self, address: str, since_s: int) -> Read[tuple[AddressTx, ...]]:
        """Return the transactions since a time. They are read from the newest back.

        New transactions then make rows show twice, but hide none. A fork can hide one, so pages count only while
        the block that was the tip before them is still on the chain. Pages read before a failure are kept: the
        next call reads newer rows and continues below.
        """
        require_form(_ADDRESS, address)
        for _ in range(_MAX_PASSES):
            before = await self.tip()
            if not isinstance(before, Found):
                return Unknown("transactions: the tip could not be read")
            pages = Pages(before.value.hash, self._resumable.get(address))
            await self._read_down(pages, address, since_s)
            block = await self._block(pages.tip_hash)
            if isinstance(block, Unknown):
                return block
            self._resumable.pop(address, None)
            if isinstance(block, Found):
                return Found(pages.since(since_s))
        return Unknown("transactions: the chain forked while their pages were read")

    @bounded
    async def movement(self, tx_id: str, address: str) -> Read[Movement]:
        """Return what a transaction moved. Collateral moved only if the transaction's script failed.

        The list does not say whether the script failed, so a second call asks for that. If it failed, nothing but
        collateral moved.
        """
        require_form(HASH, tx_id)
        require_form(_ADDRESS, address)
        listed = value_of(
            await self._read(
                "movement",
                lambda body: parse_movements(body, tx_id, address),
                f"/txs/{tx_id}/utxos",
                max_bytes=ANSWER_MAX_BYTES,
            )
        )
        is_plain = not listed.has_collateral or value_of(
            await self._read("movement", parse_validity, f"/txs/{tx_id}")
        )
        return Found(listed.plain if is_plain else listed.collateral)

    async def submit(self, raw: bytes, tx_id: str) -> SubmitAnswer:
        require_form(HASH, tx_id)
        return classify_submit(await self._post(raw, self._timeouts.submit_s), tx_id, self._secret)

    async def findings(self, address: str) -> tuple[str, ...]:
        """Submit one byte, no transaction. Blockfrost's own backend leaves /tx/submit to another program."""
        answer = await self._post(b"\xff", self._timeouts.call_s)
        if answer.status in (404, 405) or (answer.status == 400 and _NO_PATH in answer.body):
            return ("it has no /tx/submit: serve cardano-submit-api at the same address",)
        return ()

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
        return replace(read, reason=f"{kind}: {read.reason}") if isinstance(read, Unknown) else read

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

    async def _stable_pages(self, address: str) -> tuple[ChainUtxo, ...]:
        previous: tuple[ChainUtxo, ...] | None = None
        for _ in range(_MAX_PASSES):
            before = await self.tip()
            rows = await self._all_pages(address)
            is_same_tip = isinstance(before, Found) and before == await self.tip()
            if len(refs(rows)) == len(rows) and (is_same_tip or rows == previous):
                return rows
            previous = rows
        raise Unanswered(Unknown("utxos: the rows kept moving while their pages were read"))

    async def _all_pages(self, address: str) -> tuple[ChainUtxo, ...]:
        rows: list[ChainUtxo] = []
        tokens = 0
        for number in range(1, _MAX_PAGES + 1):
            read = await self._page(address, number)
            if isinstance(read, NotFound):
                read = Unknown(f"utxos: page {number} of an address that had pages is not found")
            page = value_of(read)
            rows.extend(page)
            tokens += sum(len(row.assets) for row in page)
            if tokens > _MAX_TOKENS:
                raise Unanswered(Unknown(f"utxos: more than {_MAX_TOKENS} token amounts"))
            if len(page) < PAGE_ROWS:
                return tuple(rows)
        raise Unanswered(Unknown(f"utxos: more than {_MAX_PAGES} pages"))

    async def _read_down(self, pages: Pages, address: str, since_s: int) -> None:
        """Read pages down to a time, each after its turn."""
        while pages.number <= _MAX_TX_PAGES:
            if not await self._turn():
                raise Unanswered(Unknown("transactions: out of calls"))
            read = await self._read(
                "transactions",
                parse_address_txs,
                f"/addresses/{address}/transactions",
                count=PAGE_ROWS,
                page=pages.number,
                order="desc",
            )
            if isinstance(read, NotFound):
                if pages.number == 1:
                    return
                read = Unknown(f"transactions: page {pages.number} is not found")
            page = value_of(read)
            if not pages.take(page):
                self._resumable.pop(address, None)
                raise Unanswered(Unknown("transactions: the chain forked while their pages were read"))
            self._resumable[address] = pages.to_resume()
            if len(page) < PAGE_ROWS or pages.reaches(since_s):
                return
        self._resumable.pop(address, None)
        raise Unanswered(Unknown(f"transactions: more than {_MAX_TX_PAGES} pages"))


_OWN_SERVERS = OwnServers(
    ".blockfrost.io", "/api/v0", "https://cardano-NETWORK.blockfrost.io/api/v0, the base URL of Blockfrost's API"
)
KIND = ProviderKind(
    lambda name, settings, network, secret: Blockfrost(
        name, settings.base_url, secret, rate=limit_of(network, RATE)
    ),
    {
        "mainnet": "https://cardano-mainnet.blockfrost.io/api/v0",
        "preprod": "https://cardano-preprod.blockfrost.io/api/v0",
        "preview": "https://cardano-preview.blockfrost.io/api/v0",
        "devnet": "http://127.0.0.1:8490/api/v0",
    },
    _OWN_SERVERS.parse_url,
    _OWN_SERVERS.have,
)


def _given(fields: Mapping[str, T | None]) -> dict[str, T]:
    """The fields that have a value: the library gives None to what a request does not have."""
    return {name: value for name, value in fields.items() if value is not None}
