"""HTTP/1.1 client for merchants and the daemon: keep-alive connections, bodies streamed both ways at once.

It is written on h11, because HTTP clients send the whole request before they read. They would miss the 402 of a
merchant that answers and hangs up while 25 MB are still being sent.
Never: follows a redirect, decodes a body, repeats a request that might have been carried out.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import h11

from payagent.core.origin import DEFAULT_PORTS
from payagent.core.problems import Refused
from payagent.http_client import trusted
from payagent.outbound.egress import Egress
from payagent.proxy.headers import Headers, has_body, passing
from payagent.unix_peer import is_strangers

CONNECT_TIMEOUT_S = 10.0
ADDRESS_TIMEOUT_S = 4.0
"""How long each of several addresses is tried."""

HEAD_MAX_BYTES = 128 * 1024
"""An x402 v2 402 carries its requirements in a header."""

_STATUS_MAX = 599  # RFC 9110 15
_AHEAD_BYTES = 256 * 1024
_EVENT_BYTES = 128  # overhead of a chunk besides its data
_TURN_EVENTS = 1024
"""Events parsed before other tasks get their turn: one-byte chunks would otherwise block them."""

_INTERIM_MAX = 1000  # interim answers (1xx); some servers send one every few seconds while they work
_IDLE_S = 4.0  # many servers close idle connections after 5 s, and a request at that moment is lost
_SAFE_AGAIN = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))  # RFC 9110 9.2.2


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """One outgoing request. `headers` are the forwarded ones, without Host."""

    method: bytes
    target: bytes
    headers: Headers
    body: AsyncIterable[bytes] | None


@dataclass(frozen=True, slots=True)
class Target:
    """Where a merchant or the daemon listens. `path` is the daemon's Unix socket."""

    authority: bytes
    host: str
    port: int
    tls: bool
    path: Path | None = None

    @classmethod
    def of_daemon(cls, path: Path) -> "Target":
        return cls(b"localhost", "", 0, False, path)

    def unreachable(self, detail: str, *, is_sent: bool = True) -> Refused:
        """The refusal for a missing or unreadable answer. `is_sent`: part of the request may have arrived."""
        daemon_code = "daemon_timeout" if is_sent else "daemon_not_running"
        code = "merchant_unreachable" if self.path is None else daemon_code
        return Refused(code, detail, **({} if is_sent else {"sent": False}))

    def late(self, detail: str) -> Refused:
        """The refusal for an answer that comes too late."""
        return Refused("merchant_timeout" if self.path is None else "daemon_timeout", detail)

    @classmethod
    def of_origin(cls, origin: str) -> "Target":
        """Build the target of an origin in canonical form."""
        parts = urlsplit(origin)
        port = parts.port or DEFAULT_PORTS[parts.scheme]
        return cls(parts.netloc.encode("ascii"), parts.hostname or "", port, parts.scheme == "https")


class UpstreamAnswer:
    """A merchant's answer: its head, and its body as it arrives."""

    def __init__(self, connection: "_Connection", head: h11.Response, upstream: "Upstream") -> None:
        self._connection = connection
        self._upstream = upstream
        self._peeked = b""
        self._more = True
        self.status = head.status_code
        self.headers = passing(list(head.headers), own=upstream.target.path is not None)

    @property
    def whole(self) -> bytes | None:
        """The whole body, if `peek` returned it. It can be read even after the connection was closed."""
        return None if self._more else self._peeked

    async def read(self) -> tuple[bytes, bool]:
        """Wait for at least some bytes. Returns them, and whether more follows."""
        if self._peeked or not self._more:
            peeked, self._peeked = self._peeked, b""
            return peeked, self._more
        chunk, self._more = await self._connection.read()
        return chunk, self._more

    async def peek(self, most_bytes: int) -> bytes | None:
        """Return the whole body, which can still be read afterwards; None if it is longer.

        The whole body has to arrive within the time limit for a silence, so a dripping merchant cannot hold the
        caller. Raises `merchant_timeout`.
        """
        parts, size, within_s = [self._peeked], len(self._peeked), self._upstream.timeout_s
        try:
            async with asyncio.timeout(within_s):
                while self._more and size <= most_bytes:
                    chunk, self._more = await self._connection.read()
                    parts.append(chunk)
                    size += len(chunk)
        except TimeoutError:
            raise self._upstream.target.late(f"its answer did not end in {within_s:g} s") from None
        self._peeked = b"".join(parts)
        return self.whole


