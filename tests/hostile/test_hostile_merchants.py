"""Merchants that settle and then misbehave: one settlement for each request, and the caller gets the truth.

While no block comes the truth is `in_flight`, whatever the merchant says; it is never that a payment failed.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import cycle, product
from pathlib import Path
from typing import Any

import httpx
import pytest
from hostile.hostile_merchant import (
    MODES,
    PRICE,
    SILENT,
    STATUS_MODES,
    TRIES,
    HostileMerchant,
    Naive,
    Purchase,
    settlements,
)
from kit.agent import ADA, Run, World, world_with_clock
from kit.api import Api, served
from kit.effort import pick
from kit.http import NO_TLS

from payagent.agent.base.config import MerchantConfig
from payagent.audit.finding import AuditFinding
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.core import retry_schedule
from payagent.proxy.app import Bounds

HURRIED = Bounds(read_timeout_s=3, payment_timeout_s=60)
"""For a merchant that does not answer. With the others the test waits, however busy the machine is."""
PATIENT = Bounds(read_timeout_s=60, payment_timeout_s=60)
SLOW_CLIENT_S, SLOW_ANSWER_S = 2.0, 1.6
TALK = Purchase("POST", "/chat", b'{"message": "hello"}')
WAYS = {
    "tx_hash": TALK,
    "signed_cbor": TALK,
    "x402": Purchase("GET", "/x402/report?day=1", b""),
}
T_BACKEND = ("tx_hash", "signed_cbor")


@pytest.fixture
def on_clock(tmp_path: Path) -> Iterator[World]:
    """A devnet whose clock the test moves."""
    with world_with_clock(tmp_path) as world:
        yield world


def set_up(world: World, way: str) -> None:
    """The devnet's merchant serves a transaction in its mempool, as often as the proof is shown."""
    proof = "signed_cbor" if way == "signed_cbor" else "tx_hash"
    world.settings(price=str(PRICE), splits=[], confirmations=0, proof=proof, replays="serve")
    world.settings(x402={"confirmations": -1})


@pytest.fixture(autouse=True)
def once_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request shows its proof once: the next time would be after its timeout."""
    monkeypatch.setattr(retry_schedule, "_FIRST_MS", 3_600_000)
    monkeypatch.setattr(retry_schedule, "_MAX_MS", 3_600_000)


@dataclass
class Place:
    """The daemon's API and proxy, and the merchant."""

    api: Api
    merchant: HostileMerchant
    way: str

    @property
    def run(self) -> Run:
        return self.api.run

    @property
    def purchase(self) -> Purchase:
        return WAYS[self.way]

    async def payments(self) -> list[dict[str, Any]]:
        return (await self.api.http.get("/v1/payments")).json()["payments"]

    async def delivered(self) -> dict[str, Any]:
        """The payment, once its delivery is recorded: a client has its answer a moment earlier."""
        async with asyncio.timeout(60):
            while (payment := await self.payment())["delivery"] != "accepted":
                await asyncio.sleep(0.005)
        return payment

    async def payment(self, wait_s: int = 0) -> dict[str, Any]:
        (payment,) = await self.payments()
        return (await self.api.http.get(f"/v1/payments/{payment['id']}?wait={wait_s}")).json()


@asynccontextmanager
async def place(world: World, way: str, mode: str) -> AsyncIterator[Place]:
    set_up(world, way)
    world.fund(*[20 * ADA] * 6)
    proof = "signed_cbor" if way == "signed_cbor" else "tx_hash"
    with HostileMerchant(world, mode, slow_s=SLOW_ANSWER_S).serving() as merchant:
        terms = MerchantConfig("t", merchant.url, "demo", None, "submitted", 1, proof=proof)
        async with world.run(terms=lambda given: replace(given, merchants={merchant.url: terms})) as run:
            await run.run_pass()
            async with served(run, HURRIED if mode == "accept_then_timeout" else PATIENT) as api:
                yield Place(api, merchant, way)


# --- the two ways through the daemon -----------------------------------------------------------------------------


def patience_s(at: Place) -> float:
    return SLOW_CLIENT_S if at.merchant.mode == "slow_answer" else 60


async def call_proxy(at: Place) -> bool:
    """Request through the proxy, retrying as HTTP clients do; True when it was served."""
    headers = {"X-Payagent-Token": at.api.tokens["first"]}
    if at.merchant.mode == "slow_answer":  # it may be served just as the client gives up: then only a key helps
        headers["Idempotency-Key"] = "one-purchase"
    if at.purchase.body:
        headers["Content-Type"] = "application/json"
    async with httpx.AsyncClient(
        base_url=at.api.url, verify=NO_TLS, trust_env=False, timeout=patience_s(at)
    ) as client:
        for _ in range(TRIES):
            try:
                answer = await client.request(
                    at.purchase.method, f"/proxy/t{at.purchase.path}", content=at.purchase.body, headers=headers
                )
            except httpx.TransportError:
                continue
            if answer.status_code == 200:
                return True
            tell_no_failure(answer)
    return False


