"""Channels over HTTP: what a listing and a channel show, whose orders they are, and nothing where they are off."""

import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from kit.agent import Run, World
from kit.api import Api, require_problem, served
from kit.channel_agent import buy, channel_world, hear
from kit.channel_rows import ADA, ON, Orders, a_channel, put_channels

from payagent.core.channel import CallState, ChannelCall
from payagent.core.timestamps import iso_time
from payagent.store.rows import channels as rows

PATH = "/v1/channels"
GONE = "https://gone.example"


@pytest.fixture
async def api(world: World) -> AsyncIterator[Api]:
    """A wallet with channels on, and an app's call, an open, a closing and an ended channel in its ledger."""
    world.fund(*[100 * ADA] * 3)
    world.terms = replace(world.terms, channels=ON)
    async with world.run() as run:
        await run.run_pass()
        opened, _ = await run.fleet.split("app_test", 1, 9 * ADA)
        last, _ = await run.fleet.split("app_test", 1, 8 * ADA)
        closing = a_channel(2, GONE, "closing", elapse_at_ms=1_790_000_000_000, problem="nobody answers")
        channel = a_channel(3, world.origin, "open")

        def put(unit):  # type: ignore[no-untyped-def]
            put_channels(unit, a_channel(1, world.origin, "ended", capacity=0, returned=4 * ADA), closing, channel)
            rows.add_step(unit, opened.id, channel.id, "open", 4 * ADA)
            rows.add_step(unit, last.id, channel.id, "add", ADA)
            for intent, state, charged in ((opened.intent.id, "served", 400), (last.intent.id, "promised", None)):
                rows.add_call(unit, _call(intent, channel.id, CallState(state), charged), 1)

        await run.context.write("test", put)
        run.agent.channels = Orders(channel)  # type: ignore[assignment]
        async with served(run) as api:
            yield api


def _call(intent: str, channel: str, state: CallState, charged: int | None) -> ChannelCall:
    return ChannelCall(
        *(0, f"pay_{state}", channel, "app_test", intent, "ref#0", 1000, 500, 500, "{}", state, charged, 1, 1)
    )


async def test_a_listing_says_what_is_locked_and_what_can_be_lost(api: Api) -> None:
    listed = (await api.as_("reader").get(PATH)).json()
    assert listed["next"] is None
    opened, closing, ended = listed["channels"]
    assert {name: opened[name] for name in opened if name not in ("id", "steps")} == {
        "merchant": "t",
        "state": "open",
        "asset": "lovelace",
        "locked": "4000000",
        "deposited": "5000000",
        "capacity": "4000000",
        "signed": "2000000",
        "count": "1500000",
        "claimed": "1000000",
        "most_lost": "1000000",
        "returns_at": None,
        "problem": None,
    }
    assert (closing["merchant"], closing["state"], closing["problem"]) == (GONE, "closing", "nobody answers")
    assert closing["returns_at"].startswith("2026-09-21T")
    assert (ended["state"], ended["locked"], ended["most_lost"]) == ("ended", "0", "0")


async def test_a_listing_comes_in_pages(api: Api) -> None:
    first = (await api.http.get(PATH, params={"limit": 2})).json()
    second = (await api.http.get(PATH, params={"limit": 2, "cursor": first["next"]})).json()
    states = [one["state"] for page in (first, second) for one in page["channels"]]
    assert (states, second["next"]) == (["open", "closing", "ended"], None)


async def test_a_channel_names_the_payments_that_changed_it_and_its_newest_calls(api: Api) -> None:
    listed = (await api.http.get(PATH)).json()["channels"][0]
    shown = (await api.as_("reader").get(f"{PATH}/{listed['id']}")).json()
    assert [(one["step"], one["units"]) for one in shown["steps"]] == [("open", "4000000"), ("add", "1000000")]
    for one in shown["steps"]:
        payment = (await api.http.get(f"/v1/payments/{one['payment']}")).json()
        assert payment["state"] == one["state"]
    assert shown.pop("calls") == [
        {"payment": "pay_promised", "step": "call", "units": None, "state": "promised"},
        {"payment": "pay_served", "step": "call", "units": "400", "state": "served"},
    ]
    assert shown == listed
    require_problem(await api.http.get(f"{PATH}/none"), "not_found")


async def test_an_operators_order_is_passed_on_as_its_own_with_its_key(api: Api) -> None:
    me, key, orders = api.as_("operator"), {"Idempotency-Key": "k"}, api.run.agent.channels
    opened = await me.post(PATH, json={"merchant": "t"}, headers=key)
    assert (opened.status_code, opened.json()["id"]) == (201, f"{3:064x}")
    assert (await me.post(PATH, json={"merchant": api.world.origin, "amount": "7"})).status_code == 201
    assert (await me.post(f"{PATH}/ab/add", json={"amount": "5"}, headers=key)).status_code == 200
    assert (await me.post(f"{PATH}/ab/close", headers=key)).status_code == 200
    assert [one["state"] for one in (await me.post(f"{PATH}/recover")).json()["channels"]] == ["open"]
    assert orders.asked == [  # type: ignore[union-attr, attr-defined]
        ("open", "app_operator", api.world.origin, None, "k"),
        ("open", "app_operator", api.world.origin, 7, None),
        ("add", "app_operator", "ab", 5, "k"),
        ("close", "app_operator", "ab", "k"),
        ("recover", "app_operator"),
    ]


