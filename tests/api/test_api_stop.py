"""What open requests get when the daemon stops, with its own server over real sockets."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from kit.agent import ADA, World
from kit.api import Api, served
from kit.http import NO_TLS
from kit.proxy import Heard, place

from payagent.store.rows import writes as records

TOPUP = {"merchant": "t", "units": str(20 * ADA), "request": {"method": "POST", "path": "/never", "body": "{}"}}


@asynccontextmanager
async def client_of(api: Api, app: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client that outlives the server."""
    headers = api.as_(app).headers
    async with httpx.AsyncClient(
        base_url=api.url, headers=headers, verify=NO_TLS, trust_env=False, timeout=60
    ) as http:
        yield http


async def test_a_request_that_waits_gets_the_current_state_at_once_when_the_daemon_stops(world: World) -> None:
    world.fund(100 * ADA)
    async with world.run() as run, asyncio.TaskGroup() as asking:
        await run.run_pass()
        async with served(run) as api:
            payment = await api.pay()
            topup = (await api.as_("operator").post("/v1/prepaid/topups", json=TOPUP)).json()
            asked = [
                asking.create_task(_wait_for(api, app, f"{path}/{made['id']}"))
                for app, path, made in (
                    ("first", "/v1/payments", payment),
                    ("operator", "/v1/prepaid/topups", topup),
                )
            ]
            while len(run.context.changes._waiters) < len(asked):
                await asyncio.sleep(0.005)
        answers = [await one for one in asked]
    assert [(one.status_code, one.json()["id"]) for one in answers] == [(200, payment["id"]), (200, topup["id"])]


async def _wait_for(api: Api, app: str, path: str) -> httpx.Response:
    async with client_of(api, app) as http:
        return await http.get(path, params={"wait": 60})


async def test_a_request_cut_off_by_a_stop_gets_a_daemon_timeout_problem(world: World) -> None:
    """The merchant does not answer."""

    async def never(heard: Heard) -> None:
        await heard.until_hung_up()

    async with asyncio.TaskGroup() as asking:
        async with place(world, timeout_s=60) as at:
            at.peer.answers["/never"] = never

            async def plan() -> httpx.Response:
                async with client_of(at.api, "operator") as http:
                    return await http.post("/v1/prepaid/topups", json={**TOPUP, "dry_run": True})

            asked = asking.create_task(plan())
            await at.until(lambda: at.peer.calls, "the merchant was not asked")
        answer = await asked
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (504, "daemon_timeout", True)


async def test_an_answer_cut_off_by_a_stop_is_incomplete_and_logs_no_error(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The client does not read it, and it is larger than the connection buffers."""
    pad = "x" * 1_000_000
    async with contextlib.AsyncExitStack() as reading, world.run() as run:
        await run.context.write("pad", lambda unit: [records.put_meta(unit, f"pad {n}", pad) for n in range(12)])
        async with served(run) as api:
            http = await reading.enter_async_context(client_of(api, "operator"))
            answer = await reading.enter_async_context(http.stream("GET", "/v1/ledger/snapshot"))
            assert answer.status_code == 200
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await answer.aread()
    errors = [one for one in caplog.records if one.levelno >= logging.ERROR and one.exc_info]
    assert errors == []
