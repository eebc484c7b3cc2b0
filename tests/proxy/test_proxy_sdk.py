"""The official x402 SDK's resource server and FastAPI middleware, paid through the proxy."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from kit.agent import ADA, World
from kit.proxy import Place, blocks, place
from kit.sdk_merchant import SdkMerchant


@pytest.fixture(params=[True, False], ids=["replays", "strict"])
async def shop(world: World, request: pytest.FixtureRequest) -> AsyncIterator[tuple[Place, SdkMerchant]]:
    """The merchant `t` is the SDK's; one that does not replay requires a payment per request."""
    world.fund(*[20 * ADA] * 8)
    with SdkMerchant(world.devnet, replays=request.param, price="2000000") as merchant:
        async with place(world, origin=merchant.url) as at, blocks(at.run):
            yield at, merchant


async def test_the_sdks_merchant_is_paid_and_serves(shop: tuple[Place, SdkMerchant]) -> None:
    at, merchant = shop
    assert (await at.ask("/free")).status == 200
    got = await at.ask("/premium?a=b%20c")
    assert (got.status, json.loads(got.body or b"")) == (200, {"answer": "This answer was paid for."})
    got = await at.ask("/chat", "Content-Type: application/json", method="POST", body=b'{"message": "hello"}')
    assert (got.status, json.loads(got.body or b"")) == (200, {"reply": "hello"})
    await at.until_delivered(2)
    assert merchant.payments == {payment.attempt.tx_id: 1 for payment in at.payments}


async def test_concurrent_identical_requests_pay_as_often_as_the_merchant_requires(
    shop: tuple[Place, SdkMerchant], request: pytest.FixtureRequest
) -> None:
    at, merchant = shop
    got = await asyncio.gather(*(at.ask("/premium") for _ in range(4)))
    assert [answer.status for answer in got] == [200] * 4
    payments = 1 if "replays" in request.node.name else 4
    assert len(at.payments) == len(merchant.payments) == payments
