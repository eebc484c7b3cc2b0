"""/openapi.json says what the API does: generated calls never break it, and answers are as described."""

import asyncio
import json
import re

import schemathesis
from agent_kit import World
from api_kit import Api, served
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

CASES_PER_CALL = 8


async def test_the_document_describes_every_call_and_leads_nowhere_else(api: Api) -> None:
    answer = await api.http.get("/openapi.json")
    document = answer.json()
    assert document["openapi"].startswith("3.1")
    calls = {f"{method} {path}" for path, methods in document["paths"].items() for method in methods}
    assert calls == {
        "get /healthz",
        "get /metrics",
        "get /readyz",
        "get /v1/apps",
        "get /v1/events",
        "get /v1/ledger/balance",
        "get /v1/ledger/entries",
        "get /v1/ledger/export",
        "get /v1/ledger/reconcile",
        "get /v1/ledger/snapshot",
        "get /v1/ledger/spend",
        "get /v1/ledger/verify",
        "get /v1/limits",
        "get /v1/merchants",
        "get /v1/merchants/{name}",
        "get /v1/pause",
        "get /v1/payments",
        "get /v1/payments/{payment_id}",
        "get /v1/payments/{payment_id}/receipt",
        "get /v1/prepaid",
        "get /v1/prepaid/topups",
        "get /v1/prepaid/topups/{topup_id}",
        "get /v1/wallet",
        "get /v1/wallet/utxos",
        "post /v1/apps",
        "post /v1/apps/{name}/revoke",
        "post /v1/apps/{name}/token",
        "post /v1/limits",
        "post /v1/merchants/{name}/pins",
        "post /v1/merchants/{name}/reopen",
        "post /v1/merchants/{name}/unpin",
        "post /v1/merchants",
        "post /v1/merchants/{name}/remove",
        "post /v1/pause",
        "post /v1/payments",
        "post /v1/payments/{payment_id}/approve",
        "post /v1/payments/{payment_id}/delivery",
        "post /v1/payments/{payment_id}/deny",
        "post /v1/payments/{payment_id}/resolve",
        "post /v1/prepaid/topups",
        "post /v1/prepaid/topups/{topup_id}/cancel",
        "post /v1/quotes",
        "post /v1/resume",
        "post /v1/wallet/send",
        "post /v1/wallet/split",
        "post /v1/wallet/thaw",
    }
    assert "http://" not in answer.text.replace("http://127.0.0.1", "")
    assert "https://" not in answer.text
    refs = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert refs == set(document["components"]["schemas"]), "a schema is missing or not used"
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert ("security" in operation) == path.startswith(("/v1/", "/metrics")), path


async def test_generated_calls_get_the_answers_that_are_described(world: World) -> None:
    world.fund(*[100_000_000] * 20)
    async with world.run() as run:
        await run.look()
        async with served(run) as api:
            paid = await api.pay()
            asked = await asyncio.to_thread(_ask_everything, api, str(paid["id"]))
            document = (await api.http.get("/openapi.json")).json()
            operations = sum(len(methods) for methods in document["paths"].values())
            assert len(asked) == operations - 1, "all but the stream of events"


def _ask_everything(api: Api, payment_id: str) -> set[str]:
    """Call every operation with generated values; returns those that were called."""
    schema = schemathesis.openapi.from_url(f"{api.url}/openapi.json")
    headers = {"Authorization": f"Bearer {api.tokens['first']}"}
    asked: set[str] = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path == "/v1/events":
            continue  # its answer has no end

        @seed(402)
        @settings(
            max_examples=CASES_PER_CALL,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def call(case: schemathesis.Case) -> None:
            if case.path_parameters and len(asked) % 2:
                case.path_parameters["payment_id"] = payment_id
            asked.add(case.operation.label)
            case.query = {name: value for name, value in (case.query or {}).items() if name != "wait"}
            # a body of the right form is not yet a 402 that can be paid
            case.call_and_validate(headers=headers, excluded_checks=[positive_data_acceptance])

        call()
    return asked
