"""x402 through the proxy, at the devnet's merchant, which judges a transaction by the scheme's own rules."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from kit.agent import ADA, World
from kit.proxy import (
    BOUND,
    SERVED,
    Binding,
    Heard,
    Pending202,
    Place,
    as_402,
    blocks,
    packed,
    place,
    x402_required,
)

from payagent.audit.receipt import check_receipt
from payagent.audit.receipt_form import read_receipt
from payagent.store.rows import attempts_and_utxos as queries

BODY = b'{"message": "hello"}'


@pytest.fixture
async def shop(world: World) -> AsyncIterator[Place]:
    world.fund(*[20 * ADA] * 8)
    async with place(world) as at, blocks(at.run):
        yield at


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "form",
    [
        {},
        {"in_body": True},
        {"extra_null": True},
        {"confirmations": -1},
        {"confirmations": 3},
        {"submission_policy": "server"},
        {"submission_policy": "either"},
        {"submission_policy": "client"},
        {"version": 1},
        {"version": 1, "html": True},
    ],
    ids=str,
)
async def test_every_form_of_x402_is_paid_once_and_served(
    shop: Place, method: str, form: dict[str, object]
) -> None:
    shop.run.world.settings(x402=form)
    body = BODY if method == "POST" else None
    got = await shop.ask("/x402/chat?a=1", method=method, body=body, merchant="devnet")
    assert got.status == 200, got.body
    await shop.until_delivered()
    (payment,) = shop.payments
    assert json.loads(got.body or b"")["txHash"] == payment.attempt.tx_id
    assert got.values("x-payagent-cost") == [
        f"{payment.outputs[0].units + (payment.attempt.fee_lovelace or 0)} lovelace"
    ]
    await shop.until(lambda: shop.run.world.transactions() == [payment.attempt.tx_id], "it is not on the chain")


async def test_a_streamed_answer_is_paid_and_returned_to_its_end(shop: Place) -> None:
    got = await shop.ask(
        "/x402/chat", method="POST", body=b'{"message": "hello", "stream": true}', merchant="devnet"
    )
    assert (got.status, got.values("content-type")) == (200, ["text/event-stream; charset=utf-8"])
    assert (got.body or b"").endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    "fault",
    [
        "pending",
        "settle_500_before_broadcast",
        "settle_500_after_broadcast",
        "drop_after_broadcast",
        "empty_reason",
        "ttl_too_far",
    ],
)
async def test_a_payment_that_may_still_land_is_retried_with_the_same_proof(shop: Place, fault: str) -> None:
    shop.run.world.settings(x402={"fault": fault, "fault_count": 2})
    got = await shop.ask("/x402/chat", method="POST", body=BODY, merchant="devnet")
    assert got.status == 200, got.body
    assert len(shop.payments) == 1
    await shop.until(lambda: len(shop.run.world.transactions()) == 1, "it is not on the chain")


@pytest.mark.parametrize(
    ("kind", "receipts"), [("application/json", 1), ("application/json", 2), ("text/plain", 1), (None, 1)]
)
async def test_a_202_whose_receipt_says_pending_is_retried_with_the_same_proof(
    shop: Place, kind: str | None, receipts: int
) -> None:
    wall = shop.peer.answers["/chat"] = Pending202(times=2, kind=kind, receipts=receipts)
    got = await shop.ask("/chat", method="POST", body=BODY)
    assert (got.status, got.body) == (200, b"served")
    assert len(wall.proofs) == 3
    assert len(set(wall.proofs)) == 1
    await shop.until_delivered()
    assert len(shop.payments) == 1


@pytest.mark.parametrize("names", [(), BOUND])
async def test_a_payment_commits_to_the_headers_that_the_merchant_binds(
    world: World, names: tuple[str, ...]
) -> None:
    world.fund(*[20 * ADA] * 8)
    async with place(world, request_commitment=True) as shop, blocks(shop.run):
        shop.peer.answers["/chat"] = Binding(names)
        headers = ("Content-Type: application/json", "Accept-Language: de", "Accept-Language:  en\t")
        got = await shop.ask("/chat?a=1", *headers, method="POST", body=BODY)
        assert (got.status, got.body) == (200, b"served"), got
        (payment,) = shop.payments
        assert payment.invoice.commitment is not None
        answer = await shop.api.http.get(f"/v1/payments/{payment.id}/receipt")
        assert [one.what for one in check_receipt(read_receipt(answer.content))] == []


@pytest.mark.parametrize(
    ("coding", "beside"), [("br", b"\x0b\x02\x80"), ("gzip", b"no gzip"), ("identity", b" " * 2_000_000)]
)
async def test_identical_requests_are_each_served_when_the_new_402s_body_cannot_be_read(
    shop: Place, coding: str, beside: bytes
) -> None:
    """The header of the 402 says that a payment is for one request only."""
    proofs: list[str] = []

    async def wall(heard: Heard) -> None:
        await heard.read_body()
        proof = heard.header("payment-signature")
        if proof is not None and proof not in proofs:
            proofs.append(proof)
            await SERVED(heard)
            return
        required = f"PAYMENT-REQUIRED: {packed(x402_required())}"
        if heard.header("accept-encoding") == coding and (proof is not None or coding == "br"):
            await heard.say(as_402(None, required, f"Content-Encoding: {coding}", body=beside))
        else:
            await heard.say(as_402(None, required))

    shop.peer.answers["/chat"] = wall
    calls = (shop.ask("/chat", f"Accept-Encoding: {coding}", method="POST", body=BODY) for _ in range(3))
    assert [(got.status, got.body) for got in await asyncio.gather(*calls)] == [(200, b"served")] * 3
    assert len(shop.payments) == len(proofs) == 3


async def test_a_redirect_is_not_followed_with_the_transaction(shop: Place) -> None:
    shop.run.world.settings(x402={"fault": "redirect_307", "fault_count": 1})
    got = await shop.ask("/x402/chat", method="POST", body=BODY, merchant="devnet")
    assert (got.status, got.values("location")) == (307, ["/x402/elsewhere"])
    assert len(shop.payments) == 1


async def test_a_transaction_refused_by_the_merchant_is_cancelled_on_chain(shop: Place) -> None:
    """The merchant never submits it: its UTxOs are freed, and the same request later is a new payment."""
    shop.run.world.settings(x402={"fault": "refuse_verify", "fault_count": 1})
    got = await shop.ask("/x402/chat", method="POST", body=BODY, merchant="devnet")
    refused, told = shop.payments[0], json.loads(got.body or b"")
    assert (got.status, told["code"], told["payment"]) == (409, "payment_void", refused.id)
    assert told["merchant_answer"]["status"] == 402
    got = await shop.ask("/x402/chat", method="POST", body=BODY, merchant="devnet")
    assert (got.status, json.loads(got.body or b"")["code"]) == (409, "payment_void")

    looks = 0

    def is_void() -> bool:
        """A minute goes by after each pass that counted: not more, or the newest block would be too old."""
        nonlocal looks
        seen = shop.run.chain_sync._confirmations._deep_seen._seen.get(refused.id)
        if seen is not None and seen.count > looks:
            looks = seen.count
            shop.run.world.clock.ahead_ms += 61_000
        return shop.run.state(refused.id) == "void"

    await shop.until(is_void, "it is not void")
    shop.run.world.clock.ahead_ms = 0
    got = await shop.ask("/x402/chat", method="POST", body=BODY, merchant="devnet")
    assert got.status == 200, got.body
    signed = {attempt.kind: attempt.tx_id for attempt in queries.attempts(shop.run.context.conn, refused.id)}
    assert signed["cancel"] in shop.run.world.transactions()
    assert signed["pay"] not in shop.run.world.transactions()
