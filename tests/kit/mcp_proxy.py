"""`payagent mcp proxy` between an official MCP client and a paid MCP server, with a running daemon."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from mcp import StdioServerParameters
from mcp.client import Client

from kit.agent import ADA, World, asking_above
from kit.api import Api, served
from kit.client import UTXOS
from kit.proxy import blocks
from payagent.agent.base.config import MerchantConfig
from payagent.agent.operator.approval_links import KEY_BYTES, ApprovalLinks
from payagent.core.aggregate import PaymentRow
from payagent.core.merchant_rules import MerchantRules
from payagent.mcp.calls import Calls
from payagent.mcp.daemon import AppClient
from payagent.mcp.paid_proxy import Proxy
from payagent.mcp.paid_server import RemoteServer
from payagent.mcp.server import open_server
from payagent.store.rows import payments

TOPIC = {"topic": "Hydra"}
LINKS = ApprovalLinks("http://127.0.0.1", bytes(KEY_BYTES))


@dataclass
class Market:
    """A daemon with a funded wallet, and the devnet's merchant with its MCP server."""

    api: Api

    @property
    def world(self) -> World:
        return self.api.world

    @property
    def url(self) -> str:
        return f"{self.world.origin}/mcp"

    @property
    def environ(self) -> dict[str, str]:
        return {"PAYAGENT_URL": self.api.url, "PAYAGENT_TOKEN": self.api.tokens["payer"]}

    @property
    def payments(self) -> list[PaymentRow]:
        """The payments of the ledger."""
        conn = self.api.run.context.conn
        return payments.payments_page(
            conn, app_id=None, state=None, origin=None, since_ms=None, before_seq=None, limit=100
        )

    def x402(self, **settings: object) -> None:
        self.world.settings(x402=settings)

    def ask_a_person(self) -> None:
        """Let every payment over 1 ADA need an approval."""
        asking_above(self.api.run.context, {"lovelace": ADA})

    @property
    def sold(self) -> list[dict[str, Any]]:
        """What the merchant was paid for: one row for each transaction."""
        state = self.world.http.get(f"{self.world.origin}/merchant/state").json()
        return list(state["x402"]["payments"])

    def agent(self, url: str | None = None) -> Client:
        """An agent's client with the command as its server."""
        command = ["-m", "payagent", "mcp", "proxy", url or self.url]
        return Client(StdioServerParameters(command=sys.executable, args=command, env=self.environ))

    @asynccontextmanager
    async def near(
        self, url: str | None = None, answer_after_s: float = 45.0, **options: Any
    ) -> AsyncIterator[Client]:
        """The same in this process, which starts faster."""
        remote = RemoteServer(url or self.url)
        calls = Calls(AppClient(self.api.tokens["payer"], self.environ), answer_after_s)
        server = Proxy(remote, calls).server(await remote.connected())
        try:
            async with Client(server, cache=None, **options) as client:
                yield client
        finally:
            await calls.aclose()
            await remote.aclose()

    @asynccontextmanager
    async def wallet(self, answer_after_s: float = 45.0) -> AsyncIterator[Client]:
        """`payagent mcp` in this process."""
        daemon = AppClient(self.api.tokens["payer"], self.environ)
        async with open_server(daemon, answer_after_s) as server, Client(server, cache=None) as client:
            yield client


@dataclass(frozen=True)
class Bought:
    """What an agent got: the tool's text, or else the code of an error. `told` is all that it read."""

    text: str | None
    code: str | None
    told: str


@dataclass
class Buyer:
    """An agent that calls `report` at a server, by `payagent mcp proxy` or by the wallet's own server."""

    way: str
    client: Client
    url: str

    async def buy(self, topic: str = "Hydra", **more: str) -> Bought:
        arguments = {"topic": topic}
        if self.way == "proxy":
            result = await self.client.call_tool("report", arguments)
            code = (result.structured_content or {}).get("code") if result.is_error else None
            text = None if result.is_error else result.content[0].text
            return Bought(text, code, result.model_dump_json())
        asked = {"server": self.url, "tool": "report", "arguments": arguments, **more}
        result = await self.client.call_tool("mcp_call", asked)
        got = result.structured_content
        is_served = got["outcome"] == "paid_and_served"
        text = got["body"] if is_served else None
        if text is not None and "rest" not in got:
            text = json.loads(text)["content"][0]["text"]
        return Bought(text, None if is_served else got.get("code", got["outcome"]), result.model_dump_json())

    async def buy_until(self, is_so: Callable[[Bought], bool]) -> Bought:
        """Buy, and again while the call's patience ends too early, as it may on a slow machine."""
        async with asyncio.timeout(60):
            while not is_so(bought := await self.buy()):
                pass
        return bought


WAYS = ("proxy", "wallet")


@asynccontextmanager
async def buyer(at: Market, way: str, url: str | None = None, **options: Any) -> AsyncIterator[Buyer]:
    """An agent of the market."""
    opened = at.near(url, **options) if way == "proxy" else at.wallet(**options)
    async with opened as client:
        yield Buyer(way, client, url or at.url)


@asynccontextmanager
async def market(world: World, **merchants: str) -> AsyncIterator[Market]:
    """`merchants`: origins that may be paid too, by name."""
    world.fund(*UTXOS)
    rules = MerchantRules(price_rise_percent_max=25)
    known = {
        url: MerchantConfig(name, url, None, None, "confirmed", 5, rules=rules) for name, url in merchants.items()
    }
    known |= world.terms.merchants
    async with world.run(terms=lambda given: replace(given, merchants=known)) as run:
        await run.run_pass()
        async with served(run, links=LINKS) as api, blocks(run, every_s=0.1):
            yield Market(api)
