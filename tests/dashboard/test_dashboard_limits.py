"""Limits: lowering acts at once, and what lets more out waits for the terminal."""

import re

import pytest
from kit.browser import needs_browser, sign_in, tab
from kit.cli import TOKEN, Shop
from kit.dashboard import visitor
from playwright.sync_api import Browser, Page, Route, expect

from payagent.core.money import parse_ada

pytestmark = [needs_browser, pytest.mark.usefixtures("usual_terms")]


def in_force(shop: Shop, limit: str = "per_day", asset: str = "lovelace") -> tuple[int, str] | None:
    """The most and the origin of the wallet's limit."""
    for one in shop.payagent("limits").json["limits"]:
        if (one["app"], one["merchant"], one["limit"], one["asset"]) == (None, None, limit, asset):
            return int(one["most"]), one["set_by"]
    return None


def order(page: Page, origin: str, amount: str, limit: str = "per_day", asset: str = "lovelace") -> None:
    page.goto(f"{origin}/ui/limits?limit={limit}&asset={asset}#edit")
    page.get_by_label("At most").fill(amount)
    page.get_by_role("button", name="Set the limit").click()


def shown_code(page: Page) -> str:
    page.wait_for_url("**/ui/orders/*")
    return page.locator("pre strong").inner_text()


def test_raising_a_limit_waits_for_the_terminal_and_its_code_works_once(shop: Shop, browser: Browser) -> None:
    shop.payagent("limits", "set", "--per-day", "40 ADA")
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        order(at.page, origin, "50")
        code, page_of_50 = shown_code(at.page), at.page.url
        assert in_force(shop) == (40_000_000, "operator")
        order(at.page, origin, "60")
        other = shown_code(at.page)
        assert other != code
        done = shop.payagent("dashboard", "confirm", code, "--yes")
        assert "now: 40 ADA at most\n  then: 50 ADA at most" in done.err
        assert in_force(shop) == (50_000_000, "operator")
        again = shop.payagent("dashboard", "confirm", code, "--yes")
        assert (again.code, again.problem) == (2, "not_found")
        at.page.get_by_role("button", name="Withdraw the order").click()
        assert shop.payagent("dashboard", "confirm", other, "--yes").problem == "not_found"
        assert in_force(shop) == (50_000_000, "operator")
        at.page.goto(page_of_50)
        expect(at.page.get_by_role("heading", name="The terminal confirmed it")).to_be_visible()


def test_what_limits_count_is_rounded_with_the_exact_amounts_beside(shop: Shop, browser: Browser) -> None:
    """Each amount is read back as it is shown, and the rounded ones promise no more than there is."""
    shop.payagent("limits", "set", "--per-day", "40 ADA")
    shop.payagent("pay", shop.saved("to be counted"), "--merchant", "t", "--no-wait")
    limits = shop.payagent("limits").json["limits"]
    (day,) = [one for one in limits if one["limit"] == "per_day" and one["most"] == "40000000"]
    with tab(browser, 390) as at:
        at.page.goto(sign_in(at.page, shop) + "/ui/limits")
        row = at.page.locator("#limits tr", has_text="40 ADA")
        expect(row).to_contain_text("exactly")
        texts = row.locator("td.num").first.inner_text(), row.locator("th").inner_text().partition("exactly")[2]
        amounts = [re.findall(r"[\d.\u202f]+(?= ADA| of)", text) for text in texts]
        (spent, most, left), exact = ([parse_ada(f"{one} ADA") for one in found] for found in amounts)
        assert (most, exact) == (40_000_000, [int(day["spent"]), int(day["left"])])
        assert spent > exact[0]
        assert left < exact[1]


def test_lowering_a_limit_acts_at_once(shop: Shop, browser: Browser) -> None:
    shop.payagent("limits", "set", "--per-day", "40 ADA")
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        order(at.page, origin, "20.5")
        expect(at.page.locator("#notice")).to_contain_text("last 24 hours: 20.5 ADA at most")
        assert in_force(shop) == (20_500_000, "operator")
        row = at.page.locator("#limits tr", has_text="Last 24 hours").first
        expect(row).to_contain_text("of 20.5 ADA")
        shop.payagent("limits", "set", "--per-day", "30 ADA")
        expect(row).to_contain_text("of 30 ADA")
        expect(at.page.locator("#notice")).to_contain_text("20.5 ADA at most")  # until another page is opened


