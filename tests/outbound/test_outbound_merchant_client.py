"""The client for merchants, over real sockets: limited in bytes and time; answers are kept as received."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from kit.event_loop import turns
from kit.http import NO_TLS
from structlog.testing import capture_logs

from payagent.core.bounds import ANSWER_MAX_BYTES
from payagent.core.problems import Refused
from payagent.core.version import USER_AGENT
from payagent.devnet.server import DevnetThread
from payagent.outbound.merchant_client import BODY_MAX_BYTES, MerchantClient, MerchantReply, Observed

WALLET = "addr_test1 wallet&co"
HEADERS = {"X-Partner": "demo", "api-key": "k1"}


def answer(status: int, body: bytes, *more: str) -> bytes:
    lines = (f"HTTP/1.1 {status} Any", f"Content-Length: {len(body)}", "Connection: close", *more)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass
class Shop:
    """A server whose answers are bytes per path; None for one that never answers. It keeps what it was asked."""

    answers: dict[str, bytes | None]
    asked: list[str] = field(default_factory=list)
    origin: str = ""
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.asked.append(head)
        said = self.answers.get(urlsplit(head.split()[1]).path, answer(404, b""))
        if said is None:
            await self.over.wait()
        else:
            writer.write(said)
            await writer.drain()
        writer.close()

    def paths(self) -> list[str]:
        return [urlsplit(head.split()[1]).path for head in self.asked]


@asynccontextmanager
async def open_shop(balance: bytes | None, credits: bytes | None = None) -> AsyncIterator[Shop]:
    shop = Shop({"/payments/balance": balance, "/payments/credits": credits})
    server = await asyncio.start_server(shop.serve, "127.0.0.1", 0)
    shop.origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield shop
    finally:
        shop.over.set()
        server.close()
        await server.wait_closed()


async def ask(origin: str, timeout_s: int = 60) -> Observed | None:
    client = MerchantClient()
    try:
        return await client.prepaid(origin, "demo", WALLET, headers=HEADERS, timeout_s=timeout_s)
    finally:
        await client.aclose()


FIVE = answer(200, b'{"remaining": 5, "total": 9}')
GONE, FOUND = answer(404, b'{"detail": "Not Found"}'), answer(200, b'{"credits_left": "4"}')
PUZZLE = answer(200, b'{"balance": "plenty"}')


async def test_a_balance_request_names_partner_and_wallet_and_has_the_merchants_headers() -> None:
    async with open_shop(FIVE) as shop:
        observed = await ask(shop.origin)
    assert observed is not None
    assert (observed.source, observed.status, observed.body) == ("balance", 200, '{"remaining": 5, "total": 9}')
    assert (observed.parsed.remaining, observed.parsed.total) == (5, 9)
    assert len(shop.asked) == 1
    assert parse_qs(urlsplit(shop.asked[0].split()[1]).query) == {"partner": ["demo"], "wallet": [WALLET]}
    assert "api-key: k1\r\n" in shop.asked[0]
    assert f"\r\nUser-Agent: {USER_AGENT}\r\n" in shop.asked[0]


@pytest.mark.parametrize("balance", [GONE, answer(405, b""), PUZZLE, answer(200, b"<html>")])
async def test_credits_are_requested_when_the_balance_says_nothing(balance: bytes) -> None:
    async with open_shop(balance, FOUND) as shop:
        observed = await ask(shop.origin)
    assert observed is not None
    assert (observed.source, observed.parsed.remaining) == ("credits", 4)
    assert shop.paths() == ["/payments/balance", "/payments/credits"]


@pytest.mark.parametrize("status", [401, 429, 503])
async def test_a_merchant_that_refuses_is_not_asked_again(status: int) -> None:
    async with open_shop(answer(status, b"no"), FOUND) as shop:
        observed = await ask(shop.origin)
    assert observed is not None
    assert (observed.source, observed.status, observed.body, observed.parsed.understood) == (
        *("balance", status, "no", False),
    )
    assert len(shop.asked) == 1


@pytest.mark.parametrize(
    ("balance", "credits", "source"),
    [(PUZZLE, GONE, "balance"), (GONE, PUZZLE, "credits"), (PUZZLE, PUZZLE, "balance"), (GONE, GONE, "balance")],
)
async def test_an_answer_that_is_not_understood_is_kept(balance: bytes, credits: bytes, source: str) -> None:
    async with open_shop(balance, credits) as shop:
        observed = await ask(shop.origin)
    assert observed is not None
    assert (observed.source, observed.parsed.understood) == (source, False)


async def test_a_redirect_is_not_followed() -> None:
    async with open_shop(FIVE) as other, open_shop(answer(302, b"", f"Location: {other.origin}/")) as shop:
        observed = await ask(shop.origin)
        assert observed is not None
        assert (observed.status, observed.parsed.understood, other.asked) == (302, False, [])


async def test_no_cookie_is_kept() -> None:
    """Otherwise cookies would pile up while the daemon runs, and go to all ports of a host."""
    async with open_shop(answer(200, b"{}", "Set-Cookie: sid=1; Path=/"), FOUND) as shop:
        await ask(shop.origin)
    assert len(shop.asked) == 2
    assert "sid=1" not in shop.asked[1]


async def test_an_answer_is_kept_as_received_up_to_a_limit() -> None:
    long = b'{"remaining": 5, "note": "' + b"x" * (BODY_MAX_BYTES - 28) + b'"}'
    async with open_shop(answer(200, long), GONE) as shop:
        observed = await ask(shop.origin)
    assert observed is not None
    assert (observed.body, observed.parsed.remaining) == (long[:4096].decode(), 5)
    long += b" "
    endless = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + long
    async with open_shop(endless, GONE) as shop:
        observed = await ask(shop.origin)
    assert observed is not None
    assert (observed.body, observed.parsed.understood) == (long[:4096].decode(), False)
    async with open_shop(answer(200, b'{"remaining": 5, "x": "\xff"}'), GONE) as shop:
        observed = await ask(shop.origin)
    assert observed is not None
    assert (observed.body, observed.parsed.understood) == ('{"remaining": 5, "x": "\\xff"}', False)


async def test_an_answer_in_many_small_pieces_does_not_block_the_daemon() -> None:
    async def bytes_one_by_one() -> AsyncIterator[bytes]:
        for _ in range(ANSWER_MAX_BYTES):
            yield b"x"

    peer = httpx.MockTransport(lambda _: httpx.Response(200, content=bytes_one_by_one()))
    client = MerchantClient(peer)
    began_s = time.process_time()
    heard = await client.call("http://a.example/", "POST", body=b"", headers={}, timeout_s=60)
    assert heard.body == b"x" * ANSWER_MAX_BYTES
    assert time.process_time() - began_s < 3
    await client.aclose()


async def test_a_header_of_many_blanks_takes_no_time_to_parse() -> None:
    """90 KB of them blocked the daemon for half a minute."""
    async with open_shop(b"HTTP/1.1 200 OK\r\nX:" + b" " * 90_000 + b"\0\r\n\r\n", GONE) as shop:
        began_s = time.process_time()
        observed = await ask(shop.origin)
    assert observed is None
    assert time.process_time() - began_s < 3


async def test_endless_interim_answers_are_cut_off() -> None:
    """They are cut off before the timeout: reading them would take all processor time."""
    hung_up = asyncio.Event()

    async def promise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        try:
            while not hung_up.is_set():
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)
                await writer.drain()
        except ConnectionError:
            hung_up.set()

    server = await asyncio.start_server(promise, "127.0.0.1", 0)
    client = MerchantClient()
    origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        async with asyncio.timeout(60):
            assert await client.status(origin, "inv-1", headers={}, timeout_s=120) is None
            await hung_up.wait()
    finally:
        hung_up.set()
        server.close()
        await client.aclose()


async def test_an_answer_in_one_byte_chunks_does_not_block_the_event_loop() -> None:
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 40_000 + b"0\r\n\r\n"
    client = MerchantClient()
    async with open_shop(chunks, GONE) as shop, turns() as longest:
        heard = await client.call(f"{shop.origin}/payments/balance", "GET", body=b"", headers={}, timeout_s=60)
    await client.aclose()
    assert heard.body == b"x" * 40_000
    assert longest() < 0.15


async def test_what_a_server_sends_unasked_is_not_the_next_answer() -> None:
    """Such as a 408 before it closes an idle connection."""
    five, writers = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n5", []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(five)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    client, other = MerchantClient(), MerchantClient()

    async def status_of(asked: MerchantClient) -> int:
        return (await asked.call(url, "GET", body=b"", headers={}, timeout_s=60)).status

    assert [await status_of(client), await status_of(client), len(writers)] == [200, 200, 1]
    writers[0].write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
    assert await status_of(other) == 200  # by now the 408 has arrived
    assert [await status_of(client), len(writers)] == [200, 3]
    await client.aclose()
    await other.aclose()
    server.close()
    for writer in writers:
        writer.close()
        await writer.wait_closed()


async def test_a_merchant_that_does_not_answer_gives_no_balance_within_the_timeout() -> None:
    async with open_shop(None) as shop:
        assert await ask(shop.origin, timeout_s=1) is None
    assert await ask(shop.origin) is None  # nobody listens there anymore
    async with open_shop(b"") as shop:
        assert await ask(shop.origin) is None
    async with open_shop(answer(200, b"")[:-4] + b"\r\nContent-Le") as shop:
        assert await ask(shop.origin) is None


async def test_the_balance_answer_is_kept_when_the_credits_do_not_answer() -> None:
    async with open_shop(PUZZLE, b"") as shop:
        observed = await ask(shop.origin)
    assert observed is not None
    assert (observed.source, observed.body) == ("balance", '{"balance": "plenty"}')


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (answer(200, b'{"status": "settled"}'), "confirmed"),
        (answer(404, b'{"status": "settled"}'), None),
        (answer(200, b"<html>"), None),
        (answer(200, b'{"status": "settled"}' + b" " * BODY_MAX_BYTES), None),
        (b"", None),
    ],
)
async def test_the_status_of_an_invoice_is_read_only_from_a_valid_answer(said: bytes, status: str | None) -> None:
    async with open_shop(None) as shop:
        shop.answers["/payments/status/inv%2F1"] = said
        client = MerchantClient()
        told = await client.status(shop.origin, "inv/1", headers=HEADERS, timeout_s=60)
        await client.aclose()
    assert told == status


# --- the devnet's merchant ---------------------------------------------------------------------------------------


@pytest.fixture
def setting() -> Iterator[Callable[[str], str]]:
    """A devnet whose balance takes a shape; its merchant's origin."""
    with DevnetThread() as devnet:

        def set_shape(shape: str) -> str:
            url = f"{devnet.merchant_url}/merchant/settings"
            httpx.post(url, json={"balance_shape": shape}, verify=NO_TLS).raise_for_status()
            return devnet.merchant_url

        yield set_shape


