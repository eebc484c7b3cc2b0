"""The dashboard's links, sessions and orders: how long each is valid, by the monotonic clock."""

import asyncio
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

import httpx
import pytest
from kit.agent import World
from kit.api import Api, served
from kit.dashboard import Stub
from kit.event_stream import Stream
from starlette.responses import HTMLResponse, Response

from payagent.agent.base.ports import SystemRandomness
from payagent.agent.operator.approval_links import KEY_BYTES, ApprovalLinks
from payagent.api.http import sessions as sessions_room
from payagent.api.http.problems import problem_of
from payagent.api.http.sessions import (
    CODE_TRIES,
    LINK_S,
    ORDER_S,
    SESSION_S,
    SESSIONS_MAX,
    UNUSED_S,
    Answer,
    Session,
    Sessions,
)
from payagent.core.problems import Refused
from payagent.dashboard import app as dashboard_app
from payagent.dashboard.in_process import ApiRefusedError
from payagent.dashboard.pages import session as session_pages
from payagent.dashboard.visit import REFRESH, Visit, form, page
from payagent.store.rows import events
from payagent.store.rows.apps import AppRow

LINKS = ApprovalLinks("http://payagent.localhost", bytes(KEY_BYTES))

APP = AppRow("app_1", "operator", frozenset({"operate"}), None, None)

PROBLEM: dict[str, object] = {**problem_of(Refused("wrong_state", "it is too late"), "").model_dump()}


@dataclass
class Timed:
    """Sessions by a clock that a test moves."""

    now_s: float = 1000.0
    sessions: Sessions = field(init=False)

    def __post_init__(self) -> None:
        self.sessions = Sessions(SystemRandomness(), lambda: self.now_s, lambda: 0, "http://payagent.localhost")

    def enter(self, app: AppRow = APP) -> tuple[Session, str]:
        opened = self.sessions.enter(self.sessions.ask_in("token", app)[0])
        assert opened is not None
        return opened


async def nothing() -> Answer:
    return 200, {}


@pytest.fixture
async def served_api(world: World) -> AsyncIterator[Api]:
    """A running API with its dashboard."""
    async with world.run() as run, served(run, links=LINKS) as api:
        yield api


@dataclass
class SignedIn:
    """A browser with a session of the app that may do everything."""

    api: Api
    cookie: str = ""

    @property
    def headers(self) -> dict[str, str]:
        own = {"Host": "payagent.localhost", "Origin": LINKS.origin, "Sec-Fetch-Site": "same-origin"}
        return own | ({"Cookie": self.cookie} if self.cookie else {})

    async def enter(self) -> None:
        link = (await self.api.http.post("/v1/dashboard/links", json={})).json()["url"]
        answer = await self.api.http.post(urlsplit(link).path, headers=self.headers)
        self.cookie = answer.headers["set-cookie"].partition(";")[0]

    async def get(self, path: str) -> httpx.Response:
        return await self.api.http.get(path, headers=self.headers)

    async def post(self, path: str) -> httpx.Response:
        """Send a form without fields of its own."""
        hidden = re.findall(r'name="(csrf|order)" value="(.*?)"', (await self.get("/ui/")).text)
        return await self.api.http.post(path, data=dict(hidden[:2]), headers=self.headers)

    async def order(self) -> tuple[str, str]:
        """Ask for an order: the path of its page, and its code."""
        path = (await self.post("/ui/resume")).headers["location"]
        code = re.search(r"dashboard confirm <strong>(.*?)</strong>", (await self.get(path)).text)
        assert code is not None
        return path, code[1]


async def signed_in(api: Api) -> SignedIn:
    found = SignedIn(api)
    await found.enter()
    return found


def test_a_link_and_its_code_end_after_two_minutes() -> None:
    timed = Timed()
    secret, code = timed.sessions.ask_in("token", APP)
    timed.now_s += LINK_S - 1
    assert timed.sessions.link(secret) is not None
    timed.now_s += 1
    assert timed.sessions.enter(secret) is None
    assert timed.sessions.enter_by_code(code) is None


def test_a_link_has_32_random_bytes_and_a_code_60_bits() -> None:
    secret, code = Timed().sessions.ask_in("token", APP)
    assert len(bytes.fromhex(secret)) == 32
    assert len(code.replace("-", "")) * 5 == 60


def test_wrong_codes_from_before_a_code_was_open_do_not_count_against_it() -> None:
    timed = Timed()
    for _ in range(3):  # before any code, then while one is open that ends
        for _ in range(CODE_TRIES - 1):
            assert timed.sessions.enter_by_code("0000-0000-0000") is None
        _, code = timed.sessions.ask_in("token", APP)
        assert timed.sessions.enter_by_code("0000-0000-0000") is None
        assert timed.sessions.has_codes
        timed.now_s += LINK_S
    _, code = timed.sessions.ask_in("token", APP)
    assert timed.sessions.enter_by_code("0000-0000-0000") is None
    assert timed.sessions.enter_by_code(code) is not None


