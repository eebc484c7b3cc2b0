"""/v1/events over HTTP: events in order, only to apps that may see them, none missed, streams limited."""

import asyncio
from contextlib import AsyncExitStack
from functools import partial

import httpx
from kit.agent import World
from kit.api import Api, served
from kit.canaries import plant
from kit.event_stream import PATIENCE_S, Stream, following
from kit.http import NO_TLS

from payagent.agent.base.ports import SystemRandomness
from payagent.api.http.tokens import hash_token, new_token
from payagent.api.routes import events as events_room
from payagent.store.db.unit import Unit
from payagent.store.rows import apps, events
from payagent.store.rows import writes as records
from payagent.store.rows.events import PAGE_ROWS


async def test_events_of_a_payment_arrive_in_order_with_consecutive_ids(api: Api) -> None:
    async with following(api) as stream:
        paid = await api.pay()
        found = await stream.until("provider_accepted")
        await api.run.settle_down()
        found += await stream.until("confirm")
    assert [event["event"] for event in found[:3]] == ["reserve", "sign", "submit"]
    assert [int(event["id"]) for event in found] == [event["data"]["seq"] for event in found]
    first = found[0]["data"]["seq"]
    assert [event["data"]["seq"] for event in found] == list(range(first, first + len(found)))
    assert {event["data"]["payment"] for event in found} == {paid["id"]}
    last = found[-1]["data"]
    assert (last["event"], last["state"], last["detail"]["depth"]) == ("confirm", "confirmed", 1)
    history = (await api.http.get(f"/v1/payments/{paid['id']}")).json()["history"]
    assert [event["data"]["at"] for event in found] == [happening["at"] for happening in history]


async def test_a_client_that_resumes_from_its_last_event_id_misses_nothing(api: Api) -> None:
    async with following(api) as stream:
        await api.pay("a")
        seen = await stream.next()
    await api.pay("b")
    await api.run.agent.submitter.drain(60)
    newest, _ = events.last_event(api.run.context.conn)
    assert newest > 4
    for asked in ({"headers": {"Last-Event-ID": seen["id"]}}, {"params": {"after": seen["id"]}}):
        async with following(api, **asked) as stream:
            found = [await stream.next() for _ in range(newest - int(seen["id"]))]
        assert [int(event["id"]) for event in found] == list(range(int(seen["id"]) + 1, newest + 1))
    both = {"headers": {"Last-Event-ID": str(newest - 1)}, "params": {"after": "0"}}
    async with following(api, **both) as stream:
        assert (await stream.next())["id"] == str(newest)


async def test_an_app_with_the_pay_scope_sees_events_of_its_own_payments_only(api: Api) -> None:
    theirs = await api.pay("theirs", app="other")
    ours = await api.pay("ours", app="payer")
    await api.run.context.write(
        "note", lambda unit: records.note(unit, None, "alert_raised", None, 1, {"kind": "x"})
    )
    last = await api.pay("ours, too", app="payer")
    await api.run.agent.submitter.drain(60)
    newest, _ = events.last_event(api.run.context.conn)
    async with following(api, "payer", params={"after": 0}) as stream:
        mine = [await stream.next()]
        while int(mine[-1]["id"]) < newest:
            mine.append(await stream.next())
    assert {event["data"]["payment"] for event in mine} == {ours["id"], last["id"]}
    for app in ("reader", "operator"):
        async with following(api, app, params={"after": 0}) as stream:
            every = [await stream.next() for _ in range(newest)]
        assert {event["data"]["payment"] for event in every} == {theirs["id"], ours["id"], last["id"], None}
        own = [event["data"] for event in every if event["data"]["payment"] is None][-1]
        assert (own["event"], own["state"], own["detail"]) == ("alert_raised", None, {"kind": "x"})


