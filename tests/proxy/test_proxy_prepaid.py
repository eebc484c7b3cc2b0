"""Batches through the proxy: concurrent requests buy one, and the rest are served from it."""

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Never

import pytest
from kit.agent import ADA, World
from kit.canaries import plant
from kit.proxy import Got, Place, blocks, place

from payagent.audit.verify import check_limits
from payagent.core.invoice import is_batch
from payagent.core.policy import WALLET
from payagent.core.prepaid_balance import CALLS
from payagent.proxy import request_scope as attend
from payagent.proxy.http1 import Upstream
from payagent.store.rows import limit_counters, prepaid


@pytest.fixture
async def shop(world: World):  # type: ignore[no-untyped-def]
    world.fund(*[50 * ADA] * 8)
    async with place(world) as at, blocks(at.run):
        yield at


def left(shop: Place) -> tuple[int, int, int]:
    """(bought, used, unexplained)"""
    (pool,) = prepaid.all_pools(shop.run.context.conn)
    found = prepaid.balance(shop.run.context.conn, pool.id, CALLS)
    return found.bought, found.used, found.unexplained


async def call(shop: Place, number: int, *headers: str) -> int:
    body = json.dumps({"message": f"call {number}"}).encode()
    return (await shop.ask("/chat", *headers, method="POST", body=body, merchant="devnet")).status


async def test_a_hundred_concurrent_first_requests_buy_one_batch(shop: Place) -> None:
    shop.run.world.settings(batch=100)
    statuses = await asyncio.gather(*(call(shop, number) for number in range(100)))
    assert set(statuses) == {200}
    assert [is_batch(row.invoice.batch_target) for row in shop.payments] == [True]
    assert len(shop.run.world.transactions()) == 1
    await shop.until(lambda: left(shop) == (100, 100, 0), "not all are counted")


async def test_requests_that_waited_for_an_identical_one_do_not_pay_their_old_402(shop: Place) -> None:
    shop.run.world.settings(batch=100)
    statuses = await asyncio.gather(*(call(shop, number % 5) for number in range(50)))
    assert set(statuses) == {200}
    assert len(shop.run.world.transactions()) == 1


async def test_a_repeated_request_with_the_same_key_uses_the_balance_once(shop: Place) -> None:
    shop.run.world.settings(batch=10)
    assert await call(shop, 1) == 200
    for number in (2, 3, 3):
        assert await call(shop, number, "Idempotency-Key: k") == 200
    await shop.until(lambda: left(shop)[1] == 3, "the first call, the second, and the third once")


async def test_when_a_batch_is_used_up_the_next_one_is_bought(shop: Place) -> None:
    shop.run.world.settings(batch=3)
    statuses = await asyncio.gather(*(call(shop, number) for number in range(7)))
    assert set(statuses) == {200}
    assert len(shop.run.world.transactions()) == 3
    await shop.until(lambda: left(shop) == (9, 7, 0), "not all are counted")


async def test_a_merchant_that_requires_the_wallet_address_gets_it(world: World) -> None:
    world.fund(50 * ADA)
    world.settings(batch=3)
    known = world.terms.merchants[world.origin]
    world.terms = replace(world.terms, merchants={world.origin: replace(known, partner=None)})
    async with place(world) as shop, blocks(shop.run):
        assert await call(shop, 1) == 200
        assert await call(shop, 2, f"X-Wallet-Address: {world.address}") == 200
        await shop.until(lambda: left(shop) == (3, 2, 0), "not all are counted")
        (pool,) = prepaid.all_pools(shop.run.context.conn)
        assert (pool.partner, pool.wallet) == ("", world.address)


EACH = 13 * ADA // 4
"""What a call of a batch of four costs on average."""


async def bind(shop: Place, app: str, **limits: int) -> None:
    """Set an app's own limits, in lovelace."""
    order = {"app": app, "limits": {name: str(units) for name, units in limits.items()}}
    (await shop.api.http.post("/v1/limits", json=order)).raise_for_status()


async def call_as(shop: Place, app: str, number: int, *headers: str) -> Got:
    return await shop.ask(
        "/chat",
        f"X-Payagent-Token: {shop.api.tokens[app]}",
        *headers,
        method="POST",
        body=json.dumps({"message": f"{app} {number}"}).encode(),
        merchant="devnet",
        token=False,
    )


async def spent(shop: Place, app: str) -> int:
    """What the app sees as spent of its own limits."""
    told = (await shop.api.as_(app).get("/v1/limits")).json()["limits"]
    (units,) = {int(one["spent"]) for one in told if one["app"] == app}
    return units


def counted(shop: Place) -> int:
    """What uses of the balance count against the apps' own limits, in lovelace."""
    (units,) = shop.run.context.conn.execute("SELECT COALESCE(SUM(counted_units), 0) FROM prepaid_uses").fetchone()
    return int(units)