def tell_no_failure(answer: httpx.Response) -> None:
    """What a client gets instead of the answer says that the payment is in flight or confirmed."""
    assert "fail" not in answer.text.lower()
    if answer.headers.get("content-type") == "application/problem+json":
        assert answer.json()["code"] in ("not_served_yet", "paid_not_served"), answer.text
        assert any(state in answer.json()["detail"] for state in ("in_flight", "confirmed"))
    else:
        assert answer.headers["x-payagent-state"] in ("in_flight", "confirmed")


async def unless_it_hangs(
    merchant: HostileMerchant, calling: Coroutine[Any, Any, httpx.Response]
) -> httpx.Response:
    """The answer; given up as soon as the merchant has settled and says nothing."""
    before, call = merchant.counts["accept_then_timeout"], asyncio.create_task(calling)
    while not call.done() and merchant.counts["accept_then_timeout"] == before:
        await asyncio.wait([call], timeout=0.005)
    if call.done():
        return call.result()
    call.cancel()
    raise httpx.ReadTimeout("it hangs")


async def call_api(at: Place) -> bool:
    """Forward each 402 to POST /v1/payments, retry with the headers, report every answer; True when served."""
    api, purchase, world = at.api, at.purchase, at.run.world
    own = {"X-Partner": "demo", "X-Wallet-Address": world.address}
    if purchase.body:
        own["Content-Type"] = "application/json"
    digest = sha256(purchase.body).hexdigest()
    request = {"method": purchase.method, "path": purchase.path, "body_sha256": digest}
    async with httpx.AsyncClient(base_url=at.merchant.url, verify=NO_TLS, trust_env=False) as client:

        async def call(proof: dict[str, str]) -> httpx.Response:
            timeout_s = patience_s(at) if proof else 60  # the merchant is hostile only after paying
            calling = client.request(
                purchase.method, purchase.path, content=purchase.body, headers=own | proof, timeout=timeout_s
            )
            return await (unless_it_hangs(at.merchant, calling) if proof else calling)

        demand = await call({})
        for _ in range(TRIES):
            told = {"status": 402, "headers": dict(demand.headers), "body": demand.json()}
            body = {"origin": at.merchant.url, "request": request, "response": told}
            made = await api.http.post("/v1/payments", json=body)
            assert made.status_code in (200, 201), made.text
            async with asyncio.timeout(60):
                while not (payment := await at.payment(wait_s=5))["ready"]:
                    assert payment["state"] in ("signed", "in_flight")
            assert payment["state"] == "in_flight"
            try:
                answer = await call(payment["headers"])
            except httpx.TransportError:
                demand = await call({})
                continue
            report = {"status": answer.status_code, "headers": dict(answer.headers), "body": answer.text}
            said = await api.http.post(f"/v1/payments/{payment['id']}/delivery", json=report)
            assert said.status_code == 200, said.text
            if answer.status_code == 200:
                return True
            assert said.json()["state"] == "in_flight"
            if answer.status_code == 402:
                demand = answer
    return False


DRIVERS = {"proxy": call_proxy, "api": call_api}
EACH_ONCE = list(zip(MODES, cycle(WAYS), cycle(DRIVERS)))
"""Each mode once: the sample."""


# --- the battery -------------------------------------------------------------------------------------------------


async def blocks(at: Place, count: int = 2) -> None:
    for _ in range(count):
        await asyncio.to_thread(at.run.world.block)
        await at.run.run_pass()


def assert_books(at: Place) -> None:
    """The ledger equals the chain, and `verify` finds nothing."""
    run = at.run
    assert run.owned() == run.world.on_chain()
    with run.context.readers.snapshot() as conn:
        owner = Owner(run.world.account.address, run.world.terms.network)
        assert [told for told in verify(conn, owner) if isinstance(told, AuditFinding)] == []


async def buy_in_spite(at: Place, driver: str) -> None:
    """Buy once; the state stays true all the time, and once the merchant recovers the request is served."""
    was_served = await DRIVERS[driver](at)
    mode = at.merchant.mode
    exercised = "5xx_after_settle" if mode in STATUS_MODES else mode
    assert at.merchant.counts[exercised] >= (1 if was_served else TRIES), at.merchant.counts
    assert was_served is (mode in ("clean", "slow_answer"))
    payment = await (at.delivered() if was_served else at.payment())
    assert payment["state"] == "in_flight"
    assert "reason" not in payment
    assert payment["delivery"] == (
        "accepted" if was_served else "presented" if shows_word(at, driver) else "not_presented"
    )
    assert len(settlements(at.run.world)) == 1
    await at.run.chain_sync.merchant_polling.poll_merchants()
    await blocks(at)
    payment = await at.payment()
    assert payment["state"] == "confirmed"
    if not was_served:
        at.merchant.mode = "clean"
        assert await DRIVERS[driver](at) if driver == "proxy" else await again(at, payment)
    payment = await at.delivered()
    assert payment["state"] == "confirmed"
    await blocks(at)
    assert settlements(at.run.world) == [payment["tx_hash"]]
    assert_books(at)


