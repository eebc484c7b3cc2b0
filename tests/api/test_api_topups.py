"""Top-ups over HTTP: one per idempotency key, dry runs that cost nothing, and the scopes they need."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from kit.agent import ADA, World
from kit.api import Api, require_problem, served
from kit.canaries import plant

from payagent.agent.base.config import TopupSource
from payagent.agent.base.requests import PaymentQuote, PaymentRequest

COST = 13 * ADA
PATH = "/v1/prepaid/topups"


@pytest.fixture
async def api(world: World) -> AsyncIterator[Api]:
    """A merchant that sells batches by a request of its own, and a funded wallet."""
    world.fund(*[100 * ADA] * 5)
    world.settings(batch=4)
    request = TopupSource("POST", "/payments/topup", "{}")
    merchants = {origin: replace(one, topup_request=request) for origin, one in world.terms.merchants.items()}
    world.terms = replace(world.terms, merchants=merchants)
    async with world.run() as run:
        await run.run_pass()
        async with served(run) as api:
            yield api


async def carry_out(api: Api) -> None:
    for _ in range(12):
        await api.run.topups.run_once()
        await api.run.agent.submitter.drain(60)
        await api.run.settle_down()


async def order(api: Api, key: str | None = "k", app: str = "operator", **body: object):  # type: ignore[no-untyped-def]
    headers = {} if key is None else {"Idempotency-Key": key}
    return await api.as_(app).post(PATH, json={"merchant": "t", "units": str(20 * ADA), **body}, headers=headers)


async def test_a_topup_is_ordered_once_per_key_and_carried_out(api: Api) -> None:
    made = await order(api)
    assert made.status_code == 201, made.text
    told = made.json()
    assert (told["state"], told["trigger"], told["bought"], told["payments"]) == ("open", "manual", "0", [])
    assert (told["merchant"], told["unit"], told["units"]) == ("t", "lovelace", str(20 * ADA))
    again = await order(api)
    assert (again.status_code, again.json()["id"]) == (200, told["id"])
    other = await order(api, units=str(COST))
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    beside = await order(api, key=None)
    assert (beside.status_code, beside.json()["code"], beside.json()["topup"]) == (
        409,
        "topup_in_progress",
        told["id"],
    )
    await carry_out(api)
    done = (await api.as_("reader").get(f"{PATH}/{told['id']}", params={"wait": "5"})).json()
    assert (done["state"], done["paid"], done["bought"]) == ("done", {"lovelace": str(2 * COST)}, str(2 * COST))
    assert len(done["payments"]) == 2
    assert "reason" not in done
    listed = (await api.as_("reader").get(PATH)).json()["topups"]
    assert listed == [done]
    (holding,) = (await api.http.get("/v1/prepaid")).json()["prepaid"]
    assert (holding["bought"], holding["used"]) == ("8", "0")


@pytest.mark.parametrize(
    ("asset", "units", "bought"), [("lovelace", 20 * ADA, 2 * COST), ("lovelace", 500 * ADA, 0), ("calls", 7, 8)]
)
async def test_a_months_report_tells_what_was_ordered_from_what_was_bought(
    api: Api, asset: str, units: int, bought: int
) -> None:
    told = (await order(api, asset=asset, units=str(units))).json()
    if bought:
        await carry_out(api)
    report = (await api.http.get("/v1/ledger/report", params={"month": told["created_at"][:7]})).json()
    (row,) = report["topups"]
    assert (row["unit"], row["units"], row["bought"]) == (asset, str(units), str(bought))


async def test_a_wait_on_a_topup_ends_when_a_payment_is_made(api: Api) -> None:
    told = (await order(api)).json()
    waiting = asyncio.create_task(api.as_("reader").get(f"{PATH}/{told['id']}", params={"wait": "20"}))
    while not waiting.done():
        await carry_out(api)
    assert waiting.result().json()["payments"]


async def test_a_dry_run_shows_the_price_and_pays_nothing(api: Api) -> None:
    answer = await order(api, dry_run=True)
    assert answer.status_code == 200
    plan = answer.json()
    assert (plan["count"], plan["price"], plan["total"], plan["calls"], plan["within_limits"]) == (
        *(2, {"asset": "lovelace", "units": str(COST)}, str(2 * COST), "8", True),
    )
    assert int(plan["spend"]["lovelace"]) == 2 * COST + int(plan["fees"])
    assert (await api.http.get(PATH)).json() == {"topups": [], "cursor": None}
    assert (await api.http.get("/v1/payments")).json()["payments"] == []
    above = (await order(api, dry_run=True, units=str(600 * ADA))).json()
    assert (above["within_limits"], above["refusal"]["code"]) == (False, "not_enough_funds")


async def test_a_prepaid_quote_says_whether_a_balance_serves_a_request_without_sending_it(api: Api) -> None:
    def ask(app: str, **request: object):  # type: ignore[no-untyped-def]
        call = {"method": "POST", "path": "/chat?n=1", **request}
        return api.as_(app).post("/v1/prepaid/quotes", json={"origin": api.world.origin, "request": call})

    assert (await ask("payer")).json() == {"prepaid": False}
    await order(api, units=str(COST))
    await carry_out(api)
    told = (await ask("payer")).json()
    assert told == {
        "prepaid": True,
        "network": "devnet",
        "origin": api.world.origin,
        "unit": "calls",
        "units": None,
        "within_limits": True,
    }
    (holding,) = (await api.http.get("/v1/prepaid")).json()["prepaid"]
    assert holding["left"] == "4"
    assert (await ask("payer", headers={"X-Partner": "another"})).json() == {"prepaid": False}
    require_problem(await ask("payer", body_sha256="0" * 64), "bad_request")
    require_problem(await ask("reader"), "forbidden")


async def test_a_dry_run_at_a_merchant_removed_meanwhile_is_refused(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = api.run.agent
    quote = agent.quote

    async def quote_then_lose_it(ask: PaymentRequest, count: int = 1) -> PaymentQuote:
        try:
            return await quote(ask, count)
        finally:
            agent.context.config = replace(agent.context.config, merchants={})

    monkeypatch.setattr(agent, "quote", quote_then_lose_it)
    answer = await order(api, dry_run=True, units=str(COST))
    assert (answer.status_code, answer.json()["code"]) == (403, "merchant_not_allowed")


async def test_a_topup_may_name_the_merchant_by_its_origin(api: Api) -> None:
    for merchant in (api.world.origin, api.world.origin + "/"):
        plan = (await order(api, dry_run=True, merchant=merchant)).json()
        assert (plan["merchant"], plan["origin"], plan["count"]) == ("t", api.world.origin, 2)


async def test_a_topup_may_use_an_ordinary_request_of_the_merchant(api: Api) -> None:
    call = {"method": "POST", "path": "/chat", "body": '{"message": "for a batch"}'}
    told = (await order(api, units=str(COST), request=call)).json()
    assert told["request"] == {"method": "POST", "path": "/chat"}
    await carry_out(api)
    (holding,) = (await api.http.get("/v1/prepaid")).json()["prepaid"]
    assert (holding["bought"], holding["used"], holding["left"]) == ("4", "1", "3")
    assert holding["difference"] in (None, "0")


async def test_an_invalid_topup_is_refused(api: Api) -> None:
    for body, status, code in [
        ({"merchant": "nobody"}, 403, "merchant_not_allowed"),
        ({"merchant": 7}, 403, "merchant_not_allowed"),
        ({"merchant": "https://nobody.example"}, 403, "merchant_not_allowed"),
        ({"units": "0"}, 400, "bad_request"),
        ({"units": 5}, 400, "bad_request"),
        ({"asset": "HOSKY"}, 400, "bad_request"),
        ({"asset": "5c" * 28}, 403, "asset_not_allowed"),
        ({"dry_run": "yes"}, 400, "bad_request"),
        ({"amount": "5"}, 400, "bad_request"),
        ({"request": {"path": "/chat"}}, 400, "bad_request"),
        ({"request": {"method": "post", "path": "/chat"}}, 400, "bad_request"),
        ({"request": {"method": "POST", "path": "chat"}}, 400, "bad_request"),
        ({"request": {"method": "POST", "path": "/chat", "body": {}}}, 400, "bad_request"),
    ]:
        answer = await order(api, **body)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert (await api.http.get(PATH)).json()["topups"] == []


async def test_a_topup_needs_the_operate_scope(api: Api) -> None:
    for app in ("payer", "reader"):
        assert (await order(api, app=app)).json()["code"] == "forbidden"
    assert (await api.as_("payer").get(PATH)).json()["code"] == "forbidden"
    assert (await api.as_("operator").get(f"{PATH}/top_none")).json()["code"] == "not_found"


async def test_an_operator_cancels_a_topup(api: Api) -> None:
    told = (await order(api)).json()
    path = f"{PATH}/{told['id']}/cancel"
    for app in ("payer", "reader"):
        assert (await api.as_(app).post(path)).json()["code"] == "forbidden"
    await api.run.topups.run_once()
    ended = await api.as_("operator").post(path)
    assert (ended.status_code, ended.json()["state"], ended.json()["reason"]["reason"]) == (
        *(200, "stopping", "cancelled"),
    )
    await carry_out(api)
    assert len(api.run.world.transactions()) == 1
    done = (await api.as_("reader").get(f"{PATH}/{told['id']}")).json()
    assert (done["state"], done["reason"]["reason"], done["bought"]) == ("stopped", "cancelled", str(COST))
    again = await api.as_("operator").post(path)
    assert (again.status_code, again.json()["code"]) == (409, "wrong_state")
    unknown = await api.as_("operator").post(f"{PATH}/top_none/cancel")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")


async def test_a_wait_ends_unauthorized_when_its_token_is_revoked(api: Api) -> None:
    told = (await order(api)).json()
    made = (await api.http.post("/v1/apps", json={"name": "auditor", "scopes": ["read"]})).json()
    api.tokens["auditor"] = plant("the token of auditor", made["token"])
    path = f"{PATH}/{told['id']}"
    waiting = asyncio.create_task(api.as_("auditor").get(path, params={"wait": "20"}))
    assert (await api.as_("auditor").get(path)).status_code == 200  # it was admitted by now
    assert (await api.http.post("/v1/apps/auditor/revoke")).status_code == 200
    while not waiting.done():
        await carry_out(api)
    assert (waiting.result().status_code, waiting.result().json()["code"]) == (401, "unauthorized")
