"""The simulated merchants: the devnet's own, called in process over a network that loses requests and replies.

Each merchant is the devnet's ASGI application, so every body on the wire is the devnet's. The faults happen around
it: a lost request, a lost answer, a 502 after everything was done, a new invoice at another price, a false status.

Never: knows the agent's state.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

import httpx
from starlette.routing import Router
from starlette.types import ASGIApp, Message

from payagent.core.problems import Refused
from payagent.devnet.ledger import Tx, decode_tx
from payagent.devnet.merchant import DevnetMerchant, ShopInvoice, Terms
from payagent.devnet.merchant_api import merchant_app
from payagent.devnet.x402 import Shop
from payagent.devnet.x402_terms import X402
from payagent.proxy.headers import Headers
from payagent.proxy.http1 import UpstreamRequest
from sim.fault_rates import FaultRates
from sim.network import Net
from sim.trace import Trace

CLIENT_PATIENCE_S = 60.0
BROADCAST_S_MAX = 600.0
"""By then most handed-over transactions have expired or were cancelled."""

TURNS_DOWN: Final = "refuse_verify"
"""The devnet's fault of that name: a payment that could be settled is refused for good."""

SENT_ALL_THE_SAME = 0.6
"""How often a refused transaction is submitted anyway."""

_STATUSES = ("confirmed", "consumed", "expired", "pending", "refunded")


class UnreachedError(Exception):
    """No answer came. The request may or may not have been carried out."""


@dataclass(frozen=True, slots=True)
class SimResponse:
    """A merchant's whole answer, with header names in lower case."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class _FacilitatorsNode:
    """A facilitator's node. Whether and when it submits a transaction is drawn for each one.

    In any case the facilitator says "pending" until the chain shows the transaction or its TTL has passed.
    """

    def __init__(
        self, net: Net, mix: Callable[[], FaultRates], drawn: Callable[[str, float], bool], rng: Random
    ) -> None:
        self._net = net
        self._mix = mix
        self._drawn = drawn
        self._rng = rng
        self._withheld: dict[str, None] = {}
        self.seen = net.node.seen
        self.chain = net.chain

    def submit(self, raw: bytes) -> str:
        tx_id = decode_tx(raw).tx_id
        if tx_id in self._withheld:
            return tx_id
        if self._drawn("a facilitator loses what it was handed", self._mix().never_broadcasts):
            self._withheld[tx_id] = None
            return tx_id
        if self._drawn("a facilitator sends late what it was handed", self._mix().broadcasts_late):
            self._withheld[tx_id] = None
            later_s = self._rng.random() * BROADCAST_S_MAX
            asyncio.get_running_loop().call_later(later_s, self._net.submit_quietly, raw)
            return tx_id
        return self._net.submit(raw)


class SimShop:
    """One merchant at an origin. `prices` has every price that it ever asked."""

    def __init__(
        self,
        name: str,
        terms: Terms,
        x402: X402,
        net: Net,
        rng: Random,
        story: Trace,
        mix: Callable[[], FaultRates],
        released: Callable[[bytes, str], None],
        refused_below: int = 0,
    ) -> None:
        self.name = name
        self.origin = f"https://{name}.example"
        self._rng = rng
        self._story = story
        self._mix = mix
        self._released = released
        self._net = net
        self._numbers = 0
        self._refused_below = refused_below
        self._refused: set[str] = set()
        self.prices = {terms.price_units}
        self.merchant = DevnetMerchant(self, self._new_id)
        self.merchant.set_terms(terms)
        self.shop = Shop(net.node, lambda: self.merchant.terms)
        self.shop.x402 = x402
        self.shop.facilitator.node = _FacilitatorsNode(net, mix, self._drawn, rng)  # type: ignore[assignment]
        self._app: Router = merchant_app(self.merchant, self.shop, net.node.now_ms, net.node.tick).router

    # --- the merchant's own node

    def seen(self, tx_id: str) -> Any:
        return self._net.node.seen(tx_id)

    def waiting(self) -> list[Tx]:
        return self._net.node.waiting()

    def submit(self, raw: bytes) -> str:
        if self._drawn("a merchant was handed a transaction and never sent it", self._mix().never_broadcasts):
            return ""
        return self._net.submit(raw)

    # --- calls

    async def call(self, method: str, target: str, headers: dict[str, str], body: bytes) -> SimResponse:
        """One request as a client makes it. Raises `UnreachedError`."""
        rng, mix = self._rng, self._mix()
        self._note_released(headers)
        await asyncio.sleep(rng.random() * 2)
        if self._drawn("a call that never reached its merchant", mix.merchant_unreached):
            raise UnreachedError
        if self._drawn("a merchant asks anew with another price", mix.merchant_rechallenges):
            self._reprice()
        turned_down = self.shop.faults[TURNS_DOWN]
        if self._refuses(headers.get("x-payment", "")):
            return SimResponse(404, (("content-type", "application/json"),), b'{"detail":"Transaction not found"}')
        answer = await self._answer(method, target, headers, body)
        if self.shop.faults[TURNS_DOWN] > turned_down:
            self._send_all_the_same(headers)
        if 200 <= answer.status < 300 and "x-payment" in headers:
            self._story.reach("a merchant served a paid call")
            if headers["x-payment"] in self._refused:
                self._story.reach("a proof is served that was refused early")
        if self._drawn("a merchant's 502 after all was done", mix.merchant_broken):
            return SimResponse(502, (("content-type", "text/html"),), b"<html>502 Bad Gateway</html>")
        if self._drawn("a merchant's answer that was lost", mix.merchant_reply_lost):
            await asyncio.sleep(rng.random() * CLIENT_PATIENCE_S)
            raise UnreachedError
        if target.startswith("/payments/status/") and self._drawn(
            "a merchant lies about a status", mix.merchant_status_lies
        ):
            lie = {"invoiceId": target.rpartition("/")[2], "status": rng.choice(_STATUSES)}
            return SimResponse(200, (("content-type", "application/json"),), json.dumps(lie).encode())
        return answer

    async def _answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> SimResponse:
        answer = await call_app(self._app, method, target, headers, body, f"{self.name}.example")
        if answer is None:
            raise UnreachedError
        return answer

    def _refuses(self, proof: str) -> bool:
        """Refuse a proof for good while its transaction is not deep enough. Later the same proof is served."""
        seen = self.seen(proof)
        if len(proof) != 64 or (0 if seen is None else seen.depth) >= self._refused_below:
            return False
        self._refused.add(proof)
        self._story.reach("a merchant refuses an early proof")
        return True

    def _note_released(self, headers: dict[str, str]) -> None:
        """A proof that is a signed transaction has left the process, even if the request is lost."""
        for raw in transactions_in(headers):
            self._released(raw, self.name)

    def _send_all_the_same(self, headers: dict[str, str]) -> None:
        """A refusal takes nothing back: the merchant may still submit the transaction it received."""
        for raw in transactions_in(headers):
            if self._drawn("a merchant sends what it refused", SENT_ALL_THE_SAME):
                later_s = self._rng.random() * BROADCAST_S_MAX
                asyncio.get_running_loop().call_later(later_s, self._net.submit_quietly, raw)

    def _reprice(self) -> None:
        """Give new invoices from here on another id and perhaps another price."""
        terms = self.merchant.terms
        change = self._rng.choice((0, 0, 100_000, -100_000))
        price_units = max(2_000_000, terms.price_units + change)
        self.prices.add(price_units)
        self.merchant.set_terms(replace(terms, price_units=price_units))

    def _new_id(self) -> str:
        self._numbers += 1
        return f"{self.name}-{self._numbers}"

    def invoice(self, invoice_id: str) -> ShopInvoice | None:
        return self.merchant.invoices.get(invoice_id)

    def _drawn(self, event: str, rate: float) -> bool:
        if self._rng.random() >= rate:
            return False
        self._story.reach(event)
        return True


def transactions_in(headers: dict[str, str]) -> list[bytes]:
    """The signed transactions in a retry's headers, in any dialect."""
    import base64

    transactions = []
    for name, value in headers.items():
        lowered = name.lower()
        if lowered == "x-payment" and len(value) > 64 and _is_hex(value):
            transactions.append(bytes.fromhex(value))
        elif lowered in ("payment-signature", "x-payment") and len(value) > 64:
            payload = json.loads(base64.b64decode(value))["payload"]
            if "transaction" in payload:  # a voucher of a channel is none
                transactions.append(base64.b64decode(payload["transaction"]))
    return transactions


