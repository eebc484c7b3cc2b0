"""The overview: what it adds up to, and that it stays fresh while it is open."""

import re
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from kit.browser import needs_browser, sign_in, sign_in_by_link, tab
from kit.cli import Shop, until
from playwright.sync_api import Browser, expect

pytestmark = [needs_browser, pytest.mark.usefixtures("usual_terms")]


def ada(text: str) -> Decimal:
    return Decimal(re.sub(r"[^0-9.]", "", text))


def test_a_payment_appears_without_a_reload(shop: Shop, browser: Browser) -> None:
    with tab(browser) as at:
        sign_in_by_link(at.page, shop)
        at.page.evaluate("window.isSamePage = true")
        shop.payagent("pay", shop.saved("a fresh payment"), "--merchant", "t")
        (made,) = shop.payments()
        expect(at.page.locator(f"#row-{made['id']}")).to_be_visible()
        assert at.page.evaluate("window.isSamePage")


def test_a_hidden_tab_holds_no_stream_and_is_fresh_again_when_it_is_seen(shop: Shop, browser: Browser) -> None:
    turn = """isHidden => {
        Object.defineProperty(document, "hidden", {value: isHidden, configurable: true});
        document.dispatchEvent(new Event("visibilitychange")); }"""
    with tab(browser) as at:
        at.page.goto(f"{sign_in(at.page, shop)}/ui/")
        expect(at.page.locator("#live")).to_contain_text("Live")
        at.page.evaluate("window.isSamePage = true")
        at.page.evaluate(turn, True)
        shop.payagent("pay", shop.saved("while nobody looks"), "--merchant", "t")
        row = at.page.locator(f"#row-{shop.payments()[0]['id']}")
        until(lambda: shop.payments()[0]["state"] in ("confirmed", "settled"), "not confirmed")
        expect(row).to_have_count(0)
        at.page.evaluate(turn, False)
        expect(row).to_be_visible()
        expect(at.page.locator("#live")).to_contain_text("Live")
        assert at.page.evaluate("window.isSamePage")


def test_the_parts_of_the_wallet_add_up_to_its_total(shop: Shop, browser: Browser) -> None:
    with tab(browser) as at:
        at.page.goto(f"{sign_in(at.page, shop)}/ui/")
        total = Decimal(shop.payagent("wallet").json["assets"][0]["total"]) / 1_000_000
        parts = [at.page.locator("#money .huge .amt").inner_text()]
        parts += at.page.locator("#money .parts .amt").all_inner_texts()
        assert sum(map(ada, parts)) == total
        assert ada(at.page.locator("#money .totals .amt").first.inner_text()) == total


def test_todays_spend_is_the_ledgers(shop: Shop, browser: Browser) -> None:
    shop.payagent("pay", shop.saved("today"), "--merchant", "t")
    until(lambda: shop.payments()[0]["state"] in ("confirmed", "settled"), "not confirmed")
    today = datetime.now(UTC).strftime("%Y-%m-%dT00:00:00Z")
    with tab(browser, scripts=False) as at:
        at.page.goto(f"{sign_in(at.page, shop)}/ui/")
        (total,) = shop.payagent("ledger", "spend", "--since", today).json["totals"]
        assert ada(at.page.locator("#today .amt").inner_text()) == Decimal(total["total"]) / 1_000_000
