"""The tools `mcp_tools` and `mcp_call`: the agent uses paid MCP servers of merchants through its wallet.

Never: asks a server whose origin the app may not pay.
"""

from collections.abc import Mapping
from typing import Any

import httpx
from mcp.shared.exceptions import MCPError
from mcp.types import ListToolsResult, Tool
from pydantic import ValidationError

from payagent.core.origin import MCP
from payagent.mcp.calls import Call, Calls
from payagent.mcp.paid_calls import SEND, Json, call_request, server_origin, told_price
from payagent.mcp.paid_server import RemoteServer
from payagent.mcp.results import ToolOffer, plain

_PAGES_MAX = 20
_DESCRIPTION_CHARS, _OFFERS_CHARS = 1_000, 65_536


class PaidServers:
    """The merchants' MCP servers that this process has asked, by URL."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._servers: dict[str, RemoteServer] = {}

    async def tools(self, url: str) -> list[ToolOffer]:
        """The first tools of a server, up to `_OFFERS_CHARS`.

        Raises `httpx.RemoteProtocolError` if the server has no list of tools.
        """
        remote = await self._server(url)
        offers: list[ToolOffer] = []
        chars, cursor = 0, None
        for _ in range(_PAGES_MAX):
            try:
                asked: Json = {} if cursor is None else {"cursor": cursor}
                page = ListToolsResult.model_validate(await remote.request("tools/list", asked))
            except (MCPError, ValidationError) as error:
                raise httpx.RemoteProtocolError(f"{url} lists no tools") from error
            for offer in map(_offer, page.tools):
                chars += len(offer.model_dump_json())
                if chars > _OFFERS_CHARS:
                    return offers
                offers.append(offer)
            cursor = page.next_cursor
            if cursor is None:
                break
        return offers

    async def call(self, url: str, tool: str, arguments: Mapping[str, Any], max_cost: str, reason: str) -> Call:
        """The request that stands for a tool call."""
        remote = await self._server(url)

        async def send(meta: Json) -> Json:
            return await remote.request("tools/call", {"name": tool, "arguments": dict(arguments), "_meta": meta})

        at, body = call_request(url, f"tools/{tool}", arguments)
        return Call(at, MCP, httpx.Headers(), body, max_cost, reason, extensions={SEND: send})

    async def _server(self, url: str) -> RemoteServer:
        await self._calls.require_merchant(server_origin(url))
        return self._servers.setdefault(url, RemoteServer(url))

    async def aclose(self) -> None:
        for server in self._servers.values():
            await server.aclose()


def _offer(tool: Tool) -> ToolOffer:
    price = told_price(tool.model_dump(by_alias=True))
    description = plain(tool.description or "")[:_DESCRIPTION_CHARS]
    return ToolOffer(
        name=plain(tool.name),
        description=f"{description} {price}".strip(),
        input_schema=_printable(tool.input_schema),
    )


def _printable(value: Any) -> Any:
    """A JSON value without control characters in its texts."""
    match value:
        case str():
            return plain(value)
        case list():
            return [_printable(one) for one in value]
        case dict():
            return {plain(name): _printable(one) for name, one in value.items()}
    return value