def _is_hex(text: str) -> bool:
    return all(char in "0123456789abcdef" for char in text)


async def call_app(
    app: ASGIApp,
    method: str,
    target: str,
    headers: dict[str, str],
    body: bytes,
    host: str,
    more: dict[str, Any] | None = None,
) -> SimResponse | None:
    """Call an ASGI application and collect its whole answer; None if it drops the connection.

    `more`: what its server adds to the scope.
    """
    path, _, query = target.partition("?")
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in {"host": host, **headers}.items()
        ],
        "server": (host, 443),
        "client": ("127.0.0.1", 1),
        **(more or {}),
    }
    sent: list[Message] = []
    bodies = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return bodies.pop() if bodies else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    if not sent:
        return None
    start = sent[0]
    pairs = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"])
    return SimResponse(start["status"], pairs, b"".join(m.get("body", b"") for m in sent[1:]))


class SimTransport(httpx.AsyncBaseTransport):
    """The daemon's own transport to the merchants: status, balance, top-ups."""

    def __init__(self, shops: dict[str, SimShop]) -> None:
        self._shops = shops

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        shop = self._shops[f"{request.url.scheme}://{request.url.host}"]
        target = request.url.raw_path.decode("ascii")
        headers = {name: value for name, value in request.headers.items() if name != "host"}
        try:
            answer = await shop.call(request.method, target, headers, await request.aread())
        except UnreachedError:
            raise httpx.ReadError("no answer", request=request) from None
        return httpx.Response(answer.status, headers=list(answer.headers), stream=httpx.ByteStream(answer.body))


class SimAnswer:
    """An answer as the proxy's payer reads it."""

    def __init__(self, answer: SimResponse) -> None:
        self.status = answer.status
        self.headers: Headers = [
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers
        ]
        self.whole: bytes | None = None
        self._body = answer.body

    async def read(self) -> tuple[bytes, bool]:
        body, self._body = self._body, b""
        return body, False

    async def peek(self, most_bytes: int) -> bytes | None:
        self.whole = self._body if len(self._body) <= most_bytes else None
        return self.whole


@dataclass(slots=True)
class SimUpstream:
    """The proxy's connection to a merchant."""

    shop: SimShop
    timeout_s: float = CLIENT_PATIENCE_S

    @asynccontextmanager
    async def call(
        self, call: UpstreamRequest, begins: Callable[[], object] = lambda: None
    ) -> AsyncIterator[SimAnswer]:
        begins()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in call.headers}
        body = b"" if call.body is None else b"".join([chunk async for chunk in call.body])
        try:
            answer = await self.shop.call(call.method.decode(), call.target.decode(), headers, body)
        except UnreachedError:
            raise Refused("merchant_unreachable", "no answer") from None
        yield SimAnswer(answer)
