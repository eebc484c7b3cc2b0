"""The official x402 SDK's own clients pay the SDK's own server with our scheme; the daemon signs."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import pytest
import requests
from kit.agent import World
from kit.api import Api, served
from kit.client import UTXOS
from kit.http import NO_TLS
from kit.proxy import blocks
from kit.sdk_client import PayloadsInThread
from kit.sdk_merchant import SdkMerchant
from x402 import x402Client, x402ClientSync
from x402.http.clients import x402HttpxClient
from x402.http.clients.requests import x402_http_adapter

from payagent.agent.base.config import MerchantConfig
from payagent.api.http.rate_limit import Rates
from payagent.client import AsyncPayAgentTransport, ExactCardanoScheme
from payagent.core.aggregate import PaymentRow
from payagent.core.payment.machine import Delivery
from payagent.proxy.app import Bounds
from payagent.store.rows import payments

BODY = {"message": "hello"}
OpenMarket = Callable[..., AbstractAsyncContextManager["Market"]]


class Market:
    """The SDK's merchant, the daemon, and the SDK's clients with our scheme."""

    def __init__(self, api: Api, merchant: SdkMerchant, client_type: type[x402Client], patience_s: float) -> None:
        self.api = api
        self.client_type = client_type
        self.merchant = merchant
        self.scheme = ExactCardanoScheme(daemon=api.url, token=api.tokens["payer"], patience_s=patience_s)

    @property
    def payments(self) -> list[PaymentRow]:
        conn = self.api.run.context.conn
        return payments.payments_page(
            conn, app_id=None, state=None, origin=None, since_ms=None, before_seq=None, limit=100
        )

    def sdk(self, **options: Any) -> httpx.AsyncClient:
        client = self.client_type()
        client.set_spend_controls(False)  # the limits are the daemon's; ADA is no dollar
        return x402HttpxClient(self.scheme.connect(client), verify=NO_TLS, timeout=60, trust_env=False, **options)

    async def call(self, path: str, method: str = "GET", **more: Any) -> httpx.Response:
        """In a thread, as a program that is not the daemon: the SDK calls a scheme without letting others run."""

        async def one() -> httpx.Response:
            async with self.sdk(follow_redirects=True) as http:
                return await http.request(method, self.merchant.url + path, **more)

        return await asyncio.to_thread(lambda: asyncio.run(one()))


@asynccontextmanager
async def open_market(
    world: World,
    client_type: type[x402Client],
    *,
    ticking: bool = True,
    patience_s: float = 30.0,
    bounds: Bounds = Bounds(),  # noqa: B008  it is frozen
    **options: Any,
) -> AsyncIterator[Market]:
    world.fund(*UTXOS)
    with SdkMerchant(world.devnet, **options) as merchant:
        sold = MerchantConfig("sdk", merchant.url, None, None, "confirmed", 5)
        merchants = {**world.terms.merchants, merchant.url: sold}
        async with world.run(terms=lambda given: replace(given, merchants=merchants)) as run:
            await run.run_pass()
            async with served(run, bounds) as api, blocks(run) if ticking else nullcontext():
                there = Market(api, merchant, client_type, patience_s)
                try:
                    yield there
                finally:
                    there.scheme.close()


@pytest.fixture(params=[x402Client, PayloadsInThread])
def market(world: World, request: pytest.FixtureRequest) -> OpenMarket:
    """Open a market whose async clients are the SDK's, or as its next release has them."""
    return partial(open_market, world, request.param)


@pytest.mark.parametrize(("method", "path"), [("GET", "/premium?day=1"), ("POST", "/chat")])
@pytest.mark.parametrize("confirmations", [-1, 1])
async def test_the_sdks_client_pays_the_sdks_server(
    market: OpenMarket, method: str, path: str, confirmations: int
) -> None:
    async with market(confirmations=confirmations) as at:
        answer = await at.call(path, method, **({"json": BODY} if method == "POST" else {}))
        assert answer.status_code == 200, answer.text
        (payment,) = at.payments
        assert at.merchant.payments == {payment.attempt.tx_id: 1}
        assert payment.delivery is Delivery.ACCEPTED
        assert payment.invoice.merchant_submits


