"""`payagent mcp proxy`: a remote MCP server as a local one by stdio, whose calls are paid.

May import: client, core, httpx, mcp, pydantic, mcp.paid_server, mcp.paid_calls.
Never: pays by itself, which `paid_calls` has the daemon do; changes a result that is not about money.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from mcp.client import Client
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError
from mcp.types import CONNECTION_CLOSED, INTERNAL_ERROR, RequestParams

from payagent.client.errors import PayAgentError, own_error
from payagent.core.payment import State
from payagent.core.problems import Refused, name_of
from payagent.core.version import VERSION
from payagent.mcp.daemon import AppClient, Payer, paying
from payagent.mcp.paid_calls import PAYMENT, Json, PaidCalls, PaidResult, server_origin
from payagent.mcp.paid_server import RemoteServer

TELL_EVERY_S, PERSON_S = 5.0, 45.0
"""How often progress is reported, and how long a call waits for a person. MCP clients give up after 60 seconds."""

_OWN_META = "payagent/payment"
_FREE = {
    "tools": ("tools/list",),
    "resources": ("resources/list", "resources/templates/list"),
    "prompts": ("prompts/list",),
    "completions": ("completion/complete",),
}
"""By capability, the requests that are forwarded as they are."""

_PAID = {
    "tools": ("tools/call", "name"),
    "resources": ("resources/read", "uri"),
    "prompts": ("prompts/get", "name"),
}
"""By capability, the request that may cost money, and the parameter that names what is called."""

_COMPLETE = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
"""What results have since MCP 2026-07-28. The SDK leaves out what an older agent does not know."""

_PRICE = "agents-x402/priceUSD"
"""The key of a tool's `_meta` in which servers tell a price; x402 itself has none."""

Context = ServerRequestContext[Any, Any]


class AnyParams(RequestParams):
    """Parameters of any request; the server checks its own."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """The handlers of the local server."""

    remote: RemoteServer
    calls: PaidCalls

    def server(self, client: Client) -> Server[Any]:
        """A server that offers what the remote one offers."""
        info = client.server_info
        local: Server[Any] = Server(
            self.remote.url if info is None else info.name,
            version=VERSION if info is None else info.version,
            instructions=client.instructions,
        )
        offered = client.server_capabilities.model_dump(exclude_none=True)
        for capability in offered.keys() & _FREE.keys():
            for method in _FREE[capability]:
                local.add_request_handler(method, AnyParams, self._forward)
        for capability in offered.keys() & _PAID.keys():
            local.add_request_handler(_PAID[capability][0], AnyParams, self._buying(capability))
        return local

    async def _forward(self, context: Context, _params: AnyParams) -> Json:
        try:
            result = await self.remote.request(context.method, _params_with(context, {}))
        except httpx.TransportError as error:
            raise MCPError(CONNECTION_CLOSED, str(error)) from None
        if "tools" in result:
            result["tools"] = [_priced(tool) for tool in result["tools"]]
        return {**_COMPLETE, **result}

    def _buying(self, kind: str) -> Callable[[Context, AnyParams], Awaitable[Json]]:
        name_key = _PAID[kind][1]

        async def buy(context: Context, _params: AnyParams) -> Json:
            params = context.params or {}

            async def send(meta: Json) -> Json:
                on_progress = context.session.report_progress
                return await self.remote.request(context.method, _params_with(context, meta), on_progress)

            call = self.calls.run(f"{kind}/{params[name_key]}", params.get("arguments") or {}, send)
            try:
                bought = await _told(call, context)
            except PayAgentError as error:
                return refusal(error, is_tool=kind == "tools")
            except httpx.TransportError as error:
                raise MCPError(CONNECTION_CLOSED, f"{error}. This call paid nothing. Call it again.") from None
            result = {**_COMPLETE, **bought.result}
            if bought.paid:
                result["_meta"] = {**(result.get("_meta") or {}), _OWN_META: dict(bought.paid)}
            return result

        return buy


async def _told(call: Coroutine[Any, Any, PaidResult], context: Context) -> PaidResult:
    """Wait for a call, and report progress while it is paid.

    A call that a person has to approve ends after `PERSON_S`. The payment stays: the same call again finds it.
    """
    payer = Payer()
    paying.set(payer)
    task = asyncio.create_task(call)
    waited_s = 0.0
    try:
        while not (await asyncio.wait({task}, timeout=TELL_EVERY_S))[0]:
            waited_s += TELL_EVERY_S
            if payer.payment is None:
                continue
            payment_id, state = payer.payment["id"], payer.payment["state"]
            await context.session.report_progress(waited_s, None, f"payment {payment_id}: {state}")
            if state == State.AWAITING_APPROVAL and waited_s >= PERSON_S:
                how = f"{payment_id} waits for approval: payagent payments approve {payment_id}"
                raise own_error("awaiting_approval", how, payment=payment_id)
        return task.result()
    finally:
        task.cancel()


def refusal(error: PayAgentError, *, is_tool: bool) -> Json:
    """An error about money: a tool's result, or else an error of the protocol."""
    if not is_tool:
        raise MCPError(INTERNAL_ERROR, str(error), error.problem)
    return {
        **_COMPLETE,
        "content": [{"type": "text", "text": str(error)}],
        "structuredContent": error.problem,
        "isError": True,
    }


def _params_with(context: Context, meta: Mapping[str, Any]) -> Json:
    """The agent's parameters with `meta`. Members of `_meta` that belong to one connection are left out."""
    params = dict(context.params or {})
    own = ("io.modelcontextprotocol/", "progressToken", PAYMENT)
    kept = {key: value for key, value in (params.get("_meta") or {}).items() if not key.startswith(own)}
    return params | {"_meta": {**kept, **meta}}


def _priced(tool: Json) -> Json:
    price = (tool.get("_meta") or {}).get(_PRICE)
    if price is None:
        return tool
    return {**tool, "description": f"{tool.get('description') or ''}\nPrice, as the server says: {price} USD."}


async def serve_proxy(url: str, daemon: AppClient) -> None:
    """Serve the MCP server `url` on stdio until stdin ends.

    Refused: `bad_request`, `merchant_not_allowed`, `merchant_unreachable`, and what the daemon refuses.
    """
    await _require_merchant(url, daemon)
    remote, calls = RemoteServer(url), PaidCalls(url, daemon)
    try:
        local = Proxy(remote, calls).server(await remote.connected())
        async with stdio_server() as (read, write):
            await local.run(read, write, local.create_initialization_options())
    except httpx.ConnectError as error:
        raise Refused("merchant_unreachable", str(error)) from None
    finally:
        await calls.aclose()
        await remote.aclose()


async def _require_merchant(url: str, daemon: AppClient) -> None:
    try:
        origin = server_origin(url)
        known = {row["origin"] for row in (await daemon.get("/v1/merchants"))["merchants"]}
    except PayAgentError as error:
        raise Refused(name_of(error.code, error.reason) or error.code, error.detail) from None
    if origin not in known:
        raise Refused("merchant_not_allowed", f"{origin} is not in [merchants], or not for this app")
