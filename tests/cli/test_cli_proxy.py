"""`payagent proxy`: a local port that stands for one merchant's origin and pays through the daemon."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from kit.cli import Shop, invoke, spawn, write_private
from kit.http import NO_TLS

from payagent.devnet.server import DevnetThread


@contextmanager
def bare(shop: Shop, *more: str) -> Iterator[str]:
    """The running command's URL."""
    log = (shop.folder / "bare.log").open("a")
    process = spawn(
        "proxy",
        "--to",
        shop.devnet.merchant_url,
        "--config",
        shop.config,
        *more,
        stdout=subprocess.PIPE,
        stderr=log,
    )
    with log:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert told["to"] == shop.devnet.merchant_url
        try:
            yield told["proxy"]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            process.stdout.close()


def client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, verify=NO_TLS, trust_env=False, timeout=60)


@pytest.fixture(scope="module")
def http(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of the command. The API's config names a host of its own."""
    config = with_api_keys(shop, tmp_path_factory.mktemp("proxy"), 'allowed_hosts = ["pay.example"]')
    with bare(shop, "--config", str(config)) as url, client(url) as http:
        yield http


@pytest.fixture(scope="module")
def idle_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A wallet whose daemon does not run, beside the shop."""
    with DevnetThread() as devnet:
        idle = Shop(devnet, tmp_path_factory.mktemp("idle"))
        with idle.http:
            yield idle


@pytest.fixture(scope="module")
def unserved(idle_shop: Shop) -> Iterator[httpx.Client]:
    """A client of the command while no daemon runs."""
    with bare(idle_shop) as url, client(url) as http:
        yield http


def test_a_client_without_a_token_is_served_and_the_daemon_pays(shop: Shop, http: httpx.Client) -> None:
    got = http.post("/chat", json={"message": "hello", "stream": True})
    assert got.status_code == 200, got.text
    assert got.text.endswith("data: [DONE]\n\n")
    assert got.headers["x-payagent-state"] in ("in_block", "confirmed")
    payment = shop.payagent("payments", "show", got.headers["x-payagent-payment"]).json
    assert payment["origin"] == shop.devnet.merchant_url
    quote = http.post("/chat", json={"message": "dear"}, headers={"X-Payagent-Dry-Run": "true"})
    assert quote.json()["within_limits"] is True
    for most in ("1", "1 ADA", "9 COIN"):
        got = http.post("/chat", json={"message": "dear"}, headers={"X-Payagent-Max-Cost": most})
        assert (got.status_code, got.json()["code"]) == (403, "limit_exceeded")
    bound = {"Connection": "x-payagent-max-cost", "X-Payagent-Max-Cost": "1"}
    got = http.post("/chat", json={"message": "dear"}, headers=bound)
    assert (got.status_code, got.json()["code"]) == (403, "limit_exceeded")
    assert http.get("/health").json() == {"status": "ok"}


def test_web_pages_foreign_hosts_and_forward_proxy_requests_are_refused(http: httpx.Client) -> None:
    for headers, code in (
        ({"Origin": "http://evil.example"}, "browser_refused"),
        ({"Sec-Fetch-Site": "cross-site"}, "browser_refused"),
        ({"Origin": "http://evil.example", "Connection": "origin"}, "browser_refused"),
        ({"Host": "evil.example"}, "browser_refused"),
    ):
        got = http.get("/health", headers=headers)
        assert (got.status_code, got.json()["code"]) == (403, code)
    with httpx.Client(proxy=str(http.base_url), timeout=60) as mistaken:
        got = mistaken.get("http://merchant.example/health")
    assert got.status_code == 400
    assert "as a forward proxy" in got.json()["detail"]


def with_api_keys(shop: Shop, folder: Path, keys: str) -> Path:
    """The shop's config with more in [api]."""
    return write_private(folder / "config.toml", shop.config.read_text().replace("[api]\n", f"[api]\n{keys}\n"))


def test_allowed_hosts_of_the_api_do_not_apply_to_the_port_without_a_token(http: httpx.Client) -> None:
    """A page there would be accepted: browsers send no Sec-Fetch-Site to plain http that is not loopback."""
    got = http.get("/health", headers={"Host": "pay.example"})
    assert (got.status_code, got.json()["code"]) == (403, "browser_refused")


def test_the_port_without_a_token_listens_on_loopback_only_even_if_the_api_uses_tls(
    shop: Shop, tmp_path: Path
) -> None:
    config = with_api_keys(shop, tmp_path, f'tls_certificate_file = "{tmp_path}/c"\ntls_key_file = "{tmp_path}/k"')
    for listen in ("0.0.0.0:0", "[::]:0", "192.0.2.1:0"):
        told = invoke("proxy", "--to", shop.devnet.merchant_url, "--listen", listen, "--config", config)
        assert (told.code, told.problem) == (2, "config_invalid")
        assert "loopback" in told.error["detail"]


def test_a_token_sent_by_the_client_is_ignored(http: httpx.Client) -> None:
    got = http.get("/health", headers={"X-Payagent-Token": "pa_wrong", "Authorization": "Bearer theirs"})
    assert got.json() == {"status": "ok"}


def test_without_the_daemon_requests_get_daemon_not_running(unserved: httpx.Client) -> None:
    got = unserved.get("/health")
    assert (got.status_code, got.json()["code"]) == (503, "daemon_not_running")


def test_a_request_during_which_the_daemon_ends_gets_daemon_timeout(
    idle_shop: Shop, unserved: httpx.Client
) -> None:
    path = idle_shop.folder / "s"
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(path))
        daemon.listen()

        def hear_and_end() -> None:
            connection, _ = daemon.accept()
            with connection:
                connection.recv(65_536)

        ends = threading.Thread(target=hear_and_end)
        ends.start()
        got = unserved.post("/chat")
        ends.join()
        path.unlink()
    assert (got.status_code, got.json()["code"]) == (504, "daemon_timeout")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--to", "https://unknown.example"], 6, "merchant_not_allowed"),
        (["--to", "not a url"], 2, "usage"),
        (["--to", "{merchant}", "--listen", "0.0.0.0:0"], 2, "config_invalid"),
        (["--to", "{merchant}", "--listen", "127.0.0.1:{taken}"], 2, "config_invalid"),
    ],
)
def test_the_proxy_refuses_to_start_with_invalid_options(
    shop: Shop, arguments: list[str], code: int, told: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        places = {"merchant": shop.devnet.merchant_url, "taken": taken.getsockname()[1]}
        result = shop.payagent("proxy", *(argument.format(**places) for argument in arguments))
    assert (result.code, result.problem) == (code, told)


THIEF = """
import os, socket, sys
os.setuid(65534)
with socket.fromfd(int(sys.argv[1]), socket.AF_UNIX, socket.SOCK_STREAM) as listener:
    listener.listen()
    print("on", flush=True)
    print(listener.accept()[0].recv(9999), flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_the_token_is_not_given_to_another_users_process(idle_shop: Shop) -> None:
    """Another user listens on the daemon's socket: what counts is which user called `listen`."""
    path = idle_shop.folder / "s"
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        thief = subprocess.Popen(
            [sys.executable, "-c", THIEF, str(taken.fileno())],
            pass_fds=[taken.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert thief.stdout is not None
            assert thief.stdout.readline() == "on\n"
            with bare(idle_shop) as url, client(url) as http:
                assert http.get("/health").json()["code"] == "config_invalid"
            assert thief.stdout.readline() == "b''\n"
        finally:
            thief.kill()
            thief.communicate()
            path.unlink()
