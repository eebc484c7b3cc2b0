"""The pages of signed links, on which a person approves or denies: what they show, and what is counted."""

import re
from html import unescape

import httpx
import pytest
from kit.agent import ADA, APP, World, with_terms
from kit.api import LINK_HOST, Api, served

from payagent.agent.operator.approval_links import KEY_BYTES, ApprovalLinks, Way
from payagent.agent.operator.limits import set_limits
from payagent.api.http.rate_limit import BURST_S, Rates
from payagent.core.payment.machine import STATES_IN_WORDS, State
from payagent.core.policy import ANY, Limit, Scope, Window
from payagent.dashboard.pages.approvals import ask, marked
from payagent.proxy.app import Bounds
from payagent.store.rows import approvals, events

LINKS = ApprovalLinks("http://payagent.localhost", bytes(KEY_BYTES))
ASKING = with_terms(approval_required_above={"lovelace": 5 * ADA})
TOKEN = "5c" * 28 + "6c"
HOST = {"Host": "payagent.localhost"}
OWN_FORM = HOST | {
    "Sec-Fetch-Site": "same-origin",
    "Origin": LINKS.origin,
    "Content-Type": "application/x-www-form-urlencoded",
}


async def link_of(api: Api, way: Way) -> str:
    """Ask for a payment; the path of the link that decides on it."""
    answer = await api.as_("payer").post("/v1/payments", json=api.body(purpose="A <b>poster</b>"))
    assert answer.status_code == 202, answer.text
    approval = approvals.of_payment(api.run.context.conn, answer.json()["id"])
    assert approval is not None
    return LINKS.url(approval, way).removeprefix(LINKS.origin)


async def opened(api: Api, link: str) -> httpx.Response:
    return await api.http.get(link, headers=HOST)


async def pressed(api: Api, link: str) -> httpx.Response:
    return await api.http.post(link, headers=OWN_FORM)


def rows(page: str) -> list[tuple[str, str]]:
    """The facts of a page: names and values, without their tags."""
    return [(plain(a), plain(b)) for a, b in re.findall("<dt>(.*?)</dt>.*?<dd>(.*?)</dd>", page, re.DOTALL)]


def plain(html: str) -> str:
    return " ".join(unescape(re.sub("<[^>]*>", " ", html)).split())


def heading(page: str) -> str:
    return plain(page.partition("<h1>")[2].partition("</h1>")[0])


async def test_the_page_says_why_it_is_asked_who_asks_and_what_for(world: World) -> None:
    world.fund(100 * ADA)
    async with world.run(terms=ASKING) as run, served(run, links=LINKS) as api:
        await run.run_pass()
        world.settings(price="6000000", splits=[])
        page = (await opened(api, await link_of(api, "approve"))).text
        told = dict(rows(page))
        assert heading(page) == "Approve this payment?"
        assert re.search(r"It takes 6\.\d+ ADA, more than 5 ADA", plain(page))
        assert "above your 5 ADA approval limit" in plain(page)
        assert told["App"] == "payer"
        assert told["Purpose"].startswith("A <b>poster</b> ")
        assert told["Before"].startswith("Never paid there")


async def test_requests_with_a_forged_link_do_not_use_up_the_rate_limit_of_a_real_one(world: World) -> None:
    world.fund(100 * ADA)
    bounds = Bounds(rates=Rates(rate_limit_per_s=1))
    async with world.run(terms=ASKING) as run, served(run, bounds, links=LINKS) as api:
        await run.run_pass()
        link = await link_of(api, "approve")
        forged = (link[:-1] + "~", link.replace("/approve/", "/deny/"), link.replace("pay_", "pay_0"), link[:-43])
        for path in (*forged[:3], *[forged[1]] * (BURST_S + 2)):
            assert (await opened(api, path)).status_code == 404
        assert (await opened(api, link)).status_code == 200
        assert (await opened(api, forged[3])).status_code == 404, "the first half alone must not be a valid link"
        answers = [(await opened(api, link)).status_code for _ in range(BURST_S + 2)]
        assert answers[-1] == 429


async def test_a_refused_decision_by_link_is_counted_once_and_recorded_as_an_event(world: World) -> None:
    world.fund(100 * ADA)
    async with world.run(terms=ASKING) as run, served(run, links=LINKS) as api:
        await run.run_pass()
        link = await link_of(api, "approve")
        await set_limits(run.context, APP, None, None, "lovelace", {Window.DAY: 9 * ADA})
        page = await pressed(api, link)
        assert (page.status_code, run.context.metrics.refusals["limit_exceeded"]) == (403, 1)
        told = events.last_note(run.context.conn, link.split("/")[3], "decision_refused")
        assert told is not None
        assert (told["code"], told["by"], told["via"]) == ("limit_exceeded", None, "link")


