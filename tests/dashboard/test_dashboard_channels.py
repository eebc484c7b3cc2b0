"""The page of channels: what it shows, what the terminal confirms, and where it is not."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from html import unescape
from urllib.parse import urlsplit

import httpx
import pytest
from kit.agent import World
from kit.api import Api, served
from kit.channel_rows import ADA, ON, Orders, a_channel, put_channels
from kit.dashboard import PAGES, Stub

from payagent.agent.operator.approval_links import KEY_BYTES, ApprovalLinks
from payagent.core.changes import Book
from payagent.core.channel import PHASES_IN_WORDS
from payagent.core.ledger import Entry, Posting
from payagent.core.money import LOVELACE
from payagent.store.executor import write

LINKS = ApprovalLinks("http://payagent.localhost", bytes(KEY_BYTES))
OPEN = f"{7:064x}"


@dataclass
class Browsing:
    """A browser in a session of the app that may do everything. `orders`: what reached the channels."""

    api: Api
    orders: Orders
    cookie: str = ""

    async def get(self, path: str) -> str:
        answer = await self.api.http.get(path, headers=self._headers)
        assert answer.status_code == 200, path
        return " ".join(unescape(re.sub("<[^>]*>", " ", answer.text)).split())

    async def post(self, path: str, **fields: str) -> httpx.Response:
        page = (await self.api.http.get("/ui/channels", headers=self._headers)).text
        hidden = dict(re.findall(r'name="(csrf|order)" value="(.*?)"', page)[:2])
        return await self.api.http.post(path, data=hidden | fields, headers=self._headers)

    async def enter(self) -> None:
        link = (await self.api.http.post("/v1/dashboard/links", json={})).json()["url"]
        answer = await self.api.http.post(urlsplit(link).path, headers=self._headers)
        self.cookie = answer.headers["set-cookie"].partition(";")[0]

    @property
    def _headers(self) -> dict[str, str]:
        own = {"Host": "payagent.localhost", "Origin": LINKS.origin, "Sec-Fetch-Site": "same-origin"}
        return own | ({"Cookie": self.cookie} if self.cookie else {})


@pytest.fixture
async def me(world: World) -> AsyncIterator[Browsing]:
    world.terms = replace(world.terms, channels=ON)
    channel = a_channel(7, world.origin, "open")
    async with world.run() as run:
        await run.context.write("test", lambda unit: put_channels(unit, channel))
        orders = Orders(channel)
        run.agent.channels = orders  # type: ignore[assignment]
        async with served(run, links=LINKS) as api:
            browsing = Browsing(api, orders)
            await browsing.enter()
            yield browsing


@pytest.mark.parametrize("state", PHASES_IN_WORDS)
async def test_a_channel_says_what_its_state_means_and_what_can_be_lost(state: str) -> None:
    stub = Stub(PAGES)
    amounts = {"locked": "4000000", "signed": "2000000", "claimed": "1250000", "capacity": "3000000"}
    one = {"id": OPEN, "merchant": "<b>t</b>", "asset": "lovelace", "most_lost": "750000", "problem": None}
    ends = {"returns_at": "2026-09-21T14:13:20.000Z" if state == "closing" else None}
    steps = [{"payment": "pay_1", "step": "open", "units": "4000000", "state": "confirmed"}]
    listed = [{**one, **amounts, **ends, "state": state, "steps": steps}]
    stub.answers["/v1/channels"] = 200, {"channels": listed, "next": "1"}
    stub.answers["/v1/merchants"] = 200, {"merchants": []}
    page = (await stub.http.get("/ui/channels")).text
    text = " ".join(unescape(re.sub("<[^>]*>", "", page)).split())
    assert PHASES_IN_WORDS[state] in text  # type: ignore[index]
    for words in ("4.000000 ADA", "2.000000 ADA", "1.250000 ADA", "0.750000 ADA"):
        assert words in text
    assert ("21 Sep 14:13" in text) is (state == "closing")
    assert ("Lock more (ADA)" in text) is (state == "open")
    assert "&lt;b&gt;t&lt;/b&gt;" in page
    assert 'href="/ui/payments/pay_1"' in page
    assert 'href="/ui/channels?cursor=1"' in page


async def test_the_overview_tells_what_is_in_channels(me: Browsing) -> None:
    lines = (Posting("wallet", LOVELACE, -5_000_000), Posting("channel:https://shop", LOVELACE, 5_000_000))
    await me.api.run.context.write("test", lambda unit: write(unit, (Book(Entry("post", lines)),), 1))
    assert "In a channel 5.00 0000 ADA unspent at https://shop" in await me.get("/ui/")


async def test_money_is_locked_only_by_the_terminal(me: Browsing) -> None:
    for path, fields, shows in (
        ("/ui/channels", {"merchant": "t", "amount": "5"}, "Lock 5 ADA in a channel at t"),
        (f"/ui/channels/{OPEN}/add", {"amount": "2.5"}, "Lock 2.5 ADA more at t"),
    ):
        asked = await me.post(path, **fields)
        order = await me.get(asked.headers["location"])
        assert (asked.status_code, me.orders.asked) == (303, [])
        for words in (shows, "all of it: nobody has audited", "once the merchant's withdraw delay is over"):
            assert words in order
        (code,) = re.findall(r"dashboard confirm (\S+)", order)
        confirmed = await me.api.http.post(f"/v1/dashboard/orders/{code}/confirm")
        assert confirmed.status_code == 200, confirmed.text
        ((name, *_, units, key),) = me.orders.asked
        assert (name, units, key) == (
            "open" if "merchant" in fields else "add",
            float(fields["amount"]) * ADA,
            key,
        )
        assert key is not None
        me.orders.asked.clear()


async def test_closing_acts_at_once(me: Browsing) -> None:
    closed = await me.post(f"/ui/channels/{OPEN}/close")
    assert (closed.status_code, closed.headers["location"]) == (303, "/ui/channels")
    assert [asked[0] for asked in me.orders.asked] == ["close"]
    assert "The channel pays no more calls." in await me.get("/ui/channels")


async def test_an_amount_that_cannot_be_read_is_refused_on_the_page(me: Browsing) -> None:
    for path in ("/ui/channels", f"/ui/channels/{OPEN}/add"):
        refused = await me.post(path, merchant="t", amount="much")
        assert refused.status_code == 400
        assert "Open a channel" in refused.text
        assert "amount_invalid" in refused.text
    assert me.orders.asked == []


async def test_where_channels_are_off_there_is_no_page_and_no_entry(world: World) -> None:
    async with world.run() as run, served(run, links=LINKS) as api:
        me = Browsing(api, Orders(a_channel(7, world.origin, "open")))
        await me.enter()
        assert "Channels" not in await me.get("/ui/")
        answer = await api.http.get("/ui/channels", headers=me._headers)
        assert (answer.status_code, "there is no such page" in answer.text) == (404, True)
