"""A client's request: the part for the merchant, and the limits for paying.

Never: I/O; lets a header that begins with X-Payagent- through to a merchant.
"""

import base64
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

from payagent.client.errors import own_error
from payagent.client.merchant_answers import answer_json, is_own
from payagent.client.steps import Json
from payagent.client.streams import Replay
from payagent.core import strict_json
from payagent.core.cost_headers import MAX_COST_HEADER, read_cost_headers
from payagent.core.origin import MCP
from payagent.core.problems import Refused

Headers = Sequence[tuple[bytes, bytes]]
PAID_READ_TIMEOUT_S = 180.0
"""The least read timeout of a paid request: a merchant that settles before it serves may wait for blocks."""

WALLET = b"x-wallet-address"
_BUYER = frozenset((b"x-partner", WALLET))


@dataclass(slots=True)
class ClientRequest:
    """A client's request: the part for the merchant, and the limits for paying."""

    request: httpx.Request
    body: Replay
    headers: list[tuple[bytes, bytes]]
    key: str | None
    max_cost_units: int | None
    max_cost_asset: str | None
    dry_run: bool

    def first(self, buyer: Mapping[str, str]) -> httpx.Request:
        """Build the request without a proof. It already names the buyer, because an invoice is bound to it."""
        names = {name.lower() for name, _ in self.headers}
        added = [(name.encode(), value.encode()) for name, value in buyer.items()]
        self.headers += [pair for pair in added if pair[0].lower() not in names]
        return self._request(self.headers, self.request.url, self.request.extensions)

    def paid(self, proof: Mapping[str, str], query: str | None, *, is_batch: bool) -> httpx.Request:
        """Build the retry with a proof, or with `query` the request that polls for the outcome.

        It names the same buyer as the first request. If an earlier request bought a batch for another balance, it
        names that balance's owner.
        """
        url, headers = self.request.url, self.headers
        if query is not None:
            mark = b"&" if url.query else b"?"
            url = url.copy_with(raw_path=url.raw_path + mark + query.encode())
        else:
            new = [(name.encode(), value.encode()) for name, value in proof.items()]
            if is_batch and _buyer(new) != _buyer(headers):
                headers = [pair for pair in headers if pair[0].lower() not in _BUYER]
            else:
                new = [pair for pair in new if pair[0].lower() not in _BUYER]
            names = {name.lower() for name, _ in new}
            headers = [pair for pair in headers if pair[0].lower() not in names] + new
        limits = dict(self.request.extensions.get("timeout") or {})
        if limits.get("read") is not None:
            limits["read"] = max(limits["read"], PAID_READ_TIMEOUT_S)
        return self._request(headers, url, self.request.extensions | {"timeout": limits})

    def _request(self, headers: Headers, url: httpx.URL, extensions: Mapping[str, Any]) -> httpx.Request:
        return httpx.Request(
            self.request.method, url, headers=list(headers), stream=self.body, extensions=dict(extensions)
        )

    def ask(self, response_402: httpx.Response, body: bytes) -> Json:
        """Return the 402 for the daemon, with the headers that name the buyer or that the merchant binds."""
        fields = self._request_json(_bound(response_402).union(_BUYER))
        fields["request"]["body_sha256"] = self.body.buffer.sha256
        fields["response"] = {"status": response_402.status_code, **answer_json(response_402, body)}
        if self.max_cost_units is not None:
            fields["max_total"] = str(self.max_cost_units)
        if self.max_cost_asset is not None:
            fields["max_total_asset"] = self.max_cost_asset
        return fields

    def quote_request(self) -> Json:
        """Return the request in the form that the daemon quotes a prepaid use for. It was not sent yet."""
        return self._request_json(_BUYER)

    def _request_json(self, names: frozenset[bytes]) -> dict[str, Any]:
        """Return the request without its body, with the headers of these names."""
        url, pairs = self.request.url, [pair for pair in self.headers if pair[0].lower() in names]
        origin, path = f"{url.scheme}://{url.netloc.decode('ascii')}", url.raw_path.decode("ascii")
        return {
            "origin": origin,
            "request": {
                "method": self.request.method,
                "path": str(url).removeprefix(origin) if self.request.method == MCP else path,
                "headers": [[name.decode(), value.decode("latin-1")] for name, value in pairs],
            },
        }


def _buyer(headers: Headers) -> dict[bytes, bytes]:
    """Return the buyer that headers name. An address in capitals is the same address (BIP-173)."""
    named = {name.lower(): value for name, value in headers if name.lower() in _BUYER}
    return {name: value.lower() if name == WALLET else value for name, value in named.items()}


def _bound(response_402: httpx.Response) -> frozenset[bytes]:
    """Return the headers to which the merchant binds a payment. Others are not sent: they may be secret."""
    value: object = None
    with suppress(ValueError, Refused):
        header = response_402.headers.get("payment-required", "")
        value = strict_json.loads(base64.b64decode(header, validate=True))
    names = strict_json.value_at(
        value, "extensions", "cardano-request-commitment", "info", "bindingParams", "headers"
    )
    return frozenset(str(name).encode() for name in names) if isinstance(names, list) else frozenset()


def read_call(
    request: httpx.Request, max_cost_units: int | None, max_cost_asset: str | None, spool_bytes: int
) -> ClientRequest:
    """Parse a client's request and remove the X-Payagent headers. They may lower the transport's limit."""
    headers = request.headers.raw
    try:
        header_units, asset, dry_run = read_cost_headers((name.lower(), value) for name, value in headers)
    except Refused as refused:
        raise own_error("bad_request", refused.detail) from None
    if header_units is not None:
        if None not in (asset, max_cost_asset) and asset != max_cost_asset:
            raise own_error("bad_request", f"{MAX_COST_HEADER} is in another asset than the transport's limit")
        max_cost_units = header_units if max_cost_units is None else min(header_units, max_cost_units)
        max_cost_asset = asset or max_cost_asset
    return ClientRequest(
        request=request,
        body=Replay(request.stream, spool_bytes),
        headers=[pair for pair in headers if not is_own(pair[0])],
        key=request.headers.get("idempotency-key"),
        max_cost_units=max_cost_units,
        max_cost_asset=max_cost_asset,
        dry_run=dry_run,
    )
