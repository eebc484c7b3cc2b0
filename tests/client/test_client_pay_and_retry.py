"""A program pays through its transport: once, with the same proof until it is served, or it gets an error."""

import asyncio
import gzip
import json
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from kit.agent import ADA, World
from kit.certificates import certificate, server_context
from kit.client import WAYS, Program, Start, both_ways, end_patience, open_shop, refusal
from kit.commitments import commitment_to
from kit.effort import pick
from kit.http import NO_TLS, compressed
from kit.proxy import (
    BOUND,
    SERVED,
    Binding,
    Heard,
    Paywall,
    Peer,
    Pending202,
    Place,
    as_402,
    packed,
    place,
    saying,
)

from payagent.client import AsyncPayAgentTransport, PayAgentTransport
from payagent.client.request import read_call
from payagent.core.payment.machine import Delivery, State
from payagent.devnet.merchant import role_address

BODY = b'{"message": "hello"}'


def redirecting(status: int, to: str) -> Any:
    return saying(f"HTTP/1.1 {status} Moved\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode())


@both_ways
async def test_a_request_is_paid_and_served(shop: Place, start: Start) -> None:
    answer = await start().call(f"{shop.run.world.origin}/chat", "POST", content=BODY)
    assert answer.status_code == 200, answer.text
    (payment,) = shop.payments
    cost = sum(output.units for output in payment.outputs) + (payment.attempt.fee_lovelace or 0)
    marks = {name: value for name, value in answer.headers.items() if name.startswith("x-payagent-")}
    assert marks == {
        "x-payagent-payment": payment.id,
        "x-payagent-cost": f"{cost} lovelace",
        "x-payagent-state": "confirmed",
    }
    assert payment.delivery is Delivery.ACCEPTED
    assert shop.run.world.transactions() == [payment.attempt.tx_id]


async def test_the_same_request_again_is_another_payment(shop: Place, start: Start) -> None:
    program = start()
    for _ in range(2):
        assert (await program.call(f"{shop.run.world.origin}/chat", "POST", content=BODY)).status_code == 200
    assert [payment.delivery for payment in shop.payments] == [Delivery.ACCEPTED] * 2


@pytest.mark.parametrize("own", [{}, {"X-Idempotency-Key": "mine"}])
async def test_a_merchant_with_idempotency_keys_serves_again_without_a_second_payment(
    shop: Place, start: Start, own: dict[str, str]
) -> None:
    program, headers = start(), {"Idempotency-Key": "k1", **own}
    for _ in range(2):
        answer = await program.call(f"{shop.run.world.origin}/chat", "POST", content=BODY, headers=headers)
        assert answer.status_code == 200, answer.text
    assert len(shop.payments) == 1


@pytest.mark.parametrize("own", [None, "mine"])
async def test_the_programs_own_x_idempotency_key_is_the_same_on_every_request(
    shop: Place, start: Start, own: str | None
) -> None:
    wall = shop.peer.answers["/chat"] = Paywall(pending=1)
    headers = {} if own is None else {"X-Idempotency-Key": own}
    assert (await start().call(f"{shop.peer.url}/chat", headers=headers)).text == "served"
    assert [heard.header("x-idempotency-key") for heard in wall.firsts + wall.retries] == [own] * 3


async def test_a_request_served_from_a_prepaid_batch_is_not_paid_again(shop: Place, start: Start) -> None:
    """A batch belongs to the wallet, so even the first request names it."""
    shop.run.world.settings(batch=3)
    program = start()
    for number in range(3):
        content = json.dumps({"message": f"hello {number}"}).encode()
        answer = await program.call(f"{shop.run.world.origin}/chat", "POST", content=content)
        assert answer.status_code == 200, answer.text
    assert len(shop.payments) == 1


@both_ways
async def test_concurrent_requests_buy_one_batch(shop: Place, start: Start) -> None:
    shop.run.world.settings(batch=10)
    program, url = start(), f"{shop.run.world.origin}/chat"
    bodies = [json.dumps({"message": f"hello {number}"}).encode() for number in range(5)]
    answers = await asyncio.gather(*(program.call(url, "POST", content=body) for body in bodies))
    assert [answer.status_code for answer in answers] == [200] * 5
    (payment,) = shop.payments
    assert shop.run.world.transactions() == [payment.attempt.tx_id]
    assert sum("x-payagent-payment" in answer.headers for answer in answers) == 1


async def test_a_request_waits_for_a_batch_in_progress_until_its_timeout(shop: Place, start: Start) -> None:
    shop.run.world.settings(batch=10)
    await shop.run.pay("bought, and never shown")
    program = start(patience_s=3.0)
    error = await refusal(program.call(f"{shop.run.world.origin}/chat", "POST", content=BODY))
    assert (error.code, error.retryable) == ("batch_in_progress", True)
    assert "Nothing was signed" in error.money
    assert len(shop.payments) == 1


async def test_requests_of_another_partner_buy_their_own_batch(shop: Place, start: Start) -> None:
    shop.run.world.settings(batch=10)
    await shop.run.pay("bought, and never shown")
    other = {"X-Partner": "another"}
    answer = await start().call(f"{shop.run.world.origin}/chat", "POST", content=BODY, headers=other)
    assert (answer.status_code, len(shop.payments)) == (200, 2)


@pytest.mark.parametrize("way", WAYS)
async def test_a_merchant_that_requires_the_wallet_address_gets_it(world: World, way: str) -> None:
    known = world.terms.merchants[world.origin]
    world.terms = replace(world.terms, merchants={world.origin: replace(known, partner=None)})
    world.settings(batch=3)
    async with open_shop(world) as at:
        program = Program(at, way)
        for number in range(3):
            content = json.dumps({"message": f"hello {number}"}).encode()
            answer = await program.call(f"{world.origin}/chat", "POST", content=program.streamed([content]))
            assert answer.status_code == 200, answer.text
        assert len(at.payments) == 1


async def test_the_wallet_address_is_sent_once_and_never_to_an_unknown_merchant(shop: Place, start: Start) -> None:
    said = b'{"detail": "wallet_address_required_for_prepaid_batches"}'
    raw = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said)
    shop.peer.answers["/chat"] = saying(raw)
    error = await refusal(start().call(f"{shop.peer.url}/chat"))
    assert error.code == "wallet_address_required"
    stranger = f"{shop.peer.url.replace('127.0.0.1', 'localhost')}/chat"
    answer = await start().call(stranger)
    assert (answer.status_code, answer.content) == (400, said)
    wallets = [call.header("x-wallet-address") for call in shop.peer.calls]
    assert wallets == [None, shop.run.world.address, None]


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"in_body": True},
        {"extra_null": True},
        {"confirmations": 3},
        {"submission_policy": "client"},
        {"version": 1, "html": True, "confirmations": -1},
    ],
    ids=str,
)
async def test_every_form_of_x402_is_paid_once_and_served(
    shop: Place, start: Start, form: dict[str, object]
) -> None:
    shop.run.world.settings(x402=form)
    answer = await start().call(f"{shop.run.world.origin}/x402/chat?a=%2F1", "POST", content=BODY)
    assert answer.status_code == 200, answer.text
    (payment,) = shop.payments
    assert answer.json()["txHash"] == payment.attempt.tx_id
    assert payment.delivery is Delivery.ACCEPTED


