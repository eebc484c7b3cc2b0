"""The official TypeScript SDK's sellers on Express and on Hono, paid by each of our programs.

Settlements are counted at the chain.
"""

from collections.abc import Awaitable
from typing import Any

import httpx
import pytest
from kit.agent import ADA, World
from kit.devnet import settlements
from kit.drivers import driver
from kit.effort import pick
from kit.proxy import blocks, place
from kit.typescript_seller import IS_THERE, typescript_seller
from x402.http.clients.httpx import PaymentError

from payagent.core.payment.machine import Delivery

pytestmark = pytest.mark.skipif(
    not IS_THERE, reason="NOT RUN: node or the packages of tests/x402_sdk/sellers are missing"
)

MOODS: dict[str, dict[str, Any]] = {
    "clean": {},
    "settlement pending": {"confirmations": 2, "wait_s": 0},
    "answer lost": {"loses": True},
    "refused after payment": {"refuses": True},
    "the same call again": {"replays": False},
}
WAYS = [(framework, way) for framework in ("express", "hono") for way in ("proxy", "fetch", "async", "sdk")]
SAMPLE = [("express", "proxy", "settlement pending")]


@pytest.mark.parametrize(
    ("framework", "way", "mood"), pick(SAMPLE, [(*which, mood) for which in WAYS for mood in MOODS])
)
async def test_a_typescript_seller_is_paid_once_for_each_call(
    world: World, framework: str, way: str, mood: str
) -> None:
    world.fund(*[20 * ADA] * 4)
    async with (
        typescript_seller(world.devnet, framework, **MOODS[mood]) as url,
        place(world, origin=url) as at,
        blocks(at.run),
        driver(way, at) as buy,
    ):
        if mood == "refused after payment":
            assert 200 not in [await status(buy(url)), await status(buy(url))]
            assert settlements(world.devnet) == 1
            assert [payment.delivery for payment in at.payments] == [Delivery.PRESENTED]
            return
        if (mood, way) == ("answer lost", "sdk"):
            with pytest.raises(PaymentError, match="disconnected"):  # the SDK's client itself asks no second time
                await buy(url)
        calls = 2 if mood == "the same call again" else 1
        assert [await buy(url) for _ in range(calls)] == [200] * calls
        await at.until_delivered(calls)
        assert settlements(world.devnet) == len(at.payments) == calls


async def status(answer: Awaitable[int]) -> int | None:
    """The answer's status; None if the program is told of an error instead."""
    try:
        return await answer
    except httpx.RequestError:
        return None
