"""Approving and denying in the dashboard, end to end: what a person sees, and what the ledger says then."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from kit.browser import needs_browser, sign_in, sign_in_by_link, tab
from kit.cli import Shop, until
from kit.dashboard import running_daemon
from playwright.sync_api import Browser, Locator, Page, expect

from payagent.devnet.merchant import role_address
from payagent.devnet.server import DevnetThread

pytestmark = needs_browser

NEW = role_address("new").text


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A wallet with merchant rules, whose merchant was paid 2 ADA for its call once."""
    with DevnetThread(block_time_s=1) as devnet:
        at = Shop(devnet, tmp_path_factory.mktemp("shop"))
        rules = '[merchants.t]\npin = "first_use"\nprice_rise_percent_max = 25\n'
        at.config.write_text(at.config.read_text().replace("[merchants.t]\n", rules))
        with at.http:
            for _ in range(6):
                at.control("faucet", address=at.made["address"], lovelace="100000000")
            with running_daemon(at):
                until(lambda: len(at.payagent("wallet", "utxos").json["utxos"]) == 6, "no deposit")
                at.settings(price="2000000", splits=[], batch=1, confirmations=0)
                first = buy(at, "first")
                until(lambda: state(at, first) == "confirmed", "the first payment is not confirmed")
                yield at


@pytest.fixture(autouse=True)
def usual_terms(shop: Shop) -> None:
    shop.settings(price="2000000", pay_to=role_address("pay_to").text)


def buy(shop: Shop, message: str, **more: object) -> str:
    """Ask the daemon to pay for a call. Returns the payment's id."""
    first = shop.call(message)
    body = {
        "origin": shop.devnet.merchant_url,
        "request": {"method": "POST", "path": "/chat", "body_sha256": message.encode().hex().ljust(64, "0")},
        "response": {"status": 402, "headers": dict(first.headers), "body": first.json()},
        **more,
    }
    transport = httpx.HTTPTransport(uds=str(shop.folder / "s"))
    with httpx.Client(transport=transport, headers={"Authorization": f"Bearer {shop.made['token']}"}) as client:
        answer = client.post("http://payagent/v1/payments", json=body)
    assert answer.is_success, answer.text
    return str(answer.json()["id"])


def shown(shop: Shop, payment_id: str) -> dict[str, Any]:
    return dict(shop.payagent("payments", "show", payment_id).json)


def state(shop: Shop, payment_id: str) -> str:
    return str(shown(shop, payment_id)["state"])


def card(page: Page, payment_id: str) -> Locator:
    return page.locator(f"#{payment_id}")


def test_a_price_that_rose_is_shown_beside_the_agreed_one_and_approved(shop: Shop, browser: Browser) -> None:
    with tab(browser) as at:
        at.page.goto(sign_in(at.page, shop) + "/ui/approvals")
        expect(at.page.get_by_text("Nothing waits for you")).to_be_visible()
        shop.settings(price="3000000")
        asked = buy(shop, "dearer", purpose='<img src=x onerror="alert(1)">')
        one = card(at.page, asked)
        expect(one).to_be_visible()
        expect(one.locator(".swap")).to_contain_text(
            re.compile("Agreed before.*2.000000.*50% more.*3.000000", re.S)
        )
        expect(one).to_contain_text('<img src=x onerror="alert(1)">')
        one.get_by_role("button", name="Approve 3 ADA").click()
        expect(at.page.get_by_role("status").filter(has_text="Approved")).to_be_visible()
        expect(at.page.locator("#decided tbody tr").first).to_contain_text(
            re.compile("t, 3 ADA.*approved.*dashboard", re.S)
        )
    approval = shown(shop, asked)["approval"]
    assert (approval["decision"], approval["via"], approval["by"]) == ("approved", "dashboard", "operator")
    until(lambda: state(shop, asked) == "confirmed", "the approved payment is not confirmed")


def test_a_new_address_is_approved_only_with_the_tick_and_then_pinned(shop: Shop, browser: Browser) -> None:
    shop.settings(pay_to=NEW)
    asked = buy(shop, "elsewhere")
    with tab(browser) as at:
        at.page.goto(sign_in(at.page, shop) + "/ui/approvals")
        one = card(at.page, asked)
        expect(one.locator(".addr").nth(1)).to_have_text(NEW)
        approve = one.get_by_role("button", name="Approve and pin the address")
        approve.click()
        assert state(shop, asked) == "awaiting_approval", "the browser asks for the tick"
        one.locator("[required]").evaluate("box => box.required = false")
        approve.click()
        expect(at.page.get_by_role("alert")).to_contain_text("address_not_pinned")
        assert state(shop, asked) == "awaiting_approval", "the server asks for it too"
        checked = card(at.page, asked).get_by_role("checkbox")
        checked.check()
        checked.press("Enter")  # it approves, as the box says
        expect(at.page.get_by_role("status").filter(has_text="Approved")).to_be_visible()
    pinned = [one["address"] for one in shop.payagent("merchants", "show", "t").json["addresses"]]
    assert NEW in pinned
    shop.payagent("merchants", "unpin", "t", NEW)


def test_who_decides_late_sees_who_was_first(shop: Shop, browser: Browser) -> None:
    shop.settings(price="4000000")
    asked = buy(shop, "twice")
    with tab(browser) as at:
        at.page.goto(sign_in(at.page, shop) + "/ui/approvals")
        deny = card(at.page, asked).get_by_role("button", name="Deny")
        deny.focus()
        assert shop.payagent("payments", "approve", asked).code == 0
        expect(at.page.locator("#decided")).to_contain_text("operator, token")
        expect(deny).to_be_focused()
        deny.press("Enter")
        expect(at.page.get_by_role("alert")).to_contain_text("already_decided")
        expect(at.page.locator("#first")).to_contain_text("Approved by operator, token")
    assert shown(shop, asked)["approval"]["decision"] == "approved"


def test_a_payment_is_denied_without_javascript_by_an_app_that_sees_approvals_alone(
    shop: Shop, browser: Browser
) -> None:
    added = shop.payagent("app", "add", "approver", "--scope", "approve")
    assert added.code == 0, added.err
    shop.settings(price="9000000")
    asked = buy(shop, "too dear")
    with tab(browser, 390, scripts=False) as at:
        origin = sign_in_by_link(at.page, shop, "--app", "approver")
        assert at.page.url == f"{origin}/ui/approvals"
        for path in ("/ui/payments", f"/ui/payments/{asked}", "/ui/wallet"):
            answer = at.page.goto(origin + path)
            assert answer is not None
            assert answer.status in (403, 404), path
        at.page.goto(origin + "/ui/approvals")
        inside = at.page.locator("main a").evaluate_all("links => links.map(link => link.pathname)")
        assert set(inside) <= {"/ui/approvals"}, "nothing leads to what the session may not see"
        card(at.page, asked).get_by_role("button", name="Deny").click()
        expect(at.page.get_by_role("status").filter(has_text="Denied")).to_be_visible()
    assert (state(shop, asked), shown(shop, asked)["approval"]["by"]) == ("denied", "approver")
