"""Every program part that presents a proof until it is served: each drives `core.pay_and_retry` in its own way.

`async with driver(name, at) as buy` buys at the merchant `t` of a `Place` or at the devnet's. `buy` returns the
status of the answer, or 0 if a tool refuses.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from typing import Any

from mcp import Client
from x402 import x402Client
from x402.http.clients import x402HttpxClient

from kit.agent import ADA, APP
from kit.client import BOTH, Program
from kit.http import NO_TLS
from kit.proxy import Place
from payagent.agent.base.config import TopupSource
from payagent.agent.topups.orders import TopupGoal
from payagent.client import ExactCardanoScheme
from payagent.mcp.daemon import AppClient
from payagent.mcp.server import open_server
from payagent.store.rows.topups import TopupRow

BODY = '{"message":"hello"}'
REQUEST = TopupSource("POST", "/chat", BODY)
Buy = Callable[[str], Awaitable[int]]
"""POSTs `BODY` to /chat at this origin."""


@asynccontextmanager
async def driver(name: str, at: Place) -> AsyncIterator[Buy]:
    async with _DRIVERS[name](at) as buy:
        yield buy


def _transport(way: str) -> Any:
    @asynccontextmanager
    async def open_driver(at: Place) -> AsyncIterator[Buy]:
        async def buy(origin: str) -> int:
            return (await Program(at, way).call(f"{origin}/chat", "POST", content=BODY)).status_code

        yield buy

    return open_driver


@asynccontextmanager
async def _proxy(at: Place) -> AsyncIterator[Buy]:
    async def buy(origin: str) -> int:
        merchant = "devnet" if origin == at.run.world.origin else "t"
        return (await at.ask("/chat", method="POST", body=BODY.encode(), merchant=merchant)).status

    yield buy


@asynccontextmanager
async def _fetch_tool(at: Place) -> AsyncIterator[Buy]:
    """The tool `fetch` of `payagent mcp`."""
    daemon = AppClient(at.token, {"PAYAGENT_URL": at.api.url})
    async with open_server(daemon) as server, Client(server, cache=None) as client:

        async def buy(origin: str) -> int:
            result = await client.call_tool("fetch", {"url": f"{origin}/chat", "body": BODY})
            return int((result.structured_content or {}).get("status") or 0)

        yield buy


@asynccontextmanager
async def _sdk(at: Place) -> AsyncIterator[Buy]:
    """The official x402 SDK's client with our scheme, in a thread: a scheme blocks its event loop."""
    with closing(ExactCardanoScheme(daemon=at.api.url, token=at.token)) as scheme:

        async def call(origin: str) -> int:
            client = x402Client()
            client.set_spend_controls(False)
            async with x402HttpxClient(scheme.connect(client), verify=NO_TLS, timeout=60, trust_env=False) as http:
                return (await http.post(f"{origin}/chat", content=BODY)).status_code

        async def buy(origin: str) -> int:
            return await asyncio.to_thread(lambda: asyncio.run(call(origin)))

        yield buy


async def order_topup(at: Place, origin: str) -> TopupRow:
    """The top-up by one purchase at this origin; the same one each time."""
    units = 2 * ADA if origin == at.peer.url else 13 * ADA
    row, _ = await at.run.topups.order(APP, "k", TopupGoal(origin, "lovelace", units, REQUEST))
    return row


@asynccontextmanager
async def _topup(at: Place) -> AsyncIterator[Buy]:
    async def buy(origin: str) -> int:
        row = await order_topup(at, origin)
        while (row := at.run.topups.find(row.id)).ended_at_ms is None:
            await at.run.topups.run_once()
            await asyncio.sleep(0.02)
        return {"done": 200}.get(row.state, 402)

    yield buy


_DRIVERS: dict[str, Any] = {
    **{way: _transport(way) for way in BOTH},
    "proxy": _proxy,
    "fetch": _fetch_tool,
    "sdk": _sdk,
    "topup": _topup,
}
DRIVERS = tuple(_DRIVERS)
