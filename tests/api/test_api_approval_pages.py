"""Approval links: pages on which a person approves or denies, what they show, and what is counted."""

import re
from dataclasses import replace
from html import unescape

import pytest
from kit.agent import ADA, APP, World, with_terms
from kit.api import Api, served

from payagent.agent.operator.approval_links import KEY_BYTES, ApprovalLinks, Way
from payagent.agent.operator.limits import set_limits
from payagent.api.http.rate_limit import BURST_S, Rates
from payagent.core.merchant_rules import MerchantRules
from payagent.core.payment import STATES_IN_WORDS, State
from payagent.core.policy import ANY, Limit, Scope, Window
from payagent.proxy.app import Bounds
from payagent.store.rows import approvals, events

LINKS = ApprovalLinks("http://127.0.0.1", bytes(KEY_BYTES))
ASKING = with_terms(approval_required_above={"lovelace": 5 * ADA})
TOKEN = "5c" * 28 + "6c"
OWN_FORM = {"Sec-Fetch-Site": "same-origin", "Origin": "null"}


async def link_of(api: Api, way: Way) -> str:
    """Ask for a payment; the path of the link that decides on it."""
    answer = await api.as_("payer").post("/v1/payments", json=api.body())
    assert answer.status_code == 202, answer.text
    approval = approvals.of_payment(api.run.context.conn, answer.json()["id"])
    assert approval is not None
    return LINKS.url(approval, way).removeprefix(LINKS.origin)


def rows(page: str) -> list[tuple[str, str]]:
    """The table of a page: names and values."""
    return [(unescape(a), unescape(b)) for a, b in re.findall("<th>(.*?)</th><td>(.*?)</td>", page)]


def heading(page: str) -> str:
    return unescape(page.partition("<h1>")[2].partition("</h1>")[0])


async def test_requests_with_a_forged_link_do_not_use_up_the_rate_limit_of_a_real_one(world: World) -> None:
    world.fund(100 * ADA)
    bounds = Bounds(rates=Rates(rate_limit_per_s=1))
    async with world.run(terms=ASKING) as run, served(run, bounds, links=LINKS) as api:
        await run.run_pass()
        link = await link_of(api, "approve")
        forged = (link[:-1] + "~", link.replace("/approve/", "/deny/"), link.replace("pay_", "pay_0"), link[:-43])
        for path in (*forged[:3], *[forged[1]] * (BURST_S + 2)):
            assert (await api.http.get(path)).status_code == 404
        assert (await api.http.get(link)).status_code == 200
        assert (await api.http.get(forged[3])).status_code == 404, "the first half alone must not be a valid link"


async def test_a_refused_decision_by_link_is_counted_once_and_recorded_as_an_event(world: World) -> None:
    world.fund(100 * ADA)
    async with world.run(terms=ASKING) as run, served(run, links=LINKS) as api:
        await run.run_pass()
        link = await link_of(api, "approve")
        await set_limits(run.context, APP, None, None, "lovelace", {Window.DAY: 9 * ADA})
        page = await api.http.post(link, headers=OWN_FORM)
        assert (page.status_code, run.context.refusals["limit_exceeded"]) == (403, 1)
        told = events.last_note(run.context.conn, link.split("/")[2], "decision_refused")
        assert told is not None
        assert (told["code"], told["by"], told["via"]) == ("limit_exceeded", None, "link")


