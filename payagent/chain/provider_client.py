"""HTTP calls and WebSocket conversations with a provider, each with a deadline for the whole.

Never: raises because of something a server did, goes to another host, retries, reads the environment.
"""

import asyncio
import ssl
from calendar import timegm
from collections.abc import AsyncIterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx

from payagent.chain.submit_answers import RawAnswer, TransportError
from payagent.core.version import USER_AGENT
from payagent.http_client import EndlessAnswerError, HttpClient, max_bytes_with_framing, read_body, trusted

_AT_ONCE = 8
"""Calls at a time. Others wait here: httpcore 1.0 loses a connection when a call that waits in its pool ends."""


class _Body:
    """A request body that records whether its first byte may have left."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.was_taken = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.was_taken = True
        yield self._raw


class ProviderClient:
    """Makes calls to one provider: kept connections, no retry, answers as plain values."""

    def __init__(self, connect_timeout_s: float) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._http = HttpClient()
        self._is_closed = False
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._deadlines: set[asyncio.Timeout] = set()

    async def get(
        self,
        url: str,
        headers: Mapping[str, str],
        params: Mapping[str, int | str],
        deadline_s: float,
        max_bytes: int,
    ) -> RawAnswer:
        """At most `max_bytes` of the answer are read."""
        return await self._answer("GET", url, headers, params or None, None, deadline_s, max_bytes)

    async def post(
        self, url: str, headers: Mapping[str, str], raw: bytes, deadline_s: float, max_bytes: int
    ) -> RawAnswer:
        """At most `max_bytes` of the answer are read."""
        sized = {**headers, "Content-Length": str(len(raw))}
        return await self._answer("POST", url, sized, None, _Body(raw), deadline_s, max_bytes)

    async def converse(self, url: str, messages: Sequence[bytes], deadline_s: float, max_bytes: int) -> RawAnswer:
        """Send messages over a WebSocket at an http(s) URL, each after the answer to the one before.

        Returns the last answer. At most `max_bytes` of each are read. A redirect on its own host is followed.
        """
        from websockets.asyncio.client import ClientConnection, connect  # 70 ms, and most providers need none
        from websockets.exceptions import WebSocketException

        class Bounded(ClientConnection):
            """Ends the connection when a server sends more than it was asked for, such as pings without end."""

            left_bytes = max_bytes * len(messages)

            def data_received(self, data: bytes) -> None:
                self.left_bytes -= len(data)
                super().data_received(data)
                if self.left_bytes < 0:
                    self.transport.abort()

        deadline = asyncio.timeout(deadline_s)
        self._deadlines.add(deadline)
        try:
            async with deadline, self._turns:
                socket = await connect(
                    f"ws{url.removeprefix('http')}",
                    host=urlsplit(url).hostname,  # one that is given is not left by a redirect
                    ssl=trusted() if url.startswith("https") else None,
                    proxy=None,
                    compression=None,
                    user_agent_header=USER_AGENT,
                    open_timeout=None,
                    ping_interval=None,
                    max_size=max_bytes,
                    create_connection=Bounded,
                )
                try:
                    for message in messages:
                        await socket.send(message, text=True)
                        answer = await socket.recv(decode=False)
                finally:
                    socket.transport.abort()  # to close it in order may take for ever
                return RawAnswer(200, answer)
        except TimeoutError:
            return RawAnswer(error=TransportError.TIMEOUT)
        except (OSError, LookupError, ValueError, WebSocketException):
            return RawAnswer(error=TransportError.RESET)
        finally:
            self._deadlines.discard(deadline)

    async def _answer(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        params: Mapping[str, int | str] | None,
        body: _Body | None,
        deadline_s: float,
        max_bytes: int,
    ) -> RawAnswer:
        """The status counts even if the body is cut off."""
        status, retry_after, error, raw, date_s = None, None, None, b"", None
        if self._is_closed:
            return RawAnswer(error=TransportError.CONNECT, body_sent=False)
        deadline = asyncio.timeout(deadline_s)
        self._deadlines.add(deadline)
        before = max_bytes_with_framing.set(2 * max_bytes)
        sent = self._http.stream(
            method, url, headers, body, params=params, connect_timeout_s=self._connect_timeout_s
        )
        try:
            async with deadline, self._turns, sent as response:
                status, retry_after = response.status_code, response.headers.get("Retry-After")
                date_s = _date_s(response.headers)
                raw = await read_body(response, max_bytes)
            error = TransportError.TOO_BIG if len(raw) > max_bytes else None
        except TimeoutError:
            error = TransportError.TIMEOUT if status is None else TransportError.TRUNCATED
        except httpx.HTTPError as failure:
            error = _transport_error(failure, broke_off=status is not None)
        finally:
            max_bytes_with_framing.reset(before)
            self._deadlines.discard(deadline)
        was_sent = body is not None and body.was_taken
        return RawAnswer(status, raw, retry_after, error, body_sent=was_sent, date_s=date_s)

    async def aclose(self) -> None:
        """End the calls in progress, which give no answer."""
        self._is_closed = True
        for deadline in self._deadlines:
            deadline.reschedule(0)
        await self._http.aclose()


def _date_s(headers: httpx.Headers) -> int | None:
    """The server's clock. A cache adds Age to the answers that it kept, whose date is old."""
    try:
        return None if "Age" in headers else timegm(parsedate_to_datetime(headers["Date"]).utctimetuple())
    except (LookupError, ValueError, OverflowError):
        return None


def _transport_error(error: httpx.HTTPError, *, broke_off: bool) -> TransportError:
    """Return the kind of error only: the libraries' messages hold URLs and invalid header values."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, EndlessAnswerError):
            return TransportError.TOO_BIG
        if isinstance(cause, ssl.SSLError) and not broke_off:
            return TransportError.TLS
        cause = cause.__cause__ or cause.__context__
    if broke_off:
        return TransportError.TRUNCATED
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return TransportError.CONNECT
    return TransportError.TIMEOUT if isinstance(error, httpx.TimeoutException) else TransportError.RESET
