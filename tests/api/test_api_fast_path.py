"""POST /v1/payments bypasses the framework (the fast path): both must answer alike."""

import httpx
import pytest
from kit.agent import ADA, World
from kit.api import served

from payagent.api.app import create_app

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("app", "headers", "body"),
    [
        ("payer", JSON, None),
        ("payer", {**JSON, "idempotency-key": "again"}, None),
        ("reader", JSON, None),
        ("nobody", JSON, None),
        (None, JSON, None),
        ("payer", {"content-type": "text/plain"}, None),
        ("payer", JSON, b"{"),
        ("payer", JSON, b'{"origin": "http://127.0.0.1:1", "response": {}}'),
        ("payer", JSON, b" " * 300_000),
        ("payer", {**JSON, "origin": "http://evil.example"}, None),
        ("payer", {**JSON, "host": "evil.example"}, None),
    ],
)
async def test_the_fast_path_answers_like_the_framework(
    world: World, app: str | None, headers: dict[str, str], body: bytes | None
) -> None:
    world.fund(50 * ADA)
    async with world.run() as run, served(run) as api:
        await run.run_pass()
        content = body or httpx.Request("POST", "http://a", json=api.body("hello")).content
        token = {} if app is None else {"authorization": f"Bearer {api.tokens.get(app, 'pa_nobody')}"}
        answers, counted = [], []
        # the framework first: the fast path then finds the payment that it made
        for is_express in (False, True, False):
            before = dict(run.context.metrics.refusals)
            made = create_app(run.fleet, heartbeat=lambda: (None, True), signer=lambda: None)
            if not is_express:
                made.at_once = {}
            transport = httpx.ASGITransport(made)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                answer = await client.post("/v1/payments", content=content, headers=token | headers)
            counted.append({code: n - before.get(code, 0) for code, n in run.context.metrics.refusals.items()})
            answers.append(answer)
        told = [(answer.status_code, _lasting(answer)) for answer in answers[1:]]
        assert told[0] == told[1]
        assert {code for code, n in counted[1].items() if n} == {code for code, n in counted[2].items() if n}
        assert answers[0].status_code in (201, told[0][0])


def _lasting(answer: httpx.Response) -> tuple[dict[str, object], dict[str, str]]:
    """Body and headers, without what differs between any two answers."""
    body = {key: value for key, value in answer.json().items() if key != "instance"}
    moment = ("x-request-id", "date", "content-length")
    return body, {name: value for name, value in answer.headers.items() if name not in moment}
