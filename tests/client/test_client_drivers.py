"""Whatever part of payagent presents a proof follows the rules of `core.pay_and_retry`."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from kit.agent import World
from kit.client import open_shop
from kit.drivers import BODY, DRIVERS, REQUEST, driver, order_topup
from kit.proxy import OneEach, Place

from payagent.core.prepaid_balance import CALLS
from payagent.devnet.merchant import role_address
from payagent.store.rows import prepaid

WORDS = ("duplicate_settlement", "invalid_exact_cardano_payload_nonce_not_on_chain")
"""A facilitator says so of a proof that it still settles, and of one that is used up."""


@pytest.fixture
async def shop(world: World) -> AsyncIterator[Place]:
    async with open_shop(world, topup_request=REQUEST) as at:
        yield at


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", DRIVERS)
async def test_a_proof_that_has_served_nothing_is_presented_again_whatever_the_facilitator_says(
    shop: Place, name: str, word: str
) -> None:
    wall = shop.peer.answers["/chat"] = OneEach(word, early=1)
    async with driver(name, shop) as buy:
        assert await buy(shop.peer.url) == 200
    assert len(wall.shown) == 2
    assert len(set(wall.shown)) == 1
    await shop.until_delivered()
    assert len(shop.payments) == 1


@pytest.mark.parametrize("word", WORDS)
# the SDK repeats a request once, the tool `fetch` joins identical calls, and a balance has one top-up at a time
@pytest.mark.parametrize("name", sorted(set(DRIVERS) - {"sdk", "fetch", "topup"}))
async def test_identical_requests_are_each_served_by_a_payment_of_their_own(
    shop: Place, name: str, word: str
) -> None:
    wall = shop.peer.answers["/chat"] = OneEach(word)
    async with driver(name, shop) as buy:
        assert await asyncio.gather(*(buy(shop.peer.url) for _ in range(3))) == [200] * 3
    assert len(shop.payments) == len(set(wall.shown)) == 3


# a batch is not sold by x402, which is all that the SDK speaks
@pytest.mark.parametrize("name", sorted(set(DRIVERS) - {"sdk"}))
async def test_the_proof_of_a_batch_names_the_buyer_it_was_bought_for(shop: Place, name: str) -> None:
    """The config names another partner since. The merchant accepts the proof only from the invoice's buyer."""
    world, run = shop.run.world, shop.run
    world.settings(batch=4)
    buyer = {"X-Partner": "another", "X-Wallet-Address": role_address("split").text}
    if name == "topup":
        await order_topup(shop, world.origin)
        await run.topups.run_once()
    else:
        sha256 = hashlib.sha256(BODY.encode()).hexdigest()
        request = {"method": "POST", "path": "/chat", "body_sha256": sha256, "headers": buyer}
        asked = {"status": 402, "headers": {}, "body": world.call("hello", buyer).json()}
        await shop.api.pay("hello", app="payer", request=request, response=asked)
    others = {world.origin: replace(run.context.config.merchants[world.origin], partner="since")}
    await run.context.take_config(replace(run.context.from_file, merchants=others), lambda _unit: None)
    async with driver(name, shop) as buy:
        assert await buy(world.origin) == 200
    await shop.until_delivered()
    assert len(shop.payments) == 1
    (pool,) = prepaid.all_pools(run.context.conn)
    balance = prepaid.balance(run.context.conn, pool.id, CALLS)
    assert (balance.bought, balance.used, balance.unexplained) == (4, 1, 0), "another buyer's balance was used"