async def test_a_402_that_names_the_decoded_path_is_paid_and_served(market: OpenMarket) -> None:
    """The SDK's FastAPI middleware names the path as the framework decoded it, with a blank."""
    async with market(confirmations=-1) as at:
        unpaid = httpx.get(f"{at.merchant.url}/notes/a%20b", verify=NO_TLS, trust_env=False).headers[
            "PAYMENT-REQUIRED"
        ]
        assert json.loads(base64.b64decode(unpaid))["resource"]["url"] == f"{at.merchant.url}/notes/a b"
        assert (await at.call("/notes/a%20b")).json() == {"note": "a b"}
        assert [payment.delivery for payment in at.payments] == [Delivery.ACCEPTED]
        assert at.merchant.handled == {"/notes": 1}


async def test_the_sdks_adapter_for_requests_pays(market: OpenMarket) -> None:
    async with market(confirmations=-1) as at:

        def call() -> requests.Response:
            client = x402ClientSync()
            client.set_spend_controls(False)
            with requests.Session() as session:
                session.trust_env = False
                session.mount("http://", x402_http_adapter(at.scheme.connect(client)))
                return session.post(f"{at.merchant.url}/chat", json=BODY, timeout=60)

        answer = await asyncio.to_thread(call)
        assert (answer.status_code, answer.json()) == (200, {"reply": "hello"})
        assert [payment.delivery for payment in at.payments] == [Delivery.ACCEPTED]


async def test_the_scheme_pays_when_registered_by_hand(market: OpenMarket) -> None:
    async with market(confirmations=-1) as at:

        async def call() -> httpx.Response:
            client = at.client_type()
            client.set_spend_controls(False)
            for network in ("cardano:*", "cip34:*"):
                client.register(network, at.scheme)
            async with x402HttpxClient(client, verify=NO_TLS, timeout=60, trust_env=False) as http:
                return await http.get(f"{at.merchant.url}/premium")

        answer = await asyncio.to_thread(lambda: asyncio.run(call()))
        assert answer.status_code == 200
        assert [payment.delivery for payment in at.payments] == [Delivery.ACCEPTED]


async def test_a_slow_settlement_is_shown_the_same_payload_by_the_next_request(
    market: OpenMarket, world: World
) -> None:
    """After the timeout the program has the 402; its next request shows the signed payload."""
    async with market(ticking=False, patience_s=5.0, confirmations=1, wait_s=0) as at:
        assert (await at.call("/premium")).status_code == 402
        assert at.merchant.handled.total() == 1
        assert at.payments[0].delivery is Delivery.PRESENTED
        world.block(2)
        assert (await at.call("/premium")).status_code == 200
        (payment,) = at.payments
        assert at.merchant.payments == {payment.attempt.tx_id: 1}
        assert payment.delivery is Delivery.ACCEPTED


async def test_a_pending_settlement_is_waited_for(market: OpenMarket) -> None:
    async with market(confirmations=1, wait_s=0) as at:
        assert (await at.call("/premium")).status_code == 200
        (payment,) = at.payments
        assert at.merchant.payments == {payment.attempt.tx_id: 1}
        assert at.merchant.handled.total() == 2


async def test_successive_requests_are_separate_payments(market: OpenMarket) -> None:
    async with market(confirmations=-1, replays=False) as at:
        for _ in range(2):
            assert (await at.call("/premium")).status_code == 200
        assert list(at.merchant.payments.values()) == [1, 1]


async def test_a_delivery_is_reported_even_when_the_app_is_rate_limited(market: OpenMarket) -> None:
    """Otherwise the next request would show the same proof and get the old answer."""
    bounds = Bounds(rates=Rates(rate_limit_per_s=1))
    async with market(confirmations=-1, replays=False, bounds=bounds) as at:
        headers = {"Authorization": f"Bearer {at.api.tokens['payer']}"}

        async def use_up(_context: Any) -> None:
            while (
                httpx.get(f"{at.api.url}/v1/limits", headers=headers, verify=NO_TLS, trust_env=False).status_code
                != 429
            ):
                continue

        async def one() -> httpx.Response:
            client = at.client_type().set_spend_controls(False).on_after_payment_creation(use_up)
            async with x402HttpxClient(
                at.scheme.connect(client), verify=NO_TLS, timeout=60, trust_env=False
            ) as http:
                return await http.get(f"{at.merchant.url}/premium")

        assert (await asyncio.to_thread(lambda: asyncio.run(one()))).status_code == 200
        assert [payment.delivery for payment in at.payments] == [Delivery.ACCEPTED]


