"""Merchants behind TLS: paid when their certificate is trusted here, and not spoken to otherwise."""

import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agent_kit import World
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from proxy_kit import Peer, Place, place

from payagent.core.problem import Refused
from payagent.egress import Egress
from payagent.merchants.client import MerchantClient
from payagent.proxy.upstream import Call, Target, Upstream


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that vouches for itself, and what a server needs to use it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a merchant")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / "merchant.pem", folder / "merchant.key"
    public.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return public, context


@pytest.fixture
async def secure(world: World, tmp_path: Path) -> AsyncIterator[tuple[Place, Peer, Path]]:
    public, context = certificate(tmp_path)
    async with Peer().running(context) as peer, place(world, origin=peer.url) as at:
        yield at, peer, public


async def test_a_certificate_that_nobody_vouches_for_is_refused(secure: tuple[Place, Peer, Path]) -> None:
    at, peer, _ = secure
    got = await at.ask()
    assert got.status == 502
    assert b'"merchant_unreachable"' in (got.body or b"")
    assert peer.calls == []


async def test_one_that_is_trusted_for_another_name_is_refused(
    secure: tuple[Place, Peer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate is for the address that the call goes to, and the call is for a name."""
    _, peer, public = secure
    monkeypatch.setenv("SSL_CERT_FILE", str(public))

    async def here(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    egress = Egress(frozenset({"shop.example"}), here)
    origin = peer.url.replace("127.0.0.1", "shop.example")
    client = MerchantClient(egress.transport())
    with pytest.raises(Refused, match="CERTIFICATE_VERIFY_FAILED"):
        async with Upstream(Target.of_origin(origin), 5, egress).call(Call(b"GET", b"/", [], None)):
            pass
    with pytest.raises(Refused) as caught:
        await client.call(f"{origin}/", "GET", body=b"", headers={}, timeout_s=5)
    assert caught.value.code == "merchant_unreachable"
    await client.aclose()
    assert peer.calls == []


async def test_one_that_is_trusted_is_spoken_to(
    secure: tuple[Place, Peer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    at, peer, public = secure
    monkeypatch.setenv("SSL_CERT_FILE", str(public))
    for _ in range(2):
        assert (await at.ask(method="POST", body=b"x" * 300_000)).body == b"ok"
    assert [len(call.body) for call in peer.calls] == [300_000] * 2
    assert peer.connections == 1
