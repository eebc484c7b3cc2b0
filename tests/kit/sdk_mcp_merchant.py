"""A paid MCP server made of the official SDKs: x402's payment wrapper around a tool of an `mcp` server.

`with SdkMcpMerchant(devnet) as merchant:` sells the tool `report` at `merchant.url + "/mcp"`. It speaks the
tool-result binding. `failing` makes the tool fail, `demand` replaces what it asks for, and `after` its answer to a
payment that it settled. `listed` are its tools, and `restart` forgets every session.
With `prices`, each path and query of it is a server of its own, whose report has another text and price.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from mcp.server import Server
from mcp.types import CallToolRequestParams, CallToolResult, ListToolsResult, Tool
from x402 import x402ResourceServer
from x402.http import PaymentOption
from x402.mcp.server_async import PaymentWrapperConfig, create_payment_wrapper
from x402.schemas import PaymentRequirements

from kit.sdk_merchant import NETWORK, CardanoServerScheme, SdkMerchant
from payagent.devnet.server import DevnetThread

REPORT = Tool(
    name="report",
    description="A report.",
    input_schema={"type": "object"},
    _meta={"agents-x402/priceUSD": 0.01},  # where servers tell prices before they are asked
)


class SdkMcpMerchant(SdkMerchant):
    failing = False
    demand: dict[str, Any] | None = None
    after: Callable[[], CallToolResult] | None = None
    listed = (REPORT,)

    def __init__(self, devnet: DevnetThread, *, prices: Mapping[str, str] = {}, **options: Any) -> None:
        self._prices = prices
        super().__init__(devnet, **options)

    def asking(self, amount: str, error: str = "Payment required") -> CallToolResult:
        """A result that asks for this amount."""
        accepts = self._accepts.model_dump(by_alias=True, exclude_none=True) | {"amount": amount}
        demand = {"x402Version": 2, "error": error, "accepts": [accepts], "resource": {"url": "mcp://tool/report"}}
        return CallToolResult(content=[], structured_content=demand, is_error=True)

    def _app(self, option: PaymentOption) -> Any:
        payments = x402ResourceServer(self._client)
        payments.register(NETWORK, CardanoServerScheme())
        payments.initialize()
        price: Any = option.price
        self._accepts = accepts = PaymentRequirements(
            scheme=option.scheme,
            network=option.network,
            asset=price.asset,
            amount=price.amount,
            pay_to=str(option.pay_to),
            max_timeout_seconds=option.max_timeout_seconds or 300,
            extra={"areFeesSponsored": False, **(option.extra or {})},
        )

        def selling(place: str, amount: str) -> Callable[..., Any]:
            asked = accepts.model_copy(update={"amount": amount})

            @create_payment_wrapper(payments, PaymentWrapperConfig(accepts=[asked]))
            async def report(arguments: dict[str, Any], _context: Any) -> dict[str, Any]:
                self.handled["report"] += 1
                text = f"About {arguments['topic']}{place}"
                return {"content": [{"type": "text", "text": text}], "isError": self.failing}

            sell: Callable[..., Any] = report
            return sell

        reports = {"/mcp": selling("", accepts.amount)}
        reports |= {place: selling(f", by {place}", amount) for place, amount in self._prices.items()}

        async def tools(_context: Any, _params: Any) -> ListToolsResult:
            return ListToolsResult(tools=list(self.listed))

        async def call(context: Any, params: CallToolRequestParams) -> CallToolResult:
            if self.demand is not None:
                return CallToolResult(content=[], structured_content=self.demand, is_error=True)
            extra = {"_meta": (context.params or {}).get("_meta") or {}, "toolName": params.name}
            report = reports[context.request.scope["place"]]
            result: Any = await report(params.arguments or {}, extra)
            if self.after is not None and "x402/payment" in extra["_meta"]:
                return self.after()
            return CallToolResult.model_validate(
                {
                    "content": result.content,
                    "isError": result.is_error,
                    "structuredContent": result.structured_content,
                    "_meta": result.meta,
                }
            )

        self.mcp: Server[Any] = Server("sdk", on_list_tools=tools, on_call_tool=call)
        app = self.mcp.streamable_http_app()

        async def at_any_place(scope: Any, receive: Any, send: Any) -> None:
            query = scope["query_string"].decode()
            place = f"{scope['path']}?{query}" if query else scope["path"]
            await app({**scope, "path": "/mcp", "place": place}, receive, send)

        return at_any_place

    def _serve(self) -> None:
        async def serve() -> None:
            async with self.mcp.session_manager.run():
                await self._server.serve(sockets=[self._socket])

        asyncio.run(serve())

    def restart(self) -> None:
        self.__exit__(None, None, None)
        self._open(self.port)
        self.__enter__()
