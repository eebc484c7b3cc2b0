"""Batches through the proxy: one is bought however many calls come at once, and the rest are served from it."""

import asyncio
import json

import pytest
from agent_kit import ADA, World
from proxy_kit import Place, blocks, place

from payagent.agent.prepaid import is_batch
from payagent.core.prepaid import CALLS
from payagent.store import prepaid


@pytest.fixture
async def shop(world: World):  # type: ignore[no-untyped-def]
    world.fund(*[50 * ADA] * 8)
    async with place(world) as at, blocks(at.run):
        yield at


def left(shop: Place) -> tuple[int, int, int]:
    """(bought, used, unexplained)"""
    (pool,) = prepaid.all_pools(shop.run.agent.conn)
    found = prepaid.balance(shop.run.agent.conn, pool.id, CALLS)
    return found.bought, found.used, found.unexplained


async def call(shop: Place, number: int, *headers: str) -> int:
    body = json.dumps({"message": f"call {number}"}).encode()
    return (await shop.ask("/chat", *headers, method="POST", body=body, merchant="devnet")).status


async def test_a_hundred_first_calls_at_once_buy_one_batch(shop: Place) -> None:
    shop.run.world.settings(batch=100)
    statuses = await asyncio.gather(*(call(shop, number) for number in range(100)))
    assert set(statuses) == {200}
    assert [is_batch(row.batch_target) for row in shop.payments] == [True]
    assert len(shop.run.world.transactions()) == 1
    await shop.until(lambda: left(shop) == (100, 100, 0), "not all are counted")


async def test_calls_that_wait_for_an_identical_one_do_not_pay_with_their_old_402(shop: Place) -> None:
    shop.run.world.settings(batch=100)
    statuses = await asyncio.gather(*(call(shop, number % 5) for number in range(50)))
    assert set(statuses) == {200}
    assert len(shop.run.world.transactions()) == 1


async def test_a_key_makes_one_call_of_the_same_request_only(shop: Place) -> None:
    shop.run.world.settings(batch=10)
    assert await call(shop, 1) == 200
    for number in (2, 3, 3):
        assert await call(shop, number, "Idempotency-Key: k") == 200
    await shop.until(lambda: left(shop)[1] == 3, "the first call, the second, and the third once")


async def test_when_a_batch_is_used_up_the_next_one_is_bought(shop: Place) -> None:
    shop.run.world.settings(batch=3)
    statuses = await asyncio.gather(*(call(shop, number) for number in range(7)))
    assert set(statuses) == {200}
    assert len(shop.run.world.transactions()) == 3
    await shop.until(lambda: left(shop) == (9, 7, 0), "not all are counted")


async def test_a_merchant_that_wants_the_wallet_is_told_it(world: World) -> None:
    from dataclasses import replace

    world.fund(50 * ADA)
    world.settings(batch=3)
    known = world.terms.merchants[world.origin]
    world.terms = replace(world.terms, merchants={world.origin: replace(known, partner=None)})
    async with place(world) as shop, blocks(shop.run):
        assert await call(shop, 1) == 200
        assert await call(shop, 2, f"X-Wallet-Address: {world.address}") == 200
        await shop.until(lambda: left(shop) == (3, 2, 0), "not all are counted")
        (pool,) = prepaid.all_pools(shop.run.agent.conn)
        assert (pool.partner, pool.wallet) == ("", world.address)
