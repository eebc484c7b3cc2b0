"""The HTTP API of the devnet's channel shop: 402s, receipts and paid answers.

Never: uses payagent's dialects.
"""

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from payagent.devnet.channel_shop import ChannelShop
from payagent.devnet.facilitator import Unpayable
from payagent.devnet.faulty_responses import Abort
from payagent.devnet.x402_terms import encode_header, read_proof, resource


@dataclass(frozen=True, slots=True)
class ChannelApi:
    """Handles GET and POST under /channel/. `tick` advances the chain's clock."""

    shop: ChannelShop
    tick: Callable[[], None]

    async def paid(self, request: Request) -> Response:
        """The answer, or a 402. 404 before the merchant sells by channel."""
        if not self.shop.settings.is_open:
            return JSONResponse({"detail": "Not Found"}, 404)
        self.tick()
        proof = request.headers.get("payment-signature")
        try:
            answer = self.shop.ask(request.url.path, None if proof is None else read_proof(proof))
        except Unpayable as refused:
            return JSONResponse({"error": refused.reason}, 400)
        if answer.receipt is not None:
            body = {"path": answer.path, "answer": "This answer was paid for."}
            return JSONResponse(body, 200, {"PAYMENT-RESPONSE": encode_header(answer.receipt)})
        if answer.accepts is None:
            return Abort()
        required = {
            "x402Version": 2,
            "error": answer.error,
            "resource": resource(str(request.url)),
            "accepts": [answer.accepts],
        }
        return JSONResponse({}, 402, {"PAYMENT-REQUIRED": encode_header(required)})
