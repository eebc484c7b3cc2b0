"""Parse a request to /proxy/...: its app, its merchant, and the limits for paying.

Never: I/O except the token lookup; repeats a token, or the path that may hold one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from starlette.types import Scope

from payagent.agent.base.config import AgentConfig, MerchantConfig
from payagent.api.http.tokens import PREFIX
from payagent.api.models.base import read_key
from payagent.api.routes.auth import PAY
from payagent.core.cost_headers import read_cost_headers
from payagent.core.problems import Refused
from payagent.proxy.headers import (
    TOKEN_HEADER,
    Headers,
    has_body,
    passing,
    replaced,
    values,
    wants_websocket,
)
from payagent.store.rows.apps import AppRow

ROOT = b"/proxy/"

_PATH_TOKEN = (b"~", b"%7E", b"%7e")
_BEARER = re.compile(rb"bearer +([!-~]+) *", re.IGNORECASE)
_METHOD = re.compile(r"[A-Z]{1,16}", re.ASCII)

FindApp = Callable[[str], AppRow | None]


class MerchantRefused(Refused):
    """The app may not call the merchant. `origin` is None for a name that is not configured.

    `request` is method and path, or None if the path holds a token.
    """

    def __init__(self, refused: Refused, app_id: str, origin: str | None, request: str | None) -> None:
        super().__init__(refused.name, refused.detail, **refused.context)
        self.app_id = app_id
        self.origin = origin
        self.request = request


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """One request of an app to a merchant. `headers` are forwarded; `target` is path and query, unchanged."""

    app_id: str
    merchant: MerchantConfig
    method: str
    target: bytes
    headers: Headers
    has_body: bool
    keys: tuple[bytes, ...]
    max_cost_units: int | None
    max_cost_asset: str | None
    dry_run: bool
    find_app: Callable[[], AppRow | None] = field(repr=False)

    def require_valid_token(self) -> None:
        """Refuse `unauthorized` if the token has become invalid during a long request."""
        if self.find_app() is None:
            raise Refused("unauthorized", "the token was revoked or expired meanwhile")

    @property
    def key(self) -> str | None:
        """The intent's idempotency key. It is checked only when used, because the merchant uses the header too."""
        if len(self.keys) > 1:
            raise Refused("bad_request", "the header Idempotency-Key is given twice", key="Idempotency-Key")
        return read_key(self.keys[0].decode("latin-1")) if self.keys else None


def read_request(scope: Scope, config: AgentConfig, find_app: FindApp) -> ProxyRequest:
    """Parse a request. The wallet's address identifies a partner's buyer."""
    merchants = {merchant.name: merchant for merchant in config.merchants.values()}
    headers: Headers = scope["headers"]
    path_token, name, target = _split_path(scope["raw_path"], scope["query_string"])
    app, token, headers = _identify(headers, path_token, find_app)
    if PAY not in app.scopes:
        raise Refused("forbidden", "the proxy needs a token with scope pay", needs=PAY)
    if wants_websocket(headers):
        raise Refused("websocket_not_supported", "the request asks for a WebSocket")
    if not _METHOD.fullmatch(scope["method"]) or scope["method"] == "CONNECT":
        raise Refused("method_not_allowed", "the proxy accepts any method in capitals except CONNECT")
    merchant = merchants.get(name)
    try:
        if merchant is None:
            detail = "the path after /proxy/ does not name a merchant of [merchants]"
            raise Refused("merchant_not_allowed", detail)
        # checked even without a payment, because the request may draw on a prepaid balance
        app.require_may_call(merchant.origin)
    except Refused as refused:
        path = target.partition(b"?")[0].decode("latin-1")
        request = None if PREFIX in path else f"{scope['method']} {path}"
        origin = None if merchant is None else merchant.origin
        raise MerchantRefused(refused, app.id, origin, request) from None
    max_cost_units, max_cost_asset, dry_run = read_cost_headers(
        (pair for pair in headers if pair[0] != TOKEN_HEADER), config.tokens
    )
    return ProxyRequest(
        app_id=app.id,
        merchant=merchant,
        method=scope["method"],
        target=target,
        headers=_outgoing(headers, merchant, config.own.text),
        has_body=has_body(headers),
        keys=tuple(values(headers, b"idempotency-key")),
        max_cost_units=max_cost_units,
        max_cost_asset=max_cost_asset,
        dry_run=dry_run,
        find_app=partial(find_app, token),
    )


def _split_path(raw_path: bytes, query: bytes) -> tuple[str | None, str, bytes]:
    """Return (token, merchant name, path and query for the merchant). Nothing is decoded."""
    rest, token = raw_path[len(ROOT) :], None
    for mark in _PATH_TOKEN:
        if rest.startswith(mark):
            text, _, rest = rest[len(mark) :].partition(b"/")
            token = text.decode("latin-1")
            break
    name, _, path = rest.partition(b"/")
    return token, name.decode("latin-1"), b"/" + path + (b"?" + query if query else b"")


def _identify(headers: Headers, path_token: str | None, find_app: FindApp) -> tuple[AppRow, str, Headers]:
    """Return the app, its token, and the headers without our tokens.

    The first token counts. An Authorization header is ours if it holds a known token; any other is the merchant's.
    """
    ours = {value for value in values(headers, b"authorization") if _is_ours(value, find_app)}
    tokens = [
        *(value.decode("latin-1") for value in values(headers, TOKEN_HEADER)),
        *([path_token] if path_token is not None else []),
        *(_bearer(value) or value.decode("latin-1") for value in values(headers, b"proxy-authorization")),
        *(_bearer(value) for value in ours),
    ]
    app = find_app(tokens[0]) if tokens else None
    if app is None:
        raise Refused("unauthorized", "the request has no valid token")
    token = tokens[0].encode("latin-1")  # if it was in the path, a Referer may repeat it
    return (
        app,
        tokens[0],
        [
            pair
            for pair in headers
            if token not in pair[1] and not (pair[0] == b"authorization" and pair[1] in ours)
        ],
    )


def _is_ours(authorization: bytes, find_app: FindApp) -> bool:
    token = _bearer(authorization)
    return token.startswith(PREFIX) and find_app(token) is not None


def _bearer(value: bytes) -> str:
    match = _BEARER.fullmatch(value)
    return match[1].decode("ascii") if match else ""


def _outgoing(headers: Headers, merchant: MerchantConfig, wallet: str) -> Headers:
    """Return the headers to forward. An invoice is bound to the partner and wallet of the first request."""
    forwarded = [pair for pair in passing(headers) if pair[0] != b"host"]
    buyer = merchant.buyer_headers(wallet)
    buyer_headers = [(name.lower().encode("ascii"), value.encode("ascii")) for name, value in buyer.items()]
    return replaced(forwarded, buyer_headers, unless=[name for name, _ in buyer_headers])


def single(headers: Headers, name: bytes) -> str | None:
    """Return a header with a single value. Refused `bad_request` for two different values."""
    given = values(headers, name)
    if len(set(given)) > 1:
        raise Refused("bad_request", f"the header {name.decode()} is given twice", key=name.decode())
    return given[0].decode("latin-1") if given else None
