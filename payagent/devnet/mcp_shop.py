"""The devnet merchant's MCP server at /mcp: a free tool, and a tool, a resource and a prompt that cost money.

A thin layer over the x402 shop: price, settings, faults and records are those of /x402/. Both bindings of x402's
MCP transport are spoken: a tool error, and the extension's `payment_required` to clients that advertise it.

Never: uses payagent's dialects.
"""

import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolRequestParams,
    GetPromptRequestParams,
    ReadResourceRequestParams,
    RequestParams,
)

from payagent.devnet.faulty_responses import ABORT
from payagent.devnet.x402 import Answer, Kind, Shop
from payagent.devnet.x402_terms import X402Request, payment_required

Json = dict[str, Any]
Context = ServerRequestContext[Any, Any]
Handler = Callable[[Context, Any], Awaitable[Json]]

EXTENSION, PAYMENT, RECEIPT = "org.x402/payment", "x402/payment", "x402/payment-response"
_CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
REPORT, ALMANAC, BRIEFING = "report", "devnet://almanac", "briefing"
"""The tool, the resource and the prompt that cost money."""

_TOPIC: Json = {"type": "object", "properties": {"topic": {"type": "string"}}, "required": ["topic"]}


class McpShop:
    """The handlers of the MCP server. `tick` advances the chain's clock."""

    def __init__(self, shop: Shop, tick: Callable[[], None]) -> None:
        self._shop = shop
        self._tick = tick

    def server(self) -> Server[Any]:
        server: Server[Any] = Server("payagent-devnet", instructions="A devnet merchant; its money is worthless.")
        server.extensions = {EXTENSION: {}}
        handlers: dict[str, tuple[type[RequestParams], Handler]] = {
            "tools/list": (RequestParams, self._tools),
            "tools/call": (CallToolRequestParams, self._call_tool),
            "resources/list": (RequestParams, self._resources),
            "resources/read": (ReadResourceRequestParams, self._read_resource),
            "prompts/list": (RequestParams, self._prompts),
            "prompts/get": (GetPromptRequestParams, self._get_prompt),
        }
        for method, (params, handler) in handlers.items():
            server.add_request_handler(method, params, _complete(handler))
        return server

    async def _tools(self, _context: Context, _params: RequestParams) -> Json:
        price = f"It costs {self._shop.terms.price_units} of {self._shop.terms.asset}."
        return {
            "tools": [
                {"name": "topics", "description": "Free: the topics.", "inputSchema": {"type": "object"}},
                {"name": REPORT, "description": f"A report about a topic. {price}", "inputSchema": _TOPIC},
            ]
        }

    async def _call_tool(self, context: Context, params: CallToolRequestParams) -> Json:
        if params.name == "topics":
            return _text("Ouroboros, Mithril, Hydra")
        if params.name != REPORT:
            raise MCPError(INVALID_PARAMS, f"There is no tool {params.name!r}.")
        arguments = params.arguments or {}
        goods = _text(f"About {arguments.get('topic')}: this report was paid for.")
        return self._sell(context, f"tools/{REPORT}", f"mcp://tool/{REPORT}", arguments, goods)

    async def _resources(self, _context: Context, _params: RequestParams) -> Json:
        return {"resources": [{"uri": ALMANAC, "name": "almanac", "description": "It costs money."}]}

    async def _read_resource(self, context: Context, params: ReadResourceRequestParams) -> Json:
        goods: Json = {"contents": [{"uri": ALMANAC, "text": "This almanac was paid for."}]}
        return self._sell(context, f"resources/{ALMANAC}", params.uri, {}, goods)

    async def _prompts(self, _context: Context, _params: RequestParams) -> Json:
        return {"prompts": [{"name": BRIEFING, "description": "It costs money."}]}

    async def _get_prompt(self, context: Context, _params: GetPromptRequestParams) -> Json:
        content = {"type": "text", "text": "This briefing was paid for."}
        goods: Json = {"messages": [{"role": "user", "content": content}]}
        return self._sell(context, f"prompts/{BRIEFING}", f"mcp://prompt/{BRIEFING}", {}, goods)

    def _sell(self, context: Context, path: str, url: str, arguments: Mapping[str, object], goods: Json) -> Json:
        self._tick()
        meta: Mapping[str, Any] = (context.params or {}).get("_meta") or {}
        payment = meta.get(PAYMENT)
        proof = None if payment is None else base64.b64encode(json.dumps(payment).encode()).decode()
        body = json.dumps(arguments, sort_keys=True).encode()
        answer = self._shop.ask(X402Request("MCP", url, path, body, proof))
        receipt = None if answer.settlement is None else {RECEIPT: answer.settlement.as_json()}
        match answer.kind:
            case Kind.SERVED:
                return {**goods, "_meta": receipt}
            case Kind.UNPAID | Kind.REFUSED | Kind.UNSETTLED:
                return {**self._required(meta, url, answer), **({} if receipt is None else {"_meta": receipt})}
            case Kind.DROPPED if context.request is not None:
                context.request.scope[ABORT]()
        raise MCPError(INTERNAL_ERROR, f"The sale ended as {answer.kind.value}.")

    def _required(self, meta: Mapping[str, Any], url: str, answer: Answer) -> Json:
        error = answer.reason or "Payment required"
        required = payment_required(self._shop.terms, self._shop.x402, url, error)
        if EXTENSION in (meta.get(_CAPABILITIES) or {}).get("extensions", {}):
            return {"resultType": "payment_required", "paymentRequired": required}
        return {**_text(json.dumps(required)), "structuredContent": required, "isError": True}


def _complete(handler: Handler) -> Handler:
    """Add what MCP 2026-07-28 wants of a result; the SDK leaves it out for older clients."""

    async def complete(context: Context, params: Any) -> Json:
        return {"resultType": "complete", "ttlMs": 0, "cacheScope": "private", **await handler(context, params)}

    return complete


def _text(text: str) -> Json:
    return {"content": [{"type": "text", "text": text}]}
