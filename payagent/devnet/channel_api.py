"""The HTTP API of the devnet's channel shop: 402s, receipts and paid answers.

Never: uses payagent's dialects.
"""

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from payagent.devnet.channel_shop import ChannelShop, Unsold
from payagent.devnet.facilitator import Unpayable, object_of
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
            sold = self.shop.ask(request.url.path, None if proof is None else read_proof(proof))
        except Unsold as unsold:
            entry = self.shop.offer()
            required = {
                "x402Version": 2,
                "error": unsold.reason,
                "resource": resource(str(request.url)),
                "accepts": [entry | {"extra": object_of(entry["extra"]) | unsold.extra}],
            }
            return JSONResponse({}, 402, {"PAYMENT-REQUIRED": encode_header(required)})
        except Unpayable as refused:
            return JSONResponse({"error": refused.reason}, 400)
        if sold is None:
            return Abort()
        path, receipt = sold
        body = {"path": path, "answer": "This answer was paid for."}
        return JSONResponse(body, 200, {"PAYMENT-RESPONSE": encode_header(receipt)})
