"""The tools `mcp_tools` and `mcp_call`: the agent uses paid MCP servers of merchants through its wallet.

May import: core, client, httpx, mcp, pydantic, the rest of mcp.
Never: asks a server whose origin the app may not pay.
"""

from collections.abc import Mapping
from typing import Any

import httpx
from mcp.types import Tool

from payagent.core.origin import MCP
from payagent.mcp.calls import Call, Calls
from payagent.mcp.paid_calls import SEND, Json, call_request, server_origin
from payagent.mcp.paid_server import RemoteServer
from payagent.mcp.results import ToolOffer, plain

_TOOLS_MAX = 1_000


class PaidServers:
    """The merchants' MCP servers that this process has asked, by URL."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._servers: dict[str, RemoteServer] = {}

    async def tools(self, url: str) -> list[ToolOffer]:
        remote = await self._server(url)
        tools: list[Tool] = []
        page: Json = {"nextCursor": None}
        while "nextCursor" in page and len(tools) < _TOOLS_MAX:
            cursor = page["nextCursor"]
            page = await remote.request("tools/list", {} if cursor is None else {"cursor": cursor})
            tools += [Tool.model_validate(tool) for tool in page["tools"]]
        return [
            ToolOffer(name=tool.name, description=plain(tool.description or ""), input_schema=tool.input_schema)
            for tool in tools
        ]

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