async def test_a_refused_decision_says_that_the_payment_still_waits_and_counts_against_the_limits(
    world: World,
) -> None:
    world.fund(100 * ADA)
    async with world.run(terms=ASKING) as run, served(run, links=LINKS) as api:
        await run.run_pass()
        link = await link_of(api, "approve")
        (ends_at,) = [value for name, value in rows((await api.http.get(link)).text) if name == "open until"]
        await set_limits(run.context, APP, None, None, "lovelace", {Window.DAY: 9 * ADA})
        payment_id = link.split("/")[2]
        page = dict(rows((await api.http.post(link, headers=OWN_FORM)).text))
        told = (await api.http.post(f"/v1/payments/{payment_id}/approve", json={})).json()
        assert told["code"] == "limit_exceeded"
        for money in (page["money"], told["money"]):
            assert "nothing is held" not in money, "the payment still counts against every limit"
            assert ("Nothing was signed" in money, "It counts against the limits" in money) == (True, True)
        assert page["open until"].startswith(ends_at)
        await api.http.post("/v1/apps/payer/revoke", json={})
        page = dict(rows((await api.http.post(link, headers=OWN_FORM)).text))
        assert "is revoked" in page["why"]
        assert "payagent app rotate-token" in page["what to do"], "the token is the app's, not the approver's"
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
        pressed = await api.http.post(link, headers=OWN_FORM)
        assert (pressed.status_code, pressed.headers["location"]) == (303, link), "a reload must not post again"
        shown = await api.http.get(link)
        assert (shown.status_code, heading(shown.text)) == (200, f"The payment was {done}")
        told = dict(rows(shown.text))
        assert told[done].endswith("by a link")
        assert told["money"] in [STATES_IN_WORDS[state] for state in states]


async def test_a_second_decision_shows_the_first_and_who_made_it(world: World) -> None:
    world.fund(100 * ADA)
    async with world.run(terms=ASKING) as run, served(run, links=LINKS) as api:
        await run.run_pass()
        link = await link_of(api, "deny")
        await api.http.post(f"/v1/payments/{link.split('/')[2]}/approve", json={})
        late = await api.http.post(link, headers=OWN_FORM)
        assert (late.status_code, heading(late.text)) == (409, "The payment does not wait for approval")
        assert dict(rows(late.text))["approved"].endswith("by first")


async def test_a_link_to_a_timed_out_approval_says_so_and_offers_no_decision(world: World) -> None:
    world.fund(100 * ADA)
    async with world.run(terms=ASKING) as run, served(run, links=LINKS) as api:
        await run.run_pass()
        link = await link_of(api, "approve")
        world.clock.ahead_ms += 3_600_000
        late = await api.http.post(link, headers=OWN_FORM)
        assert late.status_code == 403
        for page in (late.text, (await api.http.get(link)).text):
            assert heading(page) == "The approval timed out"
            assert dict(rows(page))["money"] == STATES_IN_WORDS[State.DENIED]
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
        told = rows((await api.http.get(await link_of(api, "approve"))).text)
        named = dict(told)
        assert (named["network"], named["paid there before"]) == ("devnet", "never")
        assert ("most per payment", f"700 units of {TOKEN}") in told
        assert ("left per day once it is paid", f"650 units of {TOKEN}") in told
        assert ("at most", f"50 units of {TOKEN}") in told
        assert named["most per payment"] == "20 ADA"
        assert f", 50 units of {TOKEN} to addr_test1" in named["pay_to"]


async def test_a_truncated_link_says_that_nothing_was_decided_and_what_to_do(world: World) -> None:
    async with world.run(terms=ASKING) as run, served(run, links=LINKS) as api:
        page = await api.http.get("/decide/pay_x/approve/cut-by-a-mail")
        told = dict(rows(page.text))
        assert page.status_code == 404
        assert told["money"] == "Nothing was decided by it."
        assert "whole link" in told["what to do"]


async def test_a_refusal_by_the_in_flight_limit_of_a_merchant_is_counted(world: World) -> None:
    world.fund(*[100 * ADA] * 3)
    merchants = {
        o: replace(m, rules=MerchantRules(payments_in_flight_max=1)) for o, m in world.terms.merchants.items()
    }
    async with world.run(terms=with_terms(merchants=merchants)) as run, served(run) as api:
        await run.run_pass()
        await api.pay("first")
        busy = await api.http.post("/v1/payments", json=api.body("second"))
        assert (busy.json()["code"], run.context.refusals["merchant_in_flight_limit"]) == (
            "merchant_in_flight_limit",
            1,
        )
