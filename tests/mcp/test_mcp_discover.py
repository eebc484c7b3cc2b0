"""`discover` with an operation: its schema and its price alone, of what the merchant publishes."""

import base64
import json
from typing import Any

import httpx
import pytest
from kit.mcp import data
from kit.mcp_proxy import Market
from kit.proxy import Answer, Heard, Paywall, Peer, saying

SEVEN = {"units": "7", "asset": "lovelace", "text": "0.000007 ADA"}
ENTRIES = [
    {"network": "eip155:8453", "asset": "0x8335", "amount": "1000"},
    {"network": "cardano:mainnet", "asset": "lovelace", "amount": "6"},
    {"network": "cardano:devnet", "asset": "lovelace", "amount": 7.5},
    {"network": "cardano:devnet", "asset": "lovelace", "amount": "7"},
]
SCHEMAS = {
    "Question": {"type": "object", "properties": {"about": {"$ref": "#/components/schemas/Topic"}}},
    "Topic": {
        "type": "object",
        "properties": {"within": {"$ref": "#/components/schemas/Topic"}, "n": {"minimum": 0.5}},
    },
    "Unnamed": {"description": "x" * 100_000},
}
ANSWER = {
    "summary": "Answers\x1b a question",
    "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Question"}}}},
}


def as_json(value: object) -> Answer:
    body = json.dumps(value)
    return saying(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())


def asking(resource: str | None = None, **info: object) -> Answer:
    """A 402 whose header describes its call."""
    required = {"x402Version": 2, "accepts": ENTRIES, "extensions": {"bazaar": {"info": {"input": info}}}}
    required |= {"resource": {"url": resource}} if resource else {}
    header = base64.b64encode(json.dumps(required).encode()).decode()
    return saying(f"HTTP/1.1 402 Pay\r\nPAYMENT-REQUIRED: {header}\r\nContent-Length: 0\r\n\r\n".encode())


@pytest.fixture
def publishing(peer: Peer) -> Peer:
    listed = {"resources": [f"{peer.url}/{name}" for name in ("\x01", "other", "weather?city=Oslo", "tool")]}
    peer.answers["/.well-known/x402"] = as_json(listed)
    peer.answers["/openapi.json"] = as_json(
        {"paths": {"/chat": {"post": ANSWER}}, "components": {"schemas": SCHEMAS}}
    )
    peer.answers["/weather"] = asking(type="http", queryParams={"city": "Oslo"})
    peer.answers["/other"] = asking("https://elsewhere.example/chat", type="http", method="POST")
    peer.answers["/tool"] = asking(type="mcp", toolName="report")
    peer.answers["/chat"] = Paywall()
    return peer


async def one(wallet: Any, peer: Peer, operation: str) -> dict[str, Any]:
    got = data(await wallet.call_tool("discover", {"origin": peer.url, "operation": operation}))
    assert got["is_untrusted"] is True
    assert "documents" not in got
    (call,) = got["calls"]
    return dict(call)


async def test_an_operation_of_a_long_openapi_document_has_its_schemas_and_the_price_last_agreed(
    peer_market: Market, publishing: Peer
) -> None:
    async with peer_market.wallet() as wallet:
        call = await one(wallet, publishing, "POST /chat")
        assert "price" not in call
        paid = data(await wallet.call_tool("fetch", {"url": f"{publishing.url}/chat", "body": "{}"}))
        priced = await one(wallet, publishing, "POST /chat")
    takes = json.loads(call["input"])
    assert takes["requestBody"] == ANSWER["requestBody"]
    assert takes["components/schemas/Question"] == SCHEMAS["Question"]
    assert takes["components/schemas/Topic"]["properties"]["n"] == {"minimum": "0.5"}
    assert len(takes) == 3
    assert (call["url"], call["description"]) == (f"{publishing.url}/chat", "Answers  a question")
    assert priced["price"] == paid["price"]


