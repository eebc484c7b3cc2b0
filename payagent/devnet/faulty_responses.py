"""Turns an honest HTTP response into the faulty one that a fault asks for.

Start at `spoil`. To close a connection it needs the server's own protocol class (server.py), which puts the
function into the request's scope.

Never: decides which fault applies.
"""

import asyncio
import json
from collections.abc import AsyncIterator

from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from payagent.devnet.blockfrost_shapes import error
from payagent.devnet.faults import ERRORS, OPTIONAL, Fault

ABORT = "payagent.devnet.abort"
"""Scope key of the function that drops this request's connection."""

OVERSIZED_BYTES = 64 * 1024 * 1024
_CHUNK = b" " * 65_536
_HTML = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1><hr>nginx</body></html>"


class Abort(Response):
    """No answer: the connection is dropped."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[ABORT]()
        await _disconnect(receive)


class Hang(Response):
    """No answer as long as the client waits. The connection is dropped when the devnet stops."""

    def __init__(self, stopping: asyncio.Event) -> None:
        super().__init__()
        self._stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_disconnect(receive))
        stopped = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((gone, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        scope[ABORT]()
        await gone


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


def spoil(honest: Response, fault: Fault, stopping: asyncio.Event) -> Response:
    """The answer that the client gets instead of the honest one."""
    answer = fault.answer
    if answer in ERRORS:
        status, name, message = ERRORS[answer]
        return JSONResponse(error(status, name, message), status)
    match answer:
        case "abort":
            return Abort()
        case "hang":
            return Hang(stopping)
        case "html":
            return HTMLResponse(_HTML, 502)
        case "truncated":
            body = bytes(honest.body)
            return Response(body[: len(body) // 2], honest.status_code, media_type="application/json")
        case "oversized":
            return StreamingResponse(_endless(), honest.status_code, media_type="application/json")
        case "other_hash" if isinstance(tx_id := json.loads(bytes(honest.body)), str):
            return JSONResponse(_another(tx_id))
        case "no_optional":
            return JSONResponse(json.loads(bytes(honest.body), object_hook=_required), honest.status_code)
    return honest


def _required(members: dict[str, object]) -> dict[str, object]:
    """An object without its optional members."""
    return {name: value for name, value in members.items() if name not in OPTIONAL}


async def _endless() -> AsyncIterator[bytes]:
    for _ in range(OVERSIZED_BYTES // len(_CHUNK)):
        yield _CHUNK


def _another(tx_id: str) -> str:
    """Another plausible hash: the same with its first digit changed."""
    return f"{int(tx_id[0], 16) ^ 1:x}{tx_id[1:]}"
