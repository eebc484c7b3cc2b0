"""A port that other machines can reach: TLS only, and only if the operator asks for it."""

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from kit.certificates import certificate
from kit.daemon import announced_at, refused, stop
from kit.http import NO_TLS


@pytest.fixture
def secured(folder: Path) -> Path:
    """A folder whose daemon listens everywhere, with a certificate for 127.0.0.1."""
    certificate(folder)
    set_listen(folder, "0.0.0.0:0")
    return folder


def set_listen(folder: Path, listen: str, tls: bool = True) -> None:
    files = (
        f'tls_certificate_file = "{folder}/merchant.pem"\ntls_key_file = "{folder}/merchant.key"\n' if tls else ""
    )
    config = folder / "config.toml"
    text = re.sub(r"(?m)^listen = .*\n", f'listen = "{listen}"\n' + files, config.read_text())
    config.write_text(text)


@contextmanager
def running(folder: Path, *more: str) -> Iterator[tuple[str, str]]:
    """A daemon's port and its socket."""
    process, url, path = announced_at(folder, *more)
    try:
        yield url, path
    finally:
        assert stop(process)[0] == 0


def test_other_machines_reach_the_port_only_over_tls(secured: Path) -> None:
    trusted = ssl.create_default_context(cafile=secured / "merchant.pem")
    with running(secured, "--allow-remote") as (url, path):
        port = url.rpartition(":")[2]
        assert url == f"https://0.0.0.0:{port}"
        with httpx.Client(verify=trusted, trust_env=False, base_url=f"https://127.0.0.1:{port}") as client:
            assert client.get("/healthz").status_code == 200
            assert client.get("/v1/wallet").status_code == 401
            assert len(client.get("/openapi.json").content) > 65_536
            rebound = client.get("/v1/wallet", headers={"Host": "evil.example"})
            assert (rebound.status_code, rebound.json()["code"]) == (403, "browser_refused")
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{port}/healthz", verify=NO_TLS, trust_env=False)
        transport = httpx.HTTPTransport(uds=path, verify=NO_TLS)
        with httpx.Client(transport=transport, base_url="http://localhost") as client:
            assert client.get("/healthz").status_code == 200


def test_a_port_open_to_other_machines_requires_allow_remote(secured: Path) -> None:
    code, talk = refused(secured)
    assert code == 2
    assert "accepts connections from other machines: if intended, use --allow-remote" in talk


def test_a_loopback_port_may_speak_tls_too(secured: Path) -> None:
    set_listen(secured, "127.0.0.1:0", tls=False)
    trusted = ssl.create_default_context(cafile=secured / "merchant.pem")
    with running(secured) as (url, _), httpx.Client(verify=trusted, trust_env=False) as client:
        assert client.get(f"{url}/healthz").status_code == 200


def _no_files(folder: Path) -> str:
    config = folder / "config.toml"
    config.write_text(re.sub(r"(?m)^tls_.*\n", "", config.read_text()))
    return "Set tls_certificate_file and tls_key_file, or write a loopback address"


def _half(folder: Path) -> str:
    config = folder / "config.toml"
    config.write_text(re.sub(r"(?m)^tls_key.*\n", "", config.read_text()))
    return "set both tls_certificate_file and tls_key_file, or neither"


def _open_key(folder: Path) -> str:
    (folder / "merchant.key").chmod(0o644)
    return "merchant.key is open to others (0644)"


def _other_key(folder: Path) -> str:
    (folder / "other").mkdir()
    _, key = certificate(folder / "other")
    key.rename(folder / "merchant.key")
    return "merchant.key: they do not belong together"


def _no_key(folder: Path) -> str:
    (folder / "merchant.key").unlink()
    return "merchant.key cannot be read: No such file or directory"


def _no_pem(folder: Path) -> str:
    (folder / "merchant.pem").write_text("certificate")
    return "they cannot be read as PEM"


@pytest.mark.parametrize("spoil", [_no_files, _half, _open_key, _other_key, _no_key, _no_pem])
def test_the_daemon_refuses_to_start_without_a_valid_certificate_and_key(secured: Path, spoil: object) -> None:
    sentence = spoil(secured)  # type: ignore[operator]
    code, talk = refused(secured, "--allow-remote")
    assert code == 2, talk
    assert sentence in talk
