"""Reads what a merchant publishes: documents at known places, and the calls that its 402s describe.

A 402 describes its call in x402's extension `bazaar`. The 402s are those of the start page and of the `resources`
that /.well-known/x402 lists.
May import: core, client, httpx, mcp.results.
Never: sends a proof or names the buyer; follows a redirect or a link to another origin.
"""

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import httpx

from payagent.client.merchant_answers import decoded
from payagent.client.transport import time_limit
from payagent.core import strict_json
from payagent.core.problems import Refused
from payagent.mcp import results

_PLACES = ("/.well-known/x402", "/openapi.json", "/")
PAGE_S = 20.0
"""The most time for one page."""

_SHOWN_CHARS = 8_192
_RESOURCES_MAX = 10


@dataclass(frozen=True, slots=True)
class _Page:
    """The start of what a place answers, or the 402 of its header. A failure has the status 0."""

    url: str
    status: int
    text: str

    def member(self, *keys: str) -> object:
        """The value at these keys of the page's JSON; None if there is none."""
        value: object = None
        with suppress(Refused):
            value = strict_json.loads(self.text, any_text=True)
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value


async def discover(origin: str) -> results.Offers:
    """Read what the merchant at an origin offers. All of it is untrusted text."""
    async with httpx.AsyncClient(timeout=PAGE_S, trust_env=False, headers={"accept-encoding": "identity"}) as http:
        pages = [await _page(http, origin + place) for place in _PLACES]
        documents = [results.Document(url=page.url, status=page.status, text=_shown(page.text)) for page in pages]
        pages += [await _page(http, url) for url in _resources(pages[0], origin)]
    return results.Offers(
        is_untrusted=True, documents=documents, calls=[call for page in pages for call in _calls(page)]
    )


async def _page(http: httpx.AsyncClient, url: str) -> _Page:
    try:
        async with time_limit(PAGE_S), http.stream("GET", url) as answer:
            with suppress(KeyError, ValueError):
                required = base64.b64decode(answer.headers["payment-required"], validate=True).decode()
                return _Page(url, answer.status_code, required)
            raw = b""
            async for part in answer.aiter_raw():
                raw += part
                if len(raw) > strict_json.MAX_BYTES:
                    break
            body = decoded(answer, raw, cut_at=strict_json.MAX_BYTES) or b""
            return _Page(url, answer.status_code, body.decode(errors="replace"))
    except httpx.HTTPError as error:
        return _Page(url, 0, type(error).__name__)


def _resources(listing: _Page, origin: str) -> list[str]:
    """The URLs that /.well-known/x402 lists for this origin, the first of them."""
    listed = listing.member("resources")
    urls = [url for url in listed if isinstance(url, str)] if isinstance(listed, list) else []
    return [url for url in urls if url.startswith(f"{origin}/")][:_RESOURCES_MAX]


def _calls(page: _Page) -> Iterator[results.BazaarCall]:
    """The call that a 402 describes."""
    info = page.member("extensions", "bazaar", "info", "input")
    if page.status != httpx.codes.PAYMENT_REQUIRED or not isinstance(info, dict):
        return
    yield results.BazaarCall(
        url=_text(page.member("resource", "url")) or page.url,
        description=_text(page.member("resource", "description")),
        type=_text(info.get("type")),
        method=_text(info.get("method")),
        tool=_text(info.get("toolName")),
        input=_shown(json.dumps(info, ensure_ascii=False, default=lambda number: number.text)),
    )


def _text(value: object) -> str:
    return _shown(value) if isinstance(value, str) else ""


def _shown(text: str) -> str:
    return results.plain(text[:_SHOWN_CHARS])
