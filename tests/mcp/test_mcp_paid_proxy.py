"""An agent calls tools, resources and prompts of a paid MCP server through `payagent mcp proxy`."""

from collections.abc import AsyncIterator

import pytest
from kit.agent import World
from kit.mcp_proxy import TOPIC, Market, market

from payagent.core.payment import Delivery


@pytest.fixture
async def at(world: World) -> AsyncIterator[Market]:
    async with market(world) as there:
        yield there


async def test_a_paid_tool_is_paid_once_and_served(at: Market) -> None:
    async with at.agent() as agent:
        assert [tool.name for tool in (await agent.list_tools()).tools] == ["topics", "report"]
        result = await agent.call_tool("report", TOPIC)
    assert not result.is_error, result
    assert result.content[0].text == "About Hydra: this report was paid for."
    (payment,) = at.payments
    assert payment.delivery is Delivery.ACCEPTED
    assert [row["txHash"] for row in at.sold] == [payment.attempt.tx_id]
    assert result.meta["payagent/payment"]["payment"] == payment.id