async def test_an_order_that_is_wrong_reaches_nothing(api: Api) -> None:
    require_problem(await api.http.post(PATH, json={"merchant": "t", "amount": "1"}), "channel_unoffered")
    require_problem(await api.http.post(PATH, json={"merchant": "nobody"}), "merchant_not_allowed")
    for path, body in (
        (PATH, {"merchant": "t", "amount": 5}),
        (f"{PATH}/ab/add", {}),
        (f"{PATH}/ab/add", {"amount": "0"}),
    ):
        assert (await api.http.post(path, json=body)).status_code == 400
    require_problem(
        await api.http.post(f"{PATH}/ab/close", headers={"Idempotency-Key": "a b"}),
        "idempotency_key_invalid",
    )
    for path in (PATH, f"{PATH}/ab/add", f"{PATH}/ab/close", f"{PATH}/recover"):
        require_problem(await api.as_("reader").post(path, json={}), "forbidden")
    assert api.run.agent.channels.asked == []  # type: ignore[union-attr, attr-defined]


async def test_where_channels_are_off_each_call_names_the_setting(world: World) -> None:
    async with world.run() as run, served(run) as api:
        answers = [
            await api.http.get(PATH),
            await api.http.get(f"{PATH}/ab"),
            await api.http.post(PATH, json={"merchant": "t"}),
            await api.http.post(f"{PATH}/ab/add", json={"amount": "1"}),
            await api.http.post(f"{PATH}/ab/close"),
            await api.http.post(f"{PATH}/recover"),
        ]
        for answer in answers:
            told = require_problem(answer, "not_found")
            assert told["detail"] == "channels are off (channels.enabled)"
            assert "enabled = true in [channels]" in told["fix"]


def test_a_daemon_without_channels_loads_none_of_their_rows() -> None:
    start = (
        "import sys, payagent.daemon.serve, payagent.dashboard.build; print('payagent.api.app' in sys.modules, "
    )
    start += "[name for name in ('payagent.core.channel', 'payagent.store.rows.channels') if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=True)
    assert ran.stdout == "True []\n"


async def test_a_channel_is_opened_raised_and_closed_on_the_chain(tmp_path: Path) -> None:
    with channel_world(tmp_path) as at:
        at.world.fund(*[40 * ADA] * 6)
        async with at.world.run() as run:
            await run.run_pass()
            async with served(run) as api:
                unknown = require_problem(await api.http.post(PATH, json={"merchant": "t"}), "channel_unoffered")
                assert "Make a call to it first" in unknown["fix"]
                hear(run, at)
                order, key = {"merchant": "t", "amount": str(6 * ADA)}, {"Idempotency-Key": "k"}
                made = (await api.http.post(PATH, json=order, headers=key)).json()
                again = await api.http.post(PATH, json=order, headers=key)
                assert (made["state"], again.json()["id"]) == ("opening", made["id"])
                await settled(run)
                opened = (await api.http.get(f"{PATH}/{made['id']}")).json()
                assert (opened["state"], opened["locked"], at.held()) == ("open", str(6 * ADA), 6 * ADA)
                await buy(run, at, rows.channel(run.context.conn, made["id"]), 2)
                await api.http.post(f"{PATH}/{made['id']}/add", json={"amount": str(4 * ADA)})
                await settled(run)
                raised = (await api.http.get(f"{PATH}/{made['id']}")).json()
                assert (raised["locked"], raised["signed"], raised["most_lost"]) == (str(10 * ADA), *["2000"] * 2)
                assert at.held() == 10 * ADA
                closed = await api.http.post(f"{PATH}/{made['id']}/close")
                assert closed.status_code == 200, closed.text
                await settled(run)
                closing = (await api.http.get(PATH)).json()["channels"][0]
                assert [one["step"] for one in closing["steps"]] == ["open", "add", "close"]
                logged = (await api.http.get("/v1/log", params={"kind": "channels"})).json()["log"]
                by = [(one["by"], one["merchant"], one["detail"]["step"]) for one in reversed(logged)]
                assert by == [("first", "t", "open"), ("first", "t", "add"), ("first", "t", "close")]
                assert closing["state"] == "closing"
                assert closing["returns_at"] > iso_time(at.world.clock.now_ms())


async def settled(run: Run) -> None:
    """Everything that was submitted is confirmed."""
    await run.agent.submitter.drain(60)
    await run.settle_down()
