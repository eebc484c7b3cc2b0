"""Calls of a paid MCP server as requests that the client's transport pays: x402 over MCP in the form of HTTP.

A result that asks for payment becomes a 402, the proof of the retry goes into `_meta`, and the server's receipt
becomes a header. The intent, the proof, its retry and the delivery are then those of every other purchase.
Source: the x402 specification, transport MCP.
Never: decides whether to pay; pays by a second proof; shows the proof to the agent.
"""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, cast
from urllib.parse import quote

import httpx
import httpx2
import rfc8785
from mcp.shared.exceptions import MCPError

from payagent.client.errors import own_error
from payagent.client.streams import Begun
from payagent.core import strict_json
from payagent.core.origin import parse_origin

BODY_KEPT_BYTES = 16 * 1024 * 1024

PAYMENT, RECEIPT = "x402/payment", "x402/payment-response"
"""The keys of `_meta` in a request and in a result."""

_PRICE = "agents-x402/priceUSD"
"""The key of a tool's `_meta` in which servers tell a price; x402 itself has none."""

SEND, OUTCOME = "payagent_mcp_send", "payagent_mcp_outcome"
"""Keys of `extensions`: how a call is sent (a `Send`), and what came of it (a result, or an `MCPError`)."""

Json = dict[str, Any]
Send = Callable[[Json], Awaitable[Json]]
"""Sends the call with these members of `_meta`. Raises `httpx.TransportError`, and `MCPError` for a refusal."""


def server_origin(url: str) -> str:
    """The origin of a server or a request. Raises `PayAgentError`: `bad_request`."""
    try:
        at = httpx.URL(url)
        return parse_origin(f"{at.scheme}://{at.netloc.decode('ascii')}")
    except (httpx.InvalidURL, ValueError) as error:
        raise own_error("bad_request", f"the URL {url[:200]!a}: {error}") from None


def call_request(server_url: str, path: str, arguments: Mapping[str, Any]) -> tuple[httpx.URL, bytes]:
    """The URL and the body that stand for a call, such as `https://tools.example.com/mcp#tools/report`.

    The URL is the server's. A query may hold a key, so the server's path ends with a hash of it instead. `path` is
    the fragment. The body is the arguments (RFC 8785).
    """
    try:
        body = rfc8785.dumps(dict(arguments))
    except rfc8785.CanonicalizationError as error:
        raise own_error("bad_request", f"the arguments of {path[:100]} are no RFC 8785 JSON: {error}") from None
    place, _, query = httpx.URL(server_url).raw_path.decode("ascii").partition("?")
    if query:
        place += ";" + hashlib.sha256(query.encode()).hexdigest()[:16]
    return httpx.URL(f"{server_origin(server_url)}{place}#{quote(path, safe='/:?&=@+,;~')}"), body


def told_price(tool: Json) -> str:
    """A sentence with the price that a server tells before it is asked; empty if it tells none as a number."""
    price = (tool.get("_meta") or {}).get(_PRICE)
    return f"Price, as the server says: {price} USD." if isinstance(price, int | float) else ""


class BoundedBody(Begun, httpx2.AsyncByteStream):
    """An answer's body for httpx and for httpx2, which the MCP SDK uses."""


async def bounded(
    stream: Any, most_bytes: int, error: httpx2.StreamError | None = None, until_s: float = float("inf")
) -> AsyncIterator[bytes]:
    """A body as it arrives, not decompressed, up to slightly more than `most_bytes`.

    With an `error`, a longer body raises it, and so does one that goes on after `until_s` of the loop's clock.
    """
    async for part in stream:
        most_bytes -= len(part)
        if error is not None and (most_bytes < 0 or asyncio.get_running_loop().time() > until_s):
            raise error
        yield part
        if most_bytes < 0:
            return


class PaidWire(httpx.AsyncHTTPTransport):
    """Sends a request that has `SEND` as the MCP call that it stands for, and any other as HTTP.

    A body ends after slightly more than `BODY_KEPT_BYTES`: then it counts as delivered.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if SEND not in request.extensions:
            answer = await super().handle_async_request(request)
            answer.stream = BoundedBody((), bounded(answer.stream, BODY_KEPT_BYTES), answer.stream)
            return answer
        proof = request.headers.get("PAYMENT-SIGNATURE")
        meta = {} if proof is None else {PAYMENT: json.loads(base64.b64decode(proof))}
        send = cast("Send", request.extensions[SEND])
        try:
            result = await send(meta)
        except MCPError as refused:
            return _answer(422, {}, refused, {"error": refused.message})
        required, receipt = payment_required(result), _receipt(result)
        headers = {} if receipt is None else {"PAYMENT-RESPONSE": _encoded(receipt)}
        is_settled = receipt is not None and receipt.get("success") is True
        if required is not None:
            return _answer(402, headers | {"PAYMENT-REQUIRED": _encoded(required)}, result, {})
        if proof is not None and result.get("isError") is True and not is_settled:
            return _answer(422, headers, result, result)  # the tool failed, and nothing was settled
        return _answer(200, headers, result, result)


def payment_required(result: Json) -> Json | None:
    """The x402 object of a result that asks for payment, in either binding; else None."""
    if result.get("resultType") == "payment_required":
        required = result.get("paymentRequired")
        return required if isinstance(required, dict) else {}
    if result.get("isError") is not True:
        return None
    return next((value for value in _values(result) if "x402Version" in value and "accepts" in value), None)


def _values(result: Json) -> list[Json]:
    """The objects that a tool error may carry x402's in: its structured content, or its first text as JSON."""
    try:
        text = json.loads(result["content"][0]["text"])
    except (LookupError, TypeError, ValueError, RecursionError):
        text = None
    return [value for value in (result.get("structuredContent"), text) if isinstance(value, dict)]


def _receipt(result: Json) -> Json | None:
    """The settlement's result. The official Python SDK writes a failed one into the structured content."""
    for holder in (result.get("_meta"), result.get("structuredContent")):
        receipt = holder.get(RECEIPT) if isinstance(holder, dict) else None
        if isinstance(receipt, dict):
            return receipt
    return None


def _answer(status: int, headers: Mapping[str, str], outcome: object, body: Json) -> httpx.Response:
    return httpx.Response(
        status,
        headers={**headers, "content-type": "application/json"},
        # a stream, and not content, which would count as read before anyone read it
        stream=httpx.ByteStream(json.dumps(body).encode()),
        extensions={OUTCOME: outcome},
    )


def _encoded(value: object) -> str:
    """The value of a header. One that is longer than any invoice is not understood, like an empty object."""
    text = json.dumps(value)
    return base64.b64encode((text if len(text) <= strict_json.MAX_BYTES else "{}").encode()).decode("ascii")
