"""`payagent serve` has a channel's account, and is killed or stopped at a voucher. Another takes the account."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fleetforks import ForkedDaemon
from kit.cli import until
from kit.daemons_of_a_fleet import ADDRESSES, TOKEN, add_app, furnish
from kit.http import NO_TLS
from kit.postgresql import Server, move_to_file, needs_postgresql

from payagent.audit.finding import AuditFinding
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.core.address import parse_address
from payagent.core.network import NETWORKS
from payagent.devnet.server import DevnetThread
from payagent.store.db.opening import open_read_only

pytestmark = needs_postgresql

PRICE = 1000
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

CONFIG = """\
upkeep_fees_per_day = "0 ADA"
[channels]
enabled = true
[merchants.t.channel]
provider_keys = ["{}"]
"""


@dataclass
class Shoppers:
    """A shop that sells by channel alone, and two daemons of one wallet. `holder` has the channel's account."""

    devnet: DevnetThread
    http: httpx.Client
    holder: ForkedDaemon
    other: ForkedDaemon
    channel_id: str = ""

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        return self.http.get(f"{self.devnet.merchant_url}{path}", headers=headers)

    def ask(self, at: ForkedDaemon, path: str) -> httpx.Response:
        """Ask a daemon to pay for a path, whose name is the key."""
        answer = self.get(path)
        assert answer.status_code == 402, answer.text
        body = {
            "origin": self.devnet.merchant_url,
            "request": {"method": "GET", "path": path, "body_sha256": EMPTY_SHA256},
            "response": {"status": 402, "headers": dict(answer.headers), "body": answer.json()},
        }
        return at.http.post("/v1/payments", json=body, headers={"Idempotency-Key": path})

    def pay(self, at: ForkedDaemon, path: str) -> dict[str, Any]:
        answer = self.ask(at, path)
        assert answer.status_code in (200, 201), answer.text
        return dict(answer.json())

    def serve(self, at: ForkedDaemon, path: str, payment: dict[str, Any]) -> None:
        """Present the voucher, and report the answer."""
        answer = self.get(path, payment["headers"])
        assert (answer.status_code, answer.json()["path"]) == (200, path)
        report = {"status": 200, "headers": dict(answer.headers)}
        at.http.post(f"/v1/payments/{payment['id']}/delivery", json=report).raise_for_status()

    def call_by_proxy(self, at: ForkedDaemon, path: str) -> httpx.Response:
        return at.http.get(f"/proxy/t{path}", headers={"X-Payagent-Token": TOKEN})

    def channel(self, at: ForkedDaemon) -> dict[str, Any]:
        return dict(at.http.get(f"/v1/channels/{self.channel_id}").json())

    def until_taken(self) -> None:
        until(lambda: self.other.ready()["accounts"] == [0, 1], "the account was not taken over")


@pytest.fixture
def database(postgresql: Server) -> str:
    return postgresql.new_database()


