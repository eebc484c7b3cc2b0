"""Merchants over HTTP: who may be paid, request headers, pins, prices and stops; a payment's depth."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from kit.agent import World, with_terms, world_with_clock
from kit.api import Api, require_problem, served
from kit.canaries import plant

from payagent.agent.base.config import MerchantConfig
from payagent.core.merchant_rules import MerchantRules
from payagent.devnet.merchant import role_address

KEY = plant("a merchant's key", "canary-key-of-a-merchant")


async def test_a_program_learns_which_headers_its_requests_to_a_merchant_carry(world: World) -> None:
    inside = frozenset(("http://localhost:3000",))
    plain = MerchantConfig(
        "a", "https://a.example", None, None, "submitted", 5, api_key=KEY, resource_origins=inside
    )
    merchants = {plain.origin: plain, **{k: replace(v, api_key=KEY) for k, v in world.terms.merchants.items()}}
    async with world.run(terms=with_terms(merchants=merchants)) as run, served(run) as api:
        for app in ("payer", "reader", "operator"):
            answer = await api.as_(app).get("/v1/merchants")
            assert answer.status_code == 200
            buyer = {"X-Partner": "demo", "X-Wallet-Address": world.address}
            assert answer.json()["merchants"] == [
                {
                    "name": name,
                    "origin": origin,
                    "resource_origins": names,
                    "ready": ready,
                    "call_headers": headers,
                }
                | {"set_by": "config", "accepted_depth": None, "refused_early": False}
                | {"prices": [], "topup_path": None}
                for name, origin, names, ready, headers in (
                    ("a", plain.origin, [*inside], "submitted", {}),
                    ("t", world.origin, [], "confirmed", buyer),
                )
            ]
            assert KEY not in answer.text
        nobody = await api.http.get("/v1/merchants", headers={"Authorization": "Bearer nobody"})
        assert (nobody.status_code, nobody.json()["code"]) == (401, "unauthorized")


@pytest.mark.parametrize("blocks", [0, 1, 3])
async def test_a_payment_shows_its_depth_in_blocks(api: Api, blocks: int) -> None:
    payment = await api.pay()
    await api.run.agent.submitter.drain(60)
    await api.run.settle_down(blocks)
    told = (await api.http.get(f"/v1/payments/{payment['id']}")).json()
    assert told["depth"] == (blocks or None)


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Api]:
    """The API of a wallet whose merchant has every merchant rule: pins, price rise, unserved count."""
    with world_with_clock(tmp_path) as world:
        world.fund(*[100_000_000] * 5)
        rules = MerchantRules(
            first_use=True, price_rise_percent_max=25, stop_after_unserved=1, payments_in_flight_max=100
        )
        merchants = {origin: replace(one, rules=rules) for origin, one in world.terms.merchants.items()}
        async with world.run(terms=with_terms(merchants=merchants)) as run:
            await run.run_pass()
            async with served(run) as api:
                yield api


async def test_an_operator_sees_a_merchants_pins_prices_and_unserved_streak(guarded: Api) -> None:
    await guarded.pay(request={"method": "POST", "path": "/chat?x=1", "body_sha256": "0" * 64})
    await guarded.run.agent.submitter.drain(60)
    on_its_way = (await guarded.as_("operator").get("/v1/merchants/t")).json()
    assert on_its_way["in_flight"] == 1
    await guarded.run.settle_down()
    for app in ("reader", "operator"):
        told = (await guarded.as_(app).get("/v1/merchants/t")).json()
        paid = (("pay_to", "pay_to"), ("split", "creator"), ("split", "platform"))
        assert [(one["role"], one["address"]) for one in told["addresses"]] == sorted(
            (role, role_address(name).text) for role, name in paid
        )
        assert {one["set_by"] for one in told["addresses"]} == {"daemon"}
        agreed = {"method": "POST", "path": "/chat", "asset": "lovelace", "calls": 1, "units": "13000000"}
        assert told["prices"] == [agreed]
        settings = {
            "pin": "first_use",
            "price_rise_percent_max": 25,
            "stop_after_unserved": 1,
            "payments_in_flight_max": 100,
        }
        assert {key: told[key] for key in settings} == settings
        assert (told["unserved_streak"], told["stopped_at"], told["in_flight"]) == (0, None, 0)
    require_problem(await guarded.http.get("/v1/merchants/nobody"), "not_found")
    require_problem(await guarded.as_("payer").get("/v1/merchants/t"), "forbidden")


async def why_asked(api: Api, message: str) -> list[str]:
    """The codes of the reasons for which a payment awaits approval."""
    answer = await api.http.post("/v1/payments", json=api.body(message))
    assert (answer.status_code, answer.json()["state"]) == (202, "awaiting_approval"), answer.text
    return [reason["code"] for reason in answer.json()["approval"]["reasons"]]


async def test_an_approval_shows_why_it_is_needed_and_pins_the_new_address(guarded: Api) -> None:
    await guarded.pay("first")
    guarded.world.settings(pay_to=role_address("new").text)
    quote = (await guarded.http.post("/v1/quotes", json=guarded.body("second"))).json()
    assert [reason["code"] for reason in quote["approval"]] == ["address_not_pinned"]
    assert await why_asked(guarded, "second") == ["address_not_pinned"]
    [row] = (await guarded.http.get("/v1/payments?state=awaiting_approval")).json()["payments"]
    approved = await guarded.as_("operator").post(f"/v1/payments/{row['id']}/approve")
    assert approved.status_code == 200, approved.text
    await guarded.pay("third")


async def test_an_operator_pins_a_new_address_and_unpins_it_again(guarded: Api) -> None:
    await guarded.pay("first")
    order = {"role": "pay_to", "address": role_address("new").text}
    guarded.world.settings(pay_to=order["address"])
    told = await guarded.as_("operator").post("/v1/merchants/t/pins", json=order)
    assert order | {"set_by": "daemon"} in told.json()["addresses"]
    assert (await guarded.pay("second"))["outputs"][0]["address"] == order["address"]
    told = await guarded.as_("operator").post("/v1/merchants/t/unpin", json=order)
    assert order | {"set_by": "daemon"} not in told.json()["addresses"]
    assert await why_asked(guarded, "third") == ["address_not_pinned"]
    require_problem(await guarded.http.post("/v1/merchants/t/unpin", json=order), "not_found")
    for one in (await guarded.http.get("/v1/merchants/t")).json()["addresses"]:
        known = {"role": one["role"], "address": one["address"]}
        last = await guarded.http.post("/v1/merchants/t/unpin", json=known)
    require_problem(last, "last_pinned_address")
    for wrong in ({"role": "pay_to"}, order | {"role": "change"}, order | {"address": "addr1"}):
        require_problem(await guarded.http.post("/v1/merchants/t/pins", json=wrong), "bad_request")


async def test_a_merchant_stopped_after_an_unserved_payment_is_paid_again_after_resume(guarded: Api) -> None:
    row = await guarded.pay("first")
    await guarded.run.agent.submitter.drain(60)
    await guarded.run.settle_down()
    await guarded.run.pass_time(1, 301)
    await guarded.run.agent.deliveries.record_delivery(str(row["id"]), 402)
    told = (await guarded.http.get("/v1/merchants/t")).json()
    assert told["unserved_streak"] == 1
    assert told["stopped_at"] is not None
    answer = await guarded.http.post("/v1/payments", json=guarded.body("second"))
    problem = require_problem(answer, "merchant_stopped")
    assert (answer.status_code, problem["retryable"]) == (403, False)
    [rejected] = (await guarded.http.get("/v1/payments?state=rejected")).json()["payments"]
    assert rejected["reason"]["code"] == "merchant_stopped"
    told = (await guarded.as_("operator").post("/v1/merchants/t/resume")).json()
    assert (told["unserved_streak"], told["stopped_at"]) == (0, None)
    await guarded.pay("second")
