"""Concurrent identical requests: as many payments as the merchant requires, and none that serves nobody."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator

import pytest
from kit.agent import ADA, APP, World
from kit.proxy import SERVED, Got, Heard, Paywall, Place, blocks, place
from structlog.testing import capture_logs

from payagent.core.payment.machine import Delivery
from payagent.store.db.unit import Unit
from payagent.store.rows import pauses

COUNT = 5


@pytest.fixture
async def shop(world: World) -> AsyncIterator[Place]:
    world.fund(*[20 * ADA] * 8)
    async with place(world) as at, blocks(at.run):
        yield at


async def at_once(shop: Place, *headers: str, merchant: str = "t", body: bytes | None = None) -> list[Got]:
    method = "GET" if body is None else "POST"
    calls = (shop.ask("/chat", *headers, method=method, merchant=merchant, body=body) for _ in range(COUNT))
    return await asyncio.gather(*calls)


@pytest.mark.parametrize("same_invoice", [True, False])
async def test_a_merchant_that_serves_all_for_one_payment_gets_one(shop: Place, same_invoice: bool) -> None:
    wall = shop.peer.answers["/chat"] = Paywall(same_invoice=same_invoice)
    assert [got.body for got in await at_once(shop)] == [b"served"] * COUNT
    assert len(shop.payments) == 1
    assert len({heard.header("x-payment") for heard in wall.retries}) == 1


async def test_a_merchant_that_requires_a_payment_for_each_request_gets_them(shop: Place) -> None:
    wall = shop.peer.answers["/chat"] = Paywall(strict=True)
    assert [got.body for got in await at_once(shop)] == [b"served"] * COUNT
    assert wall.served == len(set(wall.proofs)) == len(shop.payments) == COUNT
    await shop.until_delivered(COUNT)


async def test_payments_for_identical_requests_are_made_one_at_a_time(shop: Place) -> None:
    """When the merchant stops serving, no request has paid ahead."""
    wall = Paywall(strict=True)
    shop.peer.answers["/chat"] = wall

    async def serve_two(heard: Heard) -> None:
        if wall.served > 2:
            wall.served -= 1
            await heard.say(b"HTTP/1.1 409 Sold Out\r\nContent-Length: 0\r\n\r\n")
        else:
            await SERVED(heard)

    wall.serve = serve_two
    statuses = [got.status for got in await at_once(shop)]
    assert sorted(statuses)[:2] == [200, 200]
    # one request after the other shows the third payment, and no more are made
    assert len(shop.payments) == 3


@pytest.mark.parametrize(("replays", "payments"), [("serve", 1), ("refuse", COUNT)])
async def test_the_devnet_merchant_gets_as_many_payments_as_it_requires(
    shop: Place, replays: str, payments: int
) -> None:
    shop.run.world.settings(replays=replays)
    got = await at_once(shop, merchant="devnet", body=b'{"message": "hello"}')
    assert [answer.status for answer in got] == [200] * COUNT
    assert len(shop.payments) == len(shop.run.world.transactions()) == payments
    await shop.until_delivered(payments)


async def test_a_new_invoice_in_answer_to_a_used_proof_is_paid(shop: Place) -> None:
    """A new invoice after the payment has served one request means that this request needs its own."""
    wall = Paywall()

    async def invoice_again(heard: Heard) -> None:
        if heard.header("x-payment") in wall.proofs:
            heard.head = heard.head.lower().replace(b"x-payment:", b"x-was-payment:")
        await wall(heard)

    shop.peer.answers["/chat"] = invoice_again
    assert [got.body for got in await at_once(shop)] == [b"served"] * COUNT
    assert wall.served == len(shop.payments) == COUNT


async def test_identical_requests_wait_until_the_first_is_served(shop: Place) -> None:
    """A merchant that gets the same request five times at once might serve none of them."""
    under_way = most = 0
    wall = Paywall()

    async def slowly(heard: Heard) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way if wall.served == 1 else 0)
        for _ in range(20):
            await asyncio.sleep(0.005)
        under_way -= 1
        await SERVED(heard)

    wall.serve = slowly
    shop.peer.answers["/chat"] = wall
    await at_once(shop)
    assert most == 1


async def test_a_request_does_not_pay_again_while_an_identical_one_is_being_answered(shop: Place) -> None:
    """Its own payment begins when the earlier one is done; until then the intent has a payment."""
    told, wall = asyncio.Event(), Paywall(strict=True)

    async def slowly(heard: Heard) -> None:
        wall.serve = SERVED
        await heard.say(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nser")
        await told.wait()
        await heard.say(b"ved")

    wall.serve = slowly
    shop.peer.answers["/chat"] = wall
    both = [asyncio.create_task(shop.ask()) for _ in range(2)]
    # first call, first proof; the second call shows it too and asks for an invoice of its own
    await shop.until(lambda: (len(wall.firsts), len(wall.retries)) == (3, 2), "the second is not told")
    assert len(shop.payments) == 1
    told.set()
    assert [got.body for got in await asyncio.gather(*both)] == [b"served"] * 2
    assert len(shop.payments) == 2


async def test_when_the_first_client_hangs_up_the_next_request_uses_its_payment(shop: Place) -> None:
    has_proof, wall = asyncio.Event(), Paywall()

    async def wait(heard: Heard) -> None:
        has_proof.set()
        await heard.until_hung_up()
        wall.serve = SERVED

    wall.serve = wait
    shop.peer.answers["/chat"] = wall
    async with shop.wire() as first:
        await first.say(shop.call())
        async with asyncio.timeout(60):
            await has_proof.wait()
        second = asyncio.create_task(shop.ask())
        await shop.until(lambda: len(wall.firsts) == 2, "the second call has its 402")
        first.hang_up()
        assert (await second).body == b"served"
    assert len({heard.header("x-payment") for heard in wall.retries}) == len(shop.payments) == 1


async def test_a_used_proof_whose_answer_was_lost_is_not_paid_again(shop: Place) -> None:
    """The merchant accepted it for a request whose answer was lost: that needs a person, not a payment."""
    wall = Paywall(strict=True)

    async def lose(heard: Heard) -> None:
        heard.writer.transport.abort()

    wall.serve = lose
    shop.peer.answers["/chat"] = wall
    for got in [*(await at_once(shop)), await shop.ask()]:
        told = json.loads(got.body or b"")
        assert (got.status, told["code"], told["payment"]) == (502, "paid_not_served", shop.payments[0].id)
        assert "paid_already" in told["merchant_answer"]["body"]
    assert len(shop.payments) == 1


async def test_a_request_that_starts_after_the_answer_is_a_new_payment(shop: Place) -> None:
    """Also while earlier identical requests are still being served."""
    hold, wall = asyncio.Event(), Paywall()
    others = 0

    async def hold_second(heard: Heard) -> None:
        nonlocal others
        others += 1
        if others == 2:
            await hold.wait()
        await SERVED(heard)

    wall.serve = hold_second
    shop.peer.answers["/chat"] = wall
    both = [asyncio.create_task(shop.ask()) for _ in range(2)]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    await shop.until(lambda: others == 2, "the other one is being served")
    assert (await shop.ask()).body == b"served"
    assert len(shop.payments) == 2
    hold.set()
    await asyncio.wait(both)


async def test_identical_requests_of_two_apps_are_two_payments(shop: Place) -> None:
    shop.peer.answers["/chat"] = Paywall()
    other = f"X-Payagent-Token: {shop.api.tokens['other']}"
    got = await asyncio.gather(shop.ask(), shop.ask("/chat", other, token=False))
    assert [answer.body for answer in got] == [b"served"] * 2
    assert {payment.app_id for payment in shop.payments} == {"app_payer", "app_other"}


async def test_a_refusal_does_not_block_later_requests(shop: Place) -> None:
    wall = shop.peer.answers["/chat"] = Paywall(price=2000 * ADA)
    assert [got.status for got in await at_once(shop)] == [403] * COUNT
    wall.price, wall.name = 2 * ADA, "now"
    assert (await shop.ask()).body == b"served"
    assert [payment.delivery for payment in shop.payments][:-1] == [Delivery.NOT_PRESENTED] * COUNT


async def test_a_refusal_after_the_client_hung_up_is_logged(shop: Place) -> None:
    shop.peer.answers["/chat"] = Paywall()
    agent, is_admitting, gone = shop.run.agent, threading.Event(), threading.Event()

    def pause(unit: Unit) -> None:
        is_admitting.set()
        assert gone.wait(60)
        pauses.begin(unit, APP, "while nobody looks", agent.context.ports.clock.now_ms())

    with capture_logs() as told:
        blocking = asyncio.create_task(agent.context.write("pause", pause))
        await asyncio.to_thread(is_admitting.wait, 60)
        async with shop.wire() as client:
            await client.say(shop.call())
            async with asyncio.timeout(60):
                while not await agent.signing.give_way():  # until its payment waits for the writer
                    await asyncio.sleep(0.005)
            client.hang_up()
        gone.set()
        await blocking
        await shop.until(lambda: any(line["event"] == "proxy.step_failed" for line in told), "nobody is told")
    (line,) = [line for line in told if line["event"] == "proxy.step_failed"]
    assert "paused" in line["error"]
    assert shop.payments == []
