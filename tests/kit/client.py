"""Python programs that pay: both transports, a running daemon, the devnet's merchant and a raw one."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from kit.agent import ADA, World
from kit.effort import pick
from kit.http import NO_TLS
from kit.proxy import Place, blocks, place
from payagent.client import AsyncPayAgentTransport, PayAgentTransport, paid_request, retry

UTXOS = [20 * ADA] * 8
BOTH = ("blocking", "async")
WAYS = pick(("async",), BOTH)
both_ways = pytest.mark.parametrize("start", BOTH, indirect=True)
"""Marks a test whose facts depend on the transport's own code; of the others the sample runs one way."""


class Program:
    """A program's httpx client. The blocking one runs in a thread, since daemon and merchant run in the loop."""

    def __init__(self, place: Place, way: str, **options: object) -> None:
        self.place = place
        self.way = way
        self.options: dict[str, Any] = {"daemon": place.api.url, "token": place.token, **options}

    async def call(self, url: str, method: str = "GET", **more: Any) -> httpx.Response:
        """One request on a client of its own; return its answer, read to the end."""

        def blocking() -> httpx.Response:
            with self.client() as http:
                return http.request(method, url, **more)

        if self.way == "blocking":
            return await asyncio.to_thread(blocking)
        async with self.async_client() as http:
            return await http.request(method, url, **more)

    async def peek(self, url: str) -> bytes:
        """One request whose answer is closed after its first chunk."""

        def blocking() -> bytes:
            with self.client() as http, http.stream("GET", url) as answer:
                return next(answer.iter_raw())

        if self.way == "blocking":
            return await asyncio.to_thread(blocking)
        async with self.async_client() as http, http.stream("GET", url) as answer:
            return await anext(answer.aiter_raw())

    def transport(self) -> Any:
        if self.way == "blocking":
            return PayAgentTransport(httpx.HTTPTransport(verify=NO_TLS), **self.options)
        return AsyncPayAgentTransport(httpx.AsyncHTTPTransport(verify=NO_TLS), **self.options)

    def client(self, **more: Any) -> httpx.Client:
        return httpx.Client(transport=self.transport(), timeout=60, trust_env=False, **more)

    def async_client(self, **more: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=self.transport(), timeout=60, trust_env=False, **more)

    def streamed(self, parts: list[bytes]) -> Any:
        """A body that can be read once."""

        async def later() -> AsyncIterator[bytes]:
            for part in parts:
                yield part

        return later() if self.way == "async" else iter(parts)


Start = Callable[..., Program]


@asynccontextmanager
async def open_shop(world: World, **terms: object) -> AsyncIterator[Place]:
    """A funded wallet, its daemon, a raw merchant and the devnet's, on a chain that makes blocks."""
    world.fund(*UTXOS)
    async with place(world, **terms) as at, blocks(at.run):
        yield at


def end_patience(monkeypatch: pytest.MonkeyPatch, when: Callable[[], object]) -> None:
    """Let a program's timeout end only once the condition holds, however busy the machine is."""
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + (3_600 if when() else 0))
    monkeypatch.setattr(retry, "time", clock)
    monkeypatch.setattr(paid_request, "time", clock)


async def refusal(call: Awaitable[httpx.Response]) -> Any:
    """The error that a request ends with."""
    try:
        answer = await call
    except httpx.RequestError as error:
        return error
    raise AssertionError(f"it was answered {answer.status_code}")
