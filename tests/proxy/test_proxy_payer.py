"""Requests through the proxy that cost money: paid once, and the proof shown until they are served."""

import asyncio
import gzip
import json
import zlib
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from kit.agent import ADA, APP, World, with_terms
from kit.proxy import SERVED, Got, Heard, Paywall, Place, as_402, blocks, end_patience, place, saying

from payagent.agent.operator.limits import set_limits
from payagent.api.http import server
from payagent.core.payment.machine import Delivery, State
from payagent.core.policy import Window
from payagent.proxy import payer as payer
from payagent.proxy.app import Bounds

UTXOS = [20 * ADA] * 8


@pytest.fixture
async def shop(world: World):  # type: ignore[no-untyped-def]
    """The proxy with funds, on a chain that makes blocks."""
    world.fund(*UTXOS)
    async with place(world) as at, blocks(at.run):
        yield at


def problem(got: Got) -> dict[str, object]:
    assert got.values("content-type") == ["application/problem+json"]
    told = dict(json.loads(got.body or b""))
    assert (told["error"]["code"], told["error"]["type"]) == (told["code"], "payagent_error")
    assert told["detail"] in told["error"]["message"]
    return told


async def test_a_request_is_paid_and_served(shop: Place) -> None:
    got = await shop.ask(method="POST", body=b'{"message": "hello"}', merchant="devnet")
    assert got.status == 200, got
    assert b"was paid for" in (got.body or b"")
    await shop.until_delivered()
    (payment,) = shop.payments
    assert got.values("x-payagent-payment") == [payment.id]
    cost = sum(output.units for output in payment.outputs) + (payment.attempt.fee_lovelace or 0)
    assert got.values("x-payagent-cost") == [f"{cost} lovelace"]
    assert got.values("x-payagent-state") == ["confirmed"]
    assert shop.run.world.transactions() == [payment.attempt.tx_id]


@pytest.mark.parametrize("dry_run", ["false", "true"])
async def test_a_request_whose_token_is_revoked_before_its_body_arrives_is_not_paid(
    shop: Place, dry_run: str
) -> None:
    body = b'{"message": "hello"}'
    headers = ("Expect: 100-continue", f"Content-Length: {len(body)}", f"X-Payagent-Dry-Run: {dry_run}")
    head = shop.call("/chat", *headers, method="POST", merchant="devnet")
    async with shop.wire() as wire:
        await wire.say(head)
        assert (await wire.head()).status == 100
        assert (await shop.api.http.post("/v1/apps/payer/revoke")).status_code == 200
        await wire.say(body)
        got = await wire.answer()
    assert (got.status, problem(got)["code"]) == (401, "unauthorized")
    assert shop.payments == []


async def test_a_streamed_answer_is_paid_and_returned_to_its_end(shop: Place) -> None:
    body = b'{"message": "hello", "stream": true}'
    got = await shop.ask(method="POST", body=body, merchant="devnet")
    assert (got.status, got.values("content-type")) == (200, ["text/event-stream; charset=utf-8"])
    assert (got.body or b"").endswith(b"data: [DONE]\n\n")
    await shop.until_delivered()


