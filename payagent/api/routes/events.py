"""/v1/events: streams events as server-sent events (WHATWG HTML 9.2), as soon as they are durable.

Never: buffers events for a slow reader (each is read from the ledger when it is sent); reads them in the event
loop's thread; continues when the server stops.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import StreamingResponse

from payagent.agent.context import AgentContext
from payagent.api.http.connection_limits import STOPPING
from payagent.api.http.problems import to_json
from payagent.api.models.openapi import gives_as, refer
from payagent.api.models.payments import StreamEvent
from payagent.api.routes.auth import AnyApp, Caller
from payagent.api.routes.params import QueryParams, first_of, single_header
from payagent.core.problems import Refused
from payagent.store.rows.events import PAGE_ROWS, EventRow, events_after, last_event

STREAMS_MAX = 64
STREAMS_OF_APP_MAX = 8
HEARTBEAT_S = 15.0
POLL_S = 1.0
"""Check at least this often for events that change no payment, such as refusals."""

_SEQ = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)
_LAST_EVENT_ID = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "The id of the last event received. It overrides `after`.",
    "schema": {"type": "string", "pattern": f"^({_SEQ.pattern})$"},
}


router = APIRouter(tags=["events"])


class After(QueryParams):
    """Where the stream starts."""

    after: Annotated[
        int | None, Field(ge=0, lt=10**18, description="An event's id. Default: only new events.")
    ] = None


@router.get(
    "/v1/events",
    summary="Stream events",
    responses=gives_as((StreamEvent.__doc__ or "").strip(), "text/event-stream", refer(StreamEvent)),
    openapi_extra={"parameters": [_LAST_EVENT_ID]},
    response_class=StreamingResponse,
)
async def events(request: Request, caller: AnyApp, query: Annotated[After, Query()]) -> StreamingResponse:
    """An app sees the events of its own payments. A token for read or operate sees all.

    Each event has its number as id, its name, and one JSON object as data. A comment every 15 s shows that the
    stream is open. The stream ends when payagent stops or the token ends. Reconnect with the last id to miss none.
    """
    opened: list[str] = request.app.state.streams
    if len(opened) >= STREAMS_MAX:
        raise Refused("rate_limited", f"{len(opened)} event streams are open, which is the limit")
    if (own := opened.count(caller.app.id)) >= STREAMS_OF_APP_MAX:
        raise Refused("rate_limited", f"this app has {own} event streams open, which is its limit")
    seq = _start(single_header(request, "Last-Event-ID"), query.after, caller)
    stopping: asyncio.Event = request.scope[STOPPING]
    inside: ExitStack = request.state.inside
    # counted here and not in _stream, because other requests are admitted before that starts
    opened.append(caller.app.id)
    inside.callback(opened.remove, caller.app.id)
    return StreamingResponse(_stream(caller, seq, stopping), media_type="text/event-stream")


def _start(last_id: str | None, after: int | None, caller: Caller) -> int:
    """The event after which the stream starts. A future one is refused, because it would hide those before it."""
    newest, _ = last_event(caller.context.conn)
    if last_id is None:
        start, key = newest if after is None else after, "after"
    elif _SEQ.fullmatch(last_id):
        start, key = int(last_id), "Last-Event-ID"
    else:
        raise Refused("bad_request", "Last-Event-ID must be the number of an event", key="Last-Event-ID")
    if start > newest:
        raise Refused("bad_request", f"there is no event {start} yet; the last is {newest}", key=key)
    return start


async def _stream(caller: Caller, seq: int, stopping: asyncio.Event) -> AsyncIterator[str]:
    context, app_id = caller.context, None if caller.app.sees_all else caller.app.id
    clock = asyncio.get_running_loop().time
    with context.changes.following() as changed:
        yield ": from here on\n\n"
        sent_s = clock()
        while not stopping.is_set() and caller.has_valid_token:
            changed.clear()
            rows, reached = await run_in_threadpool(_page, context, seq, app_id)
            if rows:
                yield "".join(_event_text(row, sees_all=caller.app.sees_all) for row in rows)
                sent_s = clock()
            elif clock() - sent_s >= HEARTBEAT_S:
                yield ": still here\n\n"
                sent_s = clock()
            if reached - seq < PAGE_ROWS:
                await first_of(changed.wait(), stopping.wait(), timeout_s=POLL_S)
            seq = reached


def _page(context: AgentContext, seq: int, app_id: str | None) -> tuple[list[EventRow], int]:
    return events_after(context.conn, seq, app_id)


def _event_text(row: EventRow, *, sees_all: bool) -> str:
    data = to_json(StreamEvent.of(row, sees_all=sees_all))
    return f"id: {row.seq}\nevent: {row.event}\ndata: {data}\n\n"
