"""The devnet merchant's HTTP face: the documented T Backend paths, its payment helpers, and its settings.

A thin shell over Merchant: it reads a call, lets the merchant judge it, and writes the 402 in the dialect that is
set, or the thing that was paid for. The wire forms are written here from the vendor's documents (T Backend
developer guide; Flux emitter of its SDK), never through payagent's dialects. Imports Starlette and its neighbours.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from payagent.core.money import LOVELACE
from payagent.core.problem import Refused
from payagent.devnet.merchant import (
    DEVNET,
    BadSettings,
    Call,
    Invoice,
    Merchant,
    Outcome,
    Terms,
    Verdict,
    read_settings,
    role_address,
)

Json = dict[str, object]
PAID_PATHS = ("/chat", "/token-analysis", "/images/generate", "/images/edit")
_MOST_BODY_BYTES = 1024 * 1024
_REPLY = "Cardano is a proof-of-stake chain, and this answer was paid for."


# --- the 402 in each dialect -------------------------------------------------------------------------------------


def _wire_asset(asset: str) -> str:
    return "ADA" if asset == LOVELACE else f"{asset[:56]}.{asset[56:]}"


def t_backend_402(invoice: Invoice, now_ms: int) -> Response:
    """The documented T Backend body: everything under `detail`, `timeout` in seconds from now."""
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
        "payTo": role_address("pay_to").text,
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
            "address": role_address("pay_to").text,
            "amountUnits": str(terms.pay_to_units),
            "role": "pay_to",
        }
        return {"outputs": [first, *shares]}
    if terms.split_form == "outputs":
        return {"outputs": shares}
    return {"split": {"mode": terms.split_mode, "outputs": shares}}


def flux_402(invoice: Invoice, now_ms: int) -> Response:
    """The Flux body and headers: top-level fields, an absolute end in ISO milliseconds."""
    terms, pay_to = invoice.terms, role_address("pay_to").text
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


_WRITERS: dict[str, Callable[[Invoice, int], Response]] = {"t-backend": t_backend_402, "flux": flux_402}


# --- what was paid for -------------------------------------------------------------------------------------------


def _chat(body: Mapping[str, object], receipt: Json) -> Response:
    if body.get("stream") is True:
        return StreamingResponse(_events(_REPLY, receipt), media_type="text/event-stream")
    return JSONResponse({"reply": _REPLY, "session_id": body.get("session_id"), **receipt})


async def _events(reply: str, receipt: Json) -> AsyncIterator[str]:
    """One event per word, each in a piece of its own, then the receipt and the end mark."""
    for word in reply.split(" "):
        yield f"data: {json.dumps({'token': word + ' '})}\n\n"
        await asyncio.sleep(0)
    yield f"data: {json.dumps(receipt)}\n\n"
    yield "data: [DONE]\n\n"


def _token_analysis(body: Mapping[str, object], receipt: Json) -> Response:
    return JSONResponse({"token": body.get("token"), "analysis": "A devnet token; worth nothing.", **receipt})


def _images(_body: Mapping[str, object], receipt: Json) -> Response:
    return JSONResponse({"success": True, "images": [], **receipt})


_GOODS: dict[str, Callable[[Mapping[str, object], Json], Response]] = {
    "/chat": _chat,
    "/token-analysis": _token_analysis,
    "/images/generate": _images,
    "/images/edit": _images,
}


# --- the handlers ------------------------------------------------------------------------------------------------


class MerchantApi:
    """The handlers; `now_ms` is the clock that invoices and the chain share, `tick` tells the chain the time."""

    def __init__(self, merchant: Merchant, now_ms: Callable[[], int], tick: Callable[[], None]) -> None:
        self.merchant = merchant
        self.now_ms = now_ms
        self.tick = tick

    async def paid(self, request: Request) -> Response:
        """POST on a paid path: the thing itself, a 402, or why not."""
        raw = await _body(request)
        if raw is None:
            return JSONResponse({"detail": "Request body too large"}, 413)
        body = _json_object(raw)
        if body is None:
            return JSONResponse({"detail": [_UNPROCESSABLE]}, 422)
        self.tick()
        now_ms = self.now_ms()
        verdict = self.merchant.ask(_call(request, raw), now_ms)
        answer = self._answer(request.url.path, body, verdict, now_ms)
        if (request_id := request.headers.get("x-request-id")) is not None:
            answer.headers["X-Request-ID"] = request_id
        return answer

    def _answer(self, path: str, body: Mapping[str, object], verdict: Verdict, now_ms: int) -> Response:
        invoice = verdict.invoice
        match verdict.outcome:
            case Outcome.SERVED | Outcome.REPLAYED:
                receipt: Json = {
                    "invoiceId": None if invoice is None else invoice.id,
                    "txHash": None if invoice is None else invoice.paid_by,
                    "replayed": verdict.outcome is Outcome.REPLAYED,
                }
                return _GOODS[path](body, receipt)
            case Outcome.INVOICE if invoice is not None:
                return _WRITERS[invoice.terms.dialect](invoice, now_ms)
            case Outcome.WALLET_REQUIRED:
                return JSONResponse({"detail": "wallet_address_required_for_prepaid_batches"}, 400)
            case Outcome.PENDING:
                return JSONResponse({"detail": {"status": "pending"}}, 402)
        wrong = {"error": "payment_flow_error", "reason": verdict.reason, "message": verdict.detail}
        return JSONResponse({"detail": wrong}, 402)

    async def status(self, request: Request) -> Response:
        """GET /payments/status/{invoice_id}."""
        invoice = self.merchant.invoices.get(request.path_params["invoice_id"])
        if invoice is None:
            return JSONResponse({"detail": "Invoice not found"}, 404)
        self.tick()
        return JSONResponse(self._invoice_json(invoice))

    def _invoice_json(self, invoice: Invoice) -> Json:
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
        """GET /payments/balance?partner=&wallet=: prepaid calls, named as the vendor's `credits` are."""
        partner, wallet = request.query_params.get("partner"), request.query_params.get("wallet")
        if not partner or not wallet:
            return JSONResponse({"detail": "partner and wallet are required"}, 422)
        known = self.merchant.balances.get((partner, wallet))
        remaining, total = (0, 0) if known is None else (known.left, known.bought)
        return JSONResponse({"partner": partner, "wallet": wallet, "remaining": remaining, "total": total})

    async def settings(self, request: Request) -> Response:
        """POST /merchant/settings: some of the settings; all of them come back."""
        raw = await _body(request)
        body = None if raw is None else _json_object(raw)
        if body is None:
            return JSONResponse({"detail": "a JSON object was expected"}, 400)
        try:
            self.merchant.set_terms(read_settings(body, self.merchant.terms))
        except (BadSettings, Refused) as refused:
            return JSONResponse({"detail": str(refused)}, 400)
        return JSONResponse(_settings_json(self.merchant.terms))

    async def state(self, _request: Request) -> Response:
        """GET /merchant/state."""
        merchant, counts = self.merchant, self.merchant.counts
        self.tick()
        paid = [invoice for invoice in merchant.invoices.values() if invoice.paid_by is not None]
        balances = [
            {"partner": partner, "wallet": wallet, "remaining": balance.left, "total": balance.bought}
            for (partner, wallet), balance in merchant.balances.items()
        ]
        return JSONResponse(
            {
                "settings": _settings_json(merchant.terms),
                "pay_to": role_address("pay_to").text,
                "invoices": [self._invoice_json(invoice) for invoice in merchant.invoices.values()],
                "payments": [{"invoiceId": invoice.id, "txHash": invoice.paid_by} for invoice in paid],
                "balances": balances,
                "served": counts.served,
                "served_prepaid": counts.served_prepaid,
                "replayed": counts.replayed,
                "pending": counts.pending,
                "refused": dict(sorted(counts.wrong.items())),
            }
        )


