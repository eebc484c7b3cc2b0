"""Calls of `payagent mcp`: bad arguments are named and not sent, and errors and redirects are passed on."""

from typing import Any

import pytest
from kit.agent import World
from kit.mcp import data, text
from kit.mcp_proxy import TOPIC, Market, market
from kit.proxy import Peer, saying
from kit.sdk_mcp_merchant import SdkMcpMerchant
from mcp.types import CallToolResult, TextContent


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"headers": {"X Y": "1"}}, "the header 'X Y'"),
        ({"headers": {"X": "1\r\nZ: 2"}}, "the header 'X'"),
        ({"headers": {"X": "\u00e9"}}, "the header 'X'"),
        ({"headers": {"Host": "elsewhere"}}, "the header 'Host'"),
        ({"method": "GE T"}, "the method 'GE T'"),
        ({"url": "merchant.example/chat"}, "the URL 'merchant.example/chat'"),
        ({"url": "https://merchant.example:99999/"}, "the URL 'https://merchant.example:99999/'"),
        ({"max_cost": "lots"}, "'lots'"),
        ({"reason": "x" * 301}, "reason: String should have at most 300 characters"),
        ({"url": 5}, "url: Input should be a valid string"),
    ],
)
async def test_a_bad_argument_is_named_and_nothing_is_sent(
    peer_market: Market, peer: Peer, wrong: dict[str, Any], told: str
) -> None:
    async with peer_market.wallet() as client:
        refused = await client.call_tool("fetch", {"url": f"{peer.url}/chat"} | wrong)
    assert (refused.is_error, data(refused)["outcome"]) == (True, "refused")
    assert data(refused)["code"] in ("bad_request", "amount_invalid")
    assert told in text(refused)
    assert peer.calls == []


async def test_arguments_that_another_tool_does_not_take_are_named_too(peer_market: Market) -> None:
    async with peer_market.wallet() as client:
        refused = await client.call_tool("payments", {"limit": 0})
    assert (refused.is_error, data(refused)["code"]) == (True, "bad_request")
    assert "limit: Input should be greater than or equal to 1" in text(refused)


async def test_a_redirect_shows_where_to_and_is_not_followed(peer_market: Market, peer: Peer) -> None:
    peer.answers["/here"] = saying(b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n")
    async with peer_market.wallet() as client:
        got = data(await client.call_tool("fetch", {"url": f"{peer.url}/here"}))
    assert (got["status"], got["location"]) == (302, "/there")
    assert [call.path for call in peer.calls] == ["/here"]


async def test_an_unknown_tool_is_an_error_that_paid_nothing(peer_market: Market) -> None:
    async with peer_market.wallet() as client:
        asked = {"server": peer_market.url, "tool": "no such tool"}
        refused = await client.call_tool("mcp_call", asked)
    got = data(refused)
    assert (refused.is_error, got["outcome"], got["code"]) == (True, "refused", "bad_request")
    assert (got["money"], got["is_untrusted"]) == ("Nothing was paid.", True)
    assert "There is no tool 'no such tool'" in got["body"]
    assert peer_market.payments == []


async def test_the_error_of_a_tool_that_was_paid_is_passed_on(world: World) -> None:
    with SdkMcpMerchant(world.devnet) as merchant:
        receipt = {"x402/payment-response": {"success": True, "transaction": "ab", "network": "cardano:devnet"}}
        no_topic = [TextContent(type="text", text="There is no such topic.")]
        merchant.after = lambda: CallToolResult(content=no_topic, is_error=True, _meta=receipt)
        async with market(world, sdk=merchant.url) as at, at.wallet() as client:
            asked = {"server": f"{merchant.url}/mcp", "tool": "report", "arguments": TOPIC}
            result = await client.call_tool("mcp_call", asked)
        assert (result.is_error, data(result)["outcome"]) == (True, "paid_and_served")
        assert "There is no such topic." in data(result)["body"]
        assert list(merchant.payments.values()) == [1]