async def test_an_operation_that_a_402_describes_has_the_price_that_the_402_asks(
    peer_market: Market, publishing: Peer
) -> None:
    async with peer_market.wallet() as wallet:
        weather = await one(wallet, publishing, "GET /weather")
        asked = [heard.path for heard in publishing.calls]
        report = await one(wallet, publishing, "report")
        calls = data(await wallet.call_tool("discover", {"origin": publishing.url}))["calls"]
    places = ("other", "weather?city=Oslo", "tool")
    assert [call["url"] for call in calls] == [f"{publishing.url}/{place}" for place in places]
    assert json.loads(weather["input"])["queryParams"] == {"city": "Oslo"}
    assert (weather["price"], report["price"], report["tool"]) == (SEVEN, SEVEN, "report")
    assert asked == ["/.well-known/x402", "/openapi.json", "/", "/weather"]


async def test_a_resource_elsewhere_that_a_402_names_is_neither_shown_nor_priced_as_a_call_here(
    peer_market: Market, publishing: Peer
) -> None:
    async with peer_market.wallet() as wallet:
        await wallet.call_tool("fetch", {"url": f"{publishing.url}/chat", "body": "{}"})
        other = await one(wallet, publishing, "POST /other")
    assert (other["url"], other["price"]) == (f"{publishing.url}/other", SEVEN)


def serving_mcp_of(url: str) -> Answer:
    """The MCP server at a URL. A GET gets a 402 that describes its tool."""

    async def answer(heard: Heard) -> None:
        body = await heard.read_body()
        if heard.line.startswith(b"GET"):
            await asking(type="mcp", toolName="report")(heard)
            return
        kept = ("accept", "content-type", "mcp-method", "mcp-name", "mcp-protocol-version", "mcp-session-id")
        headers = {name: value for name in kept if (value := heard.header(name)) is not None}
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            got = await http.post(url, content=body, headers=headers)
        head = f"HTTP/1.1 {got.status_code} OK\r\nContent-Type: {got.headers['content-type']}\r\n"
        await heard.say(f"{head}Content-Length: {len(got.content)}\r\n\r\n".encode() + got.content)

    return answer


async def test_a_tool_has_the_price_last_agreed_with_its_own_server(peer_market: Market, publishing: Peer) -> None:
    """Another server of the origin may sell a tool of the same name at another price."""
    listed = {"resources": [f"{publishing.url}{place}" for place in ("/mcp", "/tool")]}
    publishing.answers["/.well-known/x402"] = as_json(listed)
    publishing.answers["/mcp"] = serving_mcp_of(peer_market.url)
    async with peer_market.wallet() as wallet:
        call = {"server": f"{publishing.url}/mcp", "tool": "report", "arguments": {"topic": "Hydra"}}
        paid = data(await wallet.call_tool("mcp_call", call))
        assert paid["outcome"] == "paid_and_served"
        calls = data(await wallet.call_tool("discover", {"origin": publishing.url}))["calls"]
    assert [call["price"] for call in calls] == [paid["price"], SEVEN]


async def test_an_operation_leads_to_no_other_origin(peer_market: Market, publishing: Peer) -> None:
    async with Peer().running() as elsewhere, peer_market.wallet() as wallet:
        path = f"@{elsewhere.url.removeprefix('http://')}/tool"
        publishing.answers["/.well-known/x402"] = as_json({"resources": [publishing.url + path]})
        got = await wallet.call_tool("discover", {"origin": publishing.url, "operation": f"GET {path}"})
        assert data(got)["code"] == "not_found"
        assert elsewhere.calls == []


@pytest.mark.parametrize("operation", ["GET /chat", "POST /nowhere", "nothing", "POST"])
async def test_an_operation_that_the_merchant_does_not_describe_is_not_found(
    peer_market: Market, publishing: Peer, operation: str
) -> None:
    async with peer_market.wallet() as wallet:
        got = await wallet.call_tool("discover", {"origin": publishing.url, "operation": operation})
    assert (got.is_error, data(got)["code"]) == (True, "not_found")
