"""The devnet merchant's HTTP API: what it sells, payments and their status, settings, and /x402/.

A thin layer over `DevnetMerchant`. It reads a request, lets the merchant decide, and writes the paid resource or a
402 in the configured dialect. The wire forms follow the vendor's documents (T Backend developer guide; Flux
emitter of its SDK); /v1/chat/completions is OpenAI's.

Never: uses payagent's dialects.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from payagent.core.money import LOVELACE
from payagent.core.problems import Refused
from payagent.devnet.catalogue import GOODS, TOO_LARGE, UNPROCESSABLE, json_object, read_body
from payagent.devnet.channel_api import ChannelApi
from payagent.devnet.channel_shop import ChannelShop, read_channel
from payagent.devnet.merchant import (
    DEVNET,
    Balance,
    DevnetMerchant,
    Outcome,
    ShopInvoice,
    ShopRequest,
    Terms,
    Verdict,
    read_settings,
)
from payagent.devnet.settings import BadSettings
from payagent.devnet.x402 import Shop
from payagent.devnet.x402_api import X402Api
from payagent.devnet.x402_terms import X402, read_x402

Json = dict[str, object]
MCP_PATH = "/mcp"
_COUNTED = ("served", "served_prepaid", "topped_up", "replayed", "pending")
TOP_UP = "/payments/topup"
"""Buys a batch for the balance without a call. The T Backend has no such path; other merchants may."""


# --- the 402 in each dialect -------------------------------------------------------------------------------------


def _wire_asset(asset: str) -> str:
    return "ADA" if asset == LOVELACE else f"{asset[:56]}.{asset[56:]}"


def t_backend_402(invoice: ShopInvoice, now_ms: int) -> Response:
    """The documented T Backend body: everything under `detail`, with `timeout` in seconds from now."""
    terms = invoice.terms
    extra: Json = {
        "lovelace": terms.asset == LOVELACE,
        "babel": False,
        "partner": invoice.partner,
        "batchTarget": terms.batch,
    }
    detail: Json = {
        "version": "0.1",
        "invoiceId": invoice.id,
        "chain": DEVNET.wire,
        "asset": _wire_asset(terms.asset),
        "amountUnits": str(terms.price_units),
        "decimals": 6 if terms.asset == LOVELACE else 0,
        "payTo": terms.pay_to.text,
        "timeout": (invoice.ends_ms - now_ms) // 1000,
        "extra": extra | _t_backend_splits(terms),
    }
    return JSONResponse({"detail": detail}, 402)


def _t_backend_splits(terms: Terms) -> Json:
    if not terms.splits:
        return {}
    shares: list[Json] = [
        {"address": split.address.text, "amountUnits": str(split.units), "role": split.role}
        for split in terms.splits
    ]
    if terms.split_mode == "outputs":
        first: Json = {
            "address": terms.pay_to.text,
            "amountUnits": str(terms.pay_to_units),
            "role": "pay_to",
        }
        return {"outputs": [first, *shares]}
    if terms.split_form == "outputs":
        return {"outputs": shares}
    return {"split": {"mode": terms.split_mode, "outputs": shares}}


def flux_402(invoice: ShopInvoice, now_ms: int) -> Response:
    """The Flux body and headers: top-level fields, and the expiry as an ISO time with milliseconds."""
    terms, pay_to = invoice.terms, invoice.terms.pay_to.text
    ends = datetime.fromtimestamp(invoice.ends_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    body: Json = {
        "invoiceId": invoice.id,
        "amount": str(terms.price_units),
        "currency": _wire_asset(terms.asset),
        "payTo": pay_to,
        "chain": DEVNET.wire,
        "expiresAt": f"{ends}.{invoice.ends_ms % 1000:03d}Z",
    }
    if terms.splits:
        body["splits"] = [
            {"to": split.address.text, "amount": str(split.units), "role": split.role} for split in terms.splits
        ]
        body["splitMode"] = terms.split_mode
    headers = {
        "X-Invoice-Id": invoice.id,
        "X-Pay-To": pay_to,
        "X-Amount": str(terms.price_units),
        "X-Asset": _wire_asset(terms.asset),
        "X-Chain": DEVNET.wire,
        "X-Timeout": str((invoice.ends_ms - now_ms) // 1000),
    }
    return JSONResponse(body, 402, headers)


_WRITERS: dict[str, Callable[[ShopInvoice, int], Response]] = {"t-backend": t_backend_402, "flux": flux_402}


def _plain(balance: Balance) -> Json:
    return {"remaining": balance.left, "total": balance.bought}


_BALANCE_SHAPES: dict[str, Callable[[Balance], Json]] = {
    "plain": _plain,
    "nested": lambda balance: {"detail": {"balance": _plain(balance)}},
    "digits": lambda balance: {"remainingCalls": str(balance.left), "totalCalls": str(balance.bought)},
    "nonsense": lambda balance: {"remaining": balance.left, "available": balance.left + 1},
}


# --- the handlers ------------------------------------------------------------------------------------------------


class MerchantApi:
    """The request handlers. `now_ms` is the clock of invoices and chain; `tick` advances the chain to it."""

    def __init__(
        self,
        merchant: DevnetMerchant,
        shop: Shop,
        channels: ChannelShop,
        now_ms: Callable[[], int],
        tick: Callable[[], None],
    ) -> None:
        self.merchant = merchant
        self.shop = shop
        self.channels = channels
        self.x402 = X402Api(shop, tick)
        self.by_channel = ChannelApi(channels, tick)
        self.now_ms = now_ms
        self.tick = tick

    async def paid(self, request: Request) -> Response:
        """POST on a paid path: the resource, a 402, or a refusal."""
        if self._by_x402(request):
            return await self.x402.paid(request)
        raw = await read_body(request)
        if raw is None:
            return JSONResponse(TOO_LARGE, 413)
        body = json_object(raw)
        if body is None:
            return JSONResponse(UNPROCESSABLE, 422)
        self.tick()
        now_ms = self.now_ms()
        call = _call(request, raw)
        verdict = self.merchant.ask(call, now_ms)
        answer = self._answer(request.url.path, body, call, verdict, now_ms)
        if (request_id := request.headers.get("x-request-id")) is not None:
            answer.headers["X-Request-ID"] = request_id
        return answer

    def _by_x402(self, request: Request) -> bool:
        """Whether x402 sells this call. An invoice made before stays payable."""
        plain = request.url.path == TOP_UP or "x-invoice-id" in request.headers
        return self.merchant.terms.dialect == "x402" and not plain

    def _answer(
        self, path: str, body: Mapping[str, object], call: ShopRequest, verdict: Verdict, now_ms: int
    ) -> Response:
        invoice = verdict.invoice
        match verdict.outcome:
            case Outcome.SERVED | Outcome.REPLAYED:
                receipt: Json = {
                    "invoiceId": None if invoice is None else invoice.id,
                    "txHash": None if invoice is None else invoice.paid_by,
                    "replayed": verdict.outcome is Outcome.REPLAYED,
                }
                if call.top_up and invoice is not None:
                    remaining = self.merchant.balance(call.buyer).left
                    return JSONResponse({"credited": invoice.terms.batch, "remaining": remaining, **receipt})
                return GOODS[path](body, receipt)
            case Outcome.INVOICE if invoice is not None:
                return _WRITERS[invoice.terms.dialect](invoice, now_ms)
            case Outcome.WALLET_REQUIRED:
                return JSONResponse({"detail": "wallet_address_required_for_prepaid_batches"}, 400)
            case Outcome.NO_BATCHES:
                return JSONResponse({"detail": "no batches are sold: nothing can be topped up"}, 409)
            case Outcome.PENDING:
                return JSONResponse({"detail": {"status": "pending"}}, 402)
        wrong = {"error": "payment_flow_error", "reason": verdict.reason, "message": verdict.detail}
        return JSONResponse({"detail": wrong}, 402)

    async def status(self, request: Request) -> Response:
        """GET /payments/status/{invoice_id}."""
        invoice = self.merchant.invoices.get(request.path_params["invoice_id"])
        if invoice is None:
            return JSONResponse({"detail": "ShopInvoice not found"}, 404)
        self.tick()
        return JSONResponse(self._invoice_json(invoice))

    def _invoice_json(self, invoice: ShopInvoice) -> Json:
        return {
            "invoiceId": invoice.id,
            "status": self.merchant.status(invoice, self.now_ms()),
            "txHash": invoice.paid_by or invoice.presented,
            "chain": DEVNET.wire,
            "amountUnits": str(invoice.terms.price_units),
            "asset": _wire_asset(invoice.terms.asset),
            "expiresAt": invoice.ends_ms // 1000,
        }

    async def balance(self, request: Request) -> Response:
        """GET /payments/balance?partner=&wallet=: prepaid calls, in the configured shape."""
        write = _BALANCE_SHAPES.get(self.merchant.terms.balance_shape)
        if write is None:
            return JSONResponse({"detail": "Not Found"}, 404)
        return self._prepaid(request, write)

    async def credits(self, request: Request) -> Response:
        """GET /payments/credits?partner=&wallet=: the same numbers, in the form that a partner's client reads."""
        return self._prepaid(request, lambda balance: _plain(balance) | {"expires_at": None})

    def _prepaid(self, request: Request, write: Callable[[Balance], Json]) -> Response:
        partner, wallet = request.query_params.get("partner"), request.query_params.get("wallet")
        if not partner or not wallet:
            return JSONResponse({"detail": "partner and wallet are required"}, 422)
        self.tick()
        return JSONResponse(
            {"partner": partner, "wallet": wallet} | write(self.merchant.balance((partner, wallet)))
        )

    async def settings(self, request: Request) -> Response:
        """POST /merchant/settings: sets some of the settings and returns all but those of /channel/.

        GET /merchant/state has these, as channel.settings.
        """
        raw = await read_body(request)
        body = None if raw is None else json_object(raw)
        if body is None:
            return JSONResponse({"detail": "a JSON object was expected"}, 400)
        others, of_x402, of_channel = _settings_in_three(body)
        try:
            terms = read_settings(others, self.merchant.terms)
            x402 = read_x402(of_x402, self.shop.x402)
            channel = read_channel(of_channel, self.channels.settings)
        except (BadSettings, Refused) as refused:
            return JSONResponse({"detail": str(refused)}, 400)
        if others:
            self.merchant.set_terms(terms)
        self.shop.x402 = x402
        if of_channel:
            self.tick()
            self.channels.set(channel)
        return JSONResponse(self._settings_json())

    def _settings_json(self) -> Json:
        return _terms_json(self.merchant.terms, self.shop.x402) | {"x402": asdict(self.shop.x402)}

    async def state(self, _request: Request) -> Response:
        """GET /merchant/state."""
        merchant = self.merchant
        self.tick()
        self.channels.work()
        paid = [invoice for invoice in merchant.invoices.values() if invoice.paid_by is not None]
        balances = [
            {"partner": buyer[0], "wallet": buyer[1], "used": account.used} | _plain(merchant.balance(buyer))
            for buyer, account in merchant.accounts.items()
        ]
        return JSONResponse(
            {
                "settings": self._settings_json(),
                "pay_to": merchant.terms.pay_to.text,
                "invoices": [self._invoice_json(invoice) for invoice in merchant.invoices.values()],
                "payments": [{"invoiceId": invoice.id, "txHash": invoice.paid_by} for invoice in paid],
                "balances": balances,
                **{name: merchant.counts[name] for name in _COUNTED},
                "refused": dict(sorted(merchant.refused.items())),
                "x402": self.shop.as_json(),
                "channel": self.channels.as_json(),
            }
        )


