"""Helpers of several routes: read the body within its limits, check query parameters, and wait.

Never: knows a route.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Annotated, Any

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from payagent.api.models.base import BODY_MAX_BYTES, GivenTime
from payagent.core.bounds import LIST_LIMIT_MAX
from payagent.core.problems import Refused

_MEDIA_TYPE = re.compile(r'application/json\s*(?:;\s*charset\s*=\s*"?utf-8"?\s*)?', re.ASCII | re.IGNORECASE)

WAIT_MAX_S = 60
BODY_S = 10.0
"""A body must arrive within this time after its head."""

Cursor = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,17}$", description="From the previous page.")]
PaymentId = Annotated[str, Path(description="As returned by /v1/payments.")]
Limit = Annotated[int, Field(ge=1, le=LIST_LIMIT_MAX, description="The most items to return.")]


class QueryParams(BaseModel):
    """Query parameters. An unknown one is refused, because a misspelt filter would filter nothing."""

    model_config = ConfigDict(extra="forbid")


class Waiting(QueryParams):
    """`wait`: seconds to wait for a change."""

    wait: Annotated[int, Field(ge=0, le=WAIT_MAX_S)] = 0


_TIME = "A date or time, in UTC unless it has a zone"
Since = Annotated[GivenTime | None, Field(description=f"{_TIME}; inclusive.")]
Until = Annotated[GivenTime | None, Field(description=f"{_TIME}; exclusive.")]


class SelectionFilter(QueryParams):
    """Filters by time, merchant and app."""

    since: Since = None
    until: Until = None
    merchant: Annotated[str | None, Field(description="A merchant's name in the config, or its origin.")] = None
    app: Annotated[str | None, Field(description="An app's id or name.")] = None


class Page(QueryParams):
    """Parameters of every list."""

    limit: Limit = 50
    cursor: Cursor | None = None

    @property
    def before(self) -> int | None:
        return None if self.cursor is None else int(self.cursor)

    def next_of(self, seqs: Sequence[int]) -> str | None:
        """The cursor of the next page; None if this one, with rows of these numbers, is the last."""
        return str(seqs[-1]) if len(seqs) == self.limit else None


async def first_of(*waits: Coroutine[Any, Any, object], timeout_s: float | None = None) -> None:
    """Return when one of them is done, or time is up. The others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()


async def json_body(request: Request, *, may_be_absent: bool = False) -> bytes:
    """The body: at most 256 KiB, within `BODY_S`, and declared as JSON, which a web form cannot do.

    With `may_be_absent`, no body counts as an empty object.
    """
    declared = request.headers.getlist("content-type")
    is_json = len(declared) == 1 and _MEDIA_TYPE.fullmatch(declared[0].strip()) is not None
    not_json = Refused("media_type_refused", "Content-Type must be application/json")
    if not is_json and (declared or not may_be_absent):
        raise not_json
    try:
        async with asyncio.timeout(request.app.state.body_s):
            raw = await bounded_body(request, BODY_MAX_BYTES)
    except TimeoutError:
        raise Refused("body_too_slow", "the request's body did not arrive in time") from None
    if raw and not is_json:
        raise not_json
    return raw or (b"{}" if may_be_absent else b"")


async def bounded_body(request: Request, most_bytes: int, name: str = "body") -> bytes:
    """Read a body. Refused: `body_too_big`, in which `name` is what it is called."""
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > most_bytes:
            raise Refused("body_too_big", f"the {name} has more than {most_bytes} bytes")
    return raw


def require_clear_query(request: Request) -> None:
    """Refuse a repeated parameter, of which one would be lost, and any parameter if the path takes none.

    Otherwise a spending bound in the wrong place would silently be no bound.
    """
    if not request.scope["query_string"]:
        return
    counts = Counter(name for name, _ in request.query_params.multi_items())
    # without a route it is a request of the fast path, which takes none
    route = request.scope.get("route")
    if counts and (route is None or not route.dependant.query_params):
        name = next(iter(counts))[:80]
        raise Refused("bad_request", f"the path takes no parameters, and the request has {name!a}", key=name)
    repeated = next((name for name, count in counts.items() if count > 1), None)
    if repeated is not None:
        name = repeated[:80]
        raise Refused("bad_request", f"the parameter {name!a} is given twice", key=name)


def single_header(request: Request, name: str) -> str | None:
    """A header that may occur once. Refused if repeated: `bad_request`."""
    values = request.headers.getlist(name)
    if len(values) > 1:
        raise Refused("bad_request", f"the header {name} is given twice", key=name)
    return values[0] if values else None
