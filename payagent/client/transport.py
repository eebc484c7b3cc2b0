"""httpx transports that pay: `httpx.Client(transport=PayAgentTransport(token=...))`.

They are transports and not an `httpx.Auth`, because with `follow_redirects` an Auth sends the proof to the
redirect's target.
Never: follows a redirect; shows the token; limits the time of a body that the program reads.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol, cast

import httpx

from payagent.client.daemon_client import DEFAULT, AsyncDaemonClient, DaemonAddress, DaemonClient
from payagent.client.errors import PayAgentError
from payagent.client.merchant_answers import ANSWER_MAX_BYTES
from payagent.client.paid_request import PaidRequests
from payagent.client.retry import delivery_path
from payagent.client.steps import (
    AskDaemon,
    BufferRequest,
    DaemonReply,
    FinalAnswer,
    ReadAnswer,
    SendRequest,
    Sleep,
    Step,
)
from payagent.client.streams import Begun, aread_up_to, awatched, read_up_to, watched

PATIENCE_S = 900.0
SPOOL_BYTES = 64 * 1024 * 1024
ANSWER_S = 900.0
"""The most time for the head of a merchant's answer, and then for a body that payagent reads.

httpx limits each read, so an answer of a byte a second would never end.
"""

_until_s: ContextVar[float] = ContextVar("_until_s", default=float("inf"))
"""When the reads of a `TimedTransport` end, on the monotonic clock."""

log = logging.getLogger("payagent.client")


@asynccontextmanager
async def time_limit(limit_s: float | None = None) -> AsyncIterator[None]:
    """Limit a block to `limit_s` (default: `ANSWER_S`). Raises `httpx.ReadTimeout`."""
    try:
        async with asyncio.timeout(limit_s or ANSWER_S):
            yield
    except TimeoutError:
        raise httpx.ReadTimeout("the answer took too long in all") from None


class TimedTransport(httpx.HTTPTransport):
    """httpx's blocking transport, whose reads end at `_until_s` with `httpx.ReadTimeout`."""

    def __init__(self) -> None:
        super().__init__()
        backend: Any = self._pool._network_backend  # httpx has no argument for it
        connect = backend.connect_tcp
        backend.connect_tcp = lambda *args, **options: _timed(connect(*args, **options))


def _timed(stream: Any) -> Any:
    """Let the reads of a connection end at `_until_s`, also those of the TLS connection that it becomes."""
    read, start_tls = stream.read, stream.start_tls
    stream.read = lambda most_bytes, timeout=None: read(most_bytes, _left_s(timeout))
    stream.start_tls = lambda *args, **options: _timed(start_tls(*args, **options))
    return stream


def _left_s(timeout: float | None) -> float:
    left_s = _until_s.get() - time.monotonic()
    if left_s <= 0:
        raise httpx.ReadTimeout("the answer took too long in all")
    return min(left_s, timeout or 1_000_000)  # the longest wait of a socket is 24 days


class Asks(Protocol):
    """The part of a daemon client that a transport uses."""

    def ask(self, ask: AskDaemon) -> DaemonReply: ...

    def close(self) -> None: ...


class PayAgentTransport(httpx.BaseTransport):
    """Sends requests through `inner`. The daemon pays a merchant's 402, and the request is retried.

    `daemon` is the daemon's URL or socket path. `token` is an app's token (default: $PAYAGENT_TOKEN).
    `max_cost_units` limits the cost of one request, fee included, in the smallest unit of `max_cost_asset`
    ("lovelace", or a token's policy id and name). The request is then paid in that asset only. Without
    `max_cost_asset` the limit is in whichever asset is used. `patience_s` limits the wait for a batch that another
    request buys, and then the wait for the payment and the merchant. `spool_bytes` limits the part of a body kept
    for a replay. A program may fork while it has a transport; an `inner` passed in must have no open connection
    then. Without `inner`, an answer must begin within `ANSWER_S`.

    Raises `PayAgentError` if the request was not paid, or was paid and not served. A 402 from a server that is not
    configured, or that is no invoice, is returned unchanged. A paid answer has the headers X-Payagent-Payment,
    -Cost and -State. The payment counts as delivered once the body was read to its end.
    """

    def __init__(
        self,
        inner: httpx.BaseTransport | None = None,
        *,
        daemon: str | Path | Asks = DEFAULT,
        token: str | None = None,
        max_cost_units: int | None = None,
        max_cost_asset: str | None = None,
        patience_s: float = PATIENCE_S,
        spool_bytes: int = SPOOL_BYTES,
    ) -> None:
        self._daemon = (
            DaemonClient(DaemonAddress.read(daemon, token)) if isinstance(daemon, str | Path) else daemon
        )
        self._inner = inner or TimedTransport()
        self._has_own, self._pid = inner is None, os.getpid()
        self._requests = PaidRequests(max_cost_units, max_cost_asset, patience_s, spool_bytes)

    def __repr__(self) -> str:
        return f"PayAgentTransport({self._daemon!r})"

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self._has_own and self._pid != os.getpid():  # after a fork, two processes would share a connection
            self._inner, self._pid = TimedTransport(), os.getpid()
        steps = self._requests.run(request)
        opened: httpx.Response | None = None
        try:
            step = next(steps)
            while True:
                if isinstance(step, SendRequest) and opened is not None:
                    opened.close()
                _until_s.set(time.monotonic() + ANSWER_S)
                try:
                    result = self._execute(step)
                except httpx.RequestError as error:
                    step = steps.throw(error)
                    continue
                finally:
                    _until_s.set(float("inf"))
                opened = _opened(step, result, opened)
                step = steps.send(result)
        except StopIteration as end:
            return _handed_on(end.value, watched, self._report)
        except BaseException:
            steps.close()
            if opened is not None:
                opened.close()
            raise

    def close(self) -> None:
        self._inner.close()
        self._daemon.close()

    def _execute(self, step: Step) -> Any:
        match step:
            case AskDaemon():
                return self._daemon.ask(step)
            case SendRequest(request):
                return self._inner.handle_request(request)
            case ReadAnswer(answer):
                return _peeked(answer, *read_up_to(cast("httpx.SyncByteStream", answer.stream), ANSWER_MAX_BYTES))
            case BufferRequest(body):
                return body.rest()
            case Sleep(seconds):
                return time.sleep(seconds)

    def _report(self, ask: AskDaemon) -> None:
        with _reporting(self._requests, ask):
            self._daemon.ask(ask).value()


