"""Limits on the connections under the API: how many may be open, and how long each may take.

Start at `make_room` (how many) and `bounded` (the protocol class for uvicorn). By itself uvicorn waits without
limit for a first request and for a client that does not read its answer. It also accepts connections until no file
descriptor is left. A client that opens enough connections to the port would leave the daemon without descriptors
for its ledger, socket and log.

The port and the Unix socket are counted separately, so a client that fills the port does not lock out the owner.
The Unix socket answers only its owner and root, whatever its file mode is.

Never: knows a route; closes a connection while its client reads the answer.
"""

import asyncio
import re
import resource
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import h11
from starlette.types import Receive, Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from payagent import h11_patch
from payagent.api.http.problems import MEDIA_TYPE, JsonResponse, problem_of
from payagent.core.problems import Refused
from payagent.unix_peer import is_strangers

h11_patch.patch_h11()

HEAD_S = 10.0
"""A request's head must arrive within this time, counted from its first byte or the connection's start."""

HEAD_LINES_MAX = 256
"""Heads with more lines are refused: parsing many lines is slow, and it happens before the token is checked."""

READ_S = 60.0
READ_BYTES_PER_S = 500
"""The client must read all pending bytes in each READ_S, or at least this many per second.

The kernel buffers some megabytes more, so short pauses in reading a small answer go unnoticed.
"""

DESCRIPTORS_WANTED = 4096

_NOT_HTTP = f"the request is not valid HTTP/1.1 (RFC 9112), or its head has more than {HEAD_LINES_MAX} lines"
_TWO_LENGTHS = "the request has both Content-Length and Transfer-Encoding, so its end is ambiguous"
_BOTH_LENGTHS = {b"content-length", b"transfer-encoding"}
_HEADS_END = re.compile(rb"\n(?=\r?\n)")

ABORT = "payagent.abort"
"""Scope key of a function that drops the connection, so that a partial answer cannot pass for a complete one."""

STOPPING = "payagent.stopping"
"""Scope key of an asyncio.Event that is set when the server stops. Endless answers (event streams) end on it."""

GONE = "payagent.gone"
"""Scope key of a future that is done when the connection has ended, for code that is not calling `receive`."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections may be open on the port and on the Unix socket, and the listen backlog."""

    tcp: int
    unix: int
    backlog: int


def make_room() -> ConnectionLimits:
    """Raise the soft limit of open files as far as needed and allowed, and divide it.

    asyncio accepts a whole backlog before it can refuse a connection, so both listeners need that many free
    descriptors. The rest is for the ledger and for requests to providers and merchants.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_WANTED)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return ConnectionLimits(tcp=allowed // 4, unix=allowed // 8, backlog=allowed // 8)


def bounded(
    bounds: ConnectionLimits, new_id: Callable[[], str], head_s: float = HEAD_S, read_s: float = READ_S
) -> type[H11Protocol]:
    """Return the protocol for uvicorn's `http` option. `new_id` makes request ids for refused input."""
    return cast("type[H11Protocol]", partial(_Connection, bounds, new_id, head_s, read_s))  # uvicorn only calls it


class _Wire(h11.Connection):
    """An h11 connection that also limits the number of lines in a head; h11 itself limits only its bytes.

    Newlines are counted once as data arrives. Only when there may be too many does it search for the head's end.
    """

    _lines = 0

    def receive_data(self, data: bytes) -> None:
        super().receive_data(data)
        if self.their_state is h11.IDLE:
            self._lines += data.count(b"\n")

    def start_next_cycle(self) -> None:
        super().start_next_cycle()
        self._lines = self.trailing_data[0].count(b"\n")

    def next_event(self) -> Any:
        if self._lines > HEAD_LINES_MAX and self.their_state is h11.IDLE:
            data = self.trailing_data[0]
            end = _HEADS_END.search(data)
            if data.count(b"\n", 0, end.end() if end else len(data)) > HEAD_LINES_MAX:
                raise h11.RemoteProtocolError("too many lines")
        return super().next_event()


