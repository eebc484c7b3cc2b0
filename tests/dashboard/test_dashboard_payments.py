"""The list of payments, which stays fresh while somebody reads it, and one payment with its timeline."""

import re
from pathlib import Path
from typing import Any

import pytest
from kit.browser import needs_browser, sign_in, tab
from kit.cli import Shop, until
from playwright.sync_api import Browser, expect

pytestmark = [needs_browser, pytest.mark.usefixtures("usual_terms")]

HOSTILE = '"><img src=x onerror="alert(1)"><script>alert(2)</script>'


def pay(shop: Shop, message: str) -> str:
    """The id of a new payment."""
    shop.payagent("pay", shop.saved(message), "--merchant", "t", "--no-wait")
    return str(shop.payments()[0]["id"])


def shown(shop: Shop, payment_id: str) -> dict[str, Any]:
    return dict(shop.payagent("payments", "show", payment_id).json)


def test_new_payments_and_states_appear_and_focus_and_scroll_stay(shop: Shop, browser: Browser) -> None:
    oldest, *_ = [pay(shop, f"before {number}") for number in range(4)]
    with tab(browser) as at:
        at.page.goto(sign_in(at.page, shop) + "/ui/payments")
        at.page.set_viewport_size({"width": 1280, "height": 320})
        at.page.evaluate("window.isSamePage = true")
        row = at.page.locator(f"#{oldest}")
        row.get_by_role("link").focus()
        at.page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        place = row.evaluate("row => row.getBoundingClientRect().top")
        made = pay(shop, "meanwhile")
        new = at.page.locator("#rows tr").first
        expect(new).to_have_id(made)
        expect(new).to_contain_text("confirmed")
        expect(row.get_by_role("link")).to_be_focused()
        assert abs(row.evaluate("row => row.getBoundingClientRect().top") - place) < 2
        assert at.page.evaluate("window.isSamePage")
        timing = new.evaluate(
            "row => { row.classList.add('new'); return row.cells[1].getAnimations()[0].effect.getTiming() }"
        )
        assert (timing["delay"], timing["duration"]) == (2400, 1)  # a step: a fade is painted 60 times a second


def test_filters_are_in_the_address_and_later_pages_say_how_many_are_new(shop: Shop, browser: Browser) -> None:
    made = pay(shop, "to be found")
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/payments")
        at.page.get_by_label("Text").fill(made[6:])
        at.page.get_by_label("Merchant").select_option("t")
        at.page.get_by_role("button", name="Filter").click()
        at.page.wait_for_url(f"**/ui/payments?text={made[6:]}&merchant=t&app=&state=&delivery=")
        expect(at.page.locator("#rows tr")).to_have_count(1)
        at.page.get_by_role("link", name="Not paid").click()
        expect(at.page.get_by_label("State")).to_have_value("rejected,denied,void")
        expect(at.page.get_by_text("No payment here")).to_be_visible()
        wrong = at.page.goto(f"{origin}/ui/payments?state=lost")
        assert wrong is not None
        assert wrong.status == 400
        expect(at.page.get_by_role("alert")).to_contain_text("bad_request")
        at.page.goto(f"{origin}/ui/payments?cursor=2&newest={shown(shop, made)['created_at']}")
        expect(at.page.locator("#rows tr")).to_have_count(1)
        newer = pay(shop, "newer")
        expect(at.page.get_by_text("1 new payment.")).to_be_visible()
        expect(at.page.locator("#rows tr")).to_have_count(1)
        at.page.get_by_role("link", name="Show the newest").click()
        expect(at.page.locator("#rows tr").first).to_have_id(newer)


def test_a_payment_says_what_it_means_and_its_receipt_can_be_checked(
    shop: Shop, browser: Browser, tmp_path: Path
) -> None:
    made = pay(shop, "with a receipt")
    until(lambda: shown(shop, made)["state"] == "confirmed", "it is not confirmed")
    with tab(browser) as at:
        at.page.goto(f"{sign_in(at.page, shop)}/ui/payments/{made}")
        expect(at.page.get_by_role("heading", level=1)).to_have_text("2 ADA to t")
        expect(at.page.locator("#meaning")).to_contain_text("Confirmed on the chain and posted in the ledger.")
        told = [re.sub(r"\s", " ", one) for one in at.page.locator("#happened li .top > div").all_inner_texts()]
        assert re.fullmatch(r"Reserved 2\.\d+ ADA; [\d ]+ of 100 000 ADA left today", told[0]), told[0]
        assert told[1:3] == ["Signed, and stored before anything left", "Submitted to the chain"]
        confirmed = re.compile(r"Confirmed, \d+ blocks? deep, and booked as paid")
        assert any(map(confirmed.fullmatch, told[3:])), told  # the merchant's last status may come after it
        expect(at.page.locator("#happened li strong")).to_have_text("Next: settled")
        reserved = at.page.locator("#happened li").first
        expect(reserved.get_by_text("nonce utxo")).to_be_hidden()
        reserved.get_by_text("Details").click()
        expect(reserved.get_by_text("nonce utxo")).to_be_visible()
        expect(reserved).to_contain_text("of the wallet's daily limit")
        total, fee = at.page.locator("#pays tfoot .amt").inner_text(), int(shown(shop, made)["fee"])
        assert re.sub(r"\D", "", total) == str(2_000_000 + fee)
        expect(at.page.get_by_text("Look it up")).to_have_count(0)
        with at.page.expect_download() as download:
            at.page.get_by_role("link", name="Receipt").click()
        receipt = tmp_path / download.value.suggested_filename
        download.value.save_as(receipt)
    assert receipt.name == f"receipt-{made}.json"
    assert shop.payagent("ledger", "verify", "--receipt", receipt).code == 0


def test_a_payment_in_no_block_is_cancelled_and_one_that_ended_says_why(shop: Shop, browser: Browser) -> None:
    shop.control("faults", on="submit", kind="drop")
    made = pay(shop, "to be cancelled")
    with tab(browser, scripts=False) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/payments/{made}")
        at.page.get_by_role("button", name="Cancel the payment").click()
        expect(at.page.locator("#notice")).to_contain_text("being cancelled")
        expect(at.page.locator("#receipt form")).to_have_count(0)
        shop.control("faults", clear=True)
        shop.settings(price="7000000")
        denied = pay(shop, "to be denied")
        assert shop.payagent("payments", "deny", denied).code == 0
        at.page.goto(f"{origin}/ui/payments/{denied}")
        expect(at.page.locator("#meaning")).to_contain_text("The payment was denied")
        expect(at.page.locator("#meaning")).to_contain_text("Nothing was signed and no money is held for it.")
    with tab(browser) as at:
        shop.payagent("app", "add", "auditor", "--scope", "read")
        at.page.goto(f"{sign_in(at.page, shop, '--app', 'auditor')}/ui/payments/{denied}")
        expect(at.page.locator("main form")).to_have_count(0)


def test_text_from_outside_is_shown_and_runs_nothing(shop: Shop, browser: Browser) -> None:
    with tab(browser, 390) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/payments?text={HOSTILE}")
        expect(at.page.get_by_label("Text")).to_have_value(HOSTILE)
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        for path in ("/ui/payments", f"/ui/payments/{shop.payments()[0]['id']}", "/ui/payments?state=lost"):
            at.page.goto(origin + path)
            assert at.page.evaluate(wide) == 0, f"{path} scrolls sideways"