class AsyncPayAgentTransport(httpx.AsyncBaseTransport):
    """`PayAgentTransport` for `httpx.AsyncClient`."""

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport | None = None,
        *,
        daemon: str | Path | AsyncDaemonClient = DEFAULT,
        token: str | None = None,
        max_cost_units: int | None = None,
        max_cost_asset: str | None = None,
        patience_s: float = PATIENCE_S,
        spool_bytes: int = SPOOL_BYTES,
    ) -> None:
        self._daemon = (
            AsyncDaemonClient(DaemonAddress.read(daemon, token)) if isinstance(daemon, str | Path) else daemon
        )
        self._inner = inner or httpx.AsyncHTTPTransport()
        self._has_own, self._pid = inner is None, os.getpid()
        self._requests = PaidRequests(max_cost_units, max_cost_asset, patience_s, spool_bytes)

    def __repr__(self) -> str:
        return f"AsyncPayAgentTransport({self._daemon!r})"

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._has_own and self._pid != os.getpid():
            self._inner, self._pid = httpx.AsyncHTTPTransport(), os.getpid()
        steps = self._requests.run(request)
        opened: httpx.Response | None = None
        try:
            step = next(steps)
            while True:
                if isinstance(step, SendRequest) and opened is not None:
                    await opened.aclose()
                try:
                    result = await self._execute(step)
                except httpx.RequestError as error:
                    step = steps.throw(error)
                    continue
                opened = _opened(step, result, opened)
                step = steps.send(result)
        except StopIteration as end:
            return _handed_on(end.value, awatched, self._report)
        except BaseException:
            steps.close()
            if opened is not None:
                await opened.aclose()
            raise

    async def aclose(self) -> None:
        await self._inner.aclose()
        await self._daemon.aclose()

    async def _execute(self, step: Step) -> Any:
        match step:
            case AskDaemon():
                return await self._daemon.ask(step)
            case SendRequest(request):
                async with time_limit():
                    return await self._inner.handle_async_request(request)
            case ReadAnswer(answer):
                stream = cast("httpx.AsyncByteStream", answer.stream)
                async with time_limit():
                    return _peeked(answer, *await aread_up_to(stream, ANSWER_MAX_BYTES))
            case BufferRequest(body):
                return await body.arest()
            case Sleep(seconds):
                return await asyncio.sleep(seconds)

    async def _report(self, ask: AskDaemon) -> None:
        with _reporting(self._requests, ask):
            (await self._daemon.ask(ask)).value()


@contextmanager
def _reporting(requests: PaidRequests, ask: AskDaemon) -> Iterator[None]:
    """Report a delivery, or note it to be reported later."""
    try:
        yield
    except PayAgentError as error:
        log.warning("a delivery could not be reported: %s", error)
        if error.retryable:
            requests.unreported[ask.path] = ask
    except BaseException:
        requests.unreported[ask.path] = ask  # the program stops; the daemon may not have the report
        raise


def _handed_on(
    final: FinalAnswer, watch: Callable[..., Any], report: Callable[[AskDaemon], object]
) -> httpx.Response:
    """The answer for the program. Its last byte counts as the delivery of its payment."""
    answer, payment_id = final.answer, final.payment_id
    if payment_id is not None:
        delivered = AskDaemon("POST", delivery_path(payment_id), {"status": answer.status_code, **final.receipt})
        answer.stream = Begun((), watch(answer.stream, lambda: report(delivered)), answer.stream)
    return answer


def _peeked(
    answer: httpx.Response, raw: bytes | None, stream: httpx.SyncByteStream | httpx.AsyncByteStream
) -> tuple[bytes | None, httpx.Response]:
    return raw, httpx.Response(
        answer.status_code, headers=answer.headers, stream=stream, extensions=dict(answer.extensions)
    )


def _opened(step: Step, result: Any, before: httpx.Response | None) -> httpx.Response | None:
    """Return the answer that has to be closed if nobody gets it, to free its connection."""
    match step:
        case SendRequest():
            return cast("httpx.Response", result)
        case ReadAnswer():
            raw, answer = result
            return None if raw is not None else cast("httpx.Response", answer)
    return before
