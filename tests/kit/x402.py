"""The devnet's x402 shop: its 402, and a retry with the proof."""

import hashlib
import json
from typing import Any

import httpx

from kit.agent import APP, Run, World
from payagent.agent.base.payment_view import retry_headers
from payagent.agent.base.requests import MerchantRequest, PaymentRequest
from payagent.core.aggregate import PaymentRow
from payagent.core.pay_and_retry import Answered
from payagent.dialects import parse_answer, parse_response

PATH = "/x402/report?day=1"


def get(world: World, headers: dict[str, str] | None = None) -> httpx.Response:
    return world.http.get(world.origin + PATH, headers=headers)


def ask(world: World, answer: httpx.Response | None = None, **more: Any) -> PaymentRequest:
    answer = answer or get(world)
    assert answer.status_code == 402, answer.text
    return PaymentRequest(
        app_id=APP,
        origin=world.origin,
        response=parse_response(402, list(answer.headers.multi_items()), answer.content),
        received=json.dumps({"status": 402}),
        request=MerchantRequest("GET", PATH, hashlib.sha256(b"").hexdigest()),
        **more,
    )


async def show(world: World, run: Run, row: PaymentRow) -> tuple[httpx.Response, PaymentRow, Answered]:
    """Send the proof, and let the agent read the answer."""
    answer = get(world, retry_headers(row, run.context.config.merchants[world.origin], world.address))
    response = parse_answer(answer.status_code, list(answer.headers.multi_items()), answer.content)
    return answer, *await run.agent.deliveries.take_answer(row.id, response)