def test_a_page_shows_what_changed_before_its_stream_opened(shop: Shop, browser: Browser) -> None:
    shop.payagent("limits", "set", "--per-day", "40 ADA")
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        held: list[Route] = []
        at.page.route("**/ui/events", lambda route: held.append(route))
        with at.page.expect_request("**/ui/events"):
            at.page.goto(f"{origin}/ui/limits")
        row = at.page.locator("#limits tr", has_text="Last 24 hours").first
        expect(row).to_contain_text("of 40 ADA")
        shop.payagent("limits", "set", "--per-day", "30 ADA")
        held[-1].continue_()  # an earlier one belongs to the page before
        expect(row).to_contain_text("of 30 ADA")


def test_a_first_limit_of_ada_acts_at_once_and_one_of_a_token_waits(shop: Shop, browser: Browser) -> None:
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        order(at.page, origin, "90", "per_week")
        assert in_force(shop, "per_week") == (90_000_000, "operator")
        order(at.page, origin, "90", "per_week", TOKEN)
        shown_code(at.page)
        assert in_force(shop, "per_week", TOKEN) is None


def test_a_raise_waits_for_the_terminal_whatever_the_form_sends(shop: Shop) -> None:
    me = visitor(shop)
    shop.payagent("limits", "set", "--per-day", "40 ADA")
    shop.payagent("app", "add", "bot", "--per-day", "2 ADA")
    shop.payagent("limits", "set", "--merchant", "t", "--per-day", "3 ADA")
    ids = {one["name"]: one["id"] for one in shop.payagent("app", "list").json["apps"]}
    before = shop.payagent("limits").json["limits"]
    for scope in (
        {},
        {"app": ids["bot"]},
        {"merchant": shop.devnet.merchant_url},
    ):  # no asset: no tokens are named
        order = {**me.hidden(), **scope, "limit": "per_day", "amount": "90000", "act": "set"}
        assert me.post("/ui/limits", order).headers["location"].startswith("/ui/orders/"), scope
    assert shop.payagent("limits").json["limits"] == before


def test_reverting_to_the_config_waits_for_the_terminal(shop: Shop, browser: Browser) -> None:
    shop.payagent("limits", "set", "--per-day", "40 ADA")
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/limits")
        at.page.get_by_role("link", name="Change Last 24 hours", exact=True).click()
        at.page.get_by_role("button", name="Revert to the config").click()
        code = shown_code(at.page)
        assert in_force(shop) == (40_000_000, "operator")
        done = shop.payagent("dashboard", "confirm", code, "--yes")
        assert "then: as in the config file: 100\u202f000 ADA at most" in done.err
        assert in_force(shop) == (100_000_000_000, "config")


def test_an_amount_that_is_not_readable_is_refused_with_what_was_typed(shop: Shop, browser: Browser) -> None:
    before, me = in_force(shop), visitor(shop)
    for typed in ("-3", "0.0000001", "99999999999999"):
        answer = me.post(
            "/ui/limits", me.hidden("/ui/limits") | {"limit": "per_day", "amount": typed, "act": "set"}
        )
        assert "amount_invalid" in answer.text, typed
        assert f'value="{typed}"' in answer.text
    with tab(browser) as at:
        order(at.page, sign_in(at.page, shop), "1,5")
        expect(at.page.locator("#refusal")).to_contain_text("amount_invalid")
        assert at.page.get_by_label("At most").input_value() == "1,5"
        expect(at.page.locator("#live")).to_contain_text("As it was at")
    assert in_force(shop) == before


def test_every_limit_and_what_stands_above_them_is_shown(shop: Shop, browser: Browser) -> None:
    shop.payagent("app", "add", "bounded", "--per-payment", "2 ADA", "--per-day", "7 ADA")
    shop.payagent("limits", "set", "--merchant", "t", "--per-month", "150 ADA")
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/limits")
        rows = [re.sub(r"\s+", " ", row) for row in at.page.locator("#limits tbody tr").all_inner_texts()]
        assert len(rows) == len(shop.payagent("limits").json["limits"])
        assert any(row.startswith("bounded, one payment") and "2 ADA at most" in row for row in rows)
        assert any(row.startswith("t, last 30 days") and "of 150 ADA" in row for row in rows)
        above = at.page.locator("#ask").inner_text()
        assert "200\u202f000 ADA at most" in above
        assert "10\u202f000 COIN at most" in above
        assert "above 5 ADA" in above