_UNPROCESSABLE: Json = {
    "type": "json_invalid",
    "loc": ["body"],
    "msg": "JSON decode error",
    "input": {},
}


async def _body(request: Request) -> bytes | None:
    """The request's body; None when it is too large."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BODY_BYTES:
            return None
    return body


def _json_object(raw: bytes) -> Json | None:
    try:
        body = json.loads(raw)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _call(request: Request, body: bytes) -> Call:
    query = request.url.query
    headers = request.headers
    return Call(
        request.method,
        request.url.path + (f"?{query}" if query else ""),
        body,
        headers.get("x-partner"),
        headers.get("x-wallet-address"),
        headers.get("x-invoice-id"),
        headers.get("x-payment"),
    )


def _settings_json(terms: Terms) -> Json:
    return {
        "price": str(terms.price_units),
        "asset": terms.asset,
        "splits": [
            {"role": split.role, "address": split.address.text, "units": str(split.units)}
            for split in terms.splits
        ],
        "split_mode": terms.split_mode,
        "split_form": terms.split_form,
        "batch": terms.batch,
        "timeout": terms.timeout_s,
        "confirmations": terms.confirmations,
        "dialect": terms.dialect,
    }


async def _health(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


def merchant_app(merchant: Merchant, now_ms: Callable[[], int], tick: Callable[[], None]) -> Starlette:
    """The ASGI application of the merchant's port."""
    api = MerchantApi(merchant, now_ms, tick)
    return Starlette(
        routes=[
            *[Route(path, api.paid, methods=["POST"]) for path in PAID_PATHS],
            Route("/payments/status/{invoice_id}", api.status, methods=["GET"]),
            Route("/payments/balance", api.balance, methods=["GET"]),
            Route("/merchant/settings", api.settings, methods=["POST"]),
            Route("/merchant/state", api.state, methods=["GET"]),
            Route("/health", _health, methods=["GET"]),
        ]
    )
