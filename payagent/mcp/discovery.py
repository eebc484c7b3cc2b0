"""Reads what a merchant publishes: documents at known places, and the calls that its 402s describe.

A 402 describes its call in x402's extension `bazaar`. The 402s are those of the start page and of the `resources`
that /.well-known/x402 lists. One operation alone is also read from /openapi.json.
Never: sends a proof or names the buyer; follows a redirect or a link to another origin.
"""

import base64
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from payagent.client.errors import own_error
from payagent.client.merchant_answers import decoded
from payagent.client.transport import time_limit
from payagent.core import strict_json
from payagent.core.money import parse_asset, parse_units
from payagent.core.network import NETWORKS, require_chain
from payagent.core.origin import MCP
from payagent.core.problems import Refused
from payagent.mcp import results
from payagent.mcp.paid_calls import bounded, call_request, server_origin

_PLACES = ("/.well-known/x402", "/openapi.json", "/")
PAGE_S = 20.0
"""The most time for one page."""

_SHOWN_CHARS = 8_192
_RESOURCES_MAX = 10
_PAGE_BYTES, _OPENAPI_DEPTH = 1_048_576, 64
_REF = re.compile(r'"\$ref": "#/([^"]+)"')


@dataclass(frozen=True, slots=True)
class _Page:
    """The start of what a place answers, or the 402 of its header. A failure has the status 0."""

    url: str
    status: int
    text: str

    def member(self, *keys: str) -> object:
        """The value at these keys of the page's JSON; None if there is none."""
        with suppress(Refused):
            return strict_json.value_at(strict_json.loads(self.text, any_text=True), *keys)
        return None


def bought_as(call: results.PublishedCall) -> str:
    """The call as a payment's `request` names it, such as "POST /answer" or "MCP /mcp#tools/report"."""
    if not call.tool:
        return call.operation
    at, _ = call_request(call.url, f"tools/{call.tool}", {})
    return f"{MCP} {str(at).removeprefix(server_origin(call.url))}"


async def discover(origin: str, operation: str, network: str) -> results.Offers:
    """Read what the merchant at an origin offers, or one operation of it. All of it is untrusted text.

    `operation`: "POST /answer", the name of a tool, or empty for all. `network`: the wallet's, by its name, on
    which prices count. Raises `PayAgentError`: `not_found`.
    """
    async with httpx.AsyncClient(timeout=PAGE_S, trust_env=False, headers={"accept-encoding": "identity"}) as http:
        pages = [await _page(http, origin + place) for place in _PLACES]
        documents = [results.Document(url=page.url, status=page.status, text=_shown(page.text)) for page in pages]
        path = operation.partition(" ")[2]
        openapi = pages[1]
        pages += [await _page(http, url) for url in _resources(pages[0], origin, path)]
    calls = [call for page in pages for call in _calls(page, origin, network)]
    if operation:
        named = [call for call in calls if call.operation == operation]
        documents, calls = [], [*named, *_described(openapi, origin, operation)][:1]
        if not calls:
            raise own_error("not_found", f"{origin} describes no operation {operation[:200]!a}")
    return results.Offers(is_untrusted=True, documents=documents, calls=calls)


async def _page(http: httpx.AsyncClient, url: str) -> _Page:
    try:
        async with time_limit(PAGE_S), http.stream("GET", url) as answer:
            with suppress(KeyError, ValueError):
                required = base64.b64decode(answer.headers["payment-required"], validate=True).decode()
                return _Page(url, answer.status_code, required)
            raw = b"".join([part async for part in bounded(answer.aiter_raw(), _PAGE_BYTES)])
            body = decoded(answer, raw, cut_at=_PAGE_BYTES) or b""
            return _Page(url, answer.status_code, body.decode(errors="replace"))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return _Page(url, 0, type(error).__name__)


def _resources(listing: _Page, origin: str, path: str) -> list[str]:
    """The first URLs that /.well-known/x402 lists for this origin, of any path or of this one."""
    listed = listing.member("resources")
    urls = [url for url in listed if isinstance(url, str)] if isinstance(listed, list) else []
    own = [url for url in urls if url.startswith(f"{origin}/")]
    return [url for url in own if path in ("", urlsplit(url).path)][:_RESOURCES_MAX]


def _calls(page: _Page, origin: str, network: str) -> Iterator[results.PublishedCall]:
    """The call that a 402 describes. If the 402 names a resource elsewhere, the URL is the page's own."""
    info = page.member("extensions", "bazaar", "info", "input")
    if page.status != httpx.codes.PAYMENT_REQUIRED or not isinstance(info, dict):
        return
    resource = _text(page.member("resource", "url"))
    yield results.PublishedCall(
        url=resource if resource.startswith(f"{origin}/") else page.url,
        description=_text(page.member("resource", "description")),
        type=_text(info.get("type")),
        method=_text(info.get("method")),
        tool=_text(info.get("toolName")),
        input=_shown(_json(info)),
        price=_price(page.member("accepts"), network),
    )


def _price(accepts: object, network: str) -> results.ShownCost | None:
    """The first price of a 402 that is on the wallet's network."""
    for entry in accepts if isinstance(accepts, list) else ():
        with suppress(Refused):
            require_chain(strict_json.value_at(entry, "network"), NETWORKS[network])
            return results.cost(
                parse_asset(strict_json.value_at(entry, "asset")),
                parse_units(strict_json.value_at(entry, "amount")),
            )
    return None


def _described(openapi: _Page, origin: str, operation: str) -> Iterator[results.PublishedCall]:
    """An operation of an OpenAPI document, with the schemas that it names."""
    method, _, path = operation.partition(" ")
    document: object = None
    with suppress(Refused):
        document = strict_json.loads(openapi.text, max_bytes=_PAGE_BYTES, max_depth=_OPENAPI_DEPTH, any_text=True)
    found = strict_json.value_at(document, "paths", path, method.lower())
    if not isinstance(found, dict):
        return
    takes = {key: found[key] for key in ("parameters", "requestBody") if key in found}
    parts: list[object] = [takes]
    for part in parts:  # it grows
        for name in _REF.findall(_json(part)):
            if name not in takes:
                takes[name] = strict_json.value_at(document, *name.split("/"))
                parts.append(takes[name])
    yield results.PublishedCall(
        url=origin + path,
        description=_text(found.get("summary")) or _text(found.get("description")),
        type="http",
        method=method,
        input=_shown(_json(takes)),
    )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=lambda number: number.text)


def _text(value: object) -> str:
    return _shown(value) if isinstance(value, str) else ""


def _shown(text: str) -> str:
    return results.plain(text[:_SHOWN_CHARS])
