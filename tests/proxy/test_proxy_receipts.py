"""Receipts of payments through the proxy are clean, whatever the merchant sent beside the terms."""

from collections.abc import AsyncIterator

import pytest
from kit.agent import ADA, World
from kit.proxy import SERVED, Answer, Heard, Paywall, Place, as_402, blocks, packed, place

from payagent.audit.receipt import check_receipt
from payagent.audit.receipt_form import read_receipt
from payagent.devnet.merchant import role_address


@pytest.fixture
async def shop(world: World) -> AsyncIterator[Place]:
    world.fund(*[20 * ADA] * 8)
    async with place(world) as at, blocks(at.run):
        yield at


async def findings(shop: Place) -> list[str]:
    """What an auditor finds in the receipt of the only payment."""
    (payment,) = shop.payments
    answer = await shop.api.http.get(f"/v1/payments/{payment.id}/receipt")
    return [one.what for one in check_receipt(read_receipt(answer.content))]


def x402_with(*headers: str, body: bytes) -> Answer:
    """A merchant of x402's version 2, with this body beside its terms, which stand in a header."""
    entry = {"scheme": "exact", "network": "cardano:devnet", "amount": "2000000", "asset": "lovelace"}
    more = {"payTo": role_address("pay_to").text, "maxTimeoutSeconds": 600}
    required = packed({"x402Version": 2, "accepts": [{**entry, **more}]})

    async def answer(heard: Heard) -> None:
        await heard.read_body()
        if heard.header("payment-signature") is None:
            await heard.say(as_402(None, f"PAYMENT-REQUIRED: {required}", *headers, body=body))
        else:
            await SERVED(heard)

    return answer


@pytest.mark.parametrize(
    "body",
    [
        b"<pre>\x1b[31mPay first\x00</pre>",
        b"\xef\xbb\xbf{}",
        b'{"a": 1, "a": 2}',
        b"[" * 100_000,
        "é".encode() * (256 * 1024),
        b'"' * (512 * 1024),
        b"\xff" * (512 * 1024),
    ],
    ids=["controls", "bom", "key_twice", "deep", "long", "quotes", "bytes"],
)
async def test_a_receipt_is_clean_whatever_body_came_with_the_terms(shop: Place, body: bytes) -> None:
    shop.peer.answers["/chat"] = x402_with(body=body)
    assert (await shop.ask()).body == b"served"
    assert await findings(shop) == []


async def test_a_receipt_is_clean_whatever_headers_came_with_the_terms(shop: Place) -> None:
    odd = [f"X-Odd-{number}: {chr(27) * 900}" for number in range(120)]
    shop.peer.answers["/chat"] = x402_with(*odd, body=b"\x01" * (512 * 1024))
    assert (await shop.ask()).body == b"served"
    assert await findings(shop) == []


async def test_a_stored_402_is_limited_in_size(shop: Place) -> None:
    shop.peer.answers["/chat"] = x402_with(body=b"\x01" * (512 * 1024))
    assert (await shop.ask()).body == b"served"
    ((room,),) = shop.run.context.conn.execute("SELECT LENGTH(response_402) FROM invoices")
    assert room < 800_000


async def test_a_receipt_is_clean_after_a_broken_answer_with_a_long_error(shop: Place) -> None:
    wall = Paywall()

    async def break_first(heard: Heard) -> None:
        if heard.header("x-payment") is None or len(wall.retries):
            await wall(heard)
        else:
            wall.retries.append(heard)
            await heard.say(b"HTTP/1.1 402 No\r\nTransfer-Encoding: chunked\r\n\r\n" + b"\xff" * 100_000 + b"\r\n")
            heard.writer.close()

    shop.peer.answers["/chat"] = break_first
    assert (await shop.ask()).body == b"served"
    assert await findings(shop) == []
    told = shop.run.context.conn.execute("SELECT detail FROM events WHERE detail LIKE '%illegal chunk header%'")
    assert [len(detail) < 500 for (detail,) in told] == [True]