async def test_a_refused_decision_says_that_the_payment_still_waits_and_counts_against_the_limits(
    world: World,
) -> None:
    world.fund(100 * ADA)
    async with world.run(terms=ASKING) as run, served(run, links=LINKS) as api:
        await run.run_pass()
        link = await link_of(api, "approve")
        await set_limits(run.context, APP, None, None, "lovelace", {Window.DAY: 9 * ADA})
        payment_id = link.split("/")[3]
        page = plain((await pressed(api, link)).text)
        told = (await api.http.post(f"/v1/payments/{payment_id}/approve", json={})).json()
        assert told["code"] == "limit_exceeded"
        for money in (page, told["money"]):
            assert "nothing is held" not in money, "the payment still counts against every limit"
            assert ("Nothing was signed" in money, "It counts against the limits" in money) == (True, True)
        assert "Approve this payment?" in page, "until its time is over, the button can be pressed again"
        await api.http.post("/v1/apps/payer/revoke", json={})
        page = plain((await pressed(api, link)).text)
        assert "is revoked" in page
        assert "payagent app rotate-token" in page, "the token is the app's, not the approver's"
        assert run.context.payment(payment_id).state == "awaiting_approval"


@pytest.mark.parametrize(
    ("way", "done", "states"),
    [("approve", "approved", (State.SIGNED, State.IN_FLIGHT)), ("deny", "denied", (State.DENIED,))],
)
async def test_reloading_a_link_after_the_decision_shows_it_and_decides_nothing(
    world: World, way: Way, done: str, states: tuple[State, ...]
) -> None:
    world.fund(100 * ADA)
    async with world.run(terms=ASKING) as run, served(run, links=LINKS) as api:
        await run.run_pass()
        link = await link_of(api, way)
        sent = await pressed(api, link)
        assert (sent.status_code, sent.headers["location"]) == (303, link), "a reload must not post again"
        shown = await opened(api, link)
        assert (shown.status_code, heading(shown.text)) == (200, f"The payment was {done}")
        told = dict(rows(shown.text))
        assert told[done.capitalize()].endswith("by somebody with a link")
        assert told["Money"] in [STATES_IN_WORDS[state] for state in states]


async def test_a_second_decision_shows_the_first_and_who_made_it(world: World) -> None:
    world.fund(100 * ADA)
    async with world.run(terms=ASKING) as run, served(run, links=LINKS) as api:
        await run.run_pass()
        link = await link_of(api, "deny")
        await api.http.post(f"/v1/payments/{link.split('/')[3]}/approve", json={})
        late = await pressed(api, link)
        assert (late.status_code, heading(late.text)) == (409, "The payment was approved")
        assert dict(rows(late.text))["Approved"].endswith("by first, token")
        assert "The earlier decision stands." in late.text


async def test_a_link_to_a_timed_out_approval_says_so_and_offers_no_decision(world: World) -> None:
    world.fund(100 * ADA)
    async with world.run(terms=ASKING) as run, served(run, links=LINKS) as api:
        await run.run_pass()
        link = await link_of(api, "approve")
        world.clock.ahead_ms += 3_600_000
        late = await pressed(api, link)
        assert late.status_code == 403
        for page in (late.text, (await opened(api, link)).text):
            assert heading(page) == "The approval timed out"
            assert dict(rows(page))["Money"] == STATES_IN_WORDS[State.DENIED]
            assert "<button" not in page


async def test_the_page_names_each_amounts_asset_and_what_limits_leave_after_the_payment(world: World) -> None:
    world.fund(10 * ADA, assets={TOKEN: 1_000})
    limits = tuple(
        Limit(Scope(ANY, ANY), asset, window, units)
        for asset, units in ((TOKEN, 700), ("lovelace", 20 * ADA))
        for window in (Window.PAYMENT, Window.DAY)
    )
    asking = with_terms(approval_required_above={TOKEN: 10}, limits=limits)
    async with world.run(terms=asking) as run, served(run, links=LINKS) as api:
        await run.run_pass()
        world.settings(price="50", asset=TOKEN, splits=[])
        page = (await opened(api, await link_of(api, "approve"))).text
        named, name = dict(rows(page)), f"{TOKEN[:8]}….{TOKEN[56:]}"
        assert ">devnet<" in page
        assert f"650 {name} of the wallet's daily limit" in named["Limits leave"]
        assert "18.6 ADA of the wallet's daily limit" in named["Limits leave"]
        assert re.search(r"18\.6\d{3,} ADA of the wallet's daily limit", named["Limits leave"])
        assert re.search(
            rf"^50 {name}, and 1\.1\d+ ADA with it \+ fee .* = 50 {name} and 1\.3\d+ ADA", named["Takes"]
        )
        assert f"50 {name} addr_test1" in named["Transaction"]


