"""The connection to a remote MCP server by streamable HTTP: opened when it is needed, and again after it broke.

Never: pays; repeats a request that the server may have executed.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, cast

import httpx
import httpx2
from mcp.client import Client, advertise
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.dispatcher import ProgressFnT
from mcp.shared.exceptions import MCPError
from mcp.types import CONNECTION_CLOSED, INTERNAL_ERROR, INVALID_REQUEST, REQUEST_TIMEOUT, Request
from pydantic import TypeAdapter, ValidationError

from payagent.mcp.paid_calls import BoundedBody, Json, bounded

EXTENSION = "org.x402/payment"
"""The extension of x402's MCP transport: a server may answer `payment_required` instead of a tool error."""

_RESULT: TypeAdapter[Any] = TypeAdapter(Json)
_ANSWER_S = 900.0
"""How long a server may take for an answer. After that it counts as lost."""

ANSWER_MAX_BYTES = 4 * 1024 * 1024
"""The most bytes of an answer. Parsed, they can take a hundred times as much memory."""

_LOST = frozenset((CONNECTION_CLOSED, REQUEST_TIMEOUT, INTERNAL_ERROR))
"""Codes that the SDK also uses if no answer came, or a gateway's 5xx."""

log = logging.getLogger("payagent.mcp")


async def _bound(answer: httpx2.Response) -> None:
    """Bound the bytes of an answer before the SDK parses them, and its time. A compressed one is not read."""
    body = bounded(
        answer.stream,
        0 if "content-encoding" in answer.headers else ANSWER_MAX_BYTES,
        httpx2.StreamError(f"the answer is compressed, longer than {ANSWER_MAX_BYTES} bytes, or too slow"),
        asyncio.get_running_loop().time() + _ANSWER_S,
    )
    answer.stream = BoundedBody((), body, cast("Any", answer.stream))


class RemoteServer:
    """One server. Its requests share a connection."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection: tuple[asyncio.Future[Client], asyncio.Event, asyncio.Task[None]] | None = None

    async def connected(self) -> Client:
        """The client of an open connection. Raises `httpx.ConnectError`."""
        if self._connection is None:
            ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
            dropped = asyncio.Event()
            self._connection = (ready, dropped, asyncio.create_task(self._hold(ready, dropped)))
        return await asyncio.shield(self._connection[0])

    async def aclose(self) -> None:
        if self._connection is not None:
            ready, dropped, holding = self._connection
            dropped.set()
            if not ready.done():
                holding.cancel()
            await asyncio.wait({holding})

    async def request(
        self, method: str, params: Mapping[str, Any], on_progress: ProgressFnT | None = None
    ) -> Json:
        """Send a request, and return its result as the server wrote it.

        Raises `MCPError` if the server refuses it, `httpx.ConnectError` if the server did not get it, and another
        `httpx.TransportError` if it may have been executed and no answer came.
        """
        is_repeated = False
        while True:
            client = await self.connected()
            try:
                request = Request[Any, Any](method=method, params=params)
                result: Json = await client.session.send_request(request, _RESULT, _ANSWER_S, None, on_progress)
                return result
            except ValidationError as error:
                raise httpx.RemoteProtocolError(f"{self.url} answered {method} with what is no result") from error
            except MCPError as error:
                is_restarted = error.code == INVALID_REQUEST and error.message == "Session terminated"
                if is_restarted and not is_repeated:
                    self._drop(client)  # it executed nothing
                    is_repeated = True
                    continue
                if error.code not in _LOST:
                    raise
                if error.code == CONNECTION_CLOSED:
                    self._drop(client)
                raise httpx.ReadError(f"{self.url} did not answer {method}: {error.message}") from None

    def _drop(self, client: Client) -> None:
        """Let the next request open a new connection."""
        if self._connection is not None:
            ready, dropped, _ = self._connection
            if ready.done() and ready.result() is client:
                dropped.set()
                self._connection = None

    async def _hold(self, ready: asyncio.Future[Client], dropped: asyncio.Event) -> None:
        """Hold a connection open until it is dropped. The SDK wants it opened and closed by one task."""
        try:
            async with (
                httpx2.AsyncClient(
                    headers={"accept-encoding": "identity"},
                    timeout=httpx2.Timeout(30, read=300),  # as the SDK has it
                    event_hooks={"response": [_bound]},
                ) as http,
                Client(
                    streamable_http_client(self.url, http_client=http),
                    read_timeout_seconds=_ANSWER_S,
                    extensions=[advertise(EXTENSION)],
                    cache=None,
                ) as client,
            ):
                ready.set_result(client)
                await dropped.wait()
        except Exception as error:  # noqa: BLE001  the SDK's transport raises whatever its client raises
            if ready.done():
                log.info("the connection to %s ended: %s", self.url, _why(error))
                self._drop(ready.result())
            else:
                self._connection = None
                ready.set_exception(httpx.ConnectError(f"{self.url} is no MCP server: {_why(error)}"))


def _why(error: BaseException) -> str:
    """The reason in a group of errors."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
