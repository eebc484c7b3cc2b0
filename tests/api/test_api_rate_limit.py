"""Rate limits per app, and which request bodies are accepted and how slow they may be: over real HTTP."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from kit.agent import World
from kit.api import JSON, PAY, Api, require_nothing_signed, require_problem, served
from kit.http import NO_TLS

from payagent.api.http.rate_limit import BODY_BYTES, BURST_S, RateLimiter, Rates
from payagent.core.problems import Refused
from payagent.proxy.app import Bounds

PATIENCE_S = 60
BODY_S = 0.3
UNFINISHED = "POST {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: 500\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def begun(api: Api, path: str, app: str = "first") -> AsyncIterator[Streams]:
    """A request that has sent its head and the first byte of its body."""
    reader, writer = await asyncio.open_unix_connection(api.unix_path)
    head = UNFINISHED.format(path, api.tokens[app]) + "Content-Type: application/json\r\n\r\n{"
    writer.write(head.encode())
    try:
        yield reader, writer
    finally:
        writer.close()


def through_the_proxy(api: Api) -> str:
    """A request to the merchant that costs nothing."""
    return f"/proxy/{api.run.context.config.merchants[api.world.origin].name}/nothing-here"


async def answered(reader: asyncio.StreamReader) -> httpx.Response:
    async with asyncio.timeout(PATIENCE_S):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])]
    return httpx.Response(int(lines[0].split()[1]), headers=headers, content=body)


async def test_an_app_over_its_rate_limit_is_refused_and_other_apps_are_served(world: World) -> None:
    rates = Rates(rate_limit_per_s=1)
    async with world.run() as run, served(run, Bounds(rates=rates)) as api:
        for path in ("/v1/limits", through_the_proxy(api)):
            for _ in range(BURST_S):
                assert (await api.as_("payer").get(path)).status_code != 429
            async with asyncio.timeout(PATIENCE_S):
                while (told := await api.as_("payer").get(path)).status_code != 429:
                    continue
            require_problem(told, "rate_limited")
            assert told.headers["retry-after"] == "1"
            assert (await api.as_("other").get(path)).status_code != 429


async def test_answers_without_a_token_take_little_processor_time(world: World) -> None:
    """They count against no rate limit, so ten times the usual work would slow down everyone."""
    async with world.run() as run, served(run) as api, httpx.AsyncClient(base_url=api.url, verify=NO_TLS) as http:

        async def takes_s(path: str) -> float:
            """The cheapest of 50 answers: other threads of this process work beside the dearer ones."""
            assert (await http.head(path)).status_code == 200
            taken_s = []
            for _ in range(50):
                began_s = time.process_time()
                await http.head(path)
                taken_s.append(time.process_time() - began_s)
            return min(taken_s)

        assert await takes_s("/openapi.json") < 3 * await takes_s("/healthz")


async def test_a_body_counts_by_its_length_against_the_rate_limit_of_its_own_app(world: World) -> None:
    heavy = json.dumps({"origin": "x" * 50 * BODY_BYTES}).encode()
    async with world.run() as run, served(run, Bounds(rates=Rates(rate_limit_per_s=10))) as api:
        require_problem(await api.as_("payer").post(PAY, content=heavy, headers=JSON), "bad_request")
        told = await api.as_("payer").post(PAY, content=heavy, headers=JSON)
        require_problem(told, "rate_limited")
        assert int(told.headers["retry-after"]) in (1, 2)
        assert (await api.as_("payer").get("/v1/limits")).status_code == 200, "a small request still passes"
        require_problem(await api.as_("other").post(PAY, content=heavy, headers=JSON), "bad_request")


def test_a_body_larger_than_the_burst_is_admitted_and_paid_off_afterwards() -> None:
    now_s = 0.0
    rate_limiter = RateLimiter(Rates(rate_limit_per_s=1), lambda: now_s)
    with rate_limiter.admit("app_1"):
        rate_limiter.weigh("app_1", 64 * BODY_BYTES)
    for waited_s, is_let_in in ((55.5, False), (1.0, True)):
        now_s += waited_s
        told = contextlib.nullcontext() if is_let_in else pytest.raises(Refused, match="rate_limited")
        with told, rate_limiter.admit("app_1"):
            rate_limiter.weigh("app_1", BODY_BYTES - 1)
    with rate_limiter.admit("app_2"):
        rate_limiter.weigh("app_2", 64 * BODY_BYTES)


@pytest.mark.parametrize("rate", [1, 2, 10])
@pytest.mark.parametrize("weight", [1, 7, 64])
def test_an_app_that_waits_for_retry_after_is_admitted(rate: int, weight: int) -> None:
    now_s = 0.0
    rate_limiter = RateLimiter(Rates(rate_limit_per_s=rate), lambda: now_s)
    for _ in range(rate * BURST_S - 1):
        with rate_limiter.admit("app"):
            pass
    with rate_limiter.admit("app"), pytest.raises(Refused, match="the request's body counts") as refused:
        rate_limiter.weigh("app", weight * BODY_BYTES)
    now_s += refused.value.context["retry_after_s"]
    with rate_limiter.admit("app"):
        rate_limiter.weigh("app", weight * BODY_BYTES)


async def test_concurrent_requests_are_limited_per_app(world: World) -> None:
    """Here they wait for their own bodies; waiting for a payment counts the same."""
    async with (
        world.run() as run,
        served(run, Bounds(rates=Rates(concurrent_requests_max=2)), body_s=PATIENCE_S) as api,
    ):
        payer = api.as_("payer")
        async with begun(api, PAY, "payer"), begun(api, PAY, "payer"):
            async with asyncio.timeout(PATIENCE_S):
                while (told := await payer.get("/v1/limits")).status_code == 200:
                    continue
            require_problem(told, "rate_limited")
            assert (await api.as_("other").get("/v1/limits")).status_code == 200
            # the API and the proxy have separate limits
            assert (await payer.get(through_the_proxy(api))).status_code != 429
        async with asyncio.timeout(PATIENCE_S):
            while (await payer.get("/v1/limits")).status_code != 200:
                continue


def test_the_rate_limit_refills_with_time_up_to_the_burst() -> None:
    now_s = 0.0
    rate_limiter = RateLimiter(Rates(rate_limit_per_s=2, concurrent_requests_max=100), lambda: now_s)

    def enter() -> int:
        entered = 0
        with contextlib.suppress(Refused):
            while True:
                with rate_limiter.admit("app_1"):
                    entered += 1
        return entered

    assert enter() == 2 * BURST_S
    now_s += 0.4
    assert enter() == 0
    now_s += 0.1
    assert enter() == 1
    now_s += 86_400
    assert enter() == 2 * BURST_S


@pytest.mark.parametrize("more", [b"", b" "], ids=["silent", "byte by byte"])
async def test_a_body_that_arrives_too_slowly_is_refused(world: World, more: bytes) -> None:
    async with world.run() as run, served(run, body_s=BODY_S) as api:
        async with begun(api, PAY) as (reader, writer):
            answer = asyncio.create_task(answered(reader))
            loop = asyncio.get_running_loop()
            # bytes after the answer would reset the connection and could lose the answer
            last_s = loop.time() + BODY_S * 0.9
            while not answer.done():
                if loop.time() < last_s:
                    writer.write(more)
                await asyncio.wait([answer], timeout=BODY_S / 10)
            require_problem(answer.result(), "body_too_slow")
            assert answer.result().headers["connection"] == "close"
        require_nothing_signed(api)


async def test_every_operation_with_a_body_accepts_only_strict_json(api: Api) -> None:
    document = (await api.http.get("/openapi.json")).json()
    paths = [
        path.replace("{payment_id}", "pay_000000000000000000000000").replace("{name}", "payer")
        for path, item in document["paths"].items()
        for operation in item.values()
        if "requestBody" in operation
    ]
    assert len(paths) > 5
    for path in paths:
        for content in (
            b'{"a": 1, "a": 1}',
            b'{"a": 1, "\\u0061": 1}',
            b'{"a": NaN}',
            b'{"a": -Infinity}',
            b'{"a": 1e400}',
            b'{"a": %b}' % (b"9" * 5_000),
            b"[" * 10_000,
            b'{"a":' * 40 + b"1" + b"}" * 40,
            b'{"a": "\\ud800"}',
            b"\xef\xbb\xbf{}",
            json.dumps({}).encode("utf-16"),
        ):
            answer = await api.http.post(path, content=content, headers=JSON)
            assert answer.json()["code"] in ("bad_request", "invoice_invalid"), (
                path,
                content[:20],
                answer.text,
            )
        for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json, text/plain"):
            answer = await api.http.post(path, content=b"{}", headers={"content-type": kind})
            require_problem(answer, "media_type_refused")
        answer = await api.http.post(path, content=b" " * (256 * 1024 + 1), headers=JSON)
        require_problem(answer, "body_too_big")
    require_nothing_signed(api)