async def test_a_truncated_link_says_that_nothing_was_decided_and_what_to_do(world: World) -> None:
    async with world.run(terms=ASKING) as run, served(run, links=LINKS) as api:
        page = await opened(api, "/ui/decide/pay_x/approve/cut-by-a-mail")
        assert page.status_code == 404
        assert "Nothing was decided by it." in page.text
        assert "whole link" in page.text


async def test_at_the_host_of_links_only_their_pages_answer(world: World) -> None:
    world.fund(100 * ADA)
    async with world.run(terms=ASKING) as run, served(run, links=LINKS) as api:
        await run.run_pass()
        link, at = await link_of(api, "approve"), {"Host": LINK_HOST, "Origin": f"https://{LINK_HOST}"}
        page = await api.http.get(link, headers={"Host": LINK_HOST})
        style = re.search(r'href="(/ui/static/[^"]*css)"', page.text)
        assert style is not None
        assert (await api.http.get(style[1], headers={"Host": LINK_HOST})).status_code == 200
        for path in ("/", "/ui/", "/ui/sign-in", "/ui/enter/0", "/v1/limits", "/proxy/t/chat"):
            assert (await api.http.get(path, headers={"Host": LINK_HOST})).status_code == 403, path
        code = (await api.http.post("/v1/dashboard/links", json={})).json()["code"]
        typed = await api.http.post("/ui/sign-in", data={"code": code}, headers=OWN_FORM | at)
        assert (typed.status_code, "set-cookie" in typed.headers) == (403, False)
        assert (await api.http.post(link, headers=OWN_FORM | at)).status_code == 303


async def test_a_decision_in_the_dashboard_on_other_terms_or_too_late_is_refused(world: World) -> None:
    world.fund(100 * ADA)
    async with world.run(terms=ASKING) as run, served(run, links=LINKS) as api:
        await run.run_pass()
        asked = (await api.http.post("/v1/payments", json=api.body())).json()["id"]
        link = (await api.http.post("/v1/dashboard/links", json={})).json()["url"].removeprefix(LINKS.origin)
        entered = await api.http.post(link, headers=OWN_FORM)
        cookie = {"Cookie": entered.headers["set-cookie"].partition(";")[0]}
        page = (await api.http.get("/ui/approvals", headers=HOST | cookie)).text
        form = re.search(rf'id="{asked}".*?</form>', page, re.DOTALL)
        assert form is not None
        fields = dict(re.findall(r'name="(csrf|order|terms_hash)" value="([^"]*)"', form[0]))
        wrong = fields | {"terms_hash": "0" * 64, "order": "another", "way": "approve"}
        changed = await api.http.post(f"/ui/approvals/{asked}", data=wrong, headers=OWN_FORM | cookie)
        assert (changed.status_code, "terms_changed" in changed.text) == (409, True)
        assert run.context.payment(asked).state == "awaiting_approval"
        world.clock.ahead_ms += 3_600_000
        late = await api.http.post(
            f"/ui/approvals/{asked}", data=fields | {"way": "approve"}, headers=OWN_FORM | cookie
        )
        assert late.status_code == 403
        assert "Timed out: nobody decided" in late.text
        assert run.context.payment(asked).state == "denied"


@pytest.mark.parametrize(
    ("units", "calls", "is_same", "rise"),
    [
        ("2000000", 1, True, ""),
        ("2019999", 1, False, "less than 1% more"),
        ("1999999", 1, False, ""),
        ("3000000", 1, False, "50% more"),
        ("6000000", 3, True, ""),
        ("6000001", 3, False, "less than 1% more"),
    ],
)
def test_a_price_is_as_agreed_only_to_the_unit(units: str, calls: int, is_same: bool, rise: str) -> None:
    agreed = {"asset": "lovelace", "calls": 1, "units": "2000000"}
    approval = {"calls": calls, "agreed": [agreed], "pinned": [], "limits": [], "ends_at": "2026-11-29T12:00:00Z"}
    output = {"role": "pay_to", "asset": "lovelace", "units": units, "address": "addr_test1"}
    before = ask({"merchant": "t", "outputs": [output], "approval": approval})["before"]
    assert (before["is_same"], before["rise"]) == (is_same, rise)


def test_the_differing_ends_of_two_addresses_are_marked() -> None:
    known, new = marked("addr_test1" + "q" * 60 + "end", "addr_test1" + "z" * 60 + "end")
    assert new == f"addr_test1<mark>{'z' * 8}</mark>{'z' * 44}<mark>{'z' * 8}</mark>end"
    assert known == str(new).replace("z", "q").replace("<mark>", '<mark class="known">')
    assert marked("addr_aXb", "addr_aYb")[1] == "addr_a<mark>Y</mark>b"
    assert marked("", "addr")[1] == "<mark>addr</mark>"
    assert marked("same", "same") == ("same", "same")
