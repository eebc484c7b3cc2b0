"""Where requests to merchants may go: real sockets, and a resolver whose answers the test sets."""

import asyncio
import gc
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from payagent.core.notifications import Notification
from payagent.core.problems import Refused
from payagent.outbound.egress import Egress, is_public
from payagent.outbound.merchant_client import MerchantClient
from payagent.outbound.webhook import Webhook
from payagent.proxy.http1 import Target, Upstream, UpstreamRequest

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


@dataclass
class Resolver:
    """Gives its answers in turn, then repeats the last one."""

    answers: list[list[str]]
    asked: list[str] = field(default_factory=list)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@dataclass
class House:
    """A server on this machine that says how often it was called."""

    port: int = 0
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWER)
        except asyncio.IncompleteReadError:
            pass
        writer.close()


@asynccontextmanager
async def open_house() -> AsyncIterator[House]:
    house = House()
    server = await asyncio.start_server(house.serve, "127.0.0.1", 0)
    house.port = server.sockets[0].getsockname()[1]
    try:
        yield house
    finally:
        server.close()
        await server.wait_closed()


async def by_client(egress: Egress, origin: str) -> bytes | None:
    client = MerchantClient(egress.transport())
    try:
        return (await client.call(f"{origin}/x", "GET", body=b"", headers={}, timeout_s=60)).body
    finally:
        await client.aclose()


async def by_proxy(egress: Egress, origin: str) -> bytes | None:
    upstream = Upstream(Target.of_origin(origin), 60, egress)
    async with upstream.call(UpstreamRequest(b"GET", b"/x", [], None)) as answer:
        return await answer.peek(100)


Way = Callable[[Egress, str], Awaitable[bytes | None]]
both = pytest.mark.parametrize("way", [by_client, by_proxy])


@both
@pytest.mark.parametrize("answers", [["127.0.0.1"], ["93.184.216.34", "127.0.0.1"]], ids=["alone", "among others"])
async def test_a_public_name_that_resolves_to_this_machine_is_refused(way: Way, answers: list[str]) -> None:
    async with open_house() as house:
        with pytest.raises(Refused) as caught:
            await way(Egress(lookup=Resolver([answers])), f"http://shop.example:{house.port}")
        assert (caught.value.name, "127.0.0.1" in caught.value.detail) == ("merchant_in_private_network", True)
        assert caught.value.context["sent"] is False, "what was counted for the request in advance is given back"
        assert house.connections == 0


@both
async def test_a_private_name_is_reached_only_if_the_config_allows_it(way: Way) -> None:
    async with open_house() as house:
        egress = Egress(frozenset({"shop.example"}), Resolver([["127.0.0.1"]]))
        assert await way(egress, f"http://shop.example:{house.port}") == b"ok"
        with pytest.raises(Refused, match=r"other\.example resolves to 127"):
            await way(egress, f"http://other.example:{house.port}")
        assert house.connections == 1


@both
async def test_a_name_that_is_rebound_to_this_machine_is_refused(way: Way) -> None:
    """DNS rebinding: every connection is judged by the very answer that it uses."""
    async with open_house() as house:
        lookup = Resolver([["192.0.2.1"], ["127.0.0.1"]])
        for _ in range(2):
            with pytest.raises(Refused, match=r"shop\.example resolves to"):
                await way(Egress(lookup=lookup), f"http://shop.example:{house.port}")
        assert (house.connections, lookup.asked) == (0, ["shop.example"] * 2)


@both
async def test_every_address_of_a_name_is_tried(way: Way) -> None:
    async with open_house() as house:
        egress = Egress(frozenset({"shop.example"}), Resolver([["127.0.0.2", "127.0.0.1"]]))
        assert await way(egress, f"http://shop.example:{house.port}") == b"ok"


@both
async def test_a_name_without_an_address_is_merchant_unreachable(way: Way) -> None:
    async def nowhere(host: str, port: int) -> Sequence[str]:
        raise OSError("no such name")

    for lookup in (nowhere, Resolver([[]])):
        with pytest.raises(Refused) as caught:
            await way(Egress(lookup=lookup), "http://shop.example:9")
        assert caught.value.name == "merchant_unreachable"