def remaining(shop: Place) -> int:
    """What the merchant says is left."""
    world = shop.run.world
    told = world.http.get(f"{world.origin}/payments/balance?partner=demo&wallet={world.address}").json()
    return int(told["remaining"])


class TestBatchOfAnotherApp:
    """One app buys a batch; each use counts against the limits of the app that uses it."""

    @pytest.fixture
    async def shop(self, shop: Place) -> Place:
        shop.run.world.settings(batch=4)
        assert (await call_as(shop, "other", 0)).status == 200
        await shop.until_delivered()
        await shop.until(lambda: left(shop)[:2] == (4, 1), "not confirmed")
        return shop

    async def test_uses_count_against_the_apps_own_limit(self, shop: Place) -> None:
        await bind(shop, "payer", total=2 * EACH + 1)
        assert [(await call_as(shop, "payer", n)).status for n in range(2)] == [200, 200]
        refused = await call_as(shop, "payer", 2)
        told = json.loads(refused.body or b"")
        assert (refused.status, told["code"], told["limit"]) == (403, "limit_exceeded", "total")
        assert (told["app"], told["left"], told["asked"]) == ("payer", "1", str(EACH))
        assert (remaining(shop), await spent(shop, "payer")) == (1, 2 * EACH), "it was not even asked"
        assert (await call_as(shop, "other", 1)).status == 200, "whoever bought it has no limit of its own"

    async def test_a_dry_run_of_a_prepaid_request_sends_no_request(self, shop: Place) -> None:
        got = await call_as(shop, "payer", 0, "X-Payagent-Dry-Run: true")
        quote = json.loads(got.body or b"")
        assert (got.status, quote["prepaid"], quote["unit"], quote["units"]) == (200, True, "calls", "1")
        assert quote["within_limits"] is True
        assert (remaining(shop), left(shop)[:2]) == (3, (4, 1)), "it was not even asked"
        await bind(shop, "payer", total=EACH - 1)
        quote = json.loads((await call_as(shop, "payer", 0, "X-Payagent-Dry-Run: true")).body or b"")
        assert (quote["within_limits"], quote["refusal"]["code"]) == (False, "limit_exceeded")
        assert (remaining(shop), await spent(shop, "payer")) == (3, 0)

    async def test_a_dry_run_without_a_balance_asks_for_the_price(self, shop: Place) -> None:
        for number in range(3):
            assert (await call_as(shop, "payer", number)).status == 200
        await shop.until(lambda: left(shop)[:2] == (4, 4), "not all are counted")
        got = await call_as(shop, "payer", 3, "X-Payagent-Dry-Run: true")
        quote = json.loads(got.body or b"")
        assert (quote["prepaid"], quote["batch_target"], quote["outputs"][0]["units"]) == (False, 4, "10000000")

    @pytest.mark.parametrize("header", ["X-Wallet-Address", "X-Partner"])
    async def test_a_request_that_names_two_buyers_is_refused(self, shop: Place, header: str) -> None:
        """Otherwise one of them would be counted here while the merchant serves the other."""
        await bind(shop, "payer", total=1)
        own = {"X-Wallet-Address": shop.run.world.address, "X-Partner": "demo"}[header]
        for said in (("nobody", own), (own, "nobody")):
            answer = await call_as(shop, "payer", 0, *(f"{header}: {name}" for name in said))
            assert (answer.status, json.loads(answer.body or b"")["key"]) == (400, header.lower())
        assert remaining(shop) == 3

    async def test_a_refusal_says_what_the_limit_leaves_and_when_it_frees_up(self, shop: Place) -> None:
        await bind(shop, "payer", per_day=EACH)
        assert (await call_as(shop, "payer", 0)).status == 200
        told = json.loads((await call_as(shop, "payer", 1)).body or b"")
        assert (told["limit"], told["left"]) == ("per_day", "0")
        assert told["frees_at"] is not None
        rows = shop.run.context.conn.execute("SELECT app, code FROM v_refusals").fetchall()
        assert rows == [("payer", "limit_exceeded")]
        assert shop.run.context.metrics.purchases_refused == {("app_payer", "devnet", "limit_exceeded"): 1}

    async def test_a_use_does_not_count_again_against_the_wallets_limits(self, shop: Place) -> None:
        await bind(shop, "payer", total=100 * ADA)
        before = limit_counters.totals(shop.run.context.conn, WALLET)
        assert (await call_as(shop, "payer", 0)).status == 200
        assert await spent(shop, "payer") == EACH
        assert limit_counters.totals(shop.run.context.conn, WALLET) == before
        assert not list(check_limits(shop.run.context.conn))

    async def test_concurrent_uses_stay_within_the_limit(self, shop: Place) -> None:
        await bind(shop, "payer", total=2 * EACH)
        got = await asyncio.gather(*(call_as(shop, "payer", n) for n in range(9)))
        assert sorted(one.status for one in got) == [200, 200, *[403] * 7]
        assert (remaining(shop), await spent(shop, "payer")) == (1, 2 * EACH)

    async def test_a_use_that_is_not_served_is_not_counted(self, shop: Place) -> None:
        await bind(shop, "payer", total=2 * EACH)
        bad = shop.call("/chat", method="POST", body=b"no JSON", merchant="devnet")
        async with shop.wire() as wire:
            await wire.say(bad)
            assert (await wire.answer()).status == 422
        assert (await spent(shop, "payer"), remaining(shop)) == (0, 3)
        assert not list(check_limits(shop.run.context.conn))

    async def test_a_client_that_hangs_up_before_its_request_is_sent_uses_nothing(
        self, shop: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await bind(shop, "payer", total=2 * EACH)
        write, committed, gone = shop.run.context.write, asyncio.Event(), asyncio.Event()

        async def slow(name: str, *more: Any) -> Any:
            result = await write(name, *more)
            if name == "let_through":
                committed.set()
                await gone.wait()
            return result

        monkeypatch.setattr(shop.run.context, "write", slow)
        monkeypatch.setattr(attend, "log", SimpleNamespace(info=lambda *_, **__: gone.set()))
        async with shop.wire() as wire:
            await wire.say(shop.call("/chat", method="POST", body=b"{}", merchant="devnet"))
            await committed.wait()
            assert counted(shop) == EACH
            wire.hang_up()
        await shop.until(lambda: counted(shop) == 0, "nothing was sent, and it is counted still")
        assert remaining(shop) == 3
        assert not list(check_limits(shop.run.context.conn))

    async def test_a_client_that_hangs_up_before_the_merchant_is_connected_uses_nothing(
        self, shop: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The merchant is down, and clients give up before the proxy does."""
        await bind(shop, "payer", total=2 * EACH)
        connecting = asyncio.Event()

        async def connect(_upstream: Upstream) -> Never:
            connecting.set()
            await asyncio.Event().wait()
            raise AssertionError

        monkeypatch.setattr(Upstream, "_idle_connection", lambda _upstream: None)
        monkeypatch.setattr(Upstream, "_connect", connect)
        async with shop.wire() as wire:
            await wire.say(shop.call("/chat", method="POST", body=b"{}", merchant="devnet"))
            await connecting.wait()
            assert counted(shop) == EACH
            wire.hang_up()
        await shop.until(lambda: counted(shop) == 0, "nothing was sent, and it is counted still")
        assert not list(check_limits(shop.run.context.conn))

    async def test_a_repeated_request_counts_each_time_against_the_limit(self, shop: Place) -> None:
        """This merchant ignores the app's key: each request is served from the balance."""
        await bind(shop, "payer", total=2 * EACH)
        got = [(await call_as(shop, "payer", 0, "Idempotency-Key: k")).status for _ in range(3)]
        assert (got, remaining(shop)) == ([200, 200, 403], 1)
        assert await spent(shop, "payer") == 2 * EACH
        await shop.until(lambda: left(shop)[:2] == (4, 2), "the key is one call, besides the first")
        assert not list(check_limits(shop.run.context.conn))

    async def test_an_app_that_bought_the_batch_is_not_counted_again_for_its_uses(self, shop: Place) -> None:
        """Buying it counted; its own uses do not, up to what it paid."""
        await bind(shop, "other", total=20 * ADA)
        bought = await spent(shop, "other")
        assert bought > 13 * ADA
        for number in range(3):
            assert (await call_as(shop, "other", number + 1)).status == 200
        assert await spent(shop, "other") == bought
        assert (await call_as(shop, "other", 9)).status == 403, "a second batch is above its limit"

    async def test_an_app_bound_to_other_assets_cannot_use_the_balance(self, shop: Place) -> None:
        token = "ab" * 28 + "00"
        told = (await shop.api.http.post("/v1/apps", json={"name": "tokens", "assets": [token]})).json()
        shop.api.tokens["tokens"] = plant("the token of tokens", told["token"])
        answer = await call_as(shop, "tokens", 0)
        assert json.loads(answer.body or b"")["code"] == "asset_not_allowed"
        assert remaining(shop) == 3

    async def test_a_request_of_unknown_price_asks_for_the_price_before_it_uses_the_balance(
        self, shop: Place
    ) -> None:
        """For example after top-ups only: otherwise it would be served and count against nobody."""
        await shop.run.context.write("forget", lambda unit: unit.conn.execute("DELETE FROM request_prices"))
        await bind(shop, "payer", total=EACH + 1)
        assert [(await call_as(shop, "payer", n)).status for n in range(2)] == [200, 403]
        assert (await spent(shop, "payer"), remaining(shop)) == (EACH, 2)
        health = await shop.ask("/health", merchant="devnet")
        assert (health.status, await spent(shop, "payer")) == (200, EACH), "a free request counts nothing"
