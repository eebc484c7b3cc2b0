"""Calls by channel through what apps use: the API, the proxy, and the client's transports."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from kit.api import Api, served
from kit.channel_calls import PRICE, TAG, ChannelRun, channel_shop
from kit.client import BOTH, Program
from kit.http import NO_TLS
from kit.proxy import PATIENCE_S, Peer, Place

from payagent.client import AsyncPayAgentTransport, PayAgentError
from payagent.core.cost_headers import COST_HEADER, PAYMENT_HEADER


@pytest.fixture(autouse=True)
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call waits for the one before it as long as a slow machine needs."""
    monkeypatch.setattr("payagent.agent.channels.calls.TURN_S", PATIENCE_S)


@asynccontextmanager
async def sold_by_channel(folder: Path) -> AsyncIterator[tuple[ChannelRun, Api]]:
    with channel_shop(folder) as shop:
        async with shop.run() as at, served(at.run) as api:
            yield at, api


async def test_the_api_tells_a_call_as_a_payment_that_is_ready(tmp_path: Path) -> None:
    async with sold_by_channel(tmp_path) as (at, api):
        answer = at.get("/channel/a")
        body = {
            "origin": at.shop.world.origin,
            "request": {"method": "GET", "path": "/channel/a", "body_sha256": "0" * 64},
            "response": {"status": 402, "headers": dict(answer.headers), "body": {}},
        }
        quote = (await api.http.post("/v1/quotes", json=body)).json()
        assert (quote["total"], quote["fee"], quote["within_limits"]) == (str(PRICE), "0", True)
        paid = await api.http.post("/v1/payments", json=body)
        assert paid.status_code == 201, paid.text
        payment = paid.json()
        assert (payment["kind"], payment["ready"], payment["state"]) == ("channel_call", True, "signed")
        assert (payment["tx_hash"], payment["fee"]) == (f"{TAG}:{PRICE}", "0")
        assert (await api.http.post("/v1/payments", json=body)).status_code == 200
        path = f"/v1/payments/{payment['id']}"
        shown = await api.http.get(path, params={"wait": 5})
        assert shown.json()["headers"] == payment["headers"]
        assert shown.json()["spend"] == {"lovelace": str(PRICE)}
        served_answer = at.get("/channel/a", payment["headers"])
        report = {"status": 200, "headers": {"payment-response": served_answer.headers["payment-response"]}}
        told = (await api.http.post(f"{path}/delivery", json=report)).json()
        assert (told["state"], told["delivery"], told["answer"]["said"]) == ("confirmed", "accepted", "served")
        assert at.channel.is_count_known
        assert (await api.as_("other").get(path)).status_code == 404


async def test_the_proxy_serves_calls_and_names_what_each_cost(tmp_path: Path) -> None:
    async with sold_by_channel(tmp_path) as (at, api):
        place = Place(api, Peer())
        answers = [await place.ask(f"/channel/{number}") for number in range(5)]
        answers += await asyncio.gather(*(place.ask(f"/channel/{number}") for number in range(5, 10)))
        for number, answer in enumerate(answers):
            assert (answer.status, f"/channel/{number}".encode() in answer.body) == (200, True)
            assert answer.values(COST_HEADER.lower()) == [f"{PRICE} lovelace"]
        assert (at.channel.count, at.shop.count, at.channel.signed) == (10 * PRICE,) * 3


async def test_the_proxy_presents_a_corrected_voucher_at_once(tmp_path: Path) -> None:
    async with sold_by_channel(tmp_path) as (at, api):
        place = Place(api, Peer())
        for path in ("/channel/0", "/channel/1"):
            await place.ask(path)
        at.shop.mood("old_record")
        answer = await place.ask("/channel/2")
        assert (answer.status, b"/channel/2" in answer.body) == (200, True)
        assert (at.channel.count, at.shop.count) == (2 * PRICE,) * 2


async def test_the_proxy_presents_the_same_voucher_after_a_lost_answer(tmp_path: Path) -> None:
    async with sold_by_channel(tmp_path) as (at, api):
        place = Place(api, Peer())
        await place.ask("/channel/0")
        at.shop.mood("drop_answer")
        call = asyncio.create_task(place.ask("/channel/1"))
        await place.until(lambda: at.shop.count == 2 * PRICE, "not charged")
        at.shop.mood()
        answer = await call
        assert (answer.status, b"/channel/1" in answer.body) == (200, True)
        assert (at.channel.count, at.shop.count) == (2 * PRICE,) * 2


@pytest.mark.parametrize("way", BOTH)
async def test_a_program_pays_calls_and_reports_their_charge(tmp_path: Path, way: str) -> None:
    async with sold_by_channel(tmp_path) as (at, api):
        program = Program(Place(api, Peer()), way)
        for number in range(3):
            answer = await program.call(f"{at.shop.world.origin}/channel/{number}")
            assert answer.json()["path"] == f"/channel/{number}"
            assert answer.headers[COST_HEADER] == f"{PRICE} lovelace"
            assert at.run.context.payment(answer.headers[PAYMENT_HEADER]).delivery == "accepted"
            assert at.channel.is_count_known
        assert (at.channel.count, at.shop.count) == (3 * PRICE,) * 2


class Net(httpx.AsyncHTTPTransport):
    """A program's way to the merchant. While it is down, nothing paid arrives."""

    is_down = True
    tries = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if "payment-signature" in request.headers:
            self.tries += 1
            if self.is_down:
                raise httpx.ConnectError("down", request=request)
        return await super().handle_async_request(request)


async def test_a_program_that_was_cut_off_presents_no_voucher_of_another_call(tmp_path: Path) -> None:
    async with sold_by_channel(tmp_path) as (at, api):
        net, place, origin = Net(verify=NO_TLS), Place(api, Peer()), at.shop.world.origin
        transport = AsyncPayAgentTransport(net, daemon=api.url, token=place.token)
        async with httpx.AsyncClient(transport=transport, trust_env=False) as http:
            call = asyncio.create_task(http.get(f"{origin}/channel/cut-off"))
            await place.until(lambda: net.tries > 1, "it does not try again")
            at.wait_out()
            answer = await Program(place, "async").call(f"{origin}/channel/other")
            assert answer.json()["path"] == "/channel/other"
            net.is_down = False
            with pytest.raises(PayAgentError) as refused:
                await call
        assert (refused.value.code, at.shop.count) == ("payment_ended", PRICE)
