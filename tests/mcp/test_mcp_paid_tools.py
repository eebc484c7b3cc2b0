"""An agent calls the tools of a merchant's MCP server through its wallet's server."""

import json

import pytest
from kit.mcp import AgentShop, data

pytestmark = pytest.mark.usefixtures("usual_terms")


async def test_a_paid_tool_of_a_merchants_mcp_server_is_called_through_the_wallet(shop: AgentShop) -> None:
    server = f"{shop.at.devnet.merchant_url}/mcp"
    async with shop.here() as client:
        tools = data(await client.call_tool("mcp_tools", {"server": server}))["tools"]
        assert [tool["name"] for tool in tools] == ["topics", "report"]
        free = data(await client.call_tool("mcp_call", {"server": server, "tool": "topics"}))
        assert (free["outcome"], "payment_id" in free) == ("served", False)
        asked = {"server": server, "tool": "report", "arguments": {"topic": "Hydra"}, "reason": "to learn"}
        refused = data(await client.call_tool("mcp_call", {**asked, "max_cost": "1 ADA"}))
        assert (refused["outcome"], refused["code"]) == ("refused", "limit_exceeded")
        bought = data(await client.call_tool("mcp_call", asked))
        elsewhere = await client.call_tool("mcp_tools", {"server": "https://elsewhere.example/mcp"})
    assert bought["outcome"] == "paid_and_served"
    assert json.loads(bought["body"])["content"][0]["text"] == "About Hydra: this report was paid for."
    assert bought["cost"]["asset"] == "lovelace"
    assert data(elsewhere)["code"] == "merchant_not_allowed"
    (payment,) = [row for row in shop.payments() if row["id"] == bought["payment_id"]]
    assert (payment["request"], payment["delivery"]) == ("MCP /mcp#tools/report", "accepted")