async def test_concurrent_identical_requests_are_served_without_unused_payments(market: OpenMarket) -> None:
    async with market(confirmations=-1) as at:
        answers = await asyncio.gather(*(at.call("/premium") for _ in range(4)))
        assert {answer.status_code for answer in answers} == {200}
        assert sum(at.merchant.payments.values()) >= len(at.payments)


async def test_our_transport_pays_the_sdks_server(market: OpenMarket) -> None:
    async with market(confirmations=1) as at:
        transport = AsyncPayAgentTransport(daemon=at.api.url, token=at.api.tokens["payer"])
        async with httpx.AsyncClient(transport=transport, timeout=60) as http:
            answer = await http.post(f"{at.merchant.url}/chat", json=BODY)
        assert (answer.status_code, answer.json()) == (200, {"reply": "hello"})
        (payment,) = at.payments
        assert (at.merchant.payments, payment.delivery) == ({payment.attempt.tx_id: 1}, Delivery.ACCEPTED)


async def test_a_refusal_of_the_daemon_reaches_the_program(market: OpenMarket) -> None:
    async with market(price="2000000000") as at:
        with pytest.raises(Exception, match="limit_exceeded"):
            await at.call("/premium")
        assert at.merchant.handled.total() == 0


class Bent:
    """A server with a 402 and an answer to the proof that the test chooses; it records what it gets."""

    def __init__(self, required: Callable[[str], dict[str, Any]], paid: Callable[[str], tuple[int, str]]) -> None:
        self.required = required
        self.paid = paid
        self.proofs: list[str] = []
        self.receipts: list[dict[str, Any]] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ")[1]
        if "payment-signature:" in head.lower():
            self.proofs.append(path)
            status, location = self.paid(path)
            lines = [f"HTTP/1.1 {status} X", f"Location: {location}", "Content-Length: 0"]
            if self.receipts:
                lines.append(f"PAYMENT-RESPONSE: {encoded(self.receipts.pop(0))}")
        else:
            value = encoded(self.required(path))
            lines = ["HTTP/1.1 402 X", f"PAYMENT-REQUIRED: {value}", "Content-Length: 0"]
        writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        await writer.drain()
        writer.close()


def encoded(value: object) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def required(at: Market, url: str) -> dict[str, Any]:
    entry = {"scheme": "exact", "network": "cardano:devnet", "amount": "2000000", "asset": "lovelace"}
    entry |= {"payTo": at.merchant.pay_to, "maxTimeoutSeconds": 300, "extra": {}}
    return {"x402Version": 2, "accepts": [entry], **({"resource": {"url": url}} if url else {})}


@asynccontextmanager
async def bent(at: Market, bent: Bent, resource_origins: frozenset[str] = frozenset()) -> AsyncIterator[Bent]:
    server = await asyncio.start_server(bent.serve, "127.0.0.1", 0)
    bent.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    agent = at.api.run.agent
    known = dict(agent.context.from_file.merchants)
    known[bent.url] = MerchantConfig(
        "bent", bent.url, None, None, "confirmed", 5, resource_origins=resource_origins
    )
    await agent.context.take_config(replace(agent.context.from_file, merchants=known), lambda _unit: None)
    at.merchant.url = bent.url
    try:
        yield bent
    finally:
        server.close()


async def test_a_redirect_after_paying_is_not_paid_again(market: OpenMarket) -> None:
    async with market() as at:
        moves = Bent(lambda path: required(at, at.merchant.url + path), lambda path: (307, "/second"))
        async with bent(at, moves):
            with pytest.raises(Exception, match=r"not_served_yet.*a redirect after paying is not paid again"):
                await at.call("/first")
            assert moves.proofs == ["/first"]
            (payment,) = at.payments
            assert payment.delivery is not Delivery.ACCEPTED


@pytest.mark.parametrize("way", ["httpx", "requests"])
async def test_a_redirect_with_a_settled_receipt_is_not_paid_again(market: OpenMarket, way: str) -> None:
    """The SDK's server settles every answer below 400 and says so; the client's hooks do not see the status."""

    def call() -> None:
        client = x402ClientSync()
        client.set_spend_controls(False)
        with requests.Session() as session:
            session.trust_env = False
            session.mount("http://", x402_http_adapter(at.scheme.connect(client)))
            session.get(f"{at.merchant.url}/first", timeout=60)

    async with market() as at:
        moves = Bent(lambda path: required(at, at.merchant.url + path), lambda path: (307, "/second"))
        moves.receipts = [{"success": True, "transaction": "", "network": "cardano:devnet"}]
        async with bent(at, moves):
            with pytest.raises(Exception, match=r"not_served_yet.*a redirect after paying is not paid again"):
                await (at.call("/first") if way == "httpx" else asyncio.to_thread(call))
            assert moves.proofs == ["/first"]
            (payment,) = at.payments
            assert payment.delivery is Delivery.PRESENTED