class _Connection(H11Protocol):
    """One connection. uvicorn's keep-alive timeout applies between requests, `head_s` once one begins."""

    _head_due: asyncio.TimerHandle | None = None
    _read_due: asyncio.TimerHandle | None = None
    _unread_bytes = 0
    _gone: asyncio.Future[None]

    def __init__(
        self,
        bounds: ConnectionLimits,
        new_id: Callable[[], str],
        head_s: float,
        read_s: float,
        *arguments: Any,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self.bounds, self.new_id, self.head_s, self.read_s = bounds, new_id, head_s, read_s
        self.conn = _Wire(h11.SERVER)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # pause_writing must report anything not read at once; with high=0, TLS would pause without a reason
        transport.set_write_buffer_limits(high=1, low=0)
        inner = self.app
        self._stopping = asyncio.Event()
        self._gone = self.loop.create_future()

        async def droppable(scope: Any, receive: Any, send: Any) -> None:
            is_old = scope["http_version"] == "1.0"
            scope[ABORT] = drop = partial(_drop, transport, is_old=is_old)
            scope[STOPPING], scope[GONE] = self._stopping, self._gone
            has_two_lengths = {name for name, _ in scope["headers"]} >= _BOTH_LENGTHS
            try:
                await (self._refusal(_TWO_LENGTHS) if has_two_lengths else inner)(scope, receive, send)
            except BaseException:
                if is_old:
                    drop()
                raise

        self.app = droppable
        alike = sum(_is_tcp(other) == _is_tcp(self) for other in self.connections)
        is_full = alike > (self.bounds.tcp if _is_tcp(self) else self.bounds.unix)
        connection = transport.get_extra_info("socket")
        # another user can connect only if someone changed the socket's mode 0600
        is_unix = connection is not None and connection.family == socket.AF_UNIX
        if is_full or (is_unix and is_strangers(connection)):
            transport.abort()
        else:
            self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._gone.set_result(None)
        self._forget_head()
        self._forget_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_reading()

    def shutdown(self) -> None:
        self._stopping.set()
        super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Send the usual problem body. If an answer has already started, drop the connection.

        If the broken bytes are a request's body, that request is told that its client is gone: it can send nothing
        more.
        """
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        answer = self._refusal(_NOT_HTTP)
        head = h11.Response(status_code=400, headers=answer.raw_headers, reason=b"Bad Request")
        for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _refusal(self, why: str) -> JsonResponse:
        """The answer to a request whose end is ambiguous. It closes the connection (RFC 9112 6.1)."""
        request_id = self.new_id()
        problem = problem_of(Refused("bad_request", why), request_id)
        return JsonResponse(problem, 400, {"Connection": "close", "X-Request-Id": request_id}, MEDIA_TYPE)

    def _should_upgrade(self) -> bool:
        """Ignore every upgrade, as RFC 9110 allows; the proxy refuses WebSocket itself.

        By default uvicorn would log advice to install a WebSocket library for each such request.
        """
        return False

    def _expect_head(self) -> None:
        """Start the head timeout if a request has begun and no answer is in progress. A whole head ends it."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget_head()
        elif self._head_due is None and not self.transport.is_closing():
            self._head_due = self.loop.call_later(self.head_s, self.transport.abort)

    def _forget_head(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None

    def _expect_reading(self) -> None:
        self._unread_bytes = self.transport.get_write_buffer_size()
        self._read_due = self.loop.call_later(self.read_s, self._check_reading)

    def _check_reading(self) -> None:
        read_bytes = self._unread_bytes - self.transport.get_write_buffer_size()
        if read_bytes < READ_BYTES_PER_S * self.read_s:
            self.transport.abort()
        else:
            self._expect_reading()

    def _forget_reading(self) -> None:
        if self._read_due is not None:
            self._read_due.cancel()
            self._read_due = None


async def break_off(scope: Scope, receive: Receive) -> None:
    """Drop the connection in the middle of an answer, so that the client cannot take the part for the whole."""
    scope[ABORT]()
    while (await receive())["type"] != "http.disconnect":
        continue


def _drop(transport: asyncio.Transport, *, is_old: bool) -> None:
    """Close at once. HTTP/1.0 clients get a reset (RST), because they read a normal close as the answer's end."""
    connection = transport.get_extra_info("socket")
    if is_old and connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _is_tcp(connection: Any) -> bool:
    return connection.server is not None and connection.server[1] is not None