@pytest.mark.parametrize("way", WAYS)
async def test_with_ready_auto_a_pending_proof_is_shown_at_the_first_and_at_each_new_block(
    world: World, way: str
) -> None:
    world.fund(*[20 * ADA] * 2)
    world.terms = replace(world.terms, confirm_depth=3)
    async with place(world, ready="auto") as at:
        wall = at.peer.answers["/chat"] = Paywall(pending=1)
        call = asyncio.create_task(Program(at, way).call(f"{at.peer.url}/chat"))
        await at.until(lambda: at.payments and at.payments[0].attempt.accepted_by_provider, "not sent")
        assert wall.retries == []
        for shown in (1, 2):
            await at.run.settle_down()
            await at.until(lambda shown=shown: len(wall.retries) == shown, f"not shown {shown} times")
        assert (await call).text == "served"
        assert [(row.state, row.delivery) for row in at.payments] == [(State.IN_BLOCK, Delivery.ACCEPTED)]


@pytest.mark.parametrize("first", [None, "ab" * 32, ""])
async def test_a_202_pending_answer_is_followed_up_by_transaction_id_without_a_proof(
    shop: Place, start: Start, first: str | None
) -> None:
    """x402 version 1, as in its examples: "pending" is a 202, and the outcome has its own URL. An empty
    transaction in the 202 means that the facilitator has submitted none: the proof is shown again.
    """
    asked: list[tuple[str, bool]] = []
    entry = {"scheme": "exact", "network": "cardano-devnet", "maxAmountRequired": "2000000", "asset": "lovelace"}
    entry |= {"payTo": role_address("pay_to").text, "maxTimeoutSeconds": 600, "extra": {"decimals": 6}}
    required = json.dumps({"x402Version": 1, "error": "X-PAYMENT header is required", "accepts": [entry]}).encode()
    told = {"pending": True, "retryAfterSeconds": 1} | ({} if first is None else {"transaction": first})

    async def answer(heard: Heard) -> None:
        await heard.read_body()
        has_proof = heard.header("x-payment") is not None
        asked.append((heard.line.split(b" ")[1].decode(), has_proof))
        if has_proof:
            later = json.dumps(told).encode()
            told["transaction"] = "ab" * 32
            head = f"HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: {len(later)}"
            await heard.say(head.encode() + b"\r\n\r\n" + later)
        elif len(asked) == 1:
            await heard.say(as_402(None, body=required))
        else:
            await heard.say(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nserved")

    shop.peer.answers["/chat"] = answer
    assert (await start().call(f"{shop.peer.url}/chat?a=1")).text == "served"
    (payment,) = shop.payments
    shown = [("/chat?a=1", True)] * (2 if first == "" else 1)
    assert asked == [("/chat?a=1", False), *shown, (f"/chat?a=1&tx={payment.attempt.tx_id}", False)]
    assert payment.delivery is Delivery.ACCEPTED


@pytest.mark.parametrize("way", WAYS)
async def test_a_payment_commits_to_the_headers_that_the_merchant_binds(world: World, way: str) -> None:
    async with open_shop(world, request_commitment=True) as shop:
        shop.peer.answers["/chat"] = Binding(BOUND)
        headers = [("Content-Type", "application/json"), ("Accept-Language", "de"), ("Accept-Language", "en")]
        answer = await Program(shop, way).call(f"{shop.peer.url}/chat?a=1", "POST", content=BODY, headers=headers)
        assert (answer.status_code, answer.text) == (200, "served")
        (payment,) = shop.payments
        assert payment.invoice.commitment is not None


@pytest.mark.parametrize(
    ("required", "told"),
    [
        (packed({"extensions": commitment_to("http://a", True, headers=dict.fromkeys(BOUND))}), {"content-type"}),
        (packed({"extensions": commitment_to("http://a", True)}), set()),
        (
            packed({"extensions": {"cardano-request-commitment": {"info": {"bindingParams": {"headers": [1]}}}}}),
            set(),
        ),
        (packed({"x402Version": 2, "accepts": []}), set()),
        (packed([1]), set()),
        ("no base64", set()),
        (None, set()),
    ],
)
def test_the_daemon_gets_only_the_buyer_headers_and_those_that_the_merchant_binds(
    required: str | None, told: set[str]
) -> None:
    """A program that holds the daemon's port while it is down must not get the merchant's secrets."""
    secret = {"Authorization": "Bearer secret", "Cookie": "secret", "Content-Type": "text/plain", "X-Partner": "p"}
    call = read_call(httpx.Request("GET", "http://a", headers=secret), None, None, 0)
    call.body.rest()
    call.body.buffer.close()
    demand = httpx.Response(402, headers={} if required is None else {"PAYMENT-REQUIRED": required})
    headers = call.ask(demand, b"")["request"]["headers"]
    assert {name.lower() for name, _ in headers} == {"x-partner"} | told


@pytest.mark.parametrize(
    ("kind", "receipts"), [("application/json", 1), ("application/json", 2), ("text/plain", 1), (None, 1)]
)
async def test_a_202_whose_receipt_says_pending_is_retried_with_the_same_proof(
    shop: Place, start: Start, kind: str | None, receipts: int
) -> None:
    """The Cardano x402 starter answers so: the same proof is shown again, and no second payment is made."""
    wall = shop.peer.answers["/chat"] = Pending202(times=2, kind=kind, receipts=receipts)
    answer = await start().call(f"{shop.peer.url}/chat", "POST", content=BODY)
    assert (answer.status_code, answer.text) == (200, "served")
    assert len(wall.proofs) == 3
    assert len(set(wall.proofs)) == 1
    (payment,) = shop.payments
    assert payment.delivery is Delivery.ACCEPTED


@pytest.mark.parametrize("size", pick([1024 * 1024 + 1], [0, 1000, 1024 * 1024 + 1, 3_000_000]))
@both_ways
async def test_a_streamed_body_is_sent_again_with_the_proof(shop: Place, start: Start, size: int) -> None:
    wall = shop.peer.answers["/images"] = Paywall()
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    program = start()
    parts = [body[at : at + 100_000] for at in range(0, len(body), 100_000)]
    answer = await program.call(f"{shop.peer.url}/images?n=1", "POST", content=program.streamed(parts))
    assert (answer.status_code, answer.text) == (200, "served")
    assert [call.body for call in (*wall.firsts, *wall.retries)] == [body, body]
    assert [call.line for call in wall.retries] == [b"POST /images?n=1 HTTP/1.1"]


@both_ways
async def test_a_request_whose_body_is_too_big_to_replay_is_not_paid(shop: Place, start: Start) -> None:
    shop.peer.answers["/images"] = Paywall()
    program = start(spool_bytes=1000)
    for url, expected in (
        (f"{shop.peer.url}/images", "request_too_big_to_replay"),
        (f"{shop.peer.url}/free", None),
    ):
        call = program.call(url, "POST", content=program.streamed([b"x" * 600, b"y" * 600]))
        if expected is None:
            assert (await call).text == "ok"
        else:
            error = await refusal(call)
            assert (error.code, "Nothing was signed" in error.money) == (expected, True)
    assert shop.payments == []


async def test_a_402_of_an_unknown_merchant_is_passed_on_however_long_the_body(shop: Place, start: Start) -> None:
    shop.peer.answers["/images"] = Paywall()
    program = start(spool_bytes=1000)
    unknown = f"{shop.peer.url.replace('127.0.0.1', 'localhost')}/images"
    answer = await program.call(unknown, "POST", content=program.streamed([b"x" * 2000]))
    assert (answer.status_code, answer.json()["detail"]["invoiceId"]) == (402, "inv-1")
    assert answer.extensions["payagent_refusal"]["code"] == "merchant_not_allowed"


@pytest.mark.parametrize("said", ["pending", "lost", "broken", "503", "999", "another invoice"])
async def test_the_same_proof_is_shown_until_the_request_is_served(shop: Place, start: Start, said: str) -> None:
    wall = Paywall()
    tries: list[str | None] = []

    async def answer(heard: Heard) -> None:
        await heard.read_body()
        if (proof := heard.header("x-payment")) is not None:
            tries.append(proof)
            if len(tries) < 3:
                if said == "lost":
                    heard.writer.close()
                elif said == "broken":
                    await heard.say(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 9\r\n\r\nhalf")
                    heard.writer.close()
                elif said in ("503", "999"):
                    await heard.say(f"HTTP/1.1 {said} Busy\r\nContent-Length: 0\r\n\r\n".encode())
                else:
                    is_pending = said == "pending"
                    await heard.say(as_402({"status": "pending"} if is_pending else wall._invoice()))
                return
        await wall(heard)

    shop.peer.answers["/chat"] = answer
    got = await start().call(f"{shop.peer.url}/chat")
    assert (got.status_code, got.text) == (200, "served")
    (payment,) = shop.payments
    assert tries == [payment.attempt.tx_id] * 3


@both_ways
async def test_after_a_timeout_the_next_request_shows_the_same_proof(
    shop: Place, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall, lost = Paywall(), list[Heard]()

    async def hang_up(heard: Heard) -> None:
        await heard.read_body()
        if heard.header("x-payment") is None:
            await wall(heard)
        else:
            lost.append(heard)
            heard.writer.close()

    shop.peer.answers["/chat"] = hang_up
    with monkeypatch.context() as soon:
        end_patience(soon, lambda: len(lost) > 1)
        error = await refusal(start().call(f"{shop.peer.url}/chat"))
    (payment,) = shop.payments
    assert (error.code, error.payment, error.retryable) == ("not_served_yet", payment.id, True)
    assert payment.delivery is Delivery.PRESENTED  # a payment that is never served counts against the merchant
    assert shop.run.events(payment.id).count("delivery_present") == 1
    shop.peer.answers["/chat"] = wall
    assert (await start().call(f"{shop.peer.url}/chat")).status_code == 200
    assert [call.header("x-payment") for call in wall.retries] == [payment.attempt.tx_id]
    assert len(shop.payments) == 1


async def test_a_timeout_error_contains_the_merchants_last_402(
    shop: Place, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = shop.peer.answers["/chat"] = Paywall(pending=1000)
    end_patience(monkeypatch, lambda: len(wall.retries) > 1)
    error = await refusal(start().call(f"{shop.peer.url}/chat"))
    (payment,) = shop.payments
    assert (error.code, error.payment) == ("paid_not_served", payment.id)
    answer = error.problem["merchant_answer"]
    assert (answer["status"], json.loads(answer["body"])) == (402, {"detail": {"status": "pending"}})


@pytest.mark.parametrize("way", WAYS)
async def test_a_timeout_error_names_the_payment_when_a_lost_answer_followed_a_402(
    world: World, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two answers the daemon sent the payment's state, without the merchant's answer."""
    world.fund(*[20 * ADA] * 2)
    world.terms = replace(world.terms, confirm_depth=3)
    wall, lost = Paywall(pending=1), list[Heard]()

    async def wait_then_hang_up(heard: Heard) -> None:
        if heard.header("x-payment") is None or not wall.retries:
            await wall(heard)
        else:
            await heard.read_body()
            lost.append(heard)
            heard.writer.close()

    async with place(world, ready="auto") as at:
        at.peer.answers["/chat"] = wait_then_hang_up
        end_patience(monkeypatch, lambda: len(lost) > 1)
        call = asyncio.create_task(refusal(Program(at, way).call(f"{at.peer.url}/chat")))
        await at.until(lambda: at.payments and at.payments[0].attempt.accepted_by_provider, "not sent")
        await at.run.settle_down()
        await at.until(lambda: len(wall.retries) == 1, "not shown once")
        await at.run.settle_down()
        error = await call
        assert (error.code, error.payment) == ("paid_not_served", at.payments[0].id)
        assert error.problem["merchant_answer"]["status"] == 402


async def test_the_merchants_last_answer_is_returned_after_a_timeout(
    shop: Place, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = saying(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy")
    wall = shop.peer.answers["/chat"] = Paywall(serve=busy)
    end_patience(monkeypatch, lambda: len(wall.retries) > 1)
    answer = await start().call(f"{shop.peer.url}/chat")
    (payment,) = shop.payments
    assert (answer.status_code, answer.text) == (503, "busy")
    assert answer.headers["x-payagent-payment"] == payment.id


async def test_a_transaction_refused_by_the_merchant_is_a_void_payment(shop: Place, start: Start) -> None:
    shop.run.world.settings(x402={"fault": "refuse_verify", "fault_count": 1})
    error = await refusal(start().call(f"{shop.run.world.origin}/x402/chat", "POST", content=BODY))
    (payment,) = shop.payments
    assert (error.code, error.reason, error.payment) == ("payment_void", "merchant_refused", payment.id)


async def test_a_paid_request_may_take_longer_than_the_clients_timeout(shop: Place, start: Start) -> None:
    async def slow(heard: Heard) -> None:
        await asyncio.sleep(6)  # the time that settling takes, not a wait for an event
        await heard.say(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow")

    wall = shop.peer.answers["/chat"] = Paywall(serve=slow)
    assert (await start().call(f"{shop.peer.url}/chat", timeout=5)).text == "slow"
    assert len(wall.retries) == 1


@both_ways
async def test_a_payment_counts_as_delivered_only_when_the_answer_was_read_to_its_end(
    shop: Place, start: Start
) -> None:
    async def long(heard: Heard) -> None:
        await heard.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(200):
            await heard.say_chunk(b"%d" % number * 1000)
        await heard.say(b"0\r\n\r\n")

    wall = shop.peer.answers["/chat"] = Paywall(serve=long)
    program = start()
    assert (await program.peek(f"{shop.peer.url}/chat")).startswith(b"000")
    assert shop.payments[0].delivery is not Delivery.ACCEPTED
    assert len((await program.call(f"{shop.peer.url}/chat")).content) > 200_000
    (payment,) = shop.payments
    assert (payment.delivery, len(wall.retries)) == (Delivery.ACCEPTED, 2)


@pytest.mark.parametrize("strict", [False, True])
async def test_concurrent_identical_requests_never_pay_more_often_than_they_are_served(
    shop: Place, start: Start, strict: bool
) -> None:
    async def once_all_have_come(heard: Heard) -> None:
        await shop.until(lambda: strict or len(wall.retries) == 5, "not all five have sent the proof")
        await SERVED(heard)

    wall = shop.peer.answers["/chat"] = Paywall(strict=strict, serve=once_all_have_come)
    program = start()
    calls = (program.call(f"{shop.peer.url}/chat") for _ in range(5))
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert len(shop.payments) <= wall.served
    served = [answer for answer in answers if isinstance(answer, httpx.Response) and answer.status_code == 200]
    assert len(served) == wall.served
    # A request that shared a payment which served another may fail; called again, it pays for itself.
    assert {getattr(answer, "code", None) for answer in answers if answer not in served} <= {"paid_not_served"}
    if not strict:
        assert (len(shop.payments), wall.served) == (1, 5)


async def test_a_request_whose_payment_served_another_pays_for_itself(shop: Place, start: Start) -> None:
    wall = Paywall(strict=True)
    waiting = asyncio.Event()
    other: list[str] = []

    async def answer(heard: Heard) -> None:
        """The first retry is held back until another call was served with its proof."""
        proof = heard.header("x-payment")
        if proof is not None and not other:
            other.append(proof)
            await waiting.wait()
        await wall(heard)

    shop.peer.answers["/chat"] = answer
    program = start()
    first = asyncio.create_task(program.call(f"{shop.peer.url}/chat"))
    await shop.until(lambda: other, "the first retry did not come")
    assert (await program.call(f"{shop.peer.url}/chat")).status_code == 200
    waiting.set()
    assert (await first).status_code == 200
    assert (len(shop.payments), wall.served) == (2, 2)


async def test_a_used_proof_whose_answer_was_lost_is_not_paid_again(shop: Place, start: Start) -> None:
    wall = shop.peer.answers["/chat"] = Paywall(strict=True)
    await start().peek(f"{shop.peer.url}/chat")
    error = await refusal(start().call(f"{shop.peer.url}/chat"))
    assert (error.code, error.payment) == ("paid_not_served", shop.payments[0].id)
    assert "paid_already" in error.problem["merchant_answer"]["body"]
    assert (len(shop.payments), wall.served) == (1, 1)


async def test_a_304_not_modified_counts_as_served(shop: Place, start: Start) -> None:
    same = saying(b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\n\r\n')
    wall = shop.peer.answers["/chat"] = Paywall(strict=True, serve=same)
    program = start()
    for _ in range(2):
        answer = await program.call(f"{shop.peer.url}/chat", headers={"If-None-Match": '"1"'})
        assert (answer.status_code, "x-payagent-cost" in answer.headers) == (304, True)
    assert [payment.delivery for payment in shop.payments] == [Delivery.ACCEPTED] * 2
    assert wall.served == 2


async def test_an_idempotency_key_is_never_paid_twice(shop: Place, start: Start) -> None:
    wall = shop.peer.answers["/chat"] = Paywall(strict=True)
    program = start()
    key = {"Idempotency-Key": "order-1"}
    assert (await program.call(f"{shop.peer.url}/chat", headers=key)).status_code == 200
    error = await refusal(program.call(f"{shop.peer.url}/chat", headers=key))
    assert (error.code, error.payment) == ("paid_not_served", shop.payments[0].id)
    assert len(shop.payments) == 1
    assert {call.header("idempotency-key") for call in wall.firsts + wall.retries} == {"order-1"}


@pytest.mark.parametrize("status", [303, 307])
@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_redirect_after_paying_is_not_paid_again_and_gets_no_proof(
    shop: Place, start: Start, status: int, elsewhere: bool
) -> None:
    target = f"{shop.run.world.origin}/x402/chat" if elsewhere else f"{shop.peer.url}/second"
    first = shop.peer.answers["/first"] = Paywall(serve=redirecting(status, target))
    second = shop.peer.answers["/second"] = Paywall(name="second")
    error = await refusal(start().call(f"{shop.peer.url}/first", follow_redirects=True))
    (payment,) = shop.payments
    assert (error.code, error.payment) == ("paid_not_served", payment.id)
    assert (str(error.request.url), error.problem["merchant_answer"]["status"]) == (target, 402)
    assert first.proofs == [payment.attempt.tx_id]
    assert second.retries == []
    assert not any(
        name.startswith((b"x-payment", b"x-invoice")) for call in second.firsts for name, _ in call.headers
    )
    assert shop.run.world.transactions() == [payment.attempt.tx_id]


async def test_a_redirect_before_paying_is_followed_and_its_target_paid(shop: Place, start: Start) -> None:
    shop.peer.answers["/first"] = redirecting(307, f"{shop.peer.url}/second")
    second = shop.peer.answers["/second"] = Paywall()
    answer = await start().call(f"{shop.peer.url}/first", follow_redirects=True)
    assert (answer.status_code, second.served, len(shop.payments)) == (200, 1, 1)


async def test_a_redirect_to_itself_shows_the_same_proof(shop: Place, start: Start) -> None:
    wall = Paywall()
    moved = redirecting(307, f"{shop.peer.url}/chat")

    async def answer(heard: Heard) -> None:
        if heard.header("x-payment") is not None and not wall.proofs:
            wall.proofs.append("moved")
            await moved(heard)
        else:
            await wall(heard)

    shop.peer.answers["/chat"] = answer
    got = await start().call(f"{shop.peer.url}/chat", follow_redirects=True)
    assert (got.status_code, len(shop.payments)) == (200, 1)


async def test_a_compressed_402_is_read(shop: Place, start: Start) -> None:
    wall = Paywall()

    async def packed(heard: Heard) -> None:
        if heard.header("x-payment") is None:
            body = gzip.compress(json.dumps({"detail": wall._invoice()}).encode())
            await heard.say(as_402(None, "Content-Encoding: gzip", body=body))
        else:
            await wall(heard)

    shop.peer.answers["/chat"] = packed
    assert (await start().call(f"{shop.peer.url}/chat")).status_code == 200


async def test_a_request_above_its_maximum_cost_is_refused_and_not_paid(shop: Place, start: Start) -> None:
    wall = shop.peer.answers["/chat"] = Paywall(price=2 * ADA)
    url = f"{shop.peer.url}/chat"
    calls = {
        "of the transport": start(max_cost_units=2 * ADA).call(url),
        "of the call": start().call(url, headers={"X-Payagent-Max-Cost": str(2 * ADA)}),
        "the lower one counts": start(max_cost_units=2 * ADA).call(
            url, headers={"X-Payagent-Max-Cost": str(9 * ADA)}
        ),
        "of another asset": start(max_cost_units=9 * ADA, max_cost_asset="ab" * 28).call(url),
        "of another asset, by the call": start(max_cost_units=9 * ADA).call(
            url, headers={"X-Payagent-Max-Cost": f"{9 * ADA} {'ab' * 28}"}
        ),
    }
    for what, call in calls.items():
        error = await refusal(call)
        assert error.code == "limit_exceeded", what
        assert "Nothing was signed" in error.money
        assert str(error.request.url) == url
    assert (wall.served, shop.run.world.transactions()) == (0, [])
    assert (await start(max_cost_units=3 * ADA).call(url)).status_code == 200


async def test_a_requests_maximum_cost_must_use_the_asset_of_the_transport(shop: Place, start: Start) -> None:
    shop.peer.answers["/chat"] = Paywall(price=2 * ADA)
    url, program = f"{shop.peer.url}/chat", start(max_cost_units=3 * ADA, max_cost_asset="lovelace")
    error = await refusal(program.call(url, headers={"X-Payagent-Max-Cost": f"9 {'ab' * 28}"}))
    assert (error.code, shop.peer.calls) == ("bad_request", [])
    assert (await program.call(url, headers={"X-Payagent-Max-Cost": f"{9 * ADA} lovelace"})).status_code == 200


async def test_max_cost_asset_without_units_is_refused_and_nothing_is_paid(shop: Place, start: Start) -> None:
    """Otherwise the program would believe that nothing but this asset is paid."""
    shop.peer.answers["/chat"] = Paywall(price=2 * ADA)
    error = await refusal(start(max_cost_asset="lovelace").call(f"{shop.peer.url}/chat"))
    assert (error.code, shop.run.world.transactions()) == ("bad_request", [])


async def test_a_dry_run_returns_a_quote_and_pays_nothing(shop: Place, start: Start) -> None:
    shop.peer.answers["/chat"] = Paywall(price=2 * ADA)
    dry = {"X-Payagent-Dry-Run": "true"}
    quote = (await start().call(f"{shop.peer.url}/chat", headers=dry)).json()
    assert (quote["outputs"][0]["units"], quote["within_limits"]) == (str(2 * ADA), True)
    assert (await start().call(f"{shop.peer.url}/free", headers=dry)).text == "ok"
    assert shop.payments == []


async def test_a_dry_run_of_a_prepaid_request_sends_no_request(shop: Place, start: Start) -> None:
    world, dry = shop.run.world, {"X-Payagent-Dry-Run": "true"}
    world.settings(batch=3)
    program, url = start(), f"{world.origin}/chat"
    assert (await program.call(url, "POST", content=BODY)).status_code == 200
    quote = (await program.call(url, "POST", content=BODY, headers=dry)).json()
    assert quote == {
        "prepaid": True,
        "network": "devnet",
        "origin": world.origin,
        "unit": "calls",
        "units": "1",
        "within_limits": True,
    }
    (told,) = world.http.get(f"{world.origin}/merchant/state").json()["balances"]
    assert told["used"] == 1
    other = {**dry, "X-Partner": "another"}
    quote = (await program.call(url, "POST", content=BODY, headers=other)).json()
    assert (quote["prepaid"], quote["batch_target"]) == (False, 3), "another partner's balance does not serve it"


@pytest.mark.parametrize(
    "headers",
    [
        [("X-Payagent-Max-Cost", "1.5")],
        [("X-Payagent-Dry-Run", "yes")],
        [("X-Payagent-Max-Costs", "1")],
        [("X-Payagent-Max-Cost", "1"), ("x-payagent-max-cost", str(5 * ADA))],
    ],
)
async def test_an_invalid_x_payagent_header_stops_the_request(
    shop: Place, start: Start, headers: list[tuple[str, str]]
) -> None:
    error = await refusal(start().call(f"{shop.peer.url}/chat", headers=headers))
    assert error.code == "bad_request"
    assert shop.peer.calls == []


async def test_x_payagent_headers_are_neither_sent_to_nor_accepted_from_the_merchant(
    shop: Place, start: Start
) -> None:
    serve = saying(
        b"HTTP/1.1 200 OK\r\nX-Payagent-State: settled\r\nx-payagent-Note: hi\r\nContent-Length: 0\r\n\r\n"
    )
    wall = shop.peer.answers["/chat"] = Paywall(serve=serve)
    shop.peer.answers["/free"] = serve
    ours = {"X-Payagent-Max-Cost": str(5 * ADA), "X-Payagent-Dry-Run": "false"}
    paid = await start().call(f"{shop.peer.url}/chat", headers=ours)
    free = await start().call(f"{shop.peer.url}/free", headers=ours)
    assert (paid.headers["x-payagent-state"], "x-payagent-note" in paid.headers) == ("confirmed", False)
    assert not any(name.startswith("x-payagent") for name in free.headers)
    for call in wall.firsts + wall.retries:
        assert not any(name.startswith(b"x-payagent") for name, _ in call.headers)


async def test_a_402_that_payagent_cannot_pay_is_passed_on_unchanged(shop: Place, start: Start) -> None:
    pending = as_402({"status": "pending"})
    page = b"HTTP/1.1 402 Payment Required\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\npay!"
    for raw, code in ((pending, "not_an_invoice"), (page, "invoice_invalid")):
        shop.peer.answers["/chat"] = saying(raw)
        answer = await start().call(f"{shop.peer.url}/chat")
        assert (answer.status_code, answer.content) == (402, raw.partition(b"\r\n\r\n")[2])
        assert answer.extensions["payagent_refusal"]["code"] == code
    shop.peer.answers["/chat"] = Paywall()
    unknown = f"{shop.peer.url.replace('127.0.0.1', 'localhost')}/chat"
    answer = await start().call(unknown)
    assert (answer.status_code, answer.json()["detail"]["invoiceId"]) == (402, "inv-1")
    assert answer.extensions["payagent_refusal"]["code"] == "merchant_not_allowed"
    assert shop.payments == []


@both_ways
async def test_a_long_402_is_passed_on_whole(shop: Place, start: Start) -> None:
    body = b"[" + b"1," * 200_000 + b"1]"
    shop.peer.answers["/chat"] = saying(as_402(None, body=body))
    answer = await start().call(f"{shop.peer.url}/chat")
    assert (answer.status_code, answer.content) == (402, body)


MEMORY_MAX_BYTES = 16 * 2**20


@pytest.mark.parametrize("coding", ["gzip", "gzip, gzip"])
async def test_a_402_that_is_a_decompression_bomb_is_passed_on_without_decompressing(
    shop: Place, start: Start, coding: str
) -> None:
    """Whether to decompress it is up to the program."""
    body = compressed(b" " * 100_000_000, coding)
    shop.peer.answers["/chat"] = saying(as_402(None, f"Content-Encoding: {coding}", body=body))
    tracemalloc.start()
    try:
        seen = await start().peek(f"{shop.peer.url}/chat")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert body.startswith(seen)
    assert peak_bytes < MEMORY_MAX_BYTES
    assert shop.payments == []


@both_ways
async def test_a_request_without_a_402_passes_unchanged(shop: Place, start: Start) -> None:
    raw = b"HTTP/1.1 418 Teapot\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 5\r\n\r\nshort"
    shop.peer.answers["/a%2Fb"] = saying(raw)
    url = f"{shop.peer.url}/a%2Fb?q=%20+%2B"
    answer = await start().call(url, "PUT", content=b"\x00\xff", headers={"X-Mine": "1"})
    assert (answer.status_code, answer.content) == (418, b"short")
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    (call,) = shop.peer.calls
    assert (call.line, call.body) == (b"PUT /a%2Fb?q=%20+%2B HTTP/1.1", b"\x00\xff")
    with httpx.Client(verify=NO_TLS, trust_env=False) as plain:
        expected = plain.build_request("PUT", url, content=b"\x00\xff", headers={"X-Mine": "1"}).headers
    assert {name.decode(): value.decode() for name, value in call.headers} == dict(expected)


def dripping(begins: bytes, more: bytes) -> Any:
    """An answer that is never idle and never ends."""

    async def drip(heard: Heard) -> None:
        with suppress(ConnectionError):
            await heard.say(begins)
            while not heard.reader.at_eof():
                await heard.say(more)
                await asyncio.sleep(0.05)

    return drip


def with_own_connections(program: Program) -> Program:
    """The program with the connections that its transport makes by itself."""
    kind = PayAgentTransport if program.way == "blocking" else AsyncPayAgentTransport
    program.transport = lambda: kind(**program.options)  # type: ignore[method-assign]
    return program


@pytest.mark.parametrize(
    ("begins", "more"),
    [
        (b"HTTP/1.1 200 OK\r\nX-Odd: ", b"X"),
        (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
        (b"HTTP/1.1 402 Payment Required\r\nContent-Length: 5000\r\n\r\n", b" "),
    ],
    ids=["head", "interim", "402"],
)
@both_ways
async def test_an_answer_that_drips_ends_as_a_timeout(
    shop: Place, start: Start, monkeypatch: pytest.MonkeyPatch, begins: bytes, more: bytes
) -> None:
    monkeypatch.setattr("payagent.client.transport.ANSWER_S", 0.5)
    shop.peer.answers["/chat"] = dripping(begins, more)
    async with asyncio.timeout(60):
        error = await refusal(with_own_connections(start()).call(f"{shop.peer.url}/chat"))
    assert isinstance(error, httpx.ReadTimeout), error


async def test_an_answer_that_drips_over_tls_ends_as_a_timeout(
    shop: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("payagent.client.transport.ANSWER_S", 0.5)
    public, private = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(public))
    async with Peer().running(server_context(public, private)) as peer, asyncio.timeout(60):
        peer.answers["/chat"] = dripping(b"HTTP/1.1 200 OK\r\nX-Odd: ", b"X")
        error = await refusal(with_own_connections(Program(shop, "blocking")).call(f"{peer.url}/chat"))
    assert isinstance(error, httpx.ReadTimeout), error


@both_ways
async def test_an_answer_that_the_program_streams_may_take_any_time(
    shop: Place, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payagent.client.transport.ANSWER_S", 2.0)

    async def serve(heard: Heard) -> None:
        await heard.say(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n")
        for _ in range(50):
            await heard.say(b"x")
            await asyncio.sleep(0.05)

    shop.peer.answers["/chat"] = serve
    answer = await with_own_connections(start()).call(f"{shop.peer.url}/chat")
    assert answer.content == b"x" * 50
