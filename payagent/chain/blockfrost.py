"""A chain source over Blockfrost's HTTP API: blockfrost.io, and what speaks like it at another base URL.

The only home of blockfrost-python and urllib3. May import: core, chain.source, chain.classify. Never: raises
for what a provider did, follows a redirect, reads the environment, shows the project id.

blockfrost-python knows the paths, parameters and headers; its transport is not used, because it has no
time-outs, opens a connection per call, takes the status of an error from the body, and turns a transaction id
in plain text into a number. Its request functions name `requests` as a global of their module, so each one
that is needed is bound once, per instance, to our own transport in that place (`_bound`). Nothing in the
library is patched, and other users of it in this process notice nothing. The transport is urllib3 itself: what
`requests` adds to it (sessions, cookies, hooks, the environment) is not wanted here, and costs half a call.

The calls block, so they run on a few threads of our own. A socket time-out bounds one read only; what bounds
a whole call is a deadline on the event loop, which shuts the call's socket so that its thread comes back.
"""

import asyncio
import http.client
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from types import FunctionType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import certifi
import urllib3
from blockfrost import BlockFrostApi
from urllib3.connection import HTTPConnection, HTTPSConnection

from payagent.chain.classify import RawAnswer, TransportError, classify_submit, retry_after_s
from payagent.chain.source import (
    AddressTx,
    BlockSeen,
    ChainUtxo,
    Found,
    Genesis,
    Movement,
    NotFound,
    Parameters,
    Read,
    SubmitAnswer,
    Tip,
    TxSeen,
    Unknown,
    Why,
)
from payagent.core import strict_json
from payagent.core.money import LOVELACE, MAX_LOVELACE, MAX_UNITS, check_supply, parse_count, parse_units
from payagent.core.problem import Refused

T = TypeVar("T")

_THREADS = 8
_MAX_ANSWER_BYTES = 16 * 1024 * 1024  # 100 outputs full of assets with short names are 12 MB of JSON
_CHUNK_BYTES = 64 * 1024
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}
"""Uncompressed, so that the bound on an answer bounds memory too."""
_PAGE_ROWS = 100
_MAX_PAGES = 1000
_MAX_PASSES = 4
_MAX_TOKEN_QUANTITY = 2**64 - 1  # of one output, by the ledger

_NO_PATH = b"Invalid path"
"""How Blockfrost's backend begins its 400 for a path that it does not have."""

