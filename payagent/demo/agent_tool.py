"""An agent's paid tool call: the official MCP client, `payagent mcp proxy`, and the merchant's MCP server.

Never: pays; the daemon does.
"""

import asyncio
import sys
from typing import Any

from mcp import StdioServerParameters
from mcp.client import Client

from payagent.demo.stage import Json, Stage, require


def call_tool(on: Stage, name: str, arguments: Json) -> tuple[str, str]:
    """Call a tool once. Returns (its text, the id of the payment for it)."""
    result = asyncio.run(_call(on, name, arguments))
    text = str(result.content[0].text)
    require(not result.is_error, f"the tool answered: {text[:300]}")
    return text, str(result.meta["payagent/payment"]["payment"])


async def _call(on: Stage, name: str, arguments: Json) -> Any:
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "payagent", "mcp", "proxy", f"{on.devnet.merchant_url}/mcp"],
        env={"PAYAGENT_URL": on.daemon.url, "PAYAGENT_TOKEN": on.wallet.token},
    )
    async with Client(server) as agent:
        return await agent.call_tool(name, arguments)
