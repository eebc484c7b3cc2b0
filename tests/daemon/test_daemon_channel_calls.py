"""A daemon that opens a channel by itself and pays calls by it, killed with SIGKILL between two of them."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from kit.canaries import plant
from kit.cli import invoke, write_private
from kit.daemon import PASSPHRASE, Process, announced_at, refused, stop
from kit.http import NO_TLS

from payagent.api.http.tokens import hash_token
from payagent.core.network import NETWORKS
from payagent.devnet.server import DevnetThread
from payagent.store.db.writer import Writer
from payagent.store.rows import apps
from payagent.wallet.keys import derive, seed_from_words
from payagent.wallet.new_keystore import create

TOKEN = plant("the operator's token", "operator-of-the-channels-tests")
WORDS = "abandon " * 23 + "art"
PATIENCE_S = 60.0


@pytest.fixture
def devnet() -> Iterator[DevnetThread]:
    with DevnetThread(block_time_s=1) as devnet:
        yield devnet


@pytest.fixture
def wallet(folder: Path, devnet: DevnetThread) -> Path:
    """A folder whose wallet has money, and a merchant that sells by channel alone."""
    (folder / "data/keystore.json").unlink()
    create(folder / "data/keystore.json", WORDS, PASSPHRASE, NETWORKS["devnet"], scrypt_n=16)
    with closing(Writer(folder / "data/ledger.db")) as writer:
        scopes = ("operate", "pay", "read")
        writer.submit(
            "app", lambda unit: apps.add_with_token(unit, "app", "op", hash_token(TOKEN), scopes, 1)
        ).result()
    own = derive(seed_from_words(WORDS), NETWORKS["devnet"]).address.text
    with httpx.Client(verify=NO_TLS, trust_env=False) as http:
        for _ in range(2):
            faucet = {"address": own, "lovelace": "100000000"}
            http.post(f"{devnet.origin}/devnet/faucet", json=faucet).raise_for_status()
        settings = {"dialect": "x402-channel", "price": "1000"}
        http.post(f"{devnet.merchant_url}/merchant/settings", json=settings).raise_for_status()
        http.post(f"{devnet.origin}/devnet/blocks", json={"count": 1}).raise_for_status()
        state = http.get(f"{devnet.merchant_url}/merchant/state").json()["channel"]
    with (folder / "config.toml").open("a") as config:
        config.write(
            f'[channels]\nenabled = true\n[merchants.shop]\norigin = "{devnet.merchant_url}"\n'
            f'[merchants.shop.channel]\nprovider_keys = ["{state["provider_key"]}"]\nopen = "auto"\n'
        )
    return folder


@contextmanager
def daemon(wallet: Path) -> Iterator[tuple[Process, httpx.Client]]:
    process, url, _ = announced_at(wallet)
    headers = {"X-Payagent-Token": TOKEN}
    try:
        with httpx.Client(base_url=url, verify=NO_TLS, trust_env=False, headers=headers, timeout=60) as http:
            end_s = time.monotonic() + PATIENCE_S
            while http.get("/readyz").status_code != 200:
                assert time.monotonic() < end_s
                time.sleep(0.05)
            yield process, http
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=60)


def call(http: httpx.Client, name: str) -> httpx.Response:
    """The call, once the channel can pay it."""
    end_s = time.monotonic() + PATIENCE_S
    while (answer := http.get(f"/proxy/shop/channel/{name}")).json().get("code") == "channel_opening":
        assert time.monotonic() < end_s
        time.sleep(0.2)
    return answer


def count(devnet: DevnetThread) -> int:
    with httpx.Client(verify=NO_TLS, trust_env=False) as http:
        held = http.get(f"{devnet.merchant_url}/merchant/state").json()["channel"]["channels"]
    return sum(int(one["count"]) for one in held.values())


def test_calls_of_a_daemon_that_was_killed_are_charged_once(wallet: Path, devnet: DevnetThread) -> None:
    with daemon(wallet) as (process, http):
        for number in range(3):
            answer = call(http, str(number))
            assert answer.json().get("path") == f"/channel/{number}", answer.text
        write_private(wallet / "data/operator.token", TOKEN)
        status = invoke("status", "--json", "--config", wallet / "config.toml")
        assert [one["units"] for one in json.loads(status.out)["in_channels"]] == ["4997000"], status
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    with daemon(wallet) as (process, http):
        for number in range(3, 6):
            assert call(http, str(number)).json()["path"] == f"/channel/{number}"
        assert count(devnet) == 6_000
        assert stop(process)[0] == 0
    assert (wallet / "data/channels.json").stat().st_mode & 0o777 == 0o600
    config = wallet / "config.toml"
    config.write_text(config.read_text().replace("[channels]\nenabled = true", "[channels]\nenabled = false"))
    code, talk = refused(wallet)
    assert (code, "1 channels hold money" in talk) == (2, True), talk