_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_ADDRESS = re.compile(r"[0-9a-z_]{1,200}", re.ASCII)
_PROJECT_ID = re.compile(r"[!-~]{1,200}", re.ASCII)
_UNIT = re.compile(r"[0-9a-f]{56}(?:[0-9a-f]{2}){0,32}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: to connect, between two bytes of a read, for a whole read, all pages, a whole submission."""

    connect_s: float = 5.0
    read_s: float = 10.0
    call_s: float = 15.0
    pages_s: float = 120.0
    submit_s: float = 30.0


class _AbortedError(OSError):
    """The call's deadline passed while its thread was still at work."""


class _Call:
    """One exchange, whose socket can be shut from the event loop."""

    def __init__(self, read_timeout_s: float) -> None:
        self.read_timeout_s = read_timeout_s
        self._lock = threading.Lock()
        self._connection: HTTPConnection | None = None
        self._aborted = False

    def adopt(self, connection: HTTPConnection | None) -> None:
        """Go on with this connection (None: not connected yet), unless the call was given up meanwhile."""
        with self._lock:
            if self._aborted:
                raise _AbortedError
            self._connection = connection

    def release(self) -> None:
        """The exchange is over: its connection is another call's from now on."""
        with self._lock:
            self._connection = None

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            sock = self._connection.sock if self._connection is not None else None
            if sock is not None:
                try:
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
                except OSError:
                    return  # closed already: its thread is on the way out


_running = threading.local()  # .call: the _Call that this worker thread is executing


class _PlainConnection(HTTPConnection):
    """Tells the running call of itself before it sends anything."""

    def connect(self) -> None:
        super().connect()
        _running.call.adopt(self)

    def request(self, *args: Any, **kwargs: Any) -> None:
        _running.call.adopt(self)
        super().request(*args, **kwargs)


class _TlsConnection(_PlainConnection, HTTPSConnection):
    """The same over TLS."""


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Body:
    """The bytes to send, in the form of a file, to learn whether the socket layer took any of them."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0
        self.taken = False

    def __len__(self) -> int:
        return len(self._raw)

    def read(self, size: int = -1) -> bytes:
        self.taken = True
        end = len(self._raw) if size < 0 else self._at + size
        part = self._raw[self._at : end]
        self._at += len(part)
        return part


class _Transport:
    """Stands where the library says `requests`: kept connections, no retry, and answers as plain values."""

    def __init__(self, connect_timeout_s: float) -> None:
        self._connect_timeout_s = connect_timeout_s
        trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # one of urllib3's own goes by SSLKEYLOGFILE
        trusted.load_verify_locations(certifi.where())
        self._pools = urllib3.PoolManager(1, maxsize=_THREADS, retries=False, ssl_context=trusted)
        self._pools.pool_classes_by_scheme = {"http": _PlainPool, "https": _TlsPool}

    def get(self, url: str, headers: dict[str, str | None], params: Mapping[str, Any] | None = None) -> RawAnswer:
        asked = {name: value for name, value in (params or {}).items() if value is not None}
        return self._exchange("GET", url, headers, fields=asked)

    def post(self, url: str, headers: dict[str, str | None], data: _Body) -> RawAnswer:
        # told, since urllib3 does not ask a body that it reads how long it is
        return self._exchange("POST", url, headers | {"Content-Length": str(len(data))}, body=data)

    def _exchange(self, method: str, url: str, headers: dict[str, str | None], **what: Any) -> RawAnswer:
        body = what.get("body")
        call: _Call = _running.call
        told = _HEADERS | {name: value for name, value in headers.items() if value is not None}
        try:
            call.adopt(None)
            response = self._pools.request(
                method,
                url,
                headers=told,
                timeout=urllib3.Timeout(connect=self._connect_timeout_s, read=call.read_timeout_s),
                redirect=False,
                preload_content=False,
                **what,
            )
            try:
                return _received(response)
            finally:
                response.close()
        except (urllib3.exceptions.HTTPError, http.client.HTTPException) as error:
            return RawAnswer(error=_transport_error(error), body_sent=body is not None and body.taken)
        except (OSError, ValueError):
            return RawAnswer(error=TransportError.RESET, body_sent=body is not None and body.taken)
        finally:
            call.release()

    def close(self) -> None:
        self._pools.clear()


def _received(response: urllib3.BaseHTTPResponse) -> RawAnswer:
    """Read the answer, at most up to the bound. The status counts even when the body broke off."""
    parts, size, error = [], 0, None
    try:
        for part in response.stream(_CHUNK_BYTES, decode_content=True):
            parts.append(part)
            size += len(part)
            if size > _MAX_ANSWER_BYTES:
                error = TransportError.TOO_BIG
                break
    except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError):
        error = TransportError.TRUNCATED
    return RawAnswer(
        status=response.status,
        body=b"".join(parts),
        retry_after=response.headers.get("Retry-After"),
        error=error,
    )


def _transport_error(error: Exception) -> TransportError:
    """The kind only: the texts of these libraries hold addresses and, for a bad header, its value."""
    if isinstance(error, urllib3.exceptions.SSLError):
        return TransportError.TLS
    if isinstance(error, urllib3.exceptions.ReadTimeoutError):
        return TransportError.TIMEOUT
    refused = (
        urllib3.exceptions.ConnectTimeoutError,
        urllib3.exceptions.NewConnectionError,
        urllib3.exceptions.LocationValueError,
    )
    return TransportError.CONNECT if isinstance(error, refused) else TransportError.RESET


def _bound(method: Callable[..., Any], transport: _Transport) -> Callable[..., RawAnswer]:
    """A request function of the library, without its wrapper, with our transport in the place of `requests`."""
    inner = method.__wrapped__  # type: ignore[attr-defined]  # functools.wraps keeps it
    namespace = {**inner.__globals__, "requests": transport}
    return FunctionType(inner.__code__, namespace, inner.__name__, inner.__defaults__, inner.__closure__)


class Blockfrost:
    """A `ChainSource` at a base URL that speaks Blockfrost's API.

    `base_url` is complete: the paths of the API follow it directly. `project_id` is None where the server
    wants none. The source is bound to the event loop that first uses it, and must be closed.
    """

    def __init__(self, name: str, base_url: str, project_id: str | None, timeouts: Timeouts | None = None) -> None:
        if urlsplit(base_url).scheme not in ("http", "https"):
            raise Refused("config_invalid", f"provider {name}: base_url is not an http(s) URL")
        if project_id is not None and not _PROJECT_ID.fullmatch(project_id):
            raise Refused("config_invalid", f"provider {name}: the project id is not visible ASCII")
        self._name = name
        self._timeouts = timeouts or Timeouts()
        self._secret = project_id
        self._transport = _Transport(self._timeouts.connect_s)
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"chain-{name}")
        self._calls: set[_Call] = set()
        self._closed = False
        # The constructor falls back to environment variables for what is empty, so the fields are set after it.
        self._api = BlockFrostApi(project_id="-", base_url=base_url, api_version="-")
        self._api.project_id = project_id
        self._api.base_url = base_url.removesuffix("/")
        self._api.api_version = None
        to = self._transport
        self._block_latest = _bound(BlockFrostApi.block_latest, to)
        self._block = _bound(BlockFrostApi.block, to)
        self._clock = _bound(BlockFrostApi.clock, to)
        self._genesis = _bound(BlockFrostApi.genesis, to)
        self._epoch_parameters = _bound(BlockFrostApi.epoch_latest_parameters, to)
        self._address_utxos = _bound(BlockFrostApi.address_utxos, to)
        self._address_transactions = _bound(BlockFrostApi.address_transactions, to)
        self._transaction = _bound(BlockFrostApi.transaction, to)
        self._transaction_utxos = _bound(BlockFrostApi.transaction_utxos, to)
        self._submit_cbor = _bound(BlockFrostApi.transaction_submit_cbor, to)

    def __repr__(self) -> str:
        return f"Blockfrost({self._name!r})"

    @property
    def name(self) -> str:
        return self._name

    async def tip(self) -> Read[Tip]:
        return await self._read("tip", _parse_tip, self._block_latest)

    async def clock_off_s(self, now_ms: Callable[[], int]) -> Read[int]:
        """How far our clock is ahead of the provider's own, or, negative, behind it: to half the call's length."""
        asked_ms = now_ms()
        read = await self._read("clock", lambda body: parse_count(body["server_time"], "server_time"), self._clock)
        if not isinstance(read, Found):
            return read
        return Found(((asked_ms + now_ms()) // 2 - read.value) // 1000)

    async def genesis(self) -> Read[Genesis]:
        return await self._read("genesis", _parse_genesis, self._genesis)

    async def parameters(self) -> Read[Parameters]:
        return await self._read("parameters", _parse_parameters, self._epoch_parameters)

    async def tx(self, tx_id: str) -> Read[TxSeen]:
        _check(_HASH, tx_id)
        return await self._read("tx", lambda body: _parse_tx(body, tx_id), self._transaction, tx_id)

    async def block(self, block_hash: str) -> Read[BlockSeen]:
        _check(_HASH, block_hash)
        return await self._read("block", lambda body: _parse_block(body, block_hash), self._block, block_hash)

    async def utxos(self, address: str) -> Read[tuple[ChainUtxo, ...]]:
        """As the protocol says. An answer of one page is whole by itself; more pages are read in passes.

        Between two pages an output may be spent, and the rows behind it move up past the reader. So a pass
        counts only if no row showed twice, and the tip was the same before and after it or the pass before it
        saw the same rows (a row that had moved past would be missing in one and not in the other).
        """
        _check(_ADDRESS, address)
        first = await self._page(address, 1)
        if isinstance(first, NotFound):
            return Found(())
        if isinstance(first, Unknown):
            return first
        if len(first.value) < _PAGE_ROWS:
            return _whole(first.value)
        try:
            async with asyncio.timeout(self._timeouts.pages_s):
                return await self._stable_pages(address)
        except TimeoutError:
            return Unknown("utxos: the pages took too long")

    async def transactions(self, address: str, since_s: int) -> Read[tuple[AddressTx, ...]]:
        """As the protocol says, read from the newest row back: what comes meanwhile shows rows twice, hides none.

        A fork can hide one, so pages count only while the block that was the tip before them is still there.
        """
        _check(_ADDRESS, address)
        try:
            async with asyncio.timeout(self._timeouts.pages_s):
                for _ in range(_MAX_PASSES):
                    before = await self.tip()
                    if not isinstance(before, Found):
                        return Unknown("transactions: the tip could not be read")
                    rows = await self._transactions_since(address, since_s)
                    if isinstance(rows, Unknown):
                        return rows
                    still = await self.block(before.value.hash)
                    if not isinstance(still, NotFound):
                        return Found(rows) if isinstance(still, Found) else still
        except TimeoutError:
            return Unknown("transactions: the pages took too long")
        return Unknown("transactions: the chain forked while their pages were read")

    async def movement(self, tx_id: str, address: str) -> Read[Movement]:
        """As the protocol says. What is listed as collateral moved if the transaction's script failed, else not.

        Which of the two it was, the listing does not tell. When it failed, nothing else moved.
        """
        _check(_HASH, tx_id)
        _check(_ADDRESS, address)
        listed = await self._read(
            "movement", lambda body: _parse_movements(body, tx_id, address), self._transaction_utxos, tx_id
        )
        if not isinstance(listed, Found):
            return listed
        if not listed.value.has_collateral:
            return Found(listed.value.plain)
        is_valid = await self._read("movement", _parse_validity, self._transaction, tx_id)
        if not isinstance(is_valid, Found):
            return is_valid
        return Found(listed.value.plain if is_valid.value else listed.value.collateral)

    async def submit(self, raw: bytes, tx_id: str) -> SubmitAnswer:
        _check(_HASH, tx_id)
        body = _Body(raw)
        timeout_s = self._timeouts.submit_s
        answer = await self._ask(self._submit_cbor, (body,), timeout_s, timeout_s, lambda answer: answer)
        if answer is None:
            # A thread that had started may still be handing over bytes: only "never started" is certain.
            answer = RawAnswer(error=TransportError.TIMEOUT, body_sent=True)
        classified = classify_submit(answer, tx_id)
        return SubmitAnswer(classified.kind, self._clean(classified.detail), classified.retry_after_s)

    async def lacks_submit(self) -> bool:
        """Whether the server shows the chain only: Blockfrost's own backend leaves /tx/submit to another program.

        It is asked with a byte that is no transaction.
        """
        timeout_s = self._timeouts.call_s
        answer = await self._ask(self._submit_cbor, (_Body(b"\xff"),), timeout_s, timeout_s, lambda answer: answer)
        if answer is None:
            return False
        return answer.status in (404, 405) or (answer.status == 400 and _NO_PATH in answer.body)

    async def aclose(self) -> None:
        """Give up the calls under way (they come back as Unknown) and free threads and connections."""
        self._closed = True
        for call in tuple(self._calls):
            call.abort()
        # Queued calls are not cancelled: their tasks would take that for a cancellation of themselves.
        await asyncio.to_thread(self._executor.shutdown, wait=True)
        self._transport.close()

    async def _read(
        self,
        what: str,
        parse: Callable[[Any], T],
        function: Callable[..., RawAnswer],
        *args: str,
        **page: int | str,
    ) -> Read[T]:
        """Ask and understand; the parsing runs on the call's thread too, as a page can be megabytes."""
        read = await self._ask(
            function,
            args,
            self._timeouts.call_s,
            self._timeouts.read_s,
            lambda answer: _understood(answer, parse),
            **page,
        )
        if isinstance(read, Unknown):
            return replace(read, reason=f"{what}: {self._clean(read.reason)}")
        return Unknown(f"{what}: timeout", Why.OUTAGE) if read is None else read

    async def _ask(
        self,
        function: Callable[..., RawAnswer],
        args: tuple[Any, ...],
        deadline_s: float,
        read_timeout_s: float,
        then: Callable[[RawAnswer], T],
        **kwargs: int | str,
    ) -> T | None:
        """Run one call on a thread; None when its deadline passed after it had started."""
        if self._closed:
            return then(RawAnswer(error=TransportError.CONNECT, body_sent=False))
        call = _Call(read_timeout_s)

        def work() -> T:
            _running.call = call
            return then(function(self._api, *args, **kwargs))

        self._calls.add(call)
        future: Future[T] = self._executor.submit(work)
        try:
            async with asyncio.timeout(deadline_s):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if future.cancel():  # it waited for a thread all the time
                return then(RawAnswer(error=TransportError.TIMEOUT, body_sent=False))
            return None
        finally:
            call.abort()
            self._calls.discard(call)

    async def _page(self, address: str, page: int) -> Read[tuple[ChainUtxo, ...]]:
        return await self._read(
            "utxos",
            lambda body: _parse_utxos(body, address),
            self._address_utxos,
            address,
            count=_PAGE_ROWS,
            page=page,
        )

    async def _stable_pages(self, address: str) -> Read[tuple[ChainUtxo, ...]]:
        before_that: tuple[ChainUtxo, ...] | None = None
        for _ in range(_MAX_PASSES):
            before = await self.tip()
            rows = await self._all_pages(address)
            if isinstance(rows, Unknown):
                return rows
            after = await self.tip()
            still = isinstance(before, Found) and isinstance(after, Found) and before.value == after.value
            if len(_refs(rows)) == len(rows) and (still or rows == before_that):
                return _whole(rows)
            before_that = rows
        return Unknown("utxos: the rows kept moving while their pages were read")

    async def _all_pages(self, address: str) -> tuple[ChainUtxo, ...] | Unknown:
        rows: list[ChainUtxo] = []
        for number in range(1, _MAX_PAGES + 1):
            page = await self._page(address, number)
            if isinstance(page, Unknown):
                return page
            if isinstance(page, NotFound):
                return Unknown(f"utxos: page {number} of an address that had pages is not found")
            rows.extend(page.value)
            if len(page.value) < _PAGE_ROWS:
                return tuple(rows)
        return Unknown(f"utxos: more than {_MAX_PAGES} pages")

    async def _transactions_since(self, address: str, since_s: int) -> tuple[AddressTx, ...] | Unknown:
        rows: dict[str, AddressTx] = {}
        for number in range(1, _MAX_PAGES + 1):
            page = await self._read(
                "transactions",
                _parse_address_txs,
                self._address_transactions,
                address,
                count=_PAGE_ROWS,
                page=number,
                order="desc",
            )
            if isinstance(page, NotFound) and number == 1:
                return ()
            if not isinstance(page, Found):
                return page if isinstance(page, Unknown) else Unknown(f"transactions: page {number} is not found")
            rows |= {row.tx_id: row for row in page.value}
            if len(page.value) < _PAGE_ROWS or page.value[-1].time_s < since_s:
                return tuple(row for row in reversed(rows.values()) if row.time_s >= since_s)
        return Unknown(f"transactions: more than {_MAX_PAGES} pages")

    def _clean(self, text: str) -> str:
        """Without the project id, should a provider echo it."""
        return text.replace(self._secret, "[project id]") if self._secret else text


def _refs(rows: tuple[ChainUtxo, ...]) -> set[str]:
    return {row.ref for row in rows}


def _whole(rows: tuple[ChainUtxo, ...]) -> Read[tuple[ChainUtxo, ...]]:
    """All outputs of an address, unless together they hold more than there is."""
    if sum(row.lovelace for row in rows) > MAX_LOVELACE:
        return Unknown("utxos: more lovelace than exists")
    return Found(rows)


def _check(pattern: re.Pattern[str], text: str) -> None:
    """What goes into a path is of the expected characters, or the caller has a bug."""
    if not pattern.fullmatch(text):
        raise ValueError("not in the form that the provider's path needs")


_IN_WORDS = {
    TransportError.CONNECT: "no connection",
    TransportError.TLS: "no secure connection",
    TransportError.TIMEOUT: "no answer in time",
    TransportError.RESET: "the connection broke",
    TransportError.TRUNCATED: "the answer broke off",
    TransportError.TOO_BIG: "the answer is too big",
}


_OF_STATUS = {
    401: ": the project id is not accepted",
    402: ": the day's calls are used up",
    403: ": the project id is not accepted, or is of another network",
    418: ": banned for going on after too many calls",
}
"""What Blockfrost means by them."""


def _understood(answer: RawAnswer, parse: Callable[[Any], T]) -> Read[T]:
    """Three values from one answer. Only a 200 and Blockfrost's own 404 say anything."""
    if answer.error is not None:
        return Unknown(_IN_WORDS[answer.error], Why.OUTAGE)
    if answer.status not in (200, 404):
        status = f"http {answer.status}{_OF_STATUS.get(answer.status or 0, '')}"
        return Unknown(status, _why(answer.status or 0), retry_after_s(answer.retry_after))
    try:
        body = strict_json.loads(answer.body, max_bytes=_MAX_ANSWER_BYTES)
        if answer.status == 404:
            return NotFound() if _says_not_found(body) else Unknown("http 404, not in the provider's own form")
        return Found(parse(body))
    except Refused as refused:
        why = refused.code  # its detail quotes what the provider sent
    except ValueError as error:
        why = str(error)
    except (LookupError, TypeError) as error:
        why = type(error).__name__
    return Unknown(f"http {answer.status}, not understood ({why})")


def _why(status: int) -> Why:
    if status in (402, 418):
        return Why.QUOTA
    return Why.RATE if status == 429 else Why.OUTAGE if status >= 500 else Why.UNCLEAR


def _says_not_found(body: Any) -> bool:
    """Whether it is Blockfrost's own 404, and not one of a proxy or a framework on the way."""
    return (
        type(body) is dict
        and (body.get("status_code"), body.get("error")) == (404, "Not Found")
        and isinstance(body.get("message"), str)
    )


def _text_hash(value: Any) -> str:
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise ValueError("not a hash")
    return value


def _parse_tip(body: Any) -> Tip:
    return Tip(
        height=parse_count(body["height"], "height"),
        slot=parse_count(body["slot"], "slot"),
        hash=_text_hash(body["hash"]),
        time_s=parse_count(body["time"], "time"),
    )


def _parse_block(body: Any, block_hash: str) -> BlockSeen:
    tip = _parse_tip(body)
    if tip.hash != block_hash:
        raise ValueError("another block")
    return BlockSeen(hash=tip.hash, height=tip.height, slot=tip.slot, time_s=tip.time_s)


def _parse_tx(body: Any, tx_id: str) -> TxSeen:
    if body["hash"] != tx_id:
        raise ValueError("another transaction")
    return TxSeen(
        tx_id=tx_id,
        block_hash=_text_hash(body["block"]),
        block_height=parse_count(body["block_height"], "block_height"),
        slot=parse_count(body["slot"], "slot"),
    )


def _parse_genesis(body: Any) -> Genesis:
    return Genesis(
        network_magic=parse_count(body["network_magic"], "network_magic"),
        system_start_s=parse_count(body["system_start"], "system_start"),
        slot_length_s=parse_units(body["slot_length"], "slot_length"),
    )


def _parse_parameters(body: Any) -> Parameters:
    return Parameters(
        min_fee_a=parse_units(body["min_fee_a"], "min_fee_a"),
        min_fee_b=parse_units(body["min_fee_b"], "min_fee_b"),
        coins_per_utxo_byte=parse_units(body["coins_per_utxo_size"], "coins_per_utxo_size"),
        max_tx_size=parse_units(body["max_tx_size"], "max_tx_size"),
        max_value_size=parse_units(body["max_val_size"], "max_val_size"),
        epoch=parse_count(body["epoch"], "epoch"),
    )


def _parse_utxos(body: Any, address: str) -> tuple[ChainUtxo, ...]:
    if type(body) is not list or len(body) > _PAGE_ROWS:
        raise ValueError("not a page")
    rows = tuple(_parse_utxo(row, address) for row in body)
    if len(_refs(rows)) != len(rows):
        raise ValueError("an output is listed twice")
    return rows


def _parse_utxo(row: Any, address: str) -> ChainUtxo:
    if row["address"] != address:
        raise ValueError("an output of another address")
    amounts: dict[str, int] = {}
    for entry in row["amount"]:
        unit = entry["unit"]
        if unit in amounts or (unit != LOVELACE and not _UNIT.fullmatch(unit)):
            raise ValueError("an amount of no known unit")
        amounts[unit] = _quantity(entry["quantity"], unit)
    block = row.get("block")
    is_in_no_block = block is None or block == ""  # Dolos says "" of one that is older than what it keeps
    return ChainUtxo(
        tx_id=_text_hash(row["tx_hash"]),
        index=parse_count(row["output_index"], "output_index"),
        address=address,
        lovelace=amounts.pop(LOVELACE),
        assets={unit: units for unit, units in amounts.items() if units <= MAX_UNITS},
        block_hash=None if is_in_no_block else _text_hash(block),
        has_datum=row.get("data_hash") is not None or row.get("inline_datum") is not None,
        has_script=row.get("reference_script_hash") is not None,
        unreadable=any(units > MAX_UNITS for units in amounts.values()),
    )


def _parse_address_txs(body: Any) -> tuple[AddressTx, ...]:
    """A page, newest first."""
    if type(body) is not list or len(body) > _PAGE_ROWS:
        raise ValueError("not a page")
    rows = tuple(
        AddressTx(
            tx_id=_text_hash(row["tx_hash"]),
            block_height=parse_count(row["block_height"], "block_height"),
            time_s=parse_count(row["block_time"], "block_time"),
        )
        for row in body
    )
    if len({row.tx_id for row in rows}) != len(rows):
        raise ValueError("a transaction is listed twice")
    if any(newer.time_s < older.time_s for newer, older in pairwise(rows)):
        raise ValueError("not the newest first")
    return rows


@dataclass(frozen=True, slots=True)
class _Listed:
    """What is listed of a transaction at an address: in the ordinary way, and as collateral.

    Of one whose script failed, Blockfrost lists what moved in both ways, Dolos as collateral only.
    """

    plain: Movement
    collateral: Movement
    has_collateral: bool


_Values = Mapping[str, Mapping[str, int]]
"""What coins hold, by their refs."""


def _parse_movements(body: Any, tx_id: str, address: str) -> _Listed:
    if body["hash"] != tx_id:
        raise ValueError("another transaction")
    spent = [row for row in body["inputs"] if not _flag(row, "reference")]
    made = [{**row, "tx_hash": tx_id} for row in body["outputs"]]
    plain, collateral = (
        Movement(spent=_values(spent, address, is_collateral), made=_values(made, address, is_collateral))
        for is_collateral in (False, True)
    )
    failed = Movement(spent=_known(collateral.spent, plain.spent), made=_known(collateral.made, plain.made))
    return _Listed(plain, failed, any(_flag(row, "collateral") for row in spent))


def _known(coins: _Values, in_full: _Values) -> _Values:
    """The coins, with what they hold in full where that is listed: of collateral Blockfrost tells no tokens."""
    return {ref: in_full.get(ref, value) for ref, value in coins.items()}


def _values(rows: Iterable[Any], address: str, is_collateral: bool) -> _Values:
    """What the coins at the address hold, by ref, of the rows that are, or are not, listed as collateral."""
    found: dict[str, Mapping[str, int]] = {}
    for row in rows:
        if _flag(row, "collateral") is is_collateral and row["address"] == address:
            coin = _parse_utxo(row, address)
            if coin.ref in found:
                raise ValueError("a coin is listed twice")
            found[coin.ref] = {LOVELACE: coin.lovelace, **coin.assets}
    return found


def _parse_validity(body: Any) -> bool:
    return _flag(body, "valid_contract")


def _flag(row: Any, name: str) -> bool:
    if type(row[name]) is not bool:
        raise ValueError(f"{name} is not true or false")
    return bool(row[name])


def _quantity(value: Any, unit: str) -> int:
    """Units of one output, above zero. A token's may exceed 2^63-1: anybody can send such an output here."""
    try:
        return check_supply(unit, parse_units(value, unit))
    except Refused:
        if unit != LOVELACE and isinstance(value, str) and re.fullmatch(r"[1-9][0-9]{18,19}", value, re.ASCII):
            units = int(value)
            if MAX_UNITS < units <= _MAX_TOKEN_QUANTITY:
                return units
        raise
