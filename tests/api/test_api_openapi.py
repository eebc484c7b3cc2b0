"""/openapi.json matches the API: generated requests get only the answers that it describes."""

import asyncio
import itertools
import json
import os
import re
from collections import Counter
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import integers
from kit.agent import World
from kit.api import Api, served
from kit.api_operations import FORBIDDEN, OPERATIONS
from kit.effort import pick
from schemathesis.specs.openapi.checks import positive_data_acceptance

from payagent.api.http.rate_limit import Rates
from payagent.core.problems import PROBLEMS
from payagent.proxy.app import Bounds

CASES = int(os.environ.get("PAYAGENT_API_CASES", pick(248, 600)))
"""How many calls are generated, over all operations: at least one for each caller."""

CALLERS = pick(("none", "first", "wrong", "payer"), ("first", "none", "first", "wrong", "first", "payer"))
"""Who makes a generated call, in turn: all scopes, no token, a token that nobody has, the pay scope alone."""


async def test_the_openapi_document_lists_every_operation_and_links_to_no_other_host(api: Api) -> None:
    answer = await api.http.get("/openapi.json")
    document = answer.json()
    assert document["openapi"].startswith("3.1")
    calls = {f"{method} {path}" for path, methods in document["paths"].items() for method in methods}
    assert calls == {
        "get /healthz",
        "get /metrics",
        "get /readyz",
        "get /v1/alerts",
        "get /v1/apps",
        "get /v1/channels",
        "get /v1/channels/{channel_id}",
        "get /v1/dashboard/orders/{code}",
        "get /v1/events",
        "get /v1/ledger/balance",
        "get /v1/ledger/entries",
        "get /v1/ledger/export",
        "get /v1/ledger/reconcile",
        "get /v1/ledger/refusals",
        "get /v1/ledger/report",
        "get /v1/ledger/snapshot",
        "get /v1/ledger/spend",
        "get /v1/ledger/transactions",
        "get /v1/ledger/verify",
        "get /v1/limits",
        "get /v1/log",
        "get /v1/merchants",
        "get /v1/merchants/{name}",
        "get /v1/notifications",
        "get /v1/notifications/deliveries",
        "get /v1/notifications/{name}/chats",
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
        "post /v1/apps/{name}/rotate-token",
        "post /v1/channels",
        "post /v1/channels/recover",
        "post /v1/channels/{channel_id}/add",
        "post /v1/channels/{channel_id}/close",
        "post /v1/dashboard/links",
        "post /v1/dashboard/orders/{code}/confirm",
        "post /v1/dashboard/orders/{code}/withdraw",
        "post /v1/limits",
        "post /v1/merchants/{name}/pins",
        "post /v1/merchants/{name}/resume",
        "post /v1/merchants/{name}/unpin",
        "post /v1/merchants",
        "post /v1/merchants/{name}/remove",
        "post /v1/notifications/deliveries/{delivery_id}/replay",
        "post /v1/notifications/{name}/pair",
        "post /v1/notifications/{name}/test",
        "post /v1/notifications/{name}/unpair",
        "post /v1/pause",
        "post /v1/payments",
        "post /v1/payments/{payment_id}/acknowledge",
        "post /v1/payments/{payment_id}/approve",
        "post /v1/payments/{payment_id}/delivery",
        "post /v1/payments/{payment_id}/deny",
        "post /v1/payments/{payment_id}/resolve",
        "post /v1/prepaid/quotes",
        "post /v1/prepaid/topups",
        "post /v1/prepaid/topups/{topup_id}/cancel",
        "post /v1/quotes",
        "post /v1/resume",
        "post /v1/wallet/send",
        "post /v1/wallet/split",
        "post /v1/wallet/unfreeze",
    }
    assert "http://" not in answer.text.replace("http://127.0.0.1", "")
    assert "https://" not in answer.text
    refs = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert refs == set(document["components"]["schemas"]), "a schema is missing or not used"
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert ("security" in operation) == path.startswith(("/v1/", "/metrics")), path


async def test_generated_requests_get_answers_that_match_the_openapi_document(world: World) -> None:
    world.fund(*[100_000_000] * 20)
    async with world.run() as run:
        await run.run_pass()
        async with served(run, Bounds(rates=Rates(rate_limit_per_s=10_000))) as api:
            paid = await api.pay()
            asked = await asyncio.to_thread(_ask_everything, api, str(paid["id"]))
            document = (await api.http.get("/openapi.json")).json()
    operations = {(method, path) for path, methods in document["paths"].items() for method in methods}
    callers = {"first", "none", "wrong", "payer"}
    assert {(method, path, caller) for method, path, caller, _ in asked} == {
        (*operation, caller) for operation in operations for caller in callers
    }
    assert asked.total() >= CASES
    print(sorted(Counter(status for *_, status in asked.elements()).items()))


Asked = Counter[tuple[str, str, str, int]]


def _ask_everything(api: Api, payment_id: str) -> Asked:
    """Call every operation with generated values as each caller; counts method, path, caller and status."""
    schema = schemathesis.openapi.from_url(f"{api.url}/openapi.json", timeout=60)
    operations = [result.ok() for result in schema.get_all_operations()]
    asked: Asked = Counter()
    for operation in operations:
        _ask_often(api, operation, -(-CASES // len(operations)), payment_id, asked)
    return asked


def _ask_often(api: Api, operation: Any, cases: int, payment_id: str, asked: Asked) -> None:
    turn = itertools.count()

    @seed(402)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(), again=integers())
    def call(case: schemathesis.Case, again: int) -> None:
        """`again` makes the cases of an operation without parameters differ, so that each caller sends one."""
        number = next(turn)
        caller = CALLERS[number % len(CALLERS)]
        if "payment_id" in (case.path_parameters or {}) and number % 4:
            case.path_parameters["payment_id"] = payment_id
        case.query = {name: value for name, value in (case.query or {}).items() if name != "wait"}
        status = _ask(api, case, caller)
        asked[case.method.lower(), case.path, caller, status] += 1

    call()


def _ask(api: Api, case: schemathesis.Case, caller: str) -> int:
    """Send one request and check its answer against the document and the caller's token."""
    token = api.tokens.get(caller, "pa_" + "A" * 43)
    headers = {} if caller == "none" else {"Authorization": f"Bearer {token}"}
    if case.path == "/v1/events" and caller in ("first", "payer"):
        call = case.as_transport_kwargs(base_url=api.url, headers=headers)
        with requests.request(**call, stream=True, timeout=60) as stream:  # its answer has no end
            assert stream.status_code in (200, 400), stream.status_code
            return stream.status_code
    # a body of the right form is not yet a 402 that can be paid
    answer = case.call_and_validate(headers=headers, excluded_checks=[positive_data_acceptance], timeout=60)
    status = answer.status_code
    operation = f"{case.method.lower()} {case.path}"
    if status >= 400:
        problem = answer.json()
        assert (problem["status"], problem["code"] in PROBLEMS) == (status, True), problem
    else:
        assert str(status) in case.operation.definition.raw["responses"], f"{operation}: {status}"
    if case.path.startswith(("/v1/", "/metrics")):
        assert (status == 401) == (caller in ("none", "wrong")), f"{operation} as {caller}: {status}"
        if caller == "payer" and OPERATIONS[operation][0] == FORBIDDEN:
            assert status == 403, f"{operation}: {status}"
    return status