def test_a_code_may_be_typed_with_small_letters_and_without_dashes() -> None:
    timed = Timed()
    _, code = timed.sessions.ask_in("token", APP)
    assert timed.sessions.enter_by_code(code.lower().replace("-", " ")) is not None


def test_a_session_ends_after_an_hour_without_use() -> None:
    timed = Timed()
    _, cookie = timed.enter()
    for _ in range(3):
        timed.now_s += UNUSED_S - 1
        assert timed.sessions.find(cookie) is not None
    timed.now_s += UNUSED_S
    assert timed.sessions.find(cookie) is None


def test_what_an_open_page_asks_by_itself_does_not_prolong_its_session() -> None:
    timed = Timed()
    _, cookie = timed.enter()
    timed.now_s += UNUSED_S - 1
    assert timed.sessions.find(cookie, is_used=False) is not None
    timed.now_s += 1
    assert timed.sessions.find(cookie) is None


async def test_the_script_neither_prolongs_the_session_nor_takes_a_notice_away() -> None:
    stub = Stub([*session_pages.PAGES, page("/ui/", lambda visit: visit.page("problem.html"))])
    stub.session.notice = "Signing is paused."
    stub.session.used_s = used_s = -1.0
    refreshed = await stub.http.get("/ui/", headers={REFRESH: "1"})
    await stub.http.get("/ui/events")
    assert stub.session.used_s == used_s
    assert "Signing is paused." not in refreshed.text
    shown = (await stub.http.get("/ui/")).text
    assert stub.session.used_s > used_s
    assert shown.index("Signing is paused.") < shown.index('id="state" data-live')