@pytest.fixture
def shop(tmp_path: Path, postgresql: Server, database: str) -> Iterator[Shoppers]:
    url = postgresql.tcp_url(database)
    add_app(url, tmp_path)
    with ExitStack() as stack:
        devnet = stack.enter_context(DevnetThread(block_time_s=1))
        http = stack.enter_context(httpx.Client(verify=NO_TLS, trust_env=False, timeout=60))
        settings = {"dialect": "x402-channel", "price": str(PRICE)}
        http.post(f"{devnet.merchant_url}/merchant/settings", json=settings).raise_for_status()
        for address in ADDRESSES[:2] * 2:
            faucet = {"address": address, "lovelace": "40000000"}
            http.post(f"{devnet.origin}/devnet/faucet", json=faucet).raise_for_status()
        http.post(f"{devnet.origin}/devnet/blocks", json={"count": 1}).raise_for_status()
        key = http.get(f"{devnet.merchant_url}/merchant/state").json()["channel"]["provider_key"]
        daemons = []
        for name in "ab":
            folder = furnish(tmp_path / name, devnet, url, CONFIG.format(key), accounts=2)
            daemons.append(ForkedDaemon(folder))
            stack.callback(daemons[-1].end)
        until(
            lambda: all(one.ready()["ready"] and len(one.ready()["accounts"]) == 1 for one in daemons),
            "the daemons do not each hold an account",
        )
        made = Shoppers(devnet, http, *daemons)
        assert made.ask(made.holder, "/channel/offer").json()["code"] == "channel_missing"
        opened = made.holder.http.post("/v1/channels", json={"merchant": "t"})
        assert opened.status_code == 201, opened.text
        made.channel_id = opened.json()["id"]
        until(lambda: made.channel(made.other)["state"] == "open", "the channel does not open")
        yield made
    move_to_file(database, tmp_path / "ledger.db")
    with closing(open_read_only(tmp_path / "ledger.db")) as conn:
        owner = Owner(parse_address(ADDRESSES[0], NETWORKS["devnet"]), NETWORKS["devnet"])
        assert [one for one in verify(conn, owner) if isinstance(one, AuditFinding)] == []


def test_the_proxy_of_the_holder_calls_and_the_other_one_says_where_to_ask(shop: Shoppers) -> None:
    for path in ("/channel/a", "/channel/b"):
        answer = shop.call_by_proxy(shop.holder, path)
        assert (answer.status_code, answer.json()["path"]) == (200, path)
    told = shop.call_by_proxy(shop.other, "/channel/c")
    assert (told.status_code, told.json()["code"]) == (503, "channel_busy")
    assert "GET /readyz of each daemon has its accounts" in told.text
    assert (shop.channel(shop.other)["signed"], shop.channel(shop.other)["count"]) == (str(2 * PRICE),) * 2
    closed = shop.other.http.post(f"/v1/channels/{shop.channel_id}/close")
    assert (closed.status_code, closed.json()["state"]) == (200, "closing")


@pytest.mark.parametrize("point", ["after promise", "before delivery"])
def test_the_next_holder_gives_the_same_voucher_for_a_key_after_a_kill(shop: Shoppers, point: str) -> None:
    shop.serve(shop.holder, "/channel/a", shop.pay(shop.holder, "/channel/a"))
    known: dict[str, Any] = {}
    shop.holder.order("kill", point)
    with suppress(httpx.HTTPError):
        known = shop.pay(shop.holder, "/channel/b")
        shop.serve(shop.holder, "/channel/b", known)
    shop.holder.reach()
    shop.until_taken()
    again = shop.pay(shop.other, "/channel/b")
    assert (known == {}) == (point == "after promise")
    for name in known and ("id", "tx_hash", "headers"):
        assert again[name] == known[name]
    shop.serve(shop.other, "/channel/b", again)
    shop.serve(shop.other, "/channel/c", shop.pay(shop.other, "/channel/c"))
    seen = shop.channel(shop.other)
    assert (seen["signed"], seen["count"]) == (str(3 * PRICE),) * 2


def test_a_holder_that_was_stopped_after_its_promise_gives_out_nothing_once_it_goes_on(shop: Shoppers) -> None:
    shop.serve(shop.holder, "/channel/a", shop.pay(shop.holder, "/channel/a"))
    with ThreadPoolExecutor(1) as pool:
        shop.holder.order("stop", "after promise")
        asked = pool.submit(shop.ask, shop.holder, "/channel/b")
        shop.holder.reach()
        shop.until_taken()
        paid = shop.pay(shop.other, "/channel/b")
        shop.serve(shop.other, "/channel/b", paid)
        shop.holder.wake()
        told = asked.result()
    assert told.status_code == 503, told.text
    assert told.json()["code"] in ("lease_lost", "channel_busy")
    shop.holder.until_it_lost()
    assert shop.ask(shop.holder, "/channel/b").json()["code"] == "channel_busy"
    seen = shop.channel(shop.other)
    assert (seen["signed"], seen["count"]) == (str(2 * PRICE),) * 2
