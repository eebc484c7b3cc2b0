"""HTTP calls to a provider: blocking calls on a few threads, each with a deadline.

The only home of urllib3. The extras of `requests` (sessions, cookies, hooks, environment) are not wanted and cost
half a call. A socket timeout bounds only one read. The whole call is bounded by a deadline on the event loop,
which shuts the call's socket and so frees its thread.
May import: chain.submit_answers.
Never: raises because of something a server did, follows a redirect, retries, reads the environment.
"""

import asyncio
import http.client
import io
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import certifi
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.response import assert_header_parsing

from payagent.chain.submit_answers import RawAnswer, TransportError

T = TypeVar("T")

_THREADS = 8
_CHUNK_BYTES = 64 * 1024
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}
"""Uncompressed, so the limit on an answer also limits memory."""


class _AbortedError(OSError):
    """The call's deadline passed while its thread was still running."""


class _TooBigError(OSError):
    """The server sent more than the limit."""


class _Call:
    """One exchange, whose socket the event loop can shut. `left_bytes` of its answer may still be read."""

    def __init__(self, read_timeout_s: float, max_bytes: int) -> None:
        self.read_timeout_s = read_timeout_s
        self.max_bytes = self.left_bytes = max_bytes
        self._lock = threading.Lock()
        self._connection: HTTPConnection | None = None
        self._aborted = False

    def adopt(self, connection: HTTPConnection | None) -> None:
        """Use this connection (None: not connected yet). Raises `_AbortedError` if the call was aborted."""
        with self._lock:
            if self._aborted:
                raise _AbortedError
            self._connection = connection

    def release(self) -> None:
        """End the exchange: another call may use its connection now."""
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
                    return  # closed already, so its thread is ending


_running = threading.local()  # .call: the _Call that this worker thread executes


class _Bounded(io.RawIOBase):
    """Reads a socket up to the running call's limit.

    Counting here covers everything a server sends. http.client and urllib3 do not limit the total of heads,
    interim (1xx) answers and chunk framing. They read a chunk of -1 bytes to the end.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._call: _Call = _running.call

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._call.left_bytes <= 0:
            raise _TooBigError
        count = self._raw.readinto(memoryview(buffer)[: self._call.left_bytes])
        self._call.left_bytes -= count or 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Reply(http.client.HTTPResponse):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fp = io.BufferedReader(_Bounded(self.fp.detach()))

    def begin(self) -> None:
        """Skip interim answers (1xx). http.client skips only 100. No final answer follows 101.

        Otherwise the final answer would be read as the answer to the connection's next call.
        """
        super().begin()
        while 102 <= self.status < 200:
            self.headers = None  # type: ignore[assignment]  # begin() does nothing once headers are set
            super().begin()
        assert_header_parsing(self.msg)  # otherwise urllib3 does it, and logs invalid headers


class _PlainConnection(HTTPConnection):
    """A connection that registers itself with the running call before it sends anything."""

    response_class = _Reply

    def connect(self) -> None:
        super().connect()
        _running.call.adopt(self)

    def request(self, *args: Any, **kwargs: Any) -> None:
        _running.call.adopt(self)
        super().request(*args, **kwargs)


class _TlsConnection(_PlainConnection, HTTPSConnection):
    """A `_PlainConnection` over TLS."""


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class Body:
    """A request body as a file object that records whether the socket layer took any bytes."""

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


class Transport:
    """Makes calls: kept connections, no retry, answers as plain values."""

    def __init__(self, name: str, connect_timeout_s: float) -> None:
        self._connect_timeout_s = connect_timeout_s
        trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # urllib3's own context follows SSLKEYLOGFILE
        trusted.load_verify_locations(certifi.where())
        self._pools = urllib3.PoolManager(1, maxsize=_THREADS, retries=False, ssl_context=trusted)
        self._pools.pool_classes_by_scheme = {"http": _PlainPool, "https": _TlsPool}
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"chain-{name}")
        self._calls: set[_Call] = set()
        self._closed = False

    def get(self, url: str, headers: dict[str, str | None], params: Mapping[str, Any] | None = None) -> RawAnswer:
        fields = {name: value for name, value in (params or {}).items() if value is not None}
        return self._exchange("GET", url, headers, fields=fields)

    def post(self, url: str, headers: dict[str, str | None], data: Body) -> RawAnswer:
        # set here, because urllib3 does not know the length of a file-like body
        return self._exchange("POST", url, headers | {"Content-Length": str(len(data))}, body=data)

    def _exchange(self, method: str, url: str, headers: dict[str, str | None], **content: Any) -> RawAnswer:
        body = content.get("body")
        call: _Call = _running.call
        sent_headers = _HEADERS | {name: value for name, value in headers.items() if value is not None}
        try:
            call.adopt(None)
            response = self._pools.request(
                method,
                url,
                headers=sent_headers,
                timeout=urllib3.Timeout(connect=self._connect_timeout_s, read=call.read_timeout_s),
                redirect=False,
                preload_content=False,
                **content,
            )
            try:
                return _received(response, call)
            finally:
                response.close()
        except (urllib3.exceptions.HTTPError, http.client.HTTPException) as error:
            kind = _transport_error(error) if call.left_bytes > 0 else TransportError.TOO_BIG
            return RawAnswer(error=kind, body_sent=body is not None and body.taken)
        except (OSError, ValueError):
            return RawAnswer(error=TransportError.RESET, body_sent=body is not None and body.taken)
        finally:
            call.release()

    async def run(
        self,
        exchange: Callable[[], RawAnswer],
        then: Callable[[RawAnswer], T],
        *,
        deadline_s: float,
        read_timeout_s: float,
        max_bytes: int,
    ) -> T | None:
        """Make an exchange on a thread, and call `then` on its answer there.

        At most `max_bytes` of the answer are read. Returns None if the deadline passed after the exchange had
        begun.
        """
        if self._closed:
            return then(RawAnswer(error=TransportError.CONNECT, body_sent=False))
        call = _Call(read_timeout_s, max_bytes)

        def work() -> T:
            _running.call = call
            return then(exchange())

        self._calls.add(call)
        future: Future[T] = self._executor.submit(work)
        try:
            async with asyncio.timeout(deadline_s):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if future.cancel():  # it never got a thread
                return then(RawAnswer(error=TransportError.TIMEOUT, body_sent=False))
            return None
        finally:
            call.abort()
            self._calls.discard(call)

    async def aclose(self) -> None:
        """Abort the calls in progress, and free threads and connections."""
        self._closed = True
        for call in tuple(self._calls):
            call.abort()
        # Queued calls are not cancelled, because their tasks would see that as their own cancellation.
        await asyncio.to_thread(self._executor.shutdown, wait=True)
        self._pools.clear()


def _received(response: urllib3.BaseHTTPResponse, call: _Call) -> RawAnswer:
    """Read the answer up to the limit. The status counts even if the body is cut off."""
    if response.status < 200:
        response.close()  # another protocol follows on this connection
    body, error = bytearray(), None
    try:
        for part in response.stream(_CHUNK_BYTES, decode_content=True):
            body += part
            if len(body) > call.max_bytes:
                error = TransportError.TOO_BIG
                break
    except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError):
        error = TransportError.TRUNCATED if call.left_bytes > 0 else TransportError.TOO_BIG
    return RawAnswer(
        status=response.status,
        body=bytes(body),
        retry_after=response.headers.get("Retry-After"),
        error=error,
    )


def _transport_error(error: Exception) -> TransportError:
    """Return the kind of error only: the libraries' messages hold URLs and invalid header values."""
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