@pytest.mark.parametrize("names", ["", "/premium", "http://shop.internal:3000/premium"])
async def test_a_proof_is_shown_again_whatever_url_the_402_names(market: OpenMarket, names: str) -> None:
    """A 402 may name another URL than was requested; when the SDK repeats the request, only payagent knows."""
    receipt: dict[str, Any] = {"success": False, "errorReason": "unexpected_settle_error", "transaction": ""}
    receipt["network"] = "cardano:devnet"
    async with market() as at:
        shop = Bent(lambda _path: required(at, names), lambda _path: (200 if len(shop.proofs) > 1 else 402, ""))
        shop.receipts = [receipt, {**receipt, "success": True}]
        async with bent(at, shop, resource_origins=frozenset(("http://shop.internal:3000",))):
            assert (await at.call("/premium")).status_code == 200
            assert shop.proofs == ["/premium", "/premium"]
            (payment,) = at.payments
            assert payment.delivery is Delivery.ACCEPTED


@pytest.mark.parametrize(
    ("names", "is_paid"),
    [("/notes/a b", True), ("/notes/a%20b", True), ("/notes/a+b", False), ("/notes/a", False)],
)
async def test_a_402_may_name_the_decoded_path_of_the_request_and_no_other(
    market: OpenMarket, names: str, is_paid: bool
) -> None:
    """The official SDK's own FastAPI middleware names the path as the framework decoded it."""
    async with market() as at:
        shop = Bent(lambda _path: required(at, names), lambda _path: (200, ""))
        async with bent(at, shop):
            if is_paid:
                assert (await at.call("/notes/a%20b")).status_code == 200
            else:
                with pytest.raises(Exception, match="resource_mismatch"):
                    await at.call("/notes/a%20b")
        assert shop.proofs == (["/notes/a%20b"] if is_paid else [])


@pytest.mark.parametrize("names", ["http://shop.internal/premium", "http://shop.internal:3000/other"])
async def test_a_resource_outside_the_configured_origins_or_path_is_not_paid(
    market: OpenMarket, names: str
) -> None:
    async with market() as at:
        shop = Bent(lambda _path: required(at, names), lambda _path: (200, ""))
        async with bent(at, shop, resource_origins=frozenset(("http://shop.internal:3000",))):
            with pytest.raises(Exception, match="resource_mismatch"):
                await at.call("/premium")
        assert (shop.proofs, at.payments) == ([], [])


async def test_a_402_that_names_another_servers_url_is_not_paid(market: OpenMarket) -> None:
    async with market() as at:
        good = at.merchant.url
        liar = Bent(lambda path: required(at, f"{good}/premium"), lambda path: (200, ""))
        async with bent(at, liar):
            with pytest.raises(Exception, match="resource_mismatch"):
                await at.call("/premium")
        assert (liar.proofs, at.payments) == ([], [])


@pytest.mark.parametrize(
    ("asset", "network", "symbol"),
    [
        ("c48cbb3d5e57ed56e276bc45f99ab39abe94e6cd7ac39fb402da47ad.0014df105553444d", "cardano:mainnet", "USDM"),
        ("e675b46e4d2242c991a8932a99db3044e80515ae14b4c4ccf6b3f4c9.0014df10745553444d", "cip34:0-1", "tUSDM"),
        ("lovelace", "cardano:mainnet", None),
        ("c48cbb3d5e57ed56e276bc45f99ab39abe94e6cd7ac39fb402da47ad.0014df105553444d", "cardano:preprod", None),
    ],
)
def test_the_scheme_names_the_dollar_asset_of_each_network(
    scheme: ExactCardanoScheme, asset: str, network: str, symbol: str | None
) -> None:
    found = scheme.find_default_asset(asset, network)
    assert found == (None if symbol is None else {"asset": asset, "decimals": 6, "symbol": symbol})


@pytest.fixture
def scheme() -> Iterator[ExactCardanoScheme]:
    made = ExactCardanoScheme(token="pa_nobody")
    yield made
    made.close()
