"""The ledger's pages: the sums, the checks that every open page shows, and the exports."""

import re
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest
from kit.browser import needs_browser, sign_in, tab
from kit.cli import Shop, until
from playwright.sync_api import Browser, expect

pytestmark = [needs_browser, pytest.mark.usefixtures("usual_terms")]


@pytest.fixture(scope="module", autouse=True)
def _spent(shop: Shop) -> None:
    """Two payments that are booked."""
    shop.settings(price="2000000", splits=[], batch=1, confirmations=0)
    for message in ("one", "two"):
        shop.payagent("pay", shop.saved(message), "--merchant", "t")
    until(lambda: {one["state"] for one in shop.payments()} <= {"confirmed", "settled"}, "not confirmed")


def ada(text: str) -> Decimal:
    return Decimal(re.sub(r"[^0-9.-]", "", text))


def test_the_balances_add_up_to_zero(shop: Shop, browser: Browser) -> None:
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/ledger")
        shown = list(map(ada, at.page.locator("#balances tbody .amt").all_inner_texts()))
        booked = shop.payagent("ledger", "balance").json["balances"]
        assert Counter(shown) == Counter(Decimal(row["units"]) / 1_000_000 for row in booked)
        assert sum(shown) == 0 == ada(at.page.locator("#balances tfoot .amt").inner_text())


def test_a_check_is_one_run_that_every_open_page_shows(shop: Shop, browser: Browser) -> None:
    with tab(browser) as first, tab(browser, width=390) as second:
        origins = [sign_in(at.page, shop) for at in (first, second)]
        for origin, at in zip(origins, (first, second), strict=True):
            at.page.goto(f"{origin}/ui/ledger")
        shop.control("faults", on=f"/addresses/{shop.made['address']}/transactions", kind="hang")
        try:
            first.page.get_by_role("button", name="Reconcile now").click()
            for at in (second, first):
                expect(at.page.locator("#reconcile .chip")).to_have_text("running")
                expect(at.page.locator("#reconcile")).to_contain_text("started by operator")
            second.page.get_by_role("button", name="Stop").click()
            expect(first.page.locator("#reconcile .chip")).to_have_text("stopped")
        finally:
            shop.control("faults", clear=True)
        first.page.get_by_role("button", name="Verify now").click()
        for at in (first, second):
            expect(at.page.locator("#verify .chip")).to_have_text("clean")
        head = first.page.locator("#verify .copyline code").inner_text()
        assert shop.payagent("ledger", "verify", "--head", head).json["clean"]
        first.page.get_by_text("Check an older head").click()
        first.page.get_by_label("Head of an earlier run").fill("1:abc")
        first.page.get_by_role("button", name="Verify now").click()
        expect(first.page.locator("#verify")).to_contain_text("bad_request")


def test_the_chain_is_compared_to_the_unit(shop: Shop, browser: Browser) -> None:
    with tab(browser, scripts=False) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/ledger")
        at.page.get_by_role("button", name="Reconcile now").click()

        def compared() -> int:
            at.page.goto(f"{origin}/ui/ledger")
            return at.page.locator("#reconcile .facts").count()

        until(compared, "not compared")
        expect(at.page.locator("#reconcile .chip")).to_have_text("clean")
        books, chain, in_flight = map(ada, at.page.locator("#reconcile .facts .amt").all_inner_texts())
        assert books - chain == in_flight == 0


def test_an_export_is_the_command_lines_to_the_byte(shop: Shop, browser: Browser, tmp_path: Path) -> None:
    filters = ("--merchant", "t", "--until", "2126-01-01T00:00:00Z")
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/ledger")
        at.page.get_by_label("Until (UTC), not included").fill("2126-01-01")
        at.page.locator("#export").get_by_label("Merchant").select_option("t")
        for form in ("csv", "jsonl", "beancount", "hledger"):
            at.page.get_by_label("Format").select_option(form)
            with at.page.expect_download() as download:
                at.page.get_by_role("button", name="Export").click()
            download.value.save_as(tmp_path / form)
            told = shop.payagent("ledger", "export", "--format", form, *filters)
            assert (tmp_path / form).read_bytes() == told.out.encode(), form


def test_journal_spend_and_month_agree_with_the_command_line(shop: Shop, browser: Browser) -> None:
    with tab(browser, width=390) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/ledger/journal?kind=post&merchant=t")
        assert at.page.locator("#entries tbody tr").count() == 2
        totals = shop.payagent("ledger", "spend").json["totals"]
        for by in ("merchant", "app", "day"):
            at.page.goto(f"{origin}/ui/ledger/spend?by={by}")
            cells = at.page.locator("#spend tfoot td.num:visible .amt").all_inner_texts()
            assert [ada(cell) * 1_000_000 for cell in cells] == [Decimal(totals[0]["total"])]
        at.page.goto(f"{origin}/ui/ledger/month")
        rows = [ada(text) for text in at.page.locator("section[aria-labelledby=balance] .amt").all_inner_texts()]
        assert sum(rows[:-1]) == rows[-1]
        assert ada(at.page.locator("section[aria-labelledby=sum-spent] .big").inner_text()) == -rows[2]
        assert at.page.evaluate("document.documentElement.scrollWidth") == 390
        with at.page.expect_download() as started:
            at.page.get_by_role("link", name="Download report").click()
        report = started.value.path().read_text()
        head = at.page.locator("section[aria-labelledby=head] code").first.inner_text()
        assert shop.payagent("ledger", "verify", "--head", head).json["clean"]
        assert "<title>payagent: " in report
        assert head in report
        with at.page.expect_download() as started:
            at.page.get_by_role("link", name="CSV").click()
        assert started.value.path().read_text().count(",post,") >= 2
        at.page.goto(f"{origin}/ui/ledger/journal?since=yesterday")
        expect(at.page.locator("#refusal code").first).to_have_text("bad_request")


def test_a_read_session_sees_the_checks_and_starts_none(shop: Shop, browser: Browser) -> None:
    assert shop.payagent("app", "add", "auditor", "--scope", "read").code == 0
    with tab(browser) as at:
        origin = sign_in(at.page, shop, "--app", "auditor")
        at.page.goto(f"{origin}/ui/ledger")
        assert at.page.locator("#main form[method=post]").count() == 0
        answer = at.page.goto(f"{origin}/ui/ledger/snapshot")
        assert answer is not None
        assert answer.status == 403