@both
async def test_localhost_must_resolve_to_this_machine(way: Way) -> None:
    async with open_house() as house:
        origin = f"http://localhost:{house.port}"
        assert await way(Egress(lookup=Resolver([["127.0.0.1"]])), origin) == b"ok"
        with pytest.raises(Refused, match="localhost resolves to 93"):
            await way(Egress(lookup=Resolver([["93.184.216.34"]])), origin)


@both
async def test_an_ip_address_in_the_config_is_used_without_a_lookup(way: Way) -> None:
    async with open_house() as house:
        lookup = Resolver([["192.0.2.1"]])
        assert await way(Egress(lookup=lookup), f"http://127.0.0.1:{house.port}") == b"ok"
        assert lookup.asked == []


@both
async def test_a_name_that_resolves_slowly_does_not_block_other_merchants(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resolver keeps working for callers that gave up: here more of them than it has threads."""
    told, resolve = threading.Event(), socket.getaddrinfo

    def slowly(host: str, *rest: Any, **more: Any) -> Any:
        if host == "lame.example":
            told.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "no server tells")
        return resolve(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slowly)
    egress = Egress()
    try:
        async with open_house() as house, asyncio.timeout(60):
            lame = [asyncio.create_task(egress.addresses("lame.example", 443)) for _ in range(40)]
            assert await way(egress, f"http://localhost:{house.port}") == b"ok"
            for one in lame[1:]:
                one.cancel()
            await asyncio.wait(lame[1:])
            assert await way(egress, f"http://localhost:{house.port}") == b"ok"
            told.set()
            with pytest.raises(OSError, match="no server tells"):
                await lame[0]
    finally:
        told.set()


async def test_a_lookup_that_fails_after_its_callers_gave_up_logs_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = threading.Event()

    def late(*_rest: Any, **_more: Any) -> Any:
        told.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "no server tells")

    monkeypatch.setattr(socket, "getaddrinfo", late)
    egress = Egress()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await egress.addresses("lame.example", 443)
    told.set()
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})
    gc.collect()
    assert caplog.records == []


async def test_balance_and_status_are_not_requested_in_a_private_network() -> None:
    client = MerchantClient(Egress(lookup=Resolver([["10.0.0.1"]])).transport())
    try:
        assert await client.prepaid("https://shop.example", "p", "w", headers={}, timeout_s=60) is None
        assert await client.status("https://shop.example", "inv", headers={}, timeout_s=60) is None
    finally:
        await client.aclose()


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("64:ff9b::808:808", True),
        ("::ffff:8.8.8.8", True),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fc00::1", False),
        ("fe80::1%eth0", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("64:ff9b:1::1", False),
        ("2002:a00:1::1", False),
        ("fec0::1", False),
        ("::10.0.0.1", False),
        ("::8.8.8.8", False),
        ("::ffff:0:127.0.0.1", False),
        ("4000::1", False),
        ("240.0.0.1", False),
        ("2001:db8::1", False),
    ],
)
def test_private_and_reserved_addresses_are_not_public(address: str, public: bool) -> None:
    assert is_public(address) is public


async def by_webhook(egress: Egress, origin: str) -> bytes | None:
    webhook = Webhook(f"{origin}/hook", b"k" * 24)
    try:
        assert await webhook.send(Notification("ntf_1", "test", 1, "", "", {}, None, None, None), {}, 1) is None
    finally:
        await webhook.aclose()
    return b"ok"


@pytest.mark.parametrize("way", [by_client, by_proxy, by_webhook])
async def test_proxies_from_the_environment_are_ignored(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sets such a variable for the daemon could read, and answer, all of its requests."""
    async with open_house() as house, open_house() as listener:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{listener.port}")
            monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{listener.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert await way(Egress(), f"http://127.0.0.1:{house.port}") == b"ok"
        assert (house.connections, listener.connections) == (1, 0)