async def test_a_long_history_is_read_in_pages_and_events_of_others_are_skipped(api: Api) -> None:
    before, _ = events.last_event(api.run.context.conn)

    def job(unit):  # type: ignore[no-untyped-def]
        for number in range(2 * PAGE_ROWS):
            records.note(unit, None, "heard", None, number)

    await api.run.context.write("many", job)
    paid = await api.pay(app="payer")
    asked: list[str] = []
    api.run.context.conn.set_trace_callback(asked.append)
    async with following(api, "payer", params={"after": 0}) as stream:
        assert (await stream.next())["data"]["payment"] == paid["id"]
    assert not [sql for sql in asked if "e.detail" in sql], "a page must not be read on the event loop"
    async with following(api, params={"after": before}) as stream:
        found = [await stream.next() for _ in range(2 * PAGE_ROWS + 1)]
    assert [int(event["id"]) for event in found] == list(range(before + 1, before + 2 * PAGE_ROWS + 2))


async def test_an_invalid_event_id_or_parameter_is_refused(api: Api) -> None:
    for asked in [
        {"headers": {"Last-Event-ID": "7000"}},
        {"headers": {"Last-Event-ID": "x"}},
        {"headers": {"Last-Event-ID": ""}},
        {"params": {"after": "7000"}},
        {"params": {"after": "-1"}},
        {"params": {"since": "1"}},
    ]:
        answer = await api.http.get("/v1/events", **asked)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


async def test_an_app_at_its_stream_limit_may_open_another_after_closing_one(api: Api) -> None:
    async with httpx.AsyncClient(
        base_url=api.url, headers=api.http.headers, verify=NO_TLS, trust_env=False, timeout=60
    ) as http:
        api.clients["first"] = http
        open_ones = [following(api) for _ in range(events_room.STREAMS_OF_APP_MAX)]
        for one in open_ones:
            await one.__aenter__()
        refused = await api.http.get("/v1/events")
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert await _is_open(api, "reader"), "another app has its own limit"
        await open_ones.pop().__aexit__(None, None, None)
        async with asyncio.timeout(PATIENCE_S):
            while not await _is_open(api, "first"):
                pass
        for one in open_ones:
            await one.__aexit__(None, None, None)


async def test_streams_opened_at_the_same_time_do_not_exceed_the_apps_limit(api: Api) -> None:
    async def status(http: httpx.AsyncClient) -> int:
        answer = await http.send(http.build_request("GET", "/v1/events"), stream=True)
        return answer.status_code

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=api.url,
        headers=api.as_("reader").headers,
        verify=NO_TLS,
        trust_env=False,
        timeout=60,
        limits=limits,
    ) as http:
        got = await asyncio.gather(*(status(http) for _ in range(4 * events_room.STREAMS_OF_APP_MAX)))
    assert got.count(200) == events_room.STREAMS_OF_APP_MAX


async def test_streams_of_all_apps_together_are_limited(api: Api) -> None:
    names = [f"more{number}" for number in range(events_room.STREAMS_MAX // events_room.STREAMS_OF_APP_MAX)]
    for name in names:
        api.tokens[name] = plant(f"the token of {name}", new_token(SystemRandomness()))
        add = partial(_add_follower, name=name, token_hash=hash_token(api.tokens[name]))
        await api.run.context.write("app", add)
    async with AsyncExitStack() as open_ones:
        for name in names:
            for _ in range(events_room.STREAMS_OF_APP_MAX):
                await open_ones.enter_async_context(following(api, name))
        refused = await api.as_("reader").get("/v1/events")
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")


def _add_follower(unit: Unit, name: str, token_hash: str) -> None:
    apps.add_with_token(unit, f"app_{name}", name, token_hash, ("read",), 1)


async def _is_open(api: Api, app: str) -> bool:
    async with api.as_(app).stream("GET", "/v1/events") as answer:
        return answer.status_code == 200


async def test_stopping_the_daemon_ends_event_streams_at_once(world: World) -> None:
    world.fund(100_000_000)
    async with world.run() as run:
        await run.run_pass()
        ended: list[asyncio.Task[None]] = []
        async with served(run) as api:
            http = httpx.AsyncClient(
                base_url=api.url, headers=api.http.headers, verify=NO_TLS, trust_env=False, timeout=60
            )
            stream = http.stream("GET", "/v1/events")
            answer = await stream.__aenter__()
            ended.append(asyncio.create_task(Stream(answer).end()))
            stopped_s = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - stopped_s < 3
        await ended[0]
        await stream.__aexit__(None, None, None)
        await http.aclose()
