"""Approvals over HTTP: who may decide, what an approver sees, and what the app is told."""

from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest
from kit.agent import ADA, World, with_terms
from kit.api import Api, served

from payagent.core.merchant_rules import MerchantRules
from payagent.store.rows import payments


@pytest.fixture
async def api(world: World) -> AsyncIterator[Api]:
    """A funded wallet behind a running API; above 5 ADA a person decides."""
    world.fund(*[100 * ADA] * 5)
    async with world.run(terms=with_terms(approval_required_above={"lovelace": 5 * ADA})) as run:
        await run.run_pass()
        async with served(run) as api:
            yield api


async def add_app(api: Api, name: str, *scopes: str) -> httpx.AsyncClient:
    added = await api.http.post("/v1/apps", json={"name": name, "scopes": list(scopes)})
    assert added.status_code == 201, added.text
    api.tokens[name] = added.json()["token"]
    return api.as_(name)


async def ask(api: Api, message: str = "hello", app: str = "payer") -> dict[str, object]:
    answer = await api.as_(app).post("/v1/payments", json=api.body(message))
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


async def test_a_payment_that_awaits_approval_is_answered_with_202_and_the_reason(api: Api) -> None:
    asked = await ask(api)
    assert (asked["state"], asked["headers"], asked["ready"], asked["tx_hash"]) == (
        *("awaiting_approval", {}, False),
        None,
    )
    approval = asked["approval"]
    assert [reason["code"] for reason in approval["reasons"]] == ["approval_required"]  # type: ignore[index]
    assert {"app", "limits", "history"}.isdisjoint(approval)  # type: ignore[arg-type]
    again = await ask(api)
    assert again["id"] == asked["id"]
    quote = (await api.as_("payer").post("/v1/quotes", json=api.body("another"))).json()
    assert (quote["within_limits"], [reason["code"] for reason in quote["approval"]]) == (
        True,
        ["approval_required"],
    )


async def test_a_quote_and_an_approval_say_how_many_calls_the_payment_buys(api: Api) -> None:
    api.world.settings(batch=4)
    quote = (await api.as_("payer").post("/v1/quotes", json=api.body("another"))).json()
    approval = (await ask(api))["approval"]
    assert (quote["batch_target"], approval["calls"]) == (4, 4)  # type: ignore[index]


async def test_an_approver_sees_the_transaction_the_limits_and_the_history_with_the_merchant(api: Api) -> None:
    approver = await add_app(api, "approver", "approve")
    api.world.settings(price="2000000", splits=[])
    before = await api.pay("before")
    await api.run.agent.submitter.drain(60)
    await api.run.settle_down()
    api.world.settings(price="6000000")
    asked = await ask(api)
    listed = (await approver.get("/v1/payments")).json()
    assert [row["id"] for row in listed["payments"]] == [asked["id"]], "only those that needed approval"
    assert (await approver.get(f"/v1/payments/{before['id']}")).status_code == 404
    assert listed["awaiting_approval"] == 1
    shown = (await approver.get(f"/v1/payments/{asked['id']}")).json()["approval"]
    paid = {output["address"]: output["lovelace"] for output in shown["transaction"]["outputs"]}
    wanted = {output["address"]: output["units"] for output in asked["outputs"]}  # type: ignore[attr-defined]
    assert wanted.items() <= paid.items()
    assert api.world.address in paid
    leaves = 6_000_000 + int(shown["transaction"]["fee"])
    assert leaves < int(shown["at_most"]["lovelace"]) < leaves + 100_000
    assert (shown["app"], shown["by"], shown["decision"]) == ("payer", None, None)
    assert {limit["limit"] for limit in shown["limits"]} == {"per_payment", "per_day"}
    spent = 2_000_000 + int((await api.http.get(f"/v1/payments/{before['id']}")).json()["fee"])
    assert (shown["history"]["paid"], shown["history"]["under_way"]) == (1, 0)
    assert int(shown["history"]["spent"]["lovelace"]) == spent + int(shown["at_most"]["lovelace"])
    assert listed["payments"][0]["approval"] == shown
    assert (await api.as_("payer").get("/v1/payments")).json()["payments"][0]["approval"].keys() < shown.keys()


async def test_an_approver_sees_the_agreed_price_and_the_pinned_addresses(world: World) -> None:
    world.fund(*[100 * ADA] * 5)
    rules = MerchantRules(first_use=True, price_rise_percent_max=25)
    merchants = {o: replace(m, rules=rules) for o, m in world.terms.merchants.items()}
    async with world.run(terms=with_terms(merchants=merchants)) as run, served(run) as api:
        await run.run_pass()
        request = {"method": "POST", "path": "/chat?v=1", "body_sha256": "ab" * 32}
        world.settings(price="2000000", splits=[])
        await api.pay("before", app="payer", request=request)
        await run.agent.submitter.drain(60)
        await run.settle_down()
        world.settings(price="3000000")
        body = api.body("after", request=request | {"body_sha256": "cd" * 32})
        asked = (await api.as_("payer").post("/v1/payments", json=body)).json()
        shown = (await api.http.get(f"/v1/payments/{asked['id']}")).json()["approval"]
        assert [reason["code"] for reason in shown["reasons"]] == ["price_changed"]
        price = {"method": "POST", "path": "/chat", "asset": "lovelace", "calls": 1, "units": "2000000"}
        assert shown["agreed"] == [price]
        assert [one["address"] for one in shown["pinned"]] == [asked["outputs"][0]["address"]]


