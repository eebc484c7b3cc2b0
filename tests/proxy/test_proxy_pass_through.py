"""Requests that cost nothing pass through the proxy unchanged."""

import asyncio
import gzip
import hashlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from kit.agent import World
from kit.canaries import plant
from kit.event_loop import turns
from kit.proxy import OK, Heard, Peer, Place, place, saying

from payagent.proxy.app import Bounds
from payagent.proxy.http1 import Target, Upstream, UpstreamRequest, _Connection

FOREIGN = "Bearer sk-an-authorization-for-the-merchant"


# --- the request -------------------------------------------------------------------------------------------------


async def test_path_and_query_are_forwarded_byte_for_byte(at: Place) -> None:
    for target in [
        "/",
        "/a//b/../c/./%2e%2e/%2F%zz;v=1,2",
        "/chat?",
        "/chat?q=a+b%20c&q=&&x[]=1&u=http://x/?y#frag",
        "/%E2%82%AC/" + "long" * 2000,
        "/proxy/t/again?~=1",
    ]:
        assert (await at.ask(target)).body == b"ok"
        # uvicorn takes an empty query for none
        assert at.peer.calls[-1].line == f"GET {target.removesuffix('?')} HTTP/1.1".encode()


async def test_a_url_without_a_path_is_the_merchants_root(at: Place) -> None:
    await at.ask("")
    await at.ask("?a=1")
    assert [call.line for call in at.peer.calls] == [b"GET / HTTP/1.1", b"GET /?a=1 HTTP/1.1"]


async def test_every_method_is_forwarded(at: Place) -> None:
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]:
        assert (await at.ask(method=method, body=b"a body")).body == b"ok"
        assert at.peer.calls[-1].line == f"{method} /chat HTTP/1.1".encode()
        assert at.peer.calls[-1].body == b"a body"


async def test_headers_are_forwarded_in_order_without_hop_by_hop_headers(at: Place) -> None:
    await at.ask(
        "/chat",
        "Accept: a/b",
        "X-Twice: 1",
        "Cookie: a=1; b=2",
        "X-Twice: 2",
        "Connection: keep-alive, X-Mine-Alone",
        "X-Mine-Alone: 1",
        "Keep-Alive: timeout=5",
        "TE: trailers",
        "Trailer: x",
        "Upgrade: h2c",
        "Proxy-Connection: keep-alive",
        "api-key: 4711",
        "X-Odd: \xe9\xff  two  spaces",
        "Accept-Encoding: br, zstd",
    )
    heard = at.peer.calls[0]
    assert heard.headers == [
        (b"host", at.peer.url[7:].encode()),
        (b"accept", b"a/b"),
        (b"x-twice", b"1"),
        (b"cookie", b"a=1; b=2"),
        (b"x-twice", b"2"),
        (b"api-key", b"4711"),
        (b"x-odd", b"\xe9\xff  two  spaces"),
        (b"accept-encoding", b"br, zstd"),
    ]


async def test_a_chunked_body_is_forwarded_without_its_trailers(at: Place) -> None:
    async with at.wire() as wire:
        head = at.call("/chat", "Transfer-Encoding: chunked", "Trailer: X-Sum", method="POST")
        await wire.say(head + b"3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nX-Sum: 1\r\n\r\n")
        assert (await wire.answer()).body == b"ok"
    heard = at.peer.calls[0]
    assert (heard.body, heard.header("transfer-encoding"), heard.header("content-length")) == (
        b"abcde",
        "chunked",
        None,
    )


async def test_a_request_with_content_length_and_chunks_is_refused_and_not_forwarded(at: Place) -> None:
    async with at.wire() as wire:
        head = at.call("/chat", "Transfer-Encoding: chunked", "Content-Length: 3", method="POST")
        await wire.say(head + b"5\r\nabcde\r\n0\r\n\r\n")
        got = await wire.answer()
    assert (got.status, got.values("connection")) == (400, ["close"])
    assert at.peer.calls == []