async def test_events_of_a_paid_stream_are_forwarded_one_by_one(shop: Place) -> None:
    has_first = asyncio.Event()

    async def stream(heard: Heard) -> None:
        await heard.say(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        await heard.say_chunk(b"data: 1\n\n")
        await has_first.wait()
        await heard.say_chunk(b"data: 2\n\n")
        await heard.say(b"0\r\n\r\n")

    shop.peer.answers["/chat"] = Paywall(serve=stream)
    async with shop.wire() as wire:
        await wire.say(shop.call())
        assert (await wire.head()).status == 200
        assert await wire.chunk() == b"data: 1\n\n"
        assert shop.payments[0].delivery is Delivery.PRESENTED
        has_first.set()
        assert await wire.chunk() == b"data: 2\n\n"
        assert await wire.chunk() == b""


@pytest.mark.parametrize("size", [0, 1000, 1024 * 1024, 1024 * 1024 + 1, 5_000_000])
async def test_the_body_is_sent_again_with_the_proof(shop: Place, size: int) -> None:
    wall = shop.peer.answers["/images"] = Paywall()
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    got = await shop.ask("/images?n=1", method="POST", body=body)
    assert (got.status, got.body) == (200, b"served")
    (first,), (retry,) = wall.firsts, wall.retries
    assert first.line == retry.line
    assert first.body == retry.body == body
    (payment,) = shop.payments
    assert (retry.header("x-payment"), retry.header("x-invoice-id")) == (payment.attempt.tx_id, "inv-1")
    assert retry.header("x-request-id") == payment.intent.request_id


async def test_a_chunked_body_is_sent_again_with_the_proof(shop: Place) -> None:
    wall = shop.peer.answers["/chat"] = Paywall()
    async with shop.wire() as wire:
        await wire.say(shop.call("/chat", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n0\r\n\r\n")
        assert (await wire.answer()).body == b"served"
    assert [heard.body for heard in wall.firsts + wall.retries] == [b"abc", b"abc"]


async def test_a_402_that_arrives_before_the_body_is_sent_is_paid(shop: Place) -> None:
    wall = Paywall()

    async def demand_at_once(heard: Heard) -> None:
        if heard.header("x-payment") is None:
            await heard.say(as_402(wall._invoice(), "Connection: close"))
            heard.writer.close()
        else:
            await wall(heard)

    shop.peer.answers["/chat"] = demand_at_once
    got = await shop.ask(method="POST", body=b"x" * 3_000_000)
    assert (got.status, got.body) == (200, b"served")
    assert wall.retries[0].body == b"x" * 3_000_000


async def test_a_body_above_the_buffer_limit_is_forwarded_but_cannot_be_paid_for(world: World) -> None:
    world.fund(*UTXOS)
    async with place(world, Bounds(body_buffer_bytes_max=100_000)) as at, blocks(at.run):
        assert (await at.ask("/free", method="POST", body=b"x" * 100_001)).body == b"ok"
        wall = at.peer.answers["/chat"] = Paywall()
        got = await at.ask(method="POST", body=b"x" * 100_001)
        assert (got.status, problem(got)["code"]) == (413, "request_too_big_to_replay")
        assert "proxy.body_buffer_bytes_max" in str(problem(got)["detail"])
        assert (at.payments, wall.retries) == ([], [])
        assert (await at.ask(method="POST", body=b"x" * 100_000)).body == b"served"


async def test_a_pending_answer_is_retried_with_the_same_proof(shop: Place) -> None:
    wall = shop.peer.answers["/chat"] = Paywall(pending=2)
    assert (await shop.ask()).body == b"served"
    assert len({heard.header("x-payment") for heard in wall.retries}) == 1
    assert (len(wall.retries), len(shop.payments)) == (3, 1)


async def step_by_step(at: Place, wall: Paywall, until: list[int]) -> Got:
    """A request; a block follows each time the merchant has seen the proof so often, until it answers."""
    call = asyncio.create_task(at.ask())
    await at.until(lambda: at.payments and at.payments[0].attempt.accepted_by_provider, "not sent")
    assert wall.retries == []
    for shown in until:
        await at.run.settle_down()
        await at.until(lambda shown=shown: len(wall.retries) == shown, f"the proof was not shown {shown} times")
    return await call


async def test_with_ready_auto_a_pending_proof_is_shown_at_the_first_and_at_each_new_block(world: World) -> None:
    world.fund(*UTXOS)
    world.terms = replace(world.terms, confirm_depth=3)
    async with place(world, ready="auto") as at:
        wall = at.peer.answers["/chat"] = Paywall(pending=1)
        assert (await step_by_step(at, wall, [1, 2])).body == b"served"
        assert len({heard.header("x-payment") for heard in wall.retries}) == 1
        assert [row.state for row in at.payments] == [State.IN_BLOCK]


async def test_with_ready_auto_a_proof_refused_early_is_shown_once_more_when_confirmed(world: World) -> None:
    world.fund(*UTXOS)
    world.terms = replace(world.terms, confirm_depth=3)
    async with place(world, ready="auto") as at:
        wall = Paywall()

        async def refuse_early(heard: Heard) -> None:
            if heard.header("x-payment") is None or at.payments[0].state is State.CONFIRMED:
                await wall(heard)
                return
            wall.retries.append(heard)
            await heard.say(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

        at.peer.answers["/chat"] = refuse_early
        assert (await step_by_step(at, wall, [1, 1, 2])).body == b"served"
        assert len({heard.header("x-payment") for heard in wall.retries}) == 1
        await at.until_delivered()


@pytest.mark.parametrize(
    "trouble",
    [
        b"",
        b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nngx",
        b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK",
    ],
)
async def test_a_failed_retry_is_repeated_with_the_same_proof(shop: Place, trouble: bytes) -> None:
    wall = Paywall()

    async def lose_first(heard: Heard) -> None:
        if heard.header("x-payment") is None or len(wall.retries):
            await wall(heard)
        else:
            wall.retries.append(heard)
            await heard.say(trouble)
            heard.writer.close()

    shop.peer.answers["/chat"] = lose_first
    assert (await shop.ask(method="POST", body=b"x")).body == b"served"
    assert len({heard.header("x-payment") for heard in wall.retries}) == 1
    assert len(shop.payments) == 1


@pytest.mark.parametrize(
    "broken",
    [
        b"Content-Type: application/json\r\nContent-Length: 0\r\n\r\n",
        b"Content-Type: text/html\r\nContent-Length: 6\r\n\r\nsp\xe4ter",
        b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nlater",
        b"X-Payment-Error: a\r\nX-Payment-Error: b\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_retry_after_is_obeyed_even_when_the_body_cannot_be_read(shop: Place, broken: bytes) -> None:
    wall = shop.peer.answers["/chat"] = Paywall(
        serve=saying(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3600\r\n" + broken)
    )
    got = await shop.ask()
    assert (got.status, got.values("retry-after")) == (503, ["3600"])
    assert len(wall.retries) == 1, "it was asked again at once"
    wall.serve = SERVED
    assert (await shop.ask()).body == b"served"
    assert len(shop.payments) == 1


async def test_a_merchant_that_drops_every_retry_is_recorded_as_having_seen_the_proof(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D6: it took the money and never answers. The daemon records that once."""
    world.fund(*UTXOS)
    async with place(world) as at, blocks(at.run):
        wall = Paywall()
        end_patience(monkeypatch, lambda: len(wall.retries) > 1)

        async def drop(heard: Heard) -> None:
            if heard.header("x-payment") is None:
                await wall(heard)
            else:
                wall.retries.append(heard)
                heard.writer.close()

        at.peer.answers["/chat"] = drop
        assert problem(await at.ask())["code"] == "not_served_yet"
        (payment,) = at.payments
        assert len(wall.retries) > 1
        assert payment.delivery is Delivery.PRESENTED
        assert at.run.events(payment.id).count("delivery_present") == 1


async def test_a_shown_proof_is_recorded_even_when_the_client_hangs_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payer, "_SILENT_S", 0.05)
    world.fund(*UTXOS)
    async with place(world) as at, blocks(at.run):
        wall = Paywall(serve=Heard.until_hung_up)
        at.peer.answers["/chat"] = wall
        async with at.wire() as wire:
            await wire.say(at.call())
            await at.until(
                lambda: any(row.delivery is Delivery.PRESENTED for row in at.payments), "its proof was shown"
            )
            wire.hang_up()
        assert at.run.events(at.payments[0].id).count("delivery_present") == 1


async def test_a_request_that_waits_when_payagent_stops_gets_daemon_timeout(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A 500 without a code could be taken for the merchant's."""
    monkeypatch.setattr(server, "GRACE_S", 0.1)
    world.fund(*UTXOS)
    async with AsyncExitStack() as life:
        at = await life.enter_async_context(place(world))
        at.peer.answers["/chat"] = Paywall()
        async with at.wire() as wire:
            await wire.say(at.call())
            await at.until(lambda: any(row.attempt.tx_id for row in at.payments), "nothing was paid")
            await life.aclose()
            got = await wire.answer()
    told = problem(got)
    assert (got.status, told["code"], told["retryable"]) == (504, "daemon_timeout", True)
    assert "ASGI" not in caplog.text


async def test_a_redirect_after_paying_is_returned_to_the_client(shop: Place) -> None:
    elsewhere = f"{shop.peer.url}/elsewhere"
    redirect = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\n\r\n".encode()
    shop.peer.answers["/chat"] = Paywall(serve=saying(redirect))
    got = await shop.ask(method="POST", body=b"x")
    assert (got.status, got.values("location")) == (307, [elsewhere])
    assert got.values("x-payagent-payment") == [shop.payments[0].id]
    assert "x-payment" not in dict(got.headers)
    assert {heard.path for heard in shop.peer.calls} == {"/chat"}


async def test_a_merchants_error_after_paying_is_returned_to_the_client(shop: Place) -> None:
    wall = shop.peer.answers["/chat"] = Paywall(serve=saying(b"HTTP/1.1 422 No\r\nContent-Length: 3\r\n\r\nwhy"))
    got = await shop.ask()
    assert (got.status, got.body, len(wall.retries)) == (422, b"why", 1)
    assert shop.payments[0].delivery is Delivery.PRESENTED


async def test_a_304_not_modified_counts_as_served(shop: Place) -> None:
    """A client with a cache asks whether its copy is still valid; that answer is what it paid for."""
    same = saying(b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\n\r\n')
    wall = shop.peer.answers["/chat"] = Paywall(strict=True, serve=same)
    for count in (1, 2):
        got = await shop.ask("/chat", 'If-None-Match: "1"')
        assert (got.status, got.values("etag")) == (304, ['"1"'])
        await shop.until_delivered(count)
    assert (len(shop.payments), wall.served) == (2, 2)


async def test_an_answer_other_than_402_is_not_paid(shop: Place) -> None:
    for status in (200, 400, 401, 403, 404, 429, 500):
        shop.peer.answers["/chat"] = saying(f"HTTP/1.1 {status} X\r\nContent-Length: 1\r\n\r\n.".encode())
        got = await shop.ask()
        assert (got.status, got.body) == (status, b".")
        assert not [name for name, _ in got.headers if name.startswith("x-payagent")]
    assert shop.payments == []


# --- what is not paid --------------------------------------------------------------------------------------------


async def test_a_402_that_is_not_an_invoice_is_refused_with_its_code(shop: Place) -> None:
    for answer, status, code in [
        (as_402("Payment required"), 422, "not_an_invoice"),
        (as_402({"status": "pending"}), 422, "not_an_invoice"),
        (as_402(None, body=b"<html>pay me</html>"), 422, "invoice_invalid"),
        (as_402(None, "Content-Encoding: gzip", body=b"not gzip"), 422, "invoice_invalid"),
        (as_402(None, "Content-Encoding: br", body=b"\x0b\x02\x80"), 422, "invoice_invalid"),
        (as_402(None, body=b"[" * 600_000), 413, "body_too_big"),
        (as_402(None, "Content-Encoding: gzip", body=gzip.compress(b" " * 100_000_000)), 413, "body_too_big"),
        (b"HTTP/1.1 402 Pay\r\nContent-Length: 0\r\n\r\n", 422, "invoice_invalid"),
    ]:
        shop.peer.answers["/chat"] = saying(answer)
        got = await shop.ask()
        assert (got.status, problem(got)["code"]) == (status, code)
        assert shop.payments == []


async def test_a_402_above_the_limits_or_the_funds_is_refused_with_its_code(shop: Place) -> None:
    shop.peer.answers["/chat"] = Paywall(price=2000 * ADA)
    got = await shop.ask()
    assert (got.status, problem(got)["code"]) == (403, "limit_exceeded")
    shop.peer.answers["/chat"] = Paywall(price=900 * ADA, name="big")
    got = await shop.ask(method="POST", body=b"another")
    assert (got.status, problem(got)["code"]) == (409, "not_enough_funds")
    assert shop.run.world.transactions() == []


async def test_x_payagent_max_cost_can_lower_the_limits_but_not_raise_them(shop: Place) -> None:
    shop.peer.answers["/chat"] = Paywall(price=2 * ADA)
    got = await shop.ask("/chat", "X-Payagent-Max-Cost: 2000000")
    assert (got.status, problem(got)["code"]) == (403, "limit_exceeded")
    assert (await shop.ask("/chat", "X-Payagent-Max-Cost: 2500000")).body == b"served"
    shop.peer.answers["/dear"] = Paywall(price=2000 * ADA, name="dear")
    assert (await shop.ask("/chat", "X-Payagent-Max-Cost: 2500000 lovelace")).body == b"served"
    assert (await shop.ask("/chat", "X-Payagent-Max-Cost: 2.5 ADA")).body == b"served"
    got = await shop.ask("/chat", f"X-Payagent-Max-Cost: 9000000 {'ab' * 28}.00")
    assert (got.status, problem(got)["left"], problem(got)["asset"]) == (403, "0", "lovelace")
    got = await shop.ask("/dear", "X-Payagent-Max-Cost: 5000000000")
    assert (got.status, problem(got)["code"]) == (403, "limit_exceeded")


async def test_a_dry_run_returns_a_quote_and_pays_nothing(shop: Place) -> None:
    wall = shop.peer.answers["/chat"] = Paywall(price=2 * ADA)
    got = await shop.ask("/chat", "X-Payagent-Dry-Run: true")
    quote = json.loads(got.body or b"")
    assert (got.status, quote["within_limits"], quote["outputs"][0]["units"]) == (200, True, "2000000")
    assert (shop.payments, wall.retries) == ([], [])
    assert (await shop.ask("/free", "X-Payagent-Dry-Run: true")).body == b"ok"


async def test_x_payagent_headers_are_not_forwarded_to_the_merchant(shop: Place) -> None:
    wall = shop.peer.answers["/chat"] = Paywall()
    await shop.ask("/chat", "X-Payagent-Max-Cost: 5000000", "X-Payagent-Dry-Run: false", "Idempotency-Key: mine")
    for heard in wall.firsts + wall.retries:
        assert b"payagent" not in heard.head.lower()
        assert heard.header("idempotency-key") == "mine"


# --- compressed 402s ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coding", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", lambda raw: zlib.compress(raw)[2:-4])],
)
async def test_a_compressed_402_is_read(shop: Place, coding: str, pack) -> None:  # type: ignore[no-untyped-def]
    wall = Paywall()

    async def packed(heard: Heard) -> None:
        if heard.header("x-payment") is None:
            raw = pack(json.dumps({"detail": wall._invoice()}).encode())
            await heard.say(as_402(None, f"Content-Encoding: {coding}", body=raw))
        else:
            await wall(heard)

    shop.peer.answers["/chat"] = packed
    assert (await shop.ask()).body == b"served"


async def test_a_402_in_an_unsupported_encoding_is_requested_again(shop: Place) -> None:
    """The client's Accept-Encoding is forwarded unchanged, so the paid answer has the encoding it wants."""
    wall = Paywall()

    async def brotli(heard: Heard) -> None:
        if heard.header("accept-encoding") == "br" and heard.header("x-payment") is None:
            await heard.read_body()
            await heard.say(as_402(None, "Content-Encoding: br", body=b"\x0b\x02\x80"))
        else:
            await wall(heard)

    shop.peer.answers["/chat"] = brotli
    got = await shop.ask("/chat", "Accept-Encoding: br", method="POST", body=b"hello")
    assert got.body == b"served"
    assert [heard.header("accept-encoding") for heard in shop.peer.calls] == ["br", "gzip, deflate", "br"]
    assert {heard.body for heard in shop.peer.calls} == {b"hello"}


# --- who buys ----------------------------------------------------------------------------------------------------


async def test_partner_and_wallet_are_named_in_both_requests(world: World) -> None:
    world.fund(*UTXOS)
    async with place(world, partner="p1") as at, blocks(at.run):
        wall = at.peer.answers["/chat"] = Paywall()
        await at.ask()
        await at.ask("/chat", "X-Partner: mine", "X-Wallet-Address: addr_mine", method="POST", body=b"x")
        said = [
            (heard.header("x-partner"), heard.header("x-wallet-address")) for heard in wall.firsts + wall.retries
        ]
    assert said == [("p1", world.address), ("mine", "addr_mine")] * 2


async def test_without_a_partner_the_wallet_is_not_named(shop: Place) -> None:
    wall = shop.peer.answers["/chat"] = Paywall()
    await shop.ask()
    await shop.ask("/chat", "X-Wallet-Address: addr_mine", method="POST", body=b"x")
    assert [heard.header("x-wallet-address") for heard in wall.firsts] == [None, "addr_mine"]
    assert [heard.header("x-wallet-address") for heard in wall.retries] == [None, "addr_mine"]


# --- again -------------------------------------------------------------------------------------------------------


async def test_the_same_request_again_is_another_payment(shop: Place) -> None:
    wall = shop.peer.answers["/chat"] = Paywall()
    for _ in range(3):
        assert (await shop.ask()).body == b"served"
    assert len({heard.header("x-payment") for heard in wall.retries}) == len(shop.payments) == 3


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        (["Idempotency-Key: two words"], "idempotency_key_invalid"),
        (["Idempotency-Key: one", "Idempotency-Key: two"], "bad_request"),
    ],
)
async def test_an_invalid_idempotency_key_is_refused_only_when_a_request_costs(
    shop: Place, keys: list[str], code: str
) -> None:
    shop.peer.answers["/chat"] = Paywall()
    assert (await shop.ask("/free", *keys)).body == b"ok"
    got = await shop.ask("/chat", *keys, method="POST", body=b"x")
    assert (got.status, problem(got)["code"]) == (400, code)
    assert shop.payments == []


async def test_an_idempotency_key_is_never_paid_twice(shop: Place) -> None:
    wall = shop.peer.answers["/chat"] = Paywall()
    for _ in range(3):
        assert (await shop.ask("/chat", "Idempotency-Key: k1", method="POST", body=b"x")).body == b"served"
    assert len({heard.header("x-payment") for heard in wall.retries}) == len(shop.payments) == 1
    got = await shop.ask("/chat", "Idempotency-Key: k1", method="POST", body=b"y")
    assert (got.status, problem(got)["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize("own", [(), ("X-Idempotency-Key: mine",)])
async def test_a_merchant_with_idempotency_keys_serves_again_without_a_second_payment(
    shop: Place, own: tuple[str, ...]
) -> None:
    for _ in range(2):
        got = await shop.ask("/chat", "Idempotency-Key: k1", *own, method="POST", body=b"{}", merchant="devnet")
        assert got.status == 200, got
    assert len(shop.payments) == 1


@pytest.mark.parametrize("own", [None, "mine"])
async def test_the_clients_own_x_idempotency_key_is_the_same_on_every_request(
    shop: Place, own: str | None
) -> None:
    wall = shop.peer.answers["/chat"] = Paywall(pending=1)
    headers = () if own is None else (f"X-Idempotency-Key: {own}",)
    assert (await shop.ask("/chat", *headers)).body == b"served"
    assert [heard.header("x-idempotency-key") for heard in wall.firsts + wall.retries] == [own] * 3


async def test_after_a_broken_answer_the_next_request_shows_the_same_proof(shop: Place) -> None:
    wall = Paywall()

    async def break_off(heard: Heard) -> None:
        await heard.say(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nser")
        heard.writer.transport.abort()
        wall.serve = SERVED

    wall.serve = break_off
    shop.peer.answers["/chat"] = wall
    assert (await shop.ask()).body is None
    assert shop.payments[0].delivery is Delivery.PRESENTED
    assert (await shop.ask()).body == b"served"
    assert len({heard.header("x-payment") for heard in wall.retries}) == len(shop.payments) == 1


async def test_after_a_client_hangs_up_the_next_request_shows_the_same_proof(shop: Place) -> None:
    has_proof = asyncio.Event()
    wall = Paywall()

    async def wait(heard: Heard) -> None:
        has_proof.set()
        await heard.until_hung_up()
        wall.serve = SERVED

    wall.serve = wait
    shop.peer.answers["/chat"] = wall
    async with shop.wire() as wire:
        await wire.say(shop.call())
        async with asyncio.timeout(60):
            await has_proof.wait()
        wire.hang_up()
    assert (await shop.ask()).body == b"served"
    assert len({heard.header("x-payment") for heard in wall.retries}) == len(shop.payments) == 1


async def test_after_a_timeout_the_next_request_is_served_by_the_same_payment(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.fund(*UTXOS)
    async with place(world) as at:
        wall = at.peer.answers["/chat"] = Paywall()
        with monkeypatch.context() as soon:
            end_patience(soon, lambda: at.payments)
            got = await at.ask()
        (payment,) = at.payments
        assert (got.status, problem(got)["code"], problem(got)["payment"]) == (504, "not_served_yet", payment.id)
        async with blocks(at.run):
            assert (await at.ask()).body == b"served"
    assert len(wall.retries) == 1


@pytest.mark.parametrize("said", ["pending", "another invoice"])
async def test_a_timeout_problem_contains_the_merchants_last_402(
    world: World, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """It is not returned as a 402: a client that pays 402s itself must not pay twice."""
    world.fund(*UTXOS)
    async with place(world) as at, blocks(at.run):
        wall = Paywall(pending=1000)

        async def challenge(heard: Heard) -> None:
            if said == "pending" or heard.header("x-payment") is None:
                await wall(heard)
            else:
                wall.retries.append(heard)
                await heard.say(as_402(wall._invoice()))

        at.peer.answers["/chat"] = challenge
        with monkeypatch.context() as soon:
            end_patience(soon, lambda: len(wall.retries) > 1)
            got = await at.ask()
        told = problem(got)
        assert (got.status, told["code"], told["payment"]) == (502, "paid_not_served", at.payments[0].id)
        answer = dict(told["merchant_answer"])  # type: ignore[call-overload]
        assert (answer["status"], answer["headers"]["content-type"]) == (402, "application/json")
        detail = json.loads(answer["body"])["detail"]
        assert detail == {"status": "pending"} if said == "pending" else detail["invoiceId"] != "inv-1"
        at.peer.answers["/chat"] = Paywall()
        assert (await at.ask()).body == b"served"
        assert len(at.payments) == 1


async def test_a_used_up_limit_refuses_the_next_request(world: World) -> None:
    world.fund(*UTXOS)
    async with place(world) as at, blocks(at.run):
        await set_limits(at.run.context, APP, None, None, "lovelace", {Window.DAY: 3 * ADA})
        at.peer.answers["/chat"] = Paywall(price=2 * ADA)
        assert (await at.ask()).body == b"served"
        got = await at.ask()
        assert (got.status, problem(got)["code"]) == (403, "limit_exceeded")


async def test_a_request_that_needs_approval_is_refused_at_once_and_served_after_approval(world: World) -> None:
    world.fund(*UTXOS)
    world.terms = with_terms(approval_required_above={"lovelace": 5 * ADA})(world.terms)
    async with place(world) as at, blocks(at.run):
        call = {"method": "POST", "body": b'{"message": "hello"}', "merchant": "devnet"}
        waits = await at.ask(**call)  # type: ignore[arg-type]
        told = problem(waits)
        assert (waits.status, told["code"], told["retryable"]) == (503, "awaiting_approval", True)
        assert int(waits.values("retry-after")[0]) > 0
        again = await at.ask(**call)  # type: ignore[arg-type]
        (payment,) = at.payments
        assert told["payment"] == problem(again)["payment"] == payment.id
        approved = await at.api.as_("operator").post(f"/v1/payments/{payment.id}/approve", json={})
        assert approved.status_code == 200, approved.text
        served = await at.ask(**call)  # type: ignore[arg-type]
        assert served.status == 200, served
        assert served.values("x-payagent-payment") == [payment.id]
        denied = {"method": "POST", "body": b'{"message": "no"}', "merchant": "devnet"}
        payment_id = problem(await at.ask(**denied))["payment"]  # type: ignore[arg-type]
        assert (await at.api.http.post(f"/v1/payments/{payment_id}/deny", json={})).status_code == 200
        refused = await at.ask(**denied)  # type: ignore[arg-type]
        assert (refused.status, problem(refused)["code"]) == (403, "approval_denied")
