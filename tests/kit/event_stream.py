"""A client of `GET /v1/events`."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from kit.api import Api

PATIENCE_S = 60


class Stream:
    """A client's end of one stream."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()

    async def next(self) -> dict[str, Any]:
        """The next event, from its lines; comments are skipped."""
        found: dict[str, Any] = {}
        async with asyncio.timeout(PATIENCE_S):
            async for line in self._lines:
                if not line and found:
                    return found | {"data": json.loads(found["data"])}
                name, _, value = line.partition(": ")
                if name:
                    found[name] = value
        raise EOFError

    async def until(self, event: str) -> list[dict[str, Any]]:
        """Events up to the first of that name."""
        found = [await self.next()]
        while found[-1]["event"] != event:
            found.append(await self.next())
        return found

    async def end(self) -> None:
        """Return when the server has closed the stream."""
        async with asyncio.timeout(PATIENCE_S):
            async for _ in self._lines:
                pass


@asynccontextmanager
async def following(api: Api, app: str = "first", **more: Any) -> AsyncIterator[Stream]:
    async with api.as_(app).stream("GET", "/v1/events", **more) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        stream = Stream(answer)
        async for line in stream._lines:
            assert line == ": from here on"
            break
        yield stream
