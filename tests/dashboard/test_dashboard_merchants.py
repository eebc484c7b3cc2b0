"""Merchants: what is known of each, and balances that are paid in advance."""

import pytest
from kit.browser import needs_browser, sign_in, tab
from kit.cli import Shop, until
from kit.dashboard import visitor
from playwright.sync_api import Browser, Page, expect

from payagent.devnet.merchant import role_address

pytestmark = [needs_browser, pytest.mark.usefixtures("usual_terms")]


def confirm(shop: Shop, page: Page) -> str:
    """Confirm the order on the page in the terminal. Returns what the terminal showed."""
    page.wait_for_url("**/ui/orders/*")
    done = shop.payagent("dashboard", "confirm", page.locator("pre strong").inner_text(), "--yes")
    assert done.code == 0, done.err
    return done.err


def test_a_topup_shows_its_cost_first_and_is_then_carried_out(shop: Shop, browser: Browser) -> None:
    shop.settings(price="2000000", batch=5)
    before = len(shop.payments())
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/merchants/t/topup")
        at.page.get_by_label("Buy for (ADA)").fill("2")
        at.page.get_by_label("Path").fill("/payments/topup")
        at.page.get_by_label("Body, JSON").fill("{}")
        at.page.get_by_role("button", name="See what it costs").click()
        expect(at.page.get_by_text("1 of 2 ADA")).to_be_visible()
        assert len(shop.payments()) == before
        at.page.get_by_role("button", name="Top up for 2 ADA").click()
        expect(at.page.locator("#topups li").first).to_contain_text("2 ADA of 2 ADA bought")
        expect(at.page.locator("#topups li .chip").first).to_have_text("done")
        until(lambda: shop.payagent("prepaid").json["prepaid"][0]["bought"] == "5", "nothing was bought")
        assert len(shop.payments()) == before + 1
        at.page.goto(f"{origin}/ui/merchants")
        cells = at.page.locator("#prepaid tbody td").all_inner_texts()
        pool = shop.payagent("prepaid").json["prepaid"][0]
        assert cells[:4] == [pool[part] for part in ("bought", "used", "left", "coming")]
        assert cells[4].split()[0] == pool["merchant_says"]["remaining"]
        (row,) = shop.payagent("ledger", "spend", "--by", "merchant").json["spend"]
        total = int(row["total"])
        spent = at.page.locator("#merchants tbody td").last
        expect(spent).to_contain_text(f"{total // 1_000_000}.{total % 1_000_000:06d}")
        expect(spent).to_contain_text(f"{row['payments']} paid")


def test_a_balance_of_calls_is_topped_up_in_calls(shop: Shop, browser: Browser) -> None:
    shop.settings(price="2000000", batch=5)
    before = len(shop.payments())
    (had,) = shop.payagent("prepaid").json["prepaid"]
    with tab(browser) as at:
        at.page.goto(f"{sign_in(at.page, shop)}/ui/merchants/t/topup")
        at.page.get_by_label("Calls to buy").fill("10")
        at.page.get_by_label("Path").fill("/payments/topup")
        at.page.get_by_label("Body, JSON").fill("{}")
        at.page.get_by_label("This request only sells calls").check()
        at.page.get_by_role("button", name="See what it costs").click()
        expect(at.page.get_by_text("2 of 2 ADA")).to_be_visible()
        at.page.get_by_role("button", name="Top up for 4 ADA").click()
        expect(at.page.locator("#notice")).to_contain_text("until 10 calls are bought")
        expect(at.page.locator("#topups li").first).to_contain_text("10 of 10 bought")
        expect(at.page.locator("#topups li .chip").first).to_have_text("done")
    until(lambda: shop.payagent("prepaid").json["prepaid"][0]["coming"] == "0", "it was not bought")
    (has,) = shop.payagent("prepaid").json["prepaid"]
    assert int(has["bought"]) == int(had["bought"]) + 10
    assert len(shop.payments()) == before + 2


def test_a_topup_that_waits_for_a_person_is_cancelled(shop: Shop, browser: Browser) -> None:
    shop.settings(price="7000000", batch=5)
    body = shop.folder / "body.json"
    body.write_text("{}")
    topup = ("prepaid", "topup", "t", "--amount", "7 ADA", "--path", "/payments/topup", "--data-file", body)
    ordered = shop.payagent(*topup, "--no-wait")
    assert ordered.out, ordered.err
    assert ordered.json["state"] == "open"
    with tab(browser, scripts=False) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/merchants")
        at.page.get_by_role("button", name="Cancel the top-up of t").click()
        expect(at.page.locator("#notice")).to_contain_text("The top-up is cancelled")
    assert shop.payagent("prepaid", "list").json["topups"][0]["state"] == "stopped"


def test_a_merchant_is_added_by_the_terminal_and_removed_at_once(shop: Shop, browser: Browser) -> None:
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/merchants")
        at.page.get_by_label("Name").fill("images")
        at.page.get_by_label("Origin").fill("https://images.example.com")
        at.page.get_by_role("button", name="Add the merchant").click()
        at.page.wait_for_url("**/ui/orders/*")
        assert [one["name"] for one in shop.payagent("merchants").json["merchants"]] == ["t"]
        assert "origin: https://images.example.com" in confirm(shop, at.page)
        at.page.goto(f"{origin}/ui/merchants")
        at.page.get_by_role("link", name="images").click()
        at.page.get_by_role("button", name="Remove").click()
        expect(at.page.locator("#notice")).to_contain_text("images is removed")
        assert [one["name"] for one in shop.payagent("merchants").json["merchants"]] == ["t"]


def test_an_address_is_pinned_by_the_terminal_and_unpinned_at_once(shop: Shop, browser: Browser) -> None:
    first, second = role_address("pay_to").text, role_address("split").text
    shop.payagent("merchants", "pin", "t", first)
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/merchants/t")
        at.page.get_by_role("textbox", name="Address").fill(second)
        at.page.get_by_role("button", name="Pin the address").click()
        assert f"address: {second}" in confirm(shop, at.page)
        pinned = shop.payagent("merchants", "show", "t").json["addresses"]
        assert {one["address"] for one in pinned} == {first, second}
        at.page.goto(f"{origin}/ui/merchants/t")
        at.page.get_by_role("listitem").filter(has=at.page.locator(f'code[title="{second}"]')).get_by_role(
            "button", name="Unpin"
        ).click()
        expect(at.page.locator("#notice")).to_contain_text("The address is removed")
        pinned = shop.payagent("merchants", "show", "t").json["addresses"]
        assert [one["address"] for one in pinned] == [first]


@pytest.mark.parametrize(
    ("path", "typed", "code"),
    [
        ("/ui/merchants", {"name": "t", "origin": "https://new.example.com"}, "already_exists"),
        ("/ui/merchants", {"name": "new", "origin": "https://new.example.com/v1"}, "bad_request"),
        (
            "/ui/merchants/t/pins",
            {"role": "split", "address": role_address("split").text[:-1]},
            "transfer_invalid",
        ),
    ],
)
def test_an_order_that_would_be_refused_gets_no_code_and_its_form_keeps_what_was_typed(
    shop: Shop, path: str, typed: dict[str, str], code: str
) -> None:
    me = visitor(shop)
    answer = me.post(path, typed | me.hidden())
    assert answer.status_code in (400, 409, 422)
    assert f"<code>{code}" in answer.text
    for text in typed.values():
        assert f'value="{text}"' in answer.text
    assert ("selected" in answer.text) == ("role" in typed)
