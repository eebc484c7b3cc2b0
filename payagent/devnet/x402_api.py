"""The HTTP API of the devnet's x402 shop: 402s, receipts and paid answers, in versions 1 and 2.

The wire forms follow the scheme's documents and Masumi's examples.

Never: uses payagent's dialects.
"""

import json
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from payagent.devnet.catalogue import GOODS, TOO_LARGE, UNPROCESSABLE, json_object, read_body
from payagent.devnet.facilitator import PENDING, Settlement
from payagent.devnet.faulty_responses import Abort
from payagent.devnet.merchant import DEVNET
from payagent.devnet.x402 import Answer, Kind, Shop
from payagent.devnet.x402_terms import X402Request, encode_header, payment_required, requirements_v1

Json = dict[str, object]

ELSEWHERE = "/x402/elsewhere"
_PROOF_HEADER = {1: "x-payment", 2: "payment-signature"}
_RETRY_AFTER_S = 1
_PAGE = """<!doctype html>
<html><head><title>Payment required</title></head><body><h1>Payment required</h1>
<script>window.__x402Requirements = {requirements};</script></body></html>
"""


# --- version 2 ---------------------------------------------------------------------------------------------------


def _required_v2(shop: Shop, call: X402Request, error: str) -> Response:
    error = error or "PAYMENT-SIGNATURE header is required"
    body = payment_required(shop.terms, shop.x402, call.url, error)
    if shop.x402.in_body:
        return JSONResponse(body, 402)
    return JSONResponse({}, 402, {"PAYMENT-REQUIRED": encode_header(body)})


def _unsettled_v2(_shop: Shop, _call: X402Request, settlement: Settlement) -> Response:
    return JSONResponse({}, 402, _receipt_v2(settlement))


def _receipt_v2(settlement: Settlement) -> dict[str, str]:
    return {"PAYMENT-RESPONSE": encode_header(settlement.as_json())}


# --- version 1 ---------------------------------------------------------------------------------------------------


def _required_v1(shop: Shop, call: X402Request, error: str) -> Response:
    body: Json = {
        "x402Version": 1,
        "error": error or "X-PAYMENT header is required",
        "accepts": [requirements_v1(shop.terms, shop.x402, call.url)],
    }
    headers = {"X-PAYMENT-ERROR": error or "missing"}
    if not shop.x402.html:
        return JSONResponse(body, 402, headers)
    script = json.dumps(body).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return HTMLResponse(_PAGE.replace("{requirements}", script), 402, headers)


def _unsettled_v1(shop: Shop, call: X402Request, settlement: Settlement) -> Response:
    if settlement.reason == PENDING:
        body = {"pending": True, "transaction": settlement.tx_id, "retryAfterSeconds": _RETRY_AFTER_S}
        return JSONResponse(body, 202)
    return _required_v1(shop, call, settlement.reason or "settlement failed")


def _receipt_v1(settlement: Settlement) -> dict[str, str]:
    """As in the examples, `success` is a string."""
    body: Json = {"success": "true", "network": DEVNET.wire, "transaction": settlement.tx_id}
    return {"X-PAYMENT-RESPONSE": encode_header(body)}


Required = Callable[[Shop, X402Request, str], Response]
Unsettled = Callable[[Shop, X402Request, Settlement], Response]
Receipt = Callable[[Settlement], dict[str, str]]
_WRITERS: dict[int, tuple[Required, Unsettled, Receipt]] = {
    1: (_required_v1, _unsettled_v1, _receipt_v1),
    2: (_required_v2, _unsettled_v2, _receipt_v2),
}


# --- the handler -------------------------------------------------------------------------------------------------


class X402Api:
    """Handles GET and POST under /x402/ and on paths sold by x402. `tick` advances the chain's clock."""

    def __init__(self, shop: Shop, tick: Callable[[], None]) -> None:
        self.shop = shop
        self.tick = tick

    async def paid(self, request: Request) -> Response:
        """The resource, a 402, or a refusal. A POST must have a JSON object."""
        raw = await read_body(request)
        if raw is None:
            return JSONResponse(TOO_LARGE, 413)
        body = json_object(raw or b"{}") if request.method == "GET" else json_object(raw)
        if body is None:
            return JSONResponse(UNPROCESSABLE, 422)
        self.tick()
        call = self._call(request, raw)
        return self._answer(call, body, self.shop.ask(call))

    def _call(self, request: Request, raw: bytes) -> X402Request:
        query = request.url.query
        path = request.url.path + (f"?{query}" if query else "")
        proof = request.headers.get(_PROOF_HEADER[self.shop.x402.version])
        return X402Request(request.method, str(request.url), path, raw, proof)

    def _answer(self, call: X402Request, body: Json, answer: Answer) -> Response:
        required, unsettled, receipt = _WRITERS[self.shop.x402.version]
        settlement = answer.settlement
        match answer.kind:
            case Kind.SERVED if settlement is not None:
                served = self._goods(call, body, {"txHash": settlement.tx_id, "replayed": answer.again})
                served.headers.update(receipt(settlement))
                return served
            case Kind.UNSETTLED if settlement is not None:
                return unsettled(self.shop, call, settlement)
            case Kind.BROKEN:
                return JSONResponse({"error": "Internal Server Error"}, 500)
            case Kind.DROPPED:
                return Abort()
            case Kind.MOVED:
                return RedirectResponse(ELSEWHERE, 307)
            case Kind.BAD_IDENTIFIER:
                return JSONResponse({"error": answer.reason}, 400)
            case Kind.CONFLICT:
                return JSONResponse({"error": answer.reason}, 409)
        return required(self.shop, call, answer.reason)

    def _goods(self, call: X402Request, body: Json, receipt: Json) -> Response:
        path = call.path.partition("?")[0]
        if (sold := GOODS.get(path.removeprefix("/x402"))) is not None:
            return sold(body, receipt)
        return JSONResponse({"path": call.path, "answer": "This answer was paid for.", **receipt})