async def test_decided_payments_are_listed_with_their_decision(api: Api) -> None:
    approved, denied, waiting = [await ask(api, name) for name in ("approved", "denied", "waiting")]
    await api.http.post(f"/v1/payments/{denied['id']}/deny", json={})
    await api.http.post(f"/v1/payments/{approved['id']}/approve", json={})
    listed = (await api.http.get("/v1/payments", params={"decided": "true"})).json()["payments"]
    told = [(one["id"], one["approval"]["decision"], one["approval"]["by"]) for one in listed]
    assert told == [(denied["id"], "denied", "first"), (approved["id"], "approved", "first")]
    rest = {"decided": "true", "limit": 1, "cursor": "2"}
    listed = (await api.http.get("/v1/payments", params=rest)).json()["payments"]
    assert [one["id"] for one in listed] == [approved["id"]], waiting


async def test_an_approval_signs_the_payment_and_a_later_decision_is_refused(api: Api) -> None:
    approver = await add_app(api, "approver", "approve")
    asked = await ask(api)
    approved = await approver.post(f"/v1/payments/{asked['id']}/approve", json={})
    assert approved.status_code == 200, approved.text
    assert approved.json()["headers"]["X-Payment"] == approved.json()["tx_hash"]
    assert (approved.json()["approval"]["decision"], approved.json()["approval"]["by"]) == ("approved", "approver")
    await api.run.agent.submitter.drain(60)
    await api.run.settle_down()
    payer = (await api.as_("payer").get(f"/v1/payments/{asked['id']}?wait=5")).json()
    assert payer["state"] == "confirmed"
    assert "by" not in payer["approval"]
    events = [one["event"] for one in payer["history"]]
    assert events[:4] == ["request_approval", "reserve", "sign", "submit"]
    for path in ("approve", "deny"):
        late = await approver.post(f"/v1/payments/{asked['id']}/{path}", json={})
        told = late.json()
        assert (late.status_code, told["code"], told["state"], told["decision"]) == (
            *(409, "already_decided", "confirmed"),
            "approved",
        )


async def test_asking_again_for_a_denied_payment_is_refused_with_approval_denied(api: Api) -> None:
    asked = await ask(api)
    denied = await api.as_("operator").post(f"/v1/payments/{asked['id']}/deny", json={})
    assert (denied.status_code, denied.json()["state"]) == (200, "denied")
    again = await api.as_("payer").post("/v1/payments", json=api.body("hello"))
    told = (again.status_code, again.json()["code"], again.json()["payment"])
    assert told == (403, "approval_denied", asked["id"])
    quote = await api.as_("payer").post("/v1/quotes", json=api.body("hello"))
    assert (quote.status_code, quote.json()["code"]) == (403, "approval_denied"), "a quote is refused too"
    await ask(api, "something else")
    shown = (await api.as_("payer").get(f"/v1/payments/{asked['id']}")).json()
    assert shown["reason"]["reason"] == "person"


async def test_an_app_needs_the_approve_scope_and_only_an_operator_decides_on_its_own_payment(api: Api) -> None:
    both = await add_app(api, "judge", "pay", "approve")
    asked = await ask(api, app="judge")
    other = await ask(api, "other")
    for app in ("payer", "reader", "both"):
        refused = await api.as_(app).post(f"/v1/payments/{other['id']}/approve", json={})
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    for path in ("approve", "deny"):
        refused = await both.post(f"/v1/payments/{asked['id']}/{path}", json={})
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert payments.payments_in(api.run.context.conn, ["signed", "in_flight"]) == []  # type: ignore[list-item]
    own = await ask(api, "mine", app="first")
    assert (await api.http.post(f"/v1/payments/{own['id']}/approve", json={})).status_code == 200
    assert (await both.post(f"/v1/payments/{other['id']}/approve", json={})).status_code == 200


async def test_a_payment_that_awaits_approval_cannot_be_resolved_and_the_error_says_to_deny_it(api: Api) -> None:
    asked = await ask(api)
    refused = await api.http.post(f"/v1/payments/{asked['id']}/resolve", json={})
    assert (refused.status_code, refused.json()["code"]) == (409, "wrong_state")
    assert f"payagent payments deny {asked['id']}" in refused.json()["detail"]


async def test_an_approval_refused_by_a_limit_leaves_the_payment_waiting(api: Api) -> None:
    asked = await ask(api)
    await api.http.post("/v1/limits", json={"limits": {"per_payment": "1000000"}})
    refused = await api.http.post(f"/v1/payments/{asked['id']}/approve", json={})
    assert (refused.status_code, refused.json()["code"]) == (403, "limit_exceeded")
    await api.http.post("/v1/limits", json={"limits": {"per_payment": None}})
    assert (await api.http.post(f"/v1/payments/{asked['id']}/approve", json={})).status_code == 200
    assert (await api.http.post("/v1/payments/pay_x/approve", json={})).status_code == 404


async def test_a_refusal_by_the_in_flight_limit_of_a_merchant_is_counted(world: World) -> None:
    world.fund(*[100 * ADA] * 3)
    merchants = {
        o: replace(m, rules=MerchantRules(payments_in_flight_max=1)) for o, m in world.terms.merchants.items()
    }
    async with world.run(terms=with_terms(merchants=merchants)) as run, served(run) as api:
        await run.run_pass()
        await api.pay("first")
        busy = await api.http.post("/v1/payments", json=api.body("second"))
        assert (busy.json()["code"], run.context.metrics.refusals["merchant_in_flight_limit"]) == (
            "merchant_in_flight_limit",
            1,
        )
