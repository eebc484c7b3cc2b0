"""The HTTP client of payagent's own requests: to merchants, providers and the services that bring notifications.

httpx with one trust store, limits on what is read, and nothing from the environment.
Never: follows a redirect, keeps a cookie, reads proxies from the environment, reads an answer without end.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import cache, lru_cache, partial

import httpcore
import httpx

from payagent import h11_patch
from payagent.core.problems import Refused
from payagent.core.version import USER_AGENT

h11_patch.patch_h11()

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""Resolves a host to addresses, in the order to try. Raises OSError if there are none."""

_READ_BYTES = 8 * 1024
"""Bytes read before other tasks get their turn. An answer in one-byte chunks would otherwise block them."""

_HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "Connection": "keep-alive", "User-Agent": USER_AGENT}
"""Sent unless the caller gives another value, under the same spelling of the name."""

max_bytes_with_framing: ContextVar[int] = ContextVar("max_bytes_with_framing", default=4 * 1024 * 1024)
"""The most bytes read of an answer with its head and chunk framing. An answer of framing alone must end too."""


class EndlessAnswerError(httpcore.ReadError):
    """The server sent more than `max_bytes_with_framing`; httpx raises a ReadError from it."""


def trusted() -> ssl.SSLContext:
    """The TLS trust store, as httpx configures it ($SSL_CERT_FILE, $SSL_CERT_DIR).

    The process has one: loading the certificates takes 25 ms and a megabyte. Refused `config_invalid` if they
    cannot be read.
    """
    return _trusted(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@cache
def _trusted(file: str | None, _folder: str | None) -> ssl.SSLContext:
    try:
        context = httpx.create_ssl_context()
    except OSError as error:
        reason = "it holds no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        raise Refused("config_invalid", f"$SSL_CERT_FILE names {file}: {reason}") from None
    context.set_alpn_protocols(["http/1.1"])  # the only protocol used; httpcore sets the same for its own calls
    return context


class SystemLookup:
    """The machine's resolver, with one lookup per host and port at a time.

    A lookup holds one of a few threads until it ends, even if its caller gave up. A host whose name servers do not
    answer must not hold all threads and block other lookups.
    """

    def __init__(self) -> None:
        self._under_way: dict[tuple[str, int], asyncio.Task[Sequence[str]]] = {}

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        key = (host, port)
        lookup_task = self._under_way.get(key)
        if lookup_task is None:
            lookup_task = self._under_way[key] = asyncio.create_task(_looked_up(host, port))
            lookup_task.add_done_callback(partial(self._end, key))
        await asyncio.wait((lookup_task,))
        return lookup_task.result()

    def _end(self, key: tuple[str, int], lookup_task: asyncio.Task[Sequence[str]]) -> None:
        del self._under_way[key]
        if not lookup_task.cancelled():
            lookup_task.exception()  # read it, because all callers may have given up


async def _looked_up(host: str, port: int) -> Sequence[str]:
    addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in addresses))


_parsed = lru_cache(maxsize=1_000)(httpx.URL)
"""A transaction and an invoice are asked for again until they are final."""


class HttpClient:
    """Sends requests without a timeout: whoever asks sets one for the whole request.

    A request goes straight to the transport. httpx's own client would add cookies, redirects and authentication,
    which are not wanted, and a third of the processor time.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._transport = transport or Transport()

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes | AsyncIterable[bytes] | None = None,
        *,
        params: Mapping[str, int | str] | None = None,
        connect_timeout_s: float = 10,
    ) -> AsyncIterator[httpx.Response]:
        """The answer, whose body the caller reads. Raises `httpx.HTTPError` or `httpx.InvalidURL`."""
        request = httpx.Request(
            method,
            _parsed(url),
            params=params,
            headers={**_HEADERS, **headers},
            content=content,
            extensions={"timeout": {"connect": connect_timeout_s}},
        )
        response = await self._transport.handle_async_request(request)
        try:
            yield response
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        await self._transport.aclose()


async def read_body(response: httpx.Response, max_bytes: int) -> bytes:
    """Read the body. Of a body over the limit, slightly more than the limit is read."""
    raw = bytearray()
    async for chunk in response.aiter_raw():
        raw += chunk
        if len(raw) > max_bytes:
            break
    return bytes(raw)


class Transport(httpx.AsyncHTTPTransport):
    """Connects to the addresses of `lookup`."""

    def __init__(self, lookup: Lookup | None = None) -> None:
        super().__init__(verify=trusted())
        # httpx has no argument for httpcore's network_backend. The other values are httpx's defaults.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=trusted(),
            max_connections=100,
            max_keepalive_connections=20,
            keepalive_expiry=5.0,
            network_backend=_Backend(lookup or SystemLookup()),
        )


class _Backend(httpcore.AsyncNetworkBackend):
    """Connects to the addresses of the lookup. TLS starts later and verifies the name, not the address."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failed: Exception = httpcore.ConnectError(f"{host} has no address")
        try:
            async with asyncio.timeout(timeout):
                for address in await self._lookup(host, port):
                    try:
                        return await _connected(address, port)
                    except OSError as error:
                        failed = httpcore.ConnectError(str(error))
        except TimeoutError:
            failed = httpcore.ConnectTimeout(f"no connection to {host}")
        except OSError as error:
            failed = httpcore.ConnectError(str(error))
        raise failed

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Reader(asyncio.StreamReader):
    """Knows how many bytes wait to be read."""

    waiting_bytes = 0

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]  # asyncio gives nothing else
        self.waiting_bytes += len(data)
        super().feed_data(data)

    async def read(self, n: int = -1) -> bytes:
        data = await super().read(n)
        self.waiting_bytes -= len(data)
        return data


async def _connected(address: str, port: int) -> "_Stream":
    loop = asyncio.get_running_loop()
    reader = _Reader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.create_connection(lambda: protocol, address, port)
    return _Stream(reader, asyncio.StreamWriter(transport, protocol, reader, loop))


class _Stream(httpcore.AsyncNetworkStream):
    """A connection that reads in small pieces, and a limited total for each request.

    Reads and writes have no timeout of their own, because whoever asks sets one for the whole request.
    """

    def __init__(self, reader: _Reader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._left_bytes = max_bytes_with_framing.get()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._left_bytes <= 0:
            raise EndlessAnswerError
        await asyncio.sleep(0)  # what has arrived is read at once otherwise, and other tasks get no turn
        try:
            data = await self._reader.read(min(max_bytes, _READ_BYTES))
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error
        self._left_bytes -= len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._left_bytes = max_bytes_with_framing.get()
        try:
            self._writer.write(buffer)
            await self._writer.drain()
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        """Close, without waiting for a peer that does not say goodbye."""
        self._writer.close()
        await asyncio.sleep(0)
        self._writer.transport.abort()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"no TLS with {server_hostname}") from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        return self

    def get_extra_info(self, info: str) -> object:
        """`is_readable`: whether the server closed an idle connection, or sent what nobody asked for."""
        if info == "is_readable":
            return self._reader.waiting_bytes > 0 or self._reader.at_eof() or self._writer.is_closing()
        return self._writer.get_extra_info(info)