def _call(request: Request, body: bytes) -> ShopRequest:
    query = request.url.query
    headers = request.headers
    return ShopRequest(
        request.method,
        request.url.path + (f"?{query}" if query else ""),
        body,
        headers.get("x-partner"),
        headers.get("x-wallet-address"),
        headers.get("x-invoice-id"),
        headers.get("x-payment"),
        top_up=request.url.path == TOP_UP,
        key=headers.get("x-idempotency-key"),
    )


_X402_VERSIONS = {"x402-v1": 1, "x402-v2": 2}


def _settings_in_three(body: Json) -> tuple[Json, object, object]:
    """Split settings into the merchant's, the x402 shop's and those of /channel/.

    `x402-v1` and `x402-v2` set one in each of the first two. `x402-channel` opens /channel/, and changes no other
    path.
    """
    others = {name: value for name, value in body.items() if name not in ("x402", "channel")}
    of_x402, of_channel = body.get("x402", {}), body.get("channel", {})
    dialect = others.get("dialect")
    if isinstance(dialect, str) and dialect in _X402_VERSIONS and isinstance(of_x402, dict):
        others["dialect"], of_x402 = "x402", {"version": _X402_VERSIONS[dialect]} | of_x402
    if dialect == "x402-channel" and isinstance(of_channel, dict):
        del others["dialect"]
        of_channel = {"is_open": True} | of_channel
    return others, of_x402, of_channel