def shows_word(at: Place, driver: str) -> bool:
    """Whether the daemon knows that the proof was shown: only its proxy sees a connection that hangs."""
    return driver == "proxy" or at.merchant.mode != "accept_then_timeout"


async def again(at: Place, payment: dict[str, Any]) -> bool:
    """Show the same proof once more, and report."""
    own = {"X-Partner": "demo", "X-Wallet-Address": at.run.world.address, "Content-Type": "application/json"}
    if not at.purchase.body:
        del own["Content-Type"]
    async with httpx.AsyncClient(base_url=at.merchant.url, verify=NO_TLS, trust_env=False) as client:
        answer = await client.request(
            at.purchase.method, at.purchase.path, content=at.purchase.body, headers=own | payment["headers"]
        )
    report = {"status": answer.status_code, "headers": dict(answer.headers), "body": answer.text}
    await at.api.http.post(f"/v1/payments/{payment['id']}/delivery", json=report)
    return answer.status_code == 200


@pytest.mark.parametrize(("mode", "way", "driver"), pick(EACH_ONCE, list(product(MODES, WAYS, DRIVERS))))
async def test_a_request_is_settled_once_whatever_the_merchant_answers(
    world: World, mode: str, way: str, driver: str
) -> None:
    async with place(world, way, mode) as at:
        await buy_in_spite(at, driver)


@pytest.mark.parametrize(
    ("mode", "way"),
    pick(list(zip(STATUS_MODES, cycle(T_BACKEND))), list(product(STATUS_MODES, T_BACKEND))),
)
async def test_a_merchants_status_of_its_invoice_does_not_change_the_payment(
    world: World, mode: str, way: str
) -> None:
    async with place(world, way, mode) as at:
        assert not await call_proxy(at)
        await at.run.chain_sync.merchant_polling.poll_merchants()
        assert at.merchant.counts[mode] == 1
        payment = await at.payment()
        assert (payment["state"], payment["delivery"]) == ("in_flight", "presented")
        assert payment["merchant_status"] == ("expired" if mode == "status_lies" else None)
        await buy_in_spite(at, "proxy")


@pytest.mark.parametrize("way", pick(["x402"], list(WAYS)))
async def test_a_payment_that_is_never_served_stays_confirmed_and_its_proof_valid(
    on_clock: World, way: str
) -> None:
    """After the invoice has expired: paid and not served. The proof stays valid when shown later."""
    async with place(on_clock, way, "5xx_after_settle") as at:
        assert not await call_api(at)
        await blocks(at)
        on_clock.clock.ahead_ms += 2 * 3_600_000
        await blocks(at)
        payment = await at.payment()
        assert not await again(at, payment)
        payment = await at.payment()
        assert (payment["state"], payment["delivery"]) == ("confirmed", "paid_not_served")
        at.merchant.mode = "clean"
        assert await again(at, payment)
        payment = await at.delivered()
        assert payment["state"] == "confirmed"
        assert settlements(on_clock) == [payment["tx_hash"]]
        assert_books(at)


def test_a_naive_client_that_signs_for_every_402_pays_more_than_once(world: World) -> None:
    """The control: these tests catch a client that pays every 402. An honest merchant it pays once as well."""
    paid: dict[tuple[str, str], int] = {}
    ways = pick(["tx_hash"], list(WAYS))
    for way, purchase in ((way, WAYS[way]) for way in ways):
        for number, mode in enumerate(MODES):
            set_up(world, way)
            before = len(settlements(world))
            with HostileMerchant(world, mode, slow_s=1.0).serving() as merchant:
                naive = Naive(world, merchant, way, 0.4 if mode in SILENT else 60)
                for _ in range(10):
                    world.control("faucet", address=naive.account.address.text, lovelace=str(20 * ADA))
                world.block()
                call = purchase
                if call.body:  # a request of its own
                    call = replace(call, body=json.dumps({"message": f"{way} {number}"}).encode())
                naive.buy(call)
                assert merchant.counts[mode] > 0
            world.block()
            paid[way, mode] = len(settlements(world)) - before
    for way in ways:
        assert paid[way, "clean"] == 1
        assert sum(paid[way, mode] > 1 for mode in MODES) >= 4, paid