async def test_a_body_streams_to_the_merchant_as_it_arrives(at: Place) -> None:
    first = asyncio.Event()

    async def read_slowly(heard: Heard) -> None:
        assert await heard.reader.readexactly(6) == b"first "
        first.set()
        assert await heard.reader.readexactly(6) == b"second"
        await heard.say(OK)

    at.peer.answers["/chat"] = read_slowly
    async with at.wire() as wire:
        await wire.say(at.call("/chat", "Content-Length: 12", method="POST") + b"first ")
        async with asyncio.timeout(60):
            await first.wait()
        await wire.say(b"second")
        assert (await wire.answer()).body == b"ok"


async def test_the_proxy_itself_answers_expect_100_continue(at: Place) -> None:
    async with at.wire() as wire:
        await wire.say(at.call("/chat", "Expect: 100-continue", "Content-Length: 4", method="POST"))
        assert (await wire.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        await wire.say(b"body")
        assert (await wire.answer()).body == b"ok"
    assert at.peer.calls[0].header("expect") is None


async def test_no_body_is_requested_for_a_refused_request(at: Place) -> None:
    async with at.wire() as wire:
        call = at.call("/chat", "Expect: 100-continue", "Content-Length: 4", method="POST", token=False)
        await wire.say(call)
        assert (await wire.answer()).status == 401


# --- the answer --------------------------------------------------------------------------------------------------


async def test_an_answer_is_returned_without_hop_by_hop_and_x_payagent_headers(at: Place) -> None:
    packed = gzip.compress(b"packed")
    at.peer.answers["/chat"] = saying(
        b"HTTP/1.1 418 Short And Stout\r\nDate: Tue, 01 Jan 2030 00:00:00 GMT\r\nServer: theirs\r\n"
        b"Set-Cookie: a=1; Path=/\r\nSet-Cookie: b=2\r\nContent-Encoding: gzip\r\nX-Request-ID: theirs\r\n"
        b"Cache-Control: max-age=9\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n"
        b"X-Payagent-Payment: pay_of_somebody\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed
    )
    got = await at.ask()
    assert (got.status, got.body) == (418, packed)
    assert got.headers == [
        ("date", "Tue, 01 Jan 2030 00:00:00 GMT"),
        ("server", "theirs"),
        ("set-cookie", "a=1; Path=/"),
        ("set-cookie", "b=2"),
        ("content-encoding", "gzip"),
        ("x-request-id", "theirs"),
        ("cache-control", "max-age=9"),
        ("content-length", str(len(packed))),
    ]


async def test_a_redirect_is_returned_and_not_followed(at: Place) -> None:
    for status in ["301", "302", "303", "307", "308"]:
        elsewhere = f"{at.peer.url}/elsewhere"
        at.peer.answers["/chat"] = saying(
            f"HTTP/1.1 {status} Moved\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\n\r\n".encode()
        )
        got = await at.ask(method="POST", body=b"x")
        assert (got.status, got.values("location")) == (int(status), [elsewhere])
        assert {call.path for call in at.peer.calls} == {"/chat"}


async def test_answers_without_a_body_are_returned_without_one(at: Place) -> None:
    at.peer.answers["/head"] = saying(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n")
    at.peer.answers["/gone"] = saying(b"HTTP/1.1 204 No Content\r\n\r\n")
    at.peer.answers["/same"] = saying(b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\n\r\n')
    head = await at.ask("/head", method="HEAD")
    assert (head.status, head.values("content-length")) == (200, ["12345"])
    assert (await at.ask("/gone")).status == 204
    assert (await at.ask("/same")).values("etag") == ['"1"']
    assert len({call.connection for call in at.peer.calls}) == 1


async def test_server_sent_events_are_forwarded_one_by_one(at: Place) -> None:
    """The merchant sends its second event when the client has the first: a buffer would hang."""
    has_first = asyncio.Event()

    async def stream(heard: Heard) -> None:
        await heard.say(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        await heard.say_chunk(b"data: 1\n\n")
        await has_first.wait()
        await heard.say_chunk(b"data: 2\n\n")
        await heard.say(b"0\r\nX-Trailer: 1\r\n\r\n")

    at.peer.answers["/chat"] = stream
    async with at.wire() as wire:
        await wire.say(at.call())
        assert (await wire.head()).status == 200
        assert await wire.chunk() == b"data: 1\n\n"
        has_first.set()
        assert await wire.chunk() == b"data: 2\n\n"
        assert await wire.chunk() == b""


async def test_an_answer_that_ends_with_the_connection_is_complete(at: Place) -> None:
    async def old(heard: Heard) -> None:
        await heard.say(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nold")
        await heard.say(b" times")
        heard.writer.close()

    at.peer.answers["/chat"] = old
    assert (await at.ask()).body == b"old times"


async def test_a_broken_answer_breaks_off_for_the_client_and_logs_no_error(
    at: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def break_off(heard: Heard) -> None:
        await heard.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await heard.say_chunk(b"half")
        heard.writer.transport.abort()

    at.peer.answers["/chat"] = break_off
    got = await at.ask()
    assert (got.status, got.body) == (200, None)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_an_answer_broken_after_its_first_part_logs_no_error(
    at: Place, caplog: pytest.LogCaptureFixture
) -> None:
    has_half = asyncio.Event()

    async def break_off(heard: Heard) -> None:
        await heard.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await heard.say_chunk(b"half")
        await has_half.wait()
        heard.writer.transport.abort()

    at.peer.answers["/chat"] = break_off
    async with at.wire() as wire:
        await wire.say(at.call("/chat"))
        await wire.reader.readuntil(b"half")
        has_half.set()
        assert b"0\r\n\r\n" not in await wire.reader.read()
    assert (await at.ask("/free")).status == 200
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_an_http_1_0_client_can_tell_that_an_answer_is_incomplete(at: Place) -> None:
    """HTTP/1.0 takes the end of the connection for the end of the answer, so it is reset."""
    has_half = asyncio.Event()

    async def break_off(heard: Heard) -> None:
        await heard.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await heard.say_chunk(b"half")
        await has_half.wait()
        heard.writer.transport.abort()

    at.peer.answers["/chat"] = break_off
    async with at.wire() as wire:
        await wire.say(at.call("/chat").replace(b"HTTP/1.1", b"HTTP/1.0"))
        await wire.reader.readuntil(b"half")
        has_half.set()
        with pytest.raises(ConnectionResetError):
            await wire.reader.read()


async def test_a_402_that_breaks_off_is_merchant_unreachable(at: Place) -> None:
    async def break_off(heard: Heard) -> None:
        await heard.say(b"HTTP/1.1 402 Payment Required\r\nContent-Length: 9\r\n\r\nhalf")
        heard.writer.transport.abort()

    at.peer.answers["/chat"] = break_off
    got = await at.ask()
    assert (got.status, json.loads(got.body or b"{}")["code"]) == (502, "merchant_unreachable")


async def test_an_invalid_status_code_is_merchant_unreachable(at: Place, caplog: pytest.LogCaptureFixture) -> None:
    at.peer.answers["/chat"] = saying(b"HTTP/1.1 999 Denied\r\nContent-Length: 2\r\n\r\nno")
    got = await at.ask()
    assert (got.status, json.loads(got.body or b"{}")["code"]) == (502, "merchant_unreachable")
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_bytes_after_an_answer_do_not_reach_the_next_request(at: Place) -> None:
    async def talk_on(heard: Heard) -> None:
        await heard.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Le")

    at.peer.answers["/chatty"] = talk_on
    assert (await at.ask("/chatty")).body == b"ok"
    assert (await at.ask("/free")).status == 200


@pytest.mark.parametrize("more", [b"", b"{"], ids=["silent", "byte by byte"])
async def test_a_request_body_that_arrives_too_slowly_is_refused(world: World, more: bytes) -> None:
    """The merchant asks to be paid, but the body to send again never arrives."""

    async def want(heard: Heard) -> None:
        await heard.say(b"HTTP/1.1 402 Payment Required\r\nContent-Length: 0\r\n\r\n")

    async with place(world, Bounds(read_timeout_s=2)) as at:
        at.peer.answers["/chat"] = want
        async with at.wire() as wire:
            await wire.say(at.call("/chat", "Content-Length: 500", method="POST") + b"{")
            answer = asyncio.create_task(wire.answer())
            while not answer.done():
                await wire.say(more)
                await asyncio.wait([answer], timeout=0.03)
            got = answer.result()
        assert (got.status, json.loads(got.body or b"")["code"]) == (408, "body_too_slow")
        assert at.payments == []


async def test_an_answer_may_come_before_the_body_is_sent(at: Place) -> None:
    async def refuse(heard: Heard) -> None:
        await heard.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        heard.writer.close()

    at.peer.answers["/chat"] = refuse
    async with at.wire() as wire:
        await wire.say(at.call("/chat", "Content-Length: 50000000", method="POST") + b"x" * 100_000)
        got = await wire.answer()
    assert (got.status, got.body) == (413, b"big")


async def test_request_and_answer_bodies_stream_at_the_same_time(at: Place) -> None:
    """A merchant that answers each part of the body as it arrives."""

    async def echo(heard: Heard) -> None:
        await heard.say(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n")
        for _ in range(3):
            await heard.say(await heard.reader.readexactly(4))

    at.peer.answers["/chat"] = echo
    async with at.wire() as wire:
        await wire.say(at.call("/chat", "Content-Length: 12", method="POST"))
        await wire.say(b"one ")
        assert (await wire.head()).status == 200
        for part in (b"one ", b"two ", b"last"):
            async with asyncio.timeout(60):
                assert await wire.reader.readexactly(4) == part
            if part != b"last":
                await wire.say(b"two " if part == b"one " else b"last")


async def test_large_bodies_pass_both_ways_unchanged(at: Place) -> None:
    much = hashlib.sha256(b"seed").digest() * 1024 * 1024  # 32 MiB

    async def echo(heard: Heard) -> None:
        body = await heard.read_body()
        await heard.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    at.peer.answers["/chat"] = echo
    got = await at.ask(method="POST", body=much)
    assert got.body == much


async def test_a_client_that_does_not_read_slows_the_merchant_down(at: Place) -> None:
    written, finished = 0, asyncio.Event()

    async def pour(heard: Heard) -> None:
        nonlocal written
        await heard.say(b"HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n")
        for _ in range(1024):
            await heard.say(b"x" * 65_536)
            written += 65_536
        finished.set()

    at.peer.answers["/chat"] = pour
    async with at.wire() as wire:
        await wire.say(at.call())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await finished.wait()
        assert written < 24_000_000
        got = await wire.answer()
        assert got.body is not None
        assert len(got.body) == 67_108_864


class Tap(asyncio.Transport):
    """A transport that discards what is written."""

    is_paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        del data

    def pause_reading(self) -> None:
        self.is_paused = True

    def abort(self) -> None:
        self.is_paused = True


async def test_an_answer_in_tiny_chunks_slows_the_merchant_down_too() -> None:
    """A chunk of one byte takes over a hundred bytes of memory until the client reads it."""
    line, tap = _Connection(Target.of_origin("http://a.example"), 20.0), Tap()
    line.connection_made(tap)
    begun = asyncio.create_task(line.begin(UpstreamRequest(b"GET", b"/", (), None)))
    await asyncio.sleep(0)
    line.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert (await begun).status_code == 200
    chunks = 0
    while not tap.is_paused:
        line.data_received(b"1\r\nx\r\n" * 100)
        chunks += 100
    assert chunks < 5000


async def test_a_merchant_that_does_not_read_slows_the_client_down(at: Place) -> None:
    go_on, size = asyncio.Event(), 67_108_864

    async def wait(heard: Heard) -> None:
        await go_on.wait()
        await heard.read_body()
        await heard.say(OK)

    at.peer.answers["/chat"] = wait
    async with at.wire() as wire:
        await wire.say(at.call("/chat", f"Content-Length: {size}", method="POST"))
        written = 0

        async def pour() -> None:
            nonlocal written
            while written < size:
                await wire.say(b"x" * 65_536)
                written += 65_536

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pour(), 1)
        assert written < 24_000_000
        go_on.set()
        # the piece being written at the timeout is already in the buffer
        await wire.say(b"x" * (size - written - 65_536))
        assert (await wire.answer()).body == b"ok"
    assert len(at.peer.calls[0].body) == size


# --- when a side hangs up ----------------------------------------------------------------------------------------


async def test_a_client_that_hangs_up_ends_the_request_to_the_merchant(at: Place) -> None:
    hung_up = asyncio.Event()

    async def wait(heard: Heard) -> None:
        await heard.until_hung_up()
        hung_up.set()

    at.peer.answers["/chat"] = wait
    async with at.wire() as wire:
        await wire.say(at.call())
        while not at.peer.calls:
            await asyncio.sleep(0.005)
        wire.hang_up()
        async with asyncio.timeout(60):
            await hung_up.wait()


async def test_a_client_that_hangs_up_during_a_stream_ends_it(at: Place) -> None:
    hung_up = asyncio.Event()

    async def stream(heard: Heard) -> None:
        await heard.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await heard.say_chunk(b"data: 1\n\n")
        await heard.until_hung_up()
        hung_up.set()

    at.peer.answers["/chat"] = stream
    async with at.wire() as wire:
        await wire.say(at.call())
        await wire.head()
        assert await wire.chunk() == b"data: 1\n\n"
        wire.hang_up()
        async with asyncio.timeout(60):
            await hung_up.wait()


async def test_a_client_that_hangs_up_during_a_stalled_upload_ends_the_answer(
    at: Place,
) -> None:
    """Its unread bytes are queued before the end of its connection."""
    hung_up = asyncio.Event()

    async def go_on(heard: Heard) -> None:
        await heard.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                await heard.say_chunk(b"data: 1\n\n")
                await asyncio.sleep(0.01)
        finally:
            hung_up.set()

    at.peer.answers["/chat"] = go_on
    async with at.wire() as wire:
        wire.writer.write(at.call(method="POST", body=b"x" * 30_000_000))
        await wire.head()
        left, still = 0, 0
        while still < 100:  # until nobody takes any more
            await wire.chunk()
            before, left = left, wire.writer.transport.get_write_buffer_size()
            still = still + 1 if left == before else 0
        assert left
        wire.hang_up()
        async with asyncio.timeout(60):
            await hung_up.wait()


async def test_a_client_that_hangs_up_while_its_upload_is_stopped_leaves_no_connection() -> None:
    """The merchant has answered before it had the body, and keeps its side open."""
    stopping, hung_up = asyncio.Event(), asyncio.Event()

    class Upload:
        async def __aiter__(self) -> AsyncIterator[bytes]:
            try:
                yield b"begun"
                await hung_up.wait()
            finally:
                stopping.set()
                await hung_up.wait()

    async def answer(heard: Heard) -> None:
        await heard.say(OK)
        await heard.until_hung_up()
        hung_up.set()

    async def call(upstream: Upstream) -> None:
        async with upstream.call(UpstreamRequest(b"POST", b"/chat", [], Upload())) as answered:
            await answered.peek(100)

    async with Peer().running() as peer, asyncio.timeout(60):
        peer.answers["/chat"] = answer
        calling = asyncio.create_task(call(Upstream(Target.of_origin(peer.url), 5)))
        await stopping.wait()
        calling.cancel()
        await asyncio.wait((calling,))
        await hung_up.wait()


async def test_connections_are_reused_and_replaced_when_the_merchant_closes_them(at: Place) -> None:
    for _ in range(3):
        assert (await at.ask()).body == b"ok"
    assert at.peer.connections == 1

    async def last(heard: Heard) -> None:
        await heard.say(OK)
        heard.writer.close()

    at.peer.answers["/last"] = last
    assert (await at.ask("/last")).body == b"ok"
    assert (await at.ask()).body == b"ok"
    assert at.peer.connections == 2


async def test_a_get_on_a_reused_connection_that_breaks_is_sent_again(at: Place) -> None:
    async def hang_up_on_second(heard: Heard) -> None:
        if heard.connection == 1:
            heard.writer.transport.abort()
        else:
            await heard.read_body()
            await heard.say(OK)

    at.peer.answers["/die"] = hang_up_on_second
    await at.ask("/ok")
    assert (await at.ask("/die")).body == b"ok"
    assert at.peer.connections == 2


async def test_a_post_on_a_reused_connection_that_breaks_is_not_sent_again(at: Place) -> None:
    async def hang_up(heard: Heard) -> None:
        heard.writer.transport.abort()

    at.peer.answers["/die"] = hang_up
    await at.ask("/ok")
    got = await at.ask("/die", method="POST", body=b"x")
    assert got.status == 502
    assert b'"merchant_unreachable"' in (got.body or b"")
    assert [call.path for call in at.peer.calls] == ["/ok", "/die"]


@pytest.mark.parametrize("rubbish", [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", b""])
async def test_a_merchant_that_does_not_speak_http_is_merchant_unreachable(at: Place, rubbish: bytes) -> None:
    async def talk(heard: Heard) -> None:
        await heard.say(rubbish)
        heard.writer.close()

    at.peer.answers["/chat"] = talk
    got = await at.ask(method="POST", body=b"x")
    assert got.status == 502
    assert b'"merchant_unreachable"' in (got.body or b"")


async def test_a_merchant_that_is_down_is_merchant_unreachable(world: World) -> None:
    async with place(world, origin="http://127.0.0.1:9") as at:
        got = await at.ask()
    assert got.status == 502
    assert b'"merchant_unreachable"' in (got.body or b"")


async def test_a_merchant_that_does_not_answer_is_merchant_timeout(world: World) -> None:
    async with place(world, Bounds(read_timeout_s=0.2)) as at:
        at.peer.answers["/chat"] = Heard.until_hung_up
        got = await at.ask()
    assert got.status == 504
    assert b'"merchant_timeout"' in (got.body or b"")


async def dripping(world: World, begins: bytes, more: bytes) -> tuple[int, object]:
    """What the proxy answers to a merchant that keeps sending a little, so it is never idle."""

    async def drip(heard: Heard) -> None:
        await heard.say(begins)
        with suppress(ConnectionError):
            while not heard.reader.at_eof():
                await heard.say(more)
                await asyncio.sleep(0.05)

    async with place(world, Bounds(read_timeout_s=0.3, payment_timeout_s=0.5)) as at:
        at.peer.answers["/chat"] = drip
        async with asyncio.timeout(60):
            got = await at.ask()
    return got.status, json.loads(got.body or b"")["code"]


@pytest.mark.parametrize("status", [b"402 Payment Required", b"400 Bad Request"])
async def test_a_402_or_400_body_that_drips_is_merchant_timeout(world: World, status: bytes) -> None:
    begins = b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
    assert await dripping(world, begins, b" ") == (504, "merchant_timeout")


@pytest.mark.parametrize(
    ("begins", "more"),
    [(b"HTTP/1.1 200 OK\r\nX-Odd: ", b"X"), (b"", b"HTTP/1.1 102 Processing\r\n\r\n")],
    ids=["head", "interim"],
)
async def test_an_answer_head_that_drips_is_merchant_timeout(world: World, begins: bytes, more: bytes) -> None:
    assert await dripping(world, begins, more) == (504, "merchant_timeout")


@pytest.mark.parametrize(
    "before",
    [b"HTTP/1.1 200 OK\r\nX:", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX:"],
    ids=["head", "trailer"],
)
async def test_a_header_of_many_blanks_takes_no_time_to_parse(at: Place, before: bytes) -> None:
    """100 KB of them blocked the daemon for half a minute."""
    at.peer.answers["/chat"] = saying(before + b" " * 100_000 + b"\0\r\n\r\n")
    began_s = time.process_time()
    got = await at.ask()
    assert (got.status, got.body) in ((502, got.body), (200, None))
    assert time.process_time() - began_s < 3


async def test_endless_interim_answers_are_merchant_unreachable(at: Place) -> None:
    """They arrive as fast as the merchant can send them, and each would be read."""

    async def promise(heard: Heard) -> None:
        with suppress(ConnectionError):
            while not heard.reader.at_eof():
                await heard.say(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)

    at.peer.answers["/chat"] = promise
    got = await at.ask()
    assert (got.status, json.loads(got.body or b"")["code"]) == (502, "merchant_unreachable")


async def test_interim_answers_are_skipped(at: Place) -> None:
    """A server that computes for some minutes may say every few seconds that it does (RFC 2518, 10.1)."""
    at.peer.answers["/chat"] = saying(b"HTTP/1.1 102 Processing\r\nLink: </a>\r\n\r\n" * 120 + OK)
    assert (await at.ask()).body == b"ok"


async def test_an_answer_in_one_byte_chunks_does_not_block_the_event_loop(at: Place) -> None:
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 40_000 + b"0\r\n\r\n"
    assert (await at.ask()).status == 200, "a first request takes longer and is not measured"
    at.peer.answers["/chat"] = saying(chunks)
    async with turns() as longest:
        assert (await at.ask()).body == b"x" * 40_000
    assert longest() < 0.25


async def test_an_answer_body_that_passes_through_may_arrive_slowly(world: World) -> None:
    async def drip(heard: Heard) -> None:
        await heard.say(b"HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\n")
        for _ in range(24):  # together longer than the read timeout
            await heard.say(b"x")
            await asyncio.sleep(0.25)

    async with place(world, Bounds(read_timeout_s=5, payment_timeout_s=0.5)) as at:
        at.peer.answers["/chat"] = drip
        assert (await at.ask()).body == b"x" * 24


async def test_an_upload_ends_when_the_merchant_hangs_up(at: Place) -> None:
    """A merchant that hangs up while the body is still on its way leaves nothing behind."""

    async def hang_up(heard: Heard) -> None:
        heard.writer.transport.abort()

    at.peer.answers["/chat"] = hang_up
    before = len(asyncio.all_tasks())
    async with at.wire() as wire:
        await wire.say(at.call("/chat", "Content-Length: 500000", method="POST") + b"x" * 1000)
        assert (await wire.answer()).status == 502
    await at.until(lambda: len(asyncio.all_tasks()) <= before, "a task is left")


# --- authorization -----------------------------------------------------------------------------------------------


async def test_the_token_is_accepted_in_four_places_and_never_forwarded(at: Place) -> None:
    for merchant, header in (
        ("t", f"X-Payagent-Token: {at.token}"),
        ("t", f"Proxy-Authorization: Bearer {at.token}"),
        ("t", f"Proxy-Authorization: {at.token}"),
        ("t", f"Authorization: Bearer {at.token}"),
        ("t", f"authorization: bearer  {at.token} "),
        (f"~{at.token}/t", "X-Nothing: 1"),
        (f"%7E{at.token}/t", "X-Nothing: 1"),
    ):
        got = await at.ask("/chat?a=1", header, merchant=merchant, token=False)
        assert (got.status, got.body) == (200, b"ok"), header[:20]
    for call in at.peer.calls:
        assert at.token.encode() not in call.head
        assert call.line == b"GET /chat?a=1 HTTP/1.1"


async def test_a_referer_with_the_token_is_not_forwarded(at: Place) -> None:
    place = f"Referer: {at.api.url}/proxy/~{at.token}/t/chat"
    assert (await at.ask("/chat", place, merchant=f"~{at.token}/t", token=False)).status == 200
    assert at.token.encode() not in at.peer.calls[0].head


async def test_neither_of_two_payagent_tokens_is_forwarded(at: Place) -> None:
    other = at.api.tokens["other"]
    assert (await at.ask("/chat", f"Authorization: Bearer {other}")).status == 200
    assert other.encode() not in at.peer.calls[0].head


async def test_the_clients_own_authorization_is_forwarded(at: Place) -> None:
    await at.ask("/chat", f"Authorization: {FOREIGN}", "api-key: theirs")
    await at.ask("/chat", f"Authorization: Bearer {at.token}")
    first, second = at.peer.calls
    assert (first.header("authorization"), first.header("api-key")) == (FOREIGN, "theirs")
    assert second.header("authorization") is None


async def test_without_a_valid_token_nothing_is_forwarded(at: Place) -> None:
    for header in [
        "X-Nothing: 1",
        f"Authorization: {FOREIGN}",
        "X-Payagent-Token: pa_wrong",
        "Proxy-Authorization: Basic eDp5",
    ]:
        got = await at.ask("/chat", header, token=False)
        assert got.status == 401
        assert b'"unauthorized"' in (got.body or b"")
        assert at.peer.calls == []


async def test_a_token_in_the_path_appears_in_no_answer_or_log(
    at: Place, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = "pa_" + "w" * 43
    for merchant in (f"~{wrong}/t", f"~{at.token}/nobody", f"~{at.token}"):
        got = await at.ask("/chat", merchant=merchant, token=False)
        assert got.status in (401, 403)
        for secret in (wrong, at.token):
            assert secret.encode() not in got.head + (got.body or b"")
            assert secret not in caplog.text


async def test_a_token_without_the_pay_scope_is_refused(at: Place) -> None:
    got = await at.ask("/chat", f"X-Payagent-Token: {at.api.tokens['reader']}", token=False)
    assert (got.status, at.peer.calls) == (403, [])


async def test_an_app_reaches_only_the_merchants_it_is_bound_to(at: Place) -> None:
    """A prepaid balance at a merchant must not serve an app that may not pay this merchant."""
    for name, status in (("devnet", 403), ("t", 200)):
        answer = await at.api.http.post("/v1/apps", json={"name": name, "merchants": [name]})
        token = plant(f"the token for {name}", answer.json()["token"])
        assert (await at.ask("/chat", f"X-Payagent-Token: {token}", token=False)).status == status
    assert len(at.peer.calls) == 1


async def test_a_refused_merchant_is_listed_and_counted_by_app(at: Place) -> None:
    """A path that holds a token is not recorded."""
    answer = await at.api.http.post("/v1/apps", json={"name": "bound", "merchants": ["devnet"]})
    token = plant("the token of bound", answer.json()["token"])
    for path, merchant in (("/chat?api_key=secret", "t"), (f"/~{token}/chat", "nobody")):
        await at.ask(path, f"X-Payagent-Token: {token}", merchant=merchant, token=False)
    rows = (await at.api.as_("reader").get("/v1/ledger/refusals")).json()["refusals"]
    assert [(row["app"], row["merchant"], row["request"], row["code"]) for row in rows] == [
        ("bound", None, None, "merchant_not_allowed"),
        ("bound", "t", "GET /chat", "merchant_not_allowed"),
    ]
    (bound,) = {app for app, _, _ in at.run.context.metrics.purchases_refused}
    assert at.run.context.metrics.purchases_refused == {
        (bound, merchant, "merchant_not_allowed"): 1 for merchant in ("t", "(other)")
    }
    logged = (await at.api.as_("reader").get("/v1/log")).json()["log"]
    assert [one["event"] for one in logged[:2]] == ["refused", "refused"]


async def test_an_invalid_request_is_refused_before_anything_is_forwarded(at: Place) -> None:
    for headers, status, code in [
        (["Origin: http://evil.example"], 403, b'"web_page"'),
        (["Sec-Fetch-Site: cross-site"], 403, b'"web_page"'),
        (["Upgrade: websocket", "Connection: Upgrade"], 501, b'"websocket_not_supported"'),
        (["X-Payagent-Max-Costs: 5"], 400, b'"bad_request"'),
        (["X-Payagent-Max-Cost: 5 USDM"], 400, b'"bad_request"'),
        (["X-Payagent-Max-Cost: 5", "X-Payagent-Max-Cost: 6"], 400, b'"bad_request"'),
        (["X-Payagent-Dry-Run: yes"], 400, b'"bad_request"'),
    ]:
        got = await at.ask("/chat", *headers)
        assert (got.status, got.values("content-type")) == (status, ["application/problem+json"])
        assert code in (got.body or b"")
        assert at.peer.calls == []


async def test_a_foreign_host_name_is_refused(at: Place) -> None:
    async with at.wire() as wire:
        await wire.say(at.call().replace(b"Host: 127.0.0.1", b"Host: evil.example"))
        assert (await wire.answer()).status == 403
    assert at.peer.calls == []


async def test_a_merchant_that_is_not_configured_is_refused(at: Place) -> None:
    got = await at.ask("/chat", merchant="nobody")
    assert got.status == 403
    assert b'"merchant_not_allowed"' in (got.body or b"")


async def test_an_answer_of_the_api_has_one_date_header(at: Place) -> None:
    for path in ("/healthz", "/proxy", "/nowhere"):
        async with at.wire() as wire:
            await wire.say(at.call().replace(b"/proxy/t/chat", path.encode()))
            got = await wire.answer()
        assert len(got.values("date")) == 1, path