@dataclass(slots=True)
class Upstream:
    """The connections to one server."""

    target: Target
    timeout_s: float
    egress: Egress = field(default_factory=Egress)
    _idle: list["_Connection"] = field(default_factory=list)

    @asynccontextmanager
    async def call(
        self, call: UpstreamRequest, begins: Callable[[], object] = lambda: None
    ) -> AsyncIterator[UpstreamAnswer]:
        """Send a request. Inside the block the answer's head has arrived, and its body can be read.

        `begins` is called before the first byte may be sent. Leaving the block early closes the connection, which
        stops the server. Raises `merchant_unreachable`, `merchant_timeout` or `merchant_in_private_network`;
        reading the body raises `AnswerBrokenError`.
        """
        connection, head = await self._begin(call, begins)
        try:
            yield UpstreamAnswer(connection, head, self)
        finally:
            try:
                await connection.stop_upload()
            finally:  # the client may hang up during the await
                self._put_back(connection)

    def close(self) -> None:
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    async def _begin(
        self, call: UpstreamRequest, begins: Callable[[], object]
    ) -> tuple["_Connection", h11.Response]:
        while True:
            connection = self._idle_connection() or await self._connect()
            was_used = connection.was_used
            begins()
            try:
                return connection, await connection.begin(call)
            except _NoAnswerError as error:
                connection.abort()
                if not was_used or call.body is not None or call.method not in _SAFE_AGAIN:
                    raise self.target.unreachable(f"it closed the connection: {error}") from None
            except BaseException:
                connection.abort()
                raise

    def _put_back(self, connection: "_Connection") -> None:
        if connection.ready_for_next():
            self._idle.append(connection)
            connection.keep_idle(_IDLE_S, lambda: self._idle.remove(connection))
        else:
            connection.abort()

    def _idle_connection(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection.wake():
                return connection
        return None

    async def _connect(self) -> "_Connection":
        loop, target = asyncio.get_running_loop(), self.target
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                if target.path is not None:
                    transport, connection = await loop.create_unix_connection(
                        lambda: _Connection(target, self.timeout_s), str(target.path)
                    )
                    if is_strangers(transport.get_extra_info("socket")):  # it would get the token
                        detail = "api.socket belongs to another user; the token was not sent"
                        raise Refused("config_invalid", detail)
                else:
                    connection = await self._connect_tcp()
        except TimeoutError:
            raise target.unreachable(f"no connection within {CONNECT_TIMEOUT_S:g} s", is_sent=False) from None
        except OSError as error:
            reason = error.strerror if not isinstance(error, ssl.SSLError) else error.reason
            raise target.unreachable(f"no connection: {reason or type(error).__name__}", is_sent=False) from None
        return connection

    async def _connect_tcp(self) -> "_Connection":
        """Connect to the first address that accepts."""
        loop, target = asyncio.get_running_loop(), self.target
        failed = OSError("its name has no address")
        for address in await self.egress.addresses(target.host, target.port):
            try:
                async with asyncio.timeout(ADDRESS_TIMEOUT_S):
                    _, connection = await loop.create_connection(
                        lambda: _Connection(target, self.timeout_s),
                        address,
                        target.port,
                        ssl=trusted() if target.tls else None,
                        server_hostname=target.host if target.tls else None,
                    )
                return connection
            except OSError as error:
                failed = error
        raise failed


class AnswerBrokenError(Exception):
    """The merchant's answer broke off or stalled after its head had arrived."""


class _NoAnswerError(Exception):
    """The connection ended before the first byte of an answer."""


class _Connection(asyncio.Protocol):
    """One connection: h11's state, events not read yet, and the upload in parallel."""

    def __init__(self, target: Target, timeout_s: float) -> None:
        self.was_used = False
        self._target = target
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._wire = h11.Connection(h11.CLIENT, HEAD_MAX_BYTES)
        self._arrived: deque[h11.Event] = deque()
        self._ahead_bytes = 0
        self._has_data = self._lost = self._paused = self._has_head = False
        self._failed: str | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._upload: asyncio.Task[None] | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._turn: asyncio.Handle | None = None
        self._moved_at_s = 0.0
        self._transport: asyncio.Transport

    # --- asyncio callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._has_data = True
        if self._has_head:  # a dripping head and interim answers do not extend the time limit
            self._moved_at_s = self._loop.time()
        self._feed(data)

    def eof_received(self) -> bool:
        if self._has_data:
            self._feed(b"")
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        if self._failed is None and error is not None:
            self._failed = type(error).__name__
        self.resume_writing()
        self._wake_reader()

    def pause_writing(self) -> None:
        self._writer = self._loop.create_future()

    def resume_writing(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None and not writer.done():
            writer.set_result(None)

    # --- one request

    async def begin(self, call: UpstreamRequest) -> h11.Response:
        """Send the request, its body in parallel, and wait for the head of the answer."""
        self.was_used = True
        self._has_data = self._has_head = False
        self._moved_at_s = self._loop.time()
        headers = [(b"host", self._target.authority), *call.headers]
        chunked = call.body is not None and not has_body(headers)
        if chunked:
            headers.append((b"transfer-encoding", b"chunked"))
        self._send(h11.Request(method=call.method, target=call.target, headers=headers))
        if call.body is None:
            self._send(h11.EndOfMessage())
        else:
            self._upload = self._loop.create_task(self._send_body(call.body))
            self._upload.add_done_callback(self._upload_ended)
        for _ in range(_INTERIM_MAX):
            event = await self._next(before_head=True)
            if isinstance(event, h11.Response):
                if event.status_code > _STATUS_MAX:
                    raise self._target.unreachable(f"it answered {event.status_code}, which is not an HTTP status")
                return event
            if isinstance(event, h11.InformationalResponse) and event.status_code == 101:
                raise self._target.unreachable("it switched to another protocol without being asked")
        raise self._target.unreachable(f"it sent {_INTERIM_MAX} interim answers and no final one")

    async def read(self) -> tuple[bytes, bool]:
        parts: list[bytes] = []
        while True:
            if not self._arrived and parts:
                return b"".join(parts), True
            event = await self._next(before_head=False)
            if isinstance(event, h11.EndOfMessage):
                return b"".join(parts), False
            if isinstance(event, h11.Data):
                parts.append(bytes(event.data))

    async def stop_upload(self) -> None:
        upload, self._upload = self._upload, None
        if upload is not None and not upload.done():
            upload.cancel()
            await asyncio.wait((upload,))

    def ready_for_next(self) -> bool:
        """Whether both sides are done and the connection can carry another request."""
        wire = self._wire
        if self._lost or wire.our_state is not h11.DONE or wire.their_state is not h11.DONE or self._arrived:
            return False
        wire.start_next_cycle()
        return not wire.trailing_data[0]

    def keep_idle(self, at_most_s: float, forget: Callable[[], object]) -> None:
        """Close and forget the connection after this time, unless it is used again."""

        def end() -> None:
            forget()
            self.abort()

        self._idle_timer = self._loop.call_later(at_most_s, end)

    def wake(self) -> bool:
        """Use the connection again; False if it was closed, or the server sent something without a request."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if self._lost or self._has_unexpected_data() or self._transport.is_closing():
            self.abort()
            return False
        return True

    def abort(self) -> None:
        if self._upload is not None:
            self._upload.cancel()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        self._transport.abort()

    # --- internals

    def _has_unexpected_data(self) -> bool:
        has_begun = self._wire.their_state is not h11.IDLE or bool(self._wire.trailing_data[0])
        return bool(self._arrived) or self._failed is not None or has_begun

    def _send(self, event: h11.Event) -> None:
        try:
            data = self._wire.send(event)
        except h11.LocalProtocolError as error:
            raise Refused("bad_request", f"the request cannot be forwarded: {error}") from None
        if data:
            self._transport.write(data)

    async def _send_body(self, body: AsyncIterable[bytes]) -> None:
        """Send the body as it arrives. A failure here shows in the answer or in its absence."""
        async for chunk in body:
            if self._lost:
                return
            self._send(h11.Data(data=chunk))
            if self._writer is not None:
                await self._writer
            self._moved_at_s = self._loop.time()
        if not self._lost:
            self._send(h11.EndOfMessage())

    def _upload_ended(self, upload: asyncio.Task[None]) -> None:
        """Abort the connection after a failed upload: half a request gets no answer."""
        if not upload.cancelled() and (error := upload.exception()) is not None:
            self._failed = f"the body could not be sent: {type(error).__name__}"
            self._transport.abort()

    def _feed(self, data: bytes) -> None:
        self._wire.receive_data(data)
        if self._turn is None:
            self._parse()

    def _parse(self) -> None:
        """Parse received data, at most `_TURN_EVENTS` events at a time, even if the connection has ended."""
        self._turn = None
        try:
            for _ in range(_TURN_EVENTS):
                event = self._wire.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                    break
                if isinstance(event, h11.Response):
                    self._has_head = True
                    self._moved_at_s = self._loop.time()
                self._arrived.append(event)  # type: ignore[arg-type]
                if isinstance(event, h11.Data):
                    self._ahead_bytes += len(event.data) + _EVENT_BYTES
            else:
                self._turn = self._loop.call_soon(self._parse)
        except h11.RemoteProtocolError as error:
            self._failed = str(error)[:200]  # it quotes the merchant
            self._transport.abort()
        self._pace()
        self._wake_reader()

    def _pace(self) -> None:
        """Pause reading while enough is buffered."""
        most_bytes = _AHEAD_BYTES // 2 if self._paused else _AHEAD_BYTES
        is_enough = self._turn is not None or self._ahead_bytes > most_bytes
        if is_enough != self._paused:
            self._paused = is_enough
            (self._transport.pause_reading if is_enough else self._transport.resume_reading)()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def _next(self, *, before_head: bool) -> h11.Event:
        while not self._arrived:
            has_ended = self._lost or self._failed is not None or self._wire.their_state is h11.CLOSED
            if has_ended and self._turn is None:
                raise self._broken(before_head)
            left_s = self._moved_at_s + self._timeout_s - self._loop.time()
            if left_s <= 0:
                raise self._late(before_head)
            self._reader = self._loop.create_future()
            timer = self._loop.call_later(left_s, self._wake_reader)
            try:
                await self._reader
            finally:
                timer.cancel()
                self._reader = None
        event = self._arrived.popleft()
        if isinstance(event, h11.Data):
            self._ahead_bytes -= len(event.data) + _EVENT_BYTES
            self._pace()
        return event

    def _broken(self, before_head: bool) -> Exception:
        reason = self._failed or "the connection ended"
        if not before_head:
            return AnswerBrokenError(reason)
        if not self._has_data:
            return _NoAnswerError(reason)
        return self._target.unreachable(f"its answer is not HTTP: {reason}")

    def _late(self, before_head: bool) -> Exception:
        if before_head:
            return self._target.late(f"its answer did not begin in {self._timeout_s:g} s")
        return AnswerBrokenError(f"nothing moved for {self._timeout_s:g} s")
