"""/v1/events: everything that happens, as server-sent events (WHATWG HTML 9.2), as soon as it is durable.

May import: core, agent, store, the rest of api, FastAPI. Never: keeps what a reader is too slow for (an event is
read from the ledger when its turn comes); reads them in the event loop's thread; goes on when the server is told
to stop.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import StreamingResponse

from payagent.agent.base.payment_view import detail_view
from payagent.agent.context import AgentContext
from payagent.api.http.connection_limits import STOPPING
from payagent.api.models.openapi import streams
from payagent.api.models.payments import StreamEvent
from payagent.api.routes.auth import APPROVE, OPERATE, PAY, READ, Caller, need
from payagent.api.routes.params import QueryParams, first_of, single_header
from payagent.core.problems import Refused
from payagent.core.timestamps import iso_time
from payagent.store.rows.events import PAGE_ROWS, StreamedEvent, events_after, last_event

STREAMS_MAX = 64
STREAMS_OF_APP_MAX = 8
HEARTBEAT_S = 15.0
LOOK_S = 1.0
"""How often at least it is looked for what no payment's change tells: refusals, and what is of no payment."""

_SEQ = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)
_LAST_EVENT_ID = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "The id of the last event that was received; it goes before `after`.",
    "schema": {"type": "string", "pattern": f"^({_SEQ.pattern})$"},
}

Follower = Annotated[Caller, Depends(need(PAY, READ, OPERATE, APPROVE))]

router = APIRouter(tags=["events"])


class After(QueryParams):
    """From where on."""

    after: Annotated[int | None, Field(ge=0, lt=10**18, description="An event's id. Without it: from now on.")] = (
        None
    )


@router.get(
    "/v1/events",
    summary="What happens, as it happens",
    responses=streams(StreamEvent),
    openapi_extra={"parameters": [_LAST_EVENT_ID]},
    response_class=StreamingResponse,
)
async def events(request: Request, caller: Follower, query: Annotated[After, Query()]) -> StreamingResponse:
    """An app sees what happens to its own payments; a token for read or operate sees all.

    Each event has its number as its id, its name, and as its data one JSON object. A comment every 15 s shows that
    the stream is open. It ends when payagent stops or the token does: connect again with the last id, and nothing
    is missed.
    """
    opened: list[str] = request.app.state.streams
    if len(opened) >= STREAMS_MAX:
        raise Refused("rate_limited", f"{len(opened)} event streams are open, which is the limit")
    if (own := opened.count(caller.app.id)) >= STREAMS_OF_APP_MAX:
        raise Refused("rate_limited", f"{own} event streams of this app are open, which is its limit")
    seq = _start(single_header(request, "Last-Event-ID"), query.after, caller)
    stopping: asyncio.Event = request.scope[STOPPING]
    inside: ExitStack = request.state.inside
    opened.append(caller.app.id)  # here, and not where it begins to stream: others are let in meanwhile
    inside.callback(opened.remove, caller.app.id)
    return StreamingResponse(_stream(caller, seq, stopping), media_type="text/event-stream")


def _start(last_id: str | None, after: int | None, caller: Caller) -> int:
    """The event behind which the stream begins; one that is still to come would hide those before it."""
    newest, _ = last_event(caller.context.conn)
    if last_id is None:
        asked, key = newest if after is None else after, "after"
    elif _SEQ.fullmatch(last_id):
        asked, key = int(last_id), "Last-Event-ID"
    else:
        raise Refused("bad_request", "Last-Event-ID must be the number of an event", key="Last-Event-ID")
    if asked > newest:
        raise Refused("bad_request", f"there is no event {asked} yet, {newest} is the last", key=key)
    return asked


async def _stream(caller: Caller, seq: int, stopping: asyncio.Event) -> AsyncIterator[str]:
    context, app_id = caller.context, None if caller.sees_all else caller.app.id
    clock = asyncio.get_running_loop().time
    with context.changes.following() as changed:
        yield ": from here on\n\n"
        said_s = clock()
        while not stopping.is_set() and caller.is_let_in:
            changed.clear()
            found, reached = await run_in_threadpool(_page, context, seq, app_id)
            if found:
                yield "".join(_written(row, sees_all=caller.sees_all) for row in found)
                said_s = clock()
            elif clock() - said_s >= HEARTBEAT_S:
                yield ": still here\n\n"
                said_s = clock()
            if reached - seq < PAGE_ROWS:
                await first_of(changed.wait(), stopping.wait(), timeout_s=LOOK_S)
            seq = reached


def _page(context: AgentContext, seq: int, app_id: str | None) -> tuple[list[StreamedEvent], int]:
    return events_after(context.conn, seq, app_id)


def _written(row: StreamedEvent, *, sees_all: bool) -> str:
    data = {
        "seq": row.seq,
        "payment": row.payment_id,
        "event": row.event,
        "state": row.state,
        "detail": detail_view(row.detail, sees_all=sees_all),
        "at": iso_time(row.at_ms),
    }
    return f"id: {row.seq}\nevent: {row.event}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"
