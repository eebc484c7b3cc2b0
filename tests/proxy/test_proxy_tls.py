"""Merchants with TLS: requests are sent only if the certificate is trusted."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kit.agent import World
from kit.certificates import certificate, server_context
from kit.proxy import Peer, Place, place

from payagent.core.problems import Refused
from payagent.outbound.egress import Egress
from payagent.outbound.merchant_client import MerchantClient
from payagent.proxy.http1 import Target, Upstream, UpstreamRequest


@pytest.fixture
async def secure(world: World, tmp_path: Path) -> AsyncIterator[tuple[Place, Peer, Path]]:
    public, private = certificate(tmp_path)
    async with Peer().running(server_context(public, private)) as peer, place(world, origin=peer.url) as at:
        yield at, peer, public


async def test_an_untrusted_certificate_is_refused(secure: tuple[Place, Peer, Path]) -> None:
    at, peer, _ = secure
    got = await at.ask()
    assert got.status == 502
    assert b'"merchant_unreachable"' in (got.body or b"")
    assert peer.calls == []


async def test_a_trusted_certificate_for_another_name_is_refused(
    secure: tuple[Place, Peer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate is for the address that is connected to; the request is for a name."""
    _, peer, public = secure
    monkeypatch.setenv("SSL_CERT_FILE", str(public))

    async def here(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    egress = Egress(frozenset({"shop.example"}), here)
    origin = peer.url.replace("127.0.0.1", "shop.example")
    client = MerchantClient(egress.transport())
    with pytest.raises(Refused, match="CERTIFICATE_VERIFY_FAILED"):
        async with Upstream(Target.of_origin(origin), 60, egress).call(UpstreamRequest(b"GET", b"/", [], None)):
            pass
    with pytest.raises(Refused) as caught:
        await client.call(f"{origin}/", "GET", body=b"", headers={}, timeout_s=60)
    assert caught.value.name == "merchant_unreachable"
    await client.aclose()
    assert peer.calls == []


async def test_a_trusted_certificate_is_accepted(
    secure: tuple[Place, Peer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    at, peer, public = secure
    monkeypatch.setenv("SSL_CERT_FILE", str(public))
    for _ in range(2):
        assert (await at.ask(method="POST", body=b"x" * 300_000)).body == b"ok"
    assert [len(call.body) for call in peer.calls] == [300_000] * 2
    assert peer.connections == 1


def hang_up_after(server: socket.socket, tls: ssl.SSLContext, said: bytes) -> None:
    """Answer one request and close the connection as many servers do: without a TLS close_notify."""
    connection, _ = server.accept()
    with tls.wrap_socket(connection, server_side=True) as wire:
        heard = b""
        while not heard.endswith(b"\r\n\r\n"):
            heard += wire.recv(65_536)
        wire.sendall(said)


@pytest.mark.parametrize("size", [40_000, 100_000, 200_000, 3_000_000])
@pytest.mark.parametrize("framed", [True, False])
async def test_an_answer_is_read_whole_when_the_server_closes_without_a_tls_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, framed: bool
) -> None:
    """Bytes received before the close must not be lost: they may be paid for."""
    public, private = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(public))
    length = b"Content-Length: %d\r\n" % size if framed else b""
    said = b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + length + b"\r\n" + b"x" * size
    with socket.create_server(("127.0.0.1", 0)) as server:
        origin = f"https://127.0.0.1:{server.getsockname()[1]}"
        tls = server_context(public, private)
        serving = asyncio.create_task(asyncio.to_thread(hang_up_after, server, tls, said))
        body, more = b"", True
        async with Upstream(Target.of_origin(origin), 20).call(UpstreamRequest(b"GET", b"/", [], None)) as answer:
            while more:
                chunk, more = await answer.read()
                body += chunk
        await serving
    assert len(body) == size