def test_a_session_ends_after_eight_hours_of_use() -> None:
    timed = Timed()
    _, cookie = timed.enter()
    for _ in range(SESSION_S // 1800 - 1):
        timed.now_s += 1800
        assert timed.sessions.find(cookie) is not None
    timed.now_s += 1800
    assert timed.sessions.find(cookie) is None


@pytest.mark.parametrize("how", ["sign-out", "by another", "age", "unused"])
async def test_the_event_stream_of_a_session_ends_with_it(
    served_api: Api, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    me, other = await signed_in(served_api), await signed_in(served_api)
    async with served_api.http.stream("GET", "/ui/events", headers=me.headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        if how == "sign-out":
            await me.post("/ui/sign-out")
        elif how == "by another":
            await other.post("/ui/settings/end-others")
        else:
            monkeypatch.setattr(sessions_room, "SESSION_S" if how == "age" else "UNUSED_S", 0)
        await Stream(answer).end()


def test_one_session_more_than_are_kept_ends_the_one_that_was_used_longest_ago() -> None:
    timed = Timed()
    cookies = [timed.enter()[1] for _ in range(SESSIONS_MAX)]
    timed.now_s += 1
    timed.sessions.find(cookies[0])
    timed.enter()
    kept = [timed.sessions.find(cookie) is not None for cookie in cookies]
    assert kept == [True, False, *[True] * (SESSIONS_MAX - 2)]


def test_an_app_that_signs_in_again_and_again_ends_no_session_of_another_app() -> None:
    timed = Timed()
    operators = timed.enter()[1]
    timed.now_s += 1
    for _ in range(2 * SESSIONS_MAX):
        timed.enter(replace(APP, id="app_reader"))
    assert timed.sessions.find(operators) is not None


async def test_the_code_of_an_order_works_once_within_ten_minutes() -> None:
    timed = Timed()
    session, _ = timed.enter()
    first, second = (timed.sessions.ask_for(session, "Send", (), "/ui/", nothing) for _ in range(2))
    assert first.code is not None
    assert second.code is not None
    assert await timed.sessions.confirm(timed.sessions.take(first.code.lower())) == (200, {})
    with pytest.raises(Refused):
        timed.sessions.order_by_code("")
    timed.now_s += ORDER_S
    with pytest.raises(Refused):
        timed.sessions.order_by_code(second.code)


async def test_a_code_that_is_confirmed_eight_times_at_once_works_once(served_api: Api) -> None:
    _, code = await (await signed_in(served_api)).order()
    context, release = served_api.run.context, threading.Event()
    holding = asyncio.create_task(context.write("hold", lambda _: release.wait()))
    try:  # nothing is written meanwhile, so the one that has the code waits
        path = f"/v1/dashboard/orders/{code}/confirm"
        calls = [asyncio.create_task(served_api.http.post(path, json={})) for _ in range(8)]
        for _, call in zip(range(7), asyncio.as_completed(calls, timeout=60), strict=False):
            assert (await call).status_code == 404
    finally:
        release.set()
        await holding
    assert sorted([(await call).status_code for call in calls]) == [200, *[404] * 7]
    rows, _ = events.events_after(context.conn, 0, None)
    assert [row.event for row in rows].count("dashboard_confirmed") == 1


async def test_an_order_that_the_ledger_cannot_record_is_not_carried_out_and_its_code_is_used_up(
    world: World,
) -> None:
    full: list[str] = []

    def checkpoint(point: str) -> None:
        if point in full:
            raise sqlite3.OperationalError("database or disk is full")

    async with world.run(checkpoint=checkpoint) as run, served(run, links=LINKS) as api:
        me = await signed_in(api)
        await api.http.post("/v1/pause", json={"reason": "a test"})
        page, code = await me.order()
        full.append("before dashboard")
        answer = await api.http.post(f"/v1/dashboard/orders/{code}/confirm", json={})
        assert answer.json()["code"] == "store_failed"
        full.clear()
        assert (await api.http.post(f"/v1/dashboard/orders/{code}/confirm", json={})).status_code == 404
        assert "the order was withdrawn" in (await me.get(page)).text
        assert (await api.http.get("/v1/pause")).json()["paused"]


def test_an_order_is_seen_by_its_own_session_and_ends_with_it() -> None:
    timed = Timed()
    session, _ = timed.enter()
    order = timed.sessions.ask_for(session, "Send", (), "/ui/", nothing)
    assert order.code is not None
    assert timed.sessions.order(timed.enter()[0], order.id) is None
    assert timed.sessions.order(session, order.id) is order
    timed.sessions.end(session)
    with pytest.raises(Refused):
        timed.sessions.order_by_code(order.code)


def test_neither_a_session_nor_an_order_shows_its_secrets_when_it_is_printed() -> None:
    timed = Timed()
    session, cookie = timed.enter()
    order = timed.sessions.ask_for(session, "Send", (), "/ui/", nothing)
    told = repr((session, order))
    assert session.csrf not in told
    assert cookie not in told
    assert str(order.code) not in told


async def test_the_page_of_an_order_waits_until_it_is_carried_out_before_it_says_what_became_of_it() -> None:
    stub, released = Stub(session_pages.PAGES), asyncio.Event()

    async def refused() -> Answer:
        await released.wait()
        return 409, PROBLEM

    order = stub.sessions.ask_for(stub.session, "Send", (), "/ui/wallet", refused)
    path = f"/ui/orders/{order.id}"
    assert 'data-poll="2"' in (await stub.http.get(path)).text
    confirmed = asyncio.create_task(stub.sessions.confirm(stub.sessions.take(str(order.code))))
    await asyncio.sleep(0)
    under_way = (await stub.http.get(path)).text
    assert "being carried out" in under_way
    assert 'data-poll="2"' in under_way
    assert "Done" not in under_way
    assert (await stub.post(f"{path}/withdraw", "1")).headers["location"] == path
    released.set()
    await confirmed
    ended = (await stub.http.get(path)).text
    assert 'data-poll=""' in ended
    assert ended.index('id="order"') < ended.index("it is too late")  # in the part that the script replaces


@pytest.mark.parametrize("refused", ["/readyz", "/v1/payments", "/v1/pause", "/v1/wallet"])
async def test_when_the_frame_of_a_page_is_refused_the_refusal_is_shown_and_signing_can_be_paused(
    refused: str,
) -> None:
    stub = Stub([page("/ui/", lambda visit: visit.page("problem.html"))])
    stub.answers[refused] = 409, PROBLEM
    answer = await stub.http.get("/ui/")
    assert (answer.status_code, "it is too late" in answer.text) == (409, True)
    assert 'action="/ui/pause"' in answer.text
    assert stub.session.csrf in answer.text


async def test_a_second_click_gets_the_answer_of_the_first_also_just_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dashboard_app, "AGAIN_S", 3600)
    calls: Counter[str] = Counter()

    async def add(visit: Visit) -> Response:
        calls[visit.order] += 1
        await asyncio.sleep(0.01)
        if visit.order == "refused":
            raise ApiRefusedError(409, PROBLEM)
        return HTMLResponse(f"token {calls[visit.order]}", 201, {"location": "/ui/apps"})

    stub = Stub([form("/ui/apps/new", add)])
    answers = await asyncio.gather(*[stub.post("/ui/apps/new", "made") for _ in range(3)])
    answers.append(await stub.post("/ui/apps/new", "made"))
    assert [answer.text for answer in answers] == ["token 1"] * 4
    refused = await asyncio.gather(*[stub.post("/ui/apps/new", "refused") for _ in range(3)])
    assert ["it is too late" in answer.text for answer in refused] == [True] * 3
    assert calls == {"made": 1, "refused": 1}
    monkeypatch.setattr(dashboard_app, "AGAIN_S", 0)
    while (later := await stub.post("/ui/apps/new", "later")).status_code != 303:
        await asyncio.sleep(0)  # a call in this process may end without letting the loop run
    assert later.headers["location"] == "/ui/apps"
    assert "token" not in repr(stub.session.done["later"])