@pytest.mark.parametrize(
    ("shape", "source"),
    [
        ("plain", "balance"),
        ("nested", "balance"),
        ("digits", "balance"),
        ("nonsense", "credits"),
        ("missing", "credits"),
    ],
)
async def test_every_shape_of_the_devnets_balance_is_read(
    setting: Callable[[str], str], shape: str, source: str
) -> None:
    observed = await ask(setting(shape))
    assert observed is not None
    assert (observed.source, observed.parsed.understood) == (source, True)
    assert (observed.parsed.remaining, observed.parsed.total) == (0, 0)


class TestCall:
    """A request that may cost money: sent once, unchanged, and its answer kept as received."""

    async def test_the_request_is_sent_unchanged_and_its_answer_is_returned(self) -> None:
        async with open_shop(answer(402, b'{"pay": "me"}', "X-Invoice-Id: i1")) as shop:
            heard = await call(f"{shop.origin}/payments/balance?a=b%20c", b"{}")
            assert (heard.status, heard.body) == (402, b'{"pay": "me"}')
            assert ("x-invoice-id", "i1") in heard.headers
            assert json.loads(heard.record())["body"] == '{"pay": "me"}'
            (head,) = shop.asked
            assert head.startswith("POST /payments/balance?a=b%20c HTTP/1.1")
            assert "x-partner: demo" in head.lower()

    async def test_a_redirect_is_returned_and_not_followed(self) -> None:
        async with open_shop(answer(307, b"", "Location: /payments/credits")) as shop:
            assert (await call(f"{shop.origin}/payments/balance")).status == 307
            assert shop.paths() == ["/payments/balance"]

    async def test_an_answer_above_the_limit_is_not_kept(self) -> None:
        async with open_shop(answer(402, b"x" * (ANSWER_MAX_BYTES + 1))) as shop:
            assert (await call(f"{shop.origin}/payments/balance")).body is None

    async def test_a_timeout_and_a_refused_connection_have_their_codes(self) -> None:
        async with open_shop(None) as shop:
            with pytest.raises(Refused, match="merchant_timeout"):
                await call(f"{shop.origin}/payments/balance", timeout_s=1)
        with pytest.raises(Refused, match="merchant_unreachable"):
            await call("http://127.0.0.1:9/")

    async def test_a_binary_answer_is_kept_in_base64(self) -> None:
        async with open_shop(answer(402, b"\xff\x00")) as shop:
            heard = await call(f"{shop.origin}/payments/balance")
            assert json.loads(heard.record())["body_base64"] == "/wA="


async def call(url: str, body: bytes = b"", timeout_s: int = 60) -> MerchantReply:
    client = MerchantClient()
    try:
        return await client.call(url, "POST", body=body, headers=HEADERS, timeout_s=timeout_s)
    finally:
        await client.aclose()


async def test_a_missing_invoice_status_is_logged_once_and_so_is_its_return() -> None:
    """Otherwise nobody would notice that a merchant's status has been missing for weeks."""
    path, told = "/payments/status/inv", b'{"status": "pending"}'
    answers = [answer(404, b""), answer(500, b""), answer(200, b"<html>"), answer(200, told), answer(200, told)]
    client = MerchantClient()
    try:
        async with open_shop(None) as shop:
            with capture_logs() as lines:
                for shop.answers[path] in answers:
                    await client.status(shop.origin, "inv", headers={}, timeout_s=60)
    finally:
        await client.aclose()
    assert [(line["event"], line.get("why")) for line in lines] == [
        ("merchant.silent", "http 404"),
        ("merchant.heard_again", None),
    ]
