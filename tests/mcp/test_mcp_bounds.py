"""What a hostile merchant sends to an agent's tools is bounded in bytes, before they are unpacked, and in time."""

import asyncio
import base64
import json
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from kit.http import compressed
from kit.mcp import data
from kit.mcp_proxy import Market
from kit.proxy import Answer, Heard, Paywall, Peer, saying

from payagent.core.payment.machine import Delivery
from payagent.mcp.paid_calls import BODY_KEPT_BYTES

OK_JSON = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def endless(head: str = OK_JSON, begins: bytes = b"", more: bytes = b" ", every_s: float = 0.0) -> Answer:
    """An answer that goes on until the other side has hung up."""

    async def answer(heard: Heard) -> None:
        await heard.read_body()
        with suppress(ConnectionError):
            await heard.say(head.encode() + b"Content-Length: 9999999999\r\n\r\n" + begins)
            while not heard.reader.at_eof():
                await heard.say(more)
                await asyncio.sleep(every_s)
        ended.set()

    ended = asyncio.Event()
    answer.ended = ended  # type: ignore[attr-defined]
    return answer


async def peak_bytes(call: Callable[[], Any]) -> tuple[Any, int]:
    """A call's result, and the most memory that it took."""
    tracemalloc.start()
    try:
        return await call(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def packed(raw: bytes, coding: str) -> Answer:
    """An answer with a body that has this coding."""
    return saying(f"{OK_JSON}Content-Encoding: {coding}\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)


@pytest.mark.parametrize("coding", ["gzip", "gzip, gzip"])
@pytest.mark.parametrize("tool", ["mcp_tools", "mcp_call"])
async def test_a_compressed_answer_of_an_mcp_server_is_refused_without_decompressing(
    peer_market: Market, peer: Peer, tool: str, coding: str
) -> None:
    peer.answers["/mcp"] = packed(compressed(b" " * 100_000_000, coding), coding)
    arguments = {"server": f"{peer.url}/mcp"} | ({"tool": "report"} if tool == "mcp_call" else {})
    async with peer_market.wallet() as wallet:
        got, most_bytes = await peak_bytes(lambda: wallet.call_tool(tool, arguments))
    assert data(got)["code"] == "merchant_unreachable"
    assert most_bytes < 32 * 2**20
    assert {heard.header("accept-encoding") for heard in peer.calls} == {"identity"}


async def test_an_endless_answer_of_an_mcp_server_is_neither_kept_nor_read_on(
    peer_market: Market, peer: Peer
) -> None:
    answer = peer.answers["/mcp"] = endless(
        begins=b'{"jsonrpc":"2.0","id":1,"result":{"tools":[', more=b"{}," * 20_000
    )
    async with peer_market.wallet() as wallet:
        got, most_bytes = await peak_bytes(lambda: wallet.call_tool("mcp_tools", {"server": f"{peer.url}/mcp"}))
        async with asyncio.timeout(60):
            await answer.ended.wait()  # type: ignore[attr-defined]
    assert data(got)["code"] == "merchant_unreachable"
    assert most_bytes < 32 * 2**20


async def test_a_paid_answer_over_the_cap_ends_there_says_truncated_and_is_delivered(
    peer_market: Market, peer: Peer
) -> None:
    answer = endless(more=b"x" * 65_536)
    peer.answers["/chat"] = Paywall(serve=answer)
    async with peer_market.wallet() as wallet:
        got = data(await wallet.call_tool("fetch", {"url": f"{peer.url}/chat"}))
        async with asyncio.timeout(60):
            await answer.ended.wait()  # type: ignore[attr-defined]
    assert (got["outcome"], got["truncated"], got["length"]) == ("paid_and_served", True, BODY_KEPT_BYTES)
    assert [payment.delivery for payment in peer_market.payments] == [Delivery.ACCEPTED]


@pytest.mark.parametrize(("coding", "is_truncated"), [("gzip", True), ("gzip, gzip", False)])
async def test_a_fetched_answer_that_is_compressed_is_bounded(
    peer_market: Market, peer: Peer, coding: str, is_truncated: bool
) -> None:
    """A body in several codings is handed on as it came."""
    raw = compressed(b" " * 100_000_000, coding)
    peer.answers["/chat"] = packed(raw, coding)
    async with peer_market.wallet() as wallet:
        result, most_bytes = await peak_bytes(lambda: wallet.call_tool("fetch", {"url": f"{peer.url}/chat"}))
    got = data(result)
    assert got["truncated"] is is_truncated
    whole = base64.b64encode(raw).decode()
    assert got["length"] == (BODY_KEPT_BYTES if is_truncated else len(whole))
    assert got["body"] == (" " * 32_768 if is_truncated else whole[:32_768])
    assert most_bytes < 160 * 2**20


async def test_a_compressed_answer_is_fetched_unpacked(peer_market: Market, peer: Peer) -> None:
    peer.answers["/chat"] = packed(compressed(b'{"hello": "you"}', "gzip"), "gzip")
    async with peer_market.wallet() as wallet:
        got = data(await wallet.call_tool("fetch", {"url": f"{peer.url}/chat"}))
    assert (got["body"], got["truncated"]) == ('{"hello": "you"}', False)


async def test_discover_ends_at_a_merchant_that_drips(
    peer_market: Market, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payagent.mcp.discovery.PAGE_S", 0.3)
    for place in ("/.well-known/x402", "/openapi.json", "/"):
        peer.answers[place] = endless(every_s=0.05)
    async with peer_market.wallet() as wallet:
        offers = data(await wallet.call_tool("discover", {"origin": peer.url}))
    assert [(one["status"], one["text"]) for one in offers["documents"]] == [(0, "ReadTimeout")] * 3


async def test_a_tool_ends_at_an_mcp_server_that_drips(
    peer_market: Market, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payagent.mcp.server.TOOL_S", 1.0)
    peer.answers["/mcp"] = endless(every_s=0.05)
    async with peer_market.wallet() as wallet:
        got = data(await wallet.call_tool("mcp_tools", {"server": f"{peer.url}/mcp"}))
    assert got["code"] == "merchant_timeout"


async def test_an_answer_that_no_tool_waits_for_ends_too(
    peer_market: Market, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK reads an older server's answer on after the tool has ended."""
    drip = endless(every_s=0.05)
    begun = asyncio.Event()

    async def serve(heard: Heard) -> None:
        told = json.loads(await heard.read_body())
        if told["method"] == "tools/list":
            monkeypatch.setattr("payagent.mcp.server.TOOL_S", 0.5)
            monkeypatch.setattr("payagent.mcp.paid_server._ANSWER_S", 2.0)
            begun.set()
            await drip(heard)
        elif told["method"] == "initialize":
            info = {"name": "old", "version": "1"}
            result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info}
            body = json.dumps({"jsonrpc": "2.0", "id": told["id"], "result": result})
            await heard.say(f"{OK_JSON}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        else:
            status = "404 Not Found" if "id" in told else "202 Accepted"
            await heard.say(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())

    peer.answers["/mcp"] = serve
    async with peer_market.wallet() as wallet:
        call = {"server": f"{peer.url}/mcp"}
        first = asyncio.create_task(wallet.call_tool("mcp_tools", call))
        await begun.wait()
        first.cancel()
        got = data(await wallet.call_tool("mcp_tools", call))
        async with asyncio.timeout(60):
            await drip.ended.wait()  # type: ignore[attr-defined]
    assert got["code"] == "merchant_timeout"


async def test_a_fetch_ends_at_a_merchant_that_drips(
    peer_market: Market, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payagent.client.transport.ANSWER_S", 1.0)
    answer = peer.answers["/chat"] = endless(every_s=0.05)
    async with peer_market.wallet() as wallet:
        got = data(await wallet.call_tool("fetch", {"url": f"{peer.url}/chat"}))
        async with asyncio.timeout(60):
            await answer.ended.wait()  # type: ignore[attr-defined]
    assert got["code"] == "merchant_timeout"