def _terms_json(terms: Terms, x402: X402) -> Json:
    return {
        "price": str(terms.price_units),
        "asset": terms.asset,
        "pay_to": terms.pay_to.text,
        "splits": [
            {"role": split.role, "address": split.address.text, "units": str(split.units)}
            for split in terms.splits
        ],
        "split_mode": terms.split_mode,
        "split_form": terms.split_form,
        "batch": terms.batch,
        "timeout": terms.timeout_s,
        "confirmations": terms.confirmations,
        "dialect": f"x402-v{x402.version}" if terms.dialect == "x402" else terms.dialect,
        "replays": terms.replays,
        "proof": terms.proof,
        "balance_shape": terms.balance_shape,
    }


async def _health(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


def merchant_app(
    merchant: DevnetMerchant,
    shop: Shop,
    now_ms: Callable[[], int],
    tick: Callable[[], None],
    mcp: ASGIApp | None = None,
    name: str = "0",
) -> Starlette:
    """The ASGI application of the merchant's port. `mcp`: its MCP server; `name` makes its channel key."""
    channels = ChannelShop(shop.facilitator.node, lambda: merchant.terms, name)
    api = MerchantApi(merchant, shop, channels, now_ms, tick)
    return Starlette(
        routes=[
            *[Route(path, api.paid, methods=["POST"]) for path in (*GOODS, TOP_UP)],
            Route("/x402/{thing:path}", api.x402.paid, methods=["GET", "POST"]),
            Route("/channel/{thing:path}", api.by_channel.paid, methods=["GET", "POST"]),
            Route("/payments/status/{invoice_id}", api.status, methods=["GET"]),
            Route("/payments/balance", api.balance, methods=["GET"]),
            Route("/payments/credits", api.credits, methods=["GET"]),
            Route("/merchant/settings", api.settings, methods=["POST"]),
            Route("/merchant/state", api.state, methods=["GET"]),
            Route("/health", _health, methods=["GET"]),
            *([] if mcp is None else [Route(MCP_PATH, mcp)]),
        ]
    )
