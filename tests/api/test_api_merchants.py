"""Who may be paid and what calls to them carry; how deep a payment is."""

from dataclasses import replace

import pytest
from agent_kit import World, with_terms
from api_kit import Api, served
from canaries import plant

from payagent.agent.terms import MerchantTerms

KEY = plant("a merchant's key", "canary-key-of-a-merchant")


async def test_a_program_learns_what_its_calls_should_carry(world: World) -> None:
    plain = MerchantTerms("a", "https://a.example", None, None, "submitted", 5, api_key=KEY)
    merchants = {plain.origin: plain, **{k: replace(v, api_key=KEY) for k, v in world.terms.merchants.items()}}
    async with world.run(terms=with_terms(merchants=merchants)) as run, served(run) as api:
        for app in ("payer", "reader", "operator"):
            answer = await api.as_(app).get("/v1/merchants")
            assert answer.status_code == 200
            buyer = {"X-Partner": "demo", "X-Wallet-Address": world.address}
            assert answer.json()["merchants"] == [
                {"name": "a", "origin": plain.origin, "ready": "submitted", "call_headers": {}},
                {"name": "t", "origin": world.origin, "ready": "confirmed", "call_headers": buyer},
            ]
            assert KEY not in answer.text
        nobody = await api.http.get("/v1/merchants", headers={"Authorization": "Bearer nobody"})
        assert (nobody.status_code, nobody.json()["code"]) == (401, "unauthorized")


@pytest.mark.parametrize("blocks", [0, 1, 3])
async def test_a_payment_says_how_deep_it_is(api: Api, blocks: int) -> None:
    payment = await api.pay()
    await api.run.agent.drain(10)
    await api.run.settle_down(blocks)
    told = (await api.http.get(f"/v1/payments/{payment['id']}")).json()
    assert told["depth"] == (blocks or None)
