"""GET /v1/payments/{id}/receipt: the records of one payment, checkable without the ledger."""

import json
from typing import Any

from kit.agent import World, daily, with_terms
from kit.api import Api, served

from payagent.audit.finding import AuditFinding
from payagent.audit.receipt import check_receipt
from payagent.audit.receipt_form import read_receipt


async def receipt_of(api: Api, payment_id: object, app: str = "first") -> dict[str, Any]:
    answer = await api.as_(app).get(f"/v1/payments/{payment_id}/receipt")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def judge(receipt: dict[str, Any]) -> list[AuditFinding]:
    return list(check_receipt(read_receipt(json.dumps(receipt).encode())))


async def test_a_receipt_holds_the_whole_payment_from_the_402_to_the_answer_of_the_retry(api: Api) -> None:
    request = {"method": "POST", "path": "/chat?fast=1", "body_sha256": "ab" * 32}
    body = api.body(request=request)
    paid = (await api.http.post("/v1/payments", json=body)).json()
    await api.run.agent.submitter.drain(60)
    await api.run.settle_down()
    too_soon = {"status": 402, "body": {"error": "x"}}
    await api.http.post(f"/v1/payments/{paid['id']}/delivery", json=too_soon)
    await api.http.post(f"/v1/payments/{paid['id']}/delivery", json={"status": 200})
    receipt = await receipt_of(api, paid["id"])
    assert judge(receipt) == []
    assert json.loads(receipt["invoice"]["response_402"]) == body["response"]
    assert receipt["payment"]["app"] == {"id": "app_first", "name": "first"}
    assert receipt["intent"]["request"] == f"POST /chat?fast=1 {'ab' * 32}"
    (attempt,) = receipt["attempts"]
    assert (attempt["tx_hash"], attempt["headers"]) == (paid["tx_hash"], paid["headers"])
    on_chain = api.world.http.get(f"{api.world.devnet.chain_url}/txs/{paid['tx_hash']}/cbor").json()["cbor"]
    assert attempt["cbor"] == on_chain
    assert receipt["block_observations"][0]["block"] == receipt["payment"]["block"]
    block = api.world.http.get(f"{api.world.devnet.chain_url}/txs/{paid['tx_hash']}").json()
    assert receipt["payment"]["block"]["hash"] == block["block"]
    (decision,) = receipt["decisions"]
    assert {limit["limit"] for limit in decision["detail"]["limits"]} >= {"per_payment", "per_day"}
    assert [answer["event"] for answer in receipt["answers"]] == [
        *("merchant_answered", "merchant_answered", "delivery_accept"),
    ]
    assert receipt["ledger"]["head"] == (await api.http.get("/v1/ledger/verify")).json()["head"]


async def test_a_receipt_is_clean_when_the_402_was_forwarded_as_text_and_header_pairs(api: Api) -> None:
    body = api.body()
    text = json.dumps(body["response"].pop("body"), indent=1)  # type: ignore[attr-defined]
    pairs = [[name, value] for name, value in body["response"]["headers"].items()]  # type: ignore[index]
    body["response"] |= {"body": text, "headers": pairs}  # type: ignore[operator]
    paid = (await api.http.post("/v1/payments", json=body)).json()
    assert judge(await receipt_of(api, paid["id"])) == []


async def test_a_receipt_keeps_fractions_in_a_402_as_written(api: Api) -> None:
    """Terms without an id get one from their whole content, examples included."""
    api.world.settings(x402={"version": 1})
    terms = api.world.http.get(f"{api.world.origin}/x402/report").json()
    terms["accepts"][0]["outputSchema"] = {"example": {"celsius": -0.50, "metres": 1e3}}
    response = {"status": 402, "headers": {"content-type": "application/json"}, "body": terms}
    paid = await api.http.post("/v1/payments", json={"origin": api.world.origin, "response": response})
    assert paid.status_code == 201, paid.text
    receipt = await receipt_of(api, paid.json()["id"])
    assert receipt["invoice"]["dialect"] == "x402-v1"
    assert json.loads(receipt["invoice"]["response_402"]) == response
    assert judge(receipt) == []


async def test_a_receipt_needs_a_scope_that_may_see_the_wallet(api: Api) -> None:
    """It shows what every limit left, shared limits included."""
    paid = await api.pay(app="payer")
    for app in ("both", "reader", "operator"):
        assert (await receipt_of(api, paid["id"], app))["payment"]["id"] == paid["id"]
    for app, status, code in (("payer", 403, "forbidden"), ("other", 403, "forbidden")):
        answer = await api.as_(app).get(f"/v1/payments/{paid['id']}/receipt")
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    answer = await api.as_("reader").get("/v1/payments/pay_none/receipt")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_a_refused_payment_has_a_receipt_with_the_reason_and_no_transaction(world: World) -> None:
    world.fund(100_000_000)
    async with world.run(terms=with_terms(limits=daily(1, 1))) as run:
        await run.run_pass()
        async with served(run) as api:
            assert (await api.http.post("/v1/payments", json=api.body())).status_code == 403
            (row,) = (await api.http.get("/v1/payments")).json()["payments"]
            receipt = await receipt_of(api, row["id"])
    assert judge(receipt) == []
    assert (receipt["attempts"], receipt["holds"], receipt["entries"]) == ([], [], [])
    assert receipt["payment"]["code"] == "limit_exceeded"
    assert receipt["decisions"][0]["event"] == "reject"
