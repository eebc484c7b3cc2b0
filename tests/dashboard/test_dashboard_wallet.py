"""The wallet's page: what it adds up to, splitting, and sends that wait for the terminal."""

import re
from decimal import Decimal

import pytest
from kit.browser import needs_browser, sign_in, tab
from kit.cli import TOKEN, Shop, until
from kit.dashboard import visitor
from kit.second_wallet import spend_elsewhere
from kit.terminal import at_terminal
from playwright.sync_api import Browser, Page, expect

from payagent.devnet.merchant import role_address

pytestmark = [needs_browser, pytest.mark.usefixtures("usual_terms")]

SOMEBODY = role_address("creator").text
OTHER = role_address("pay_to").text


def ada(text: str) -> Decimal:
    return Decimal(re.sub(r"[^0-9.]", "", text))


def order_send(page: Page, address: str, amount: str) -> str:
    """Fill the form of a send. Returns the code that the terminal needs."""
    page.get_by_label("To address").fill(address)
    page.get_by_label("Amount", exact=True).fill(amount)
    page.get_by_role("button", name="Continue to confirm").click()
    page.wait_for_url("**/ui/orders/*")
    return page.locator("pre strong").inner_text()


def sends(shop: Shop) -> list[str]:
    """The outputs of all sends to others."""
    return [
        output["address"] + " " + output["units"]
        for payment in shop.payments()
        for output in payment["outputs"]
        if payment["kind"] == "send" and output["role"] == "pay_to"
    ]


def test_a_send_leaves_once_and_only_by_the_terminal(shop: Shop, browser: Browser) -> None:
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/wallet")
        code = order_send(at.page, SOMEBODY, "5")
        expect(at.page.get_by_text("the first send to this address")).to_be_visible()
        assert sends(shop) == []
        confirmed = shop.payagent("dashboard", "confirm", code, "--yes")
        assert confirmed.code == 0, confirmed.err
        assert "Send 5 ADA" in confirmed.err
        assert f"to: {SOMEBODY}" in confirmed.err
        expect(at.page.get_by_role("heading", name="The terminal confirmed it")).to_be_visible()
        assert shop.payagent("dashboard", "confirm", code, "--yes").problem == "not_found"
        assert sends(shop) == [f"{SOMEBODY} 5000000"]
        told = shop.payagent("log", "--kind", "dashboard", "--human").out.splitlines()[-1]
        assert told.endswith("confirmed in the terminal: Send 5 ADA")


def test_a_changed_send_needs_a_new_code_and_a_withdrawn_one_has_none(shop: Shop, browser: Browser) -> None:
    before = sends(shop)
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/wallet")
        first = order_send(at.page, SOMEBODY, "6")
        at.page.go_back()
        second = order_send(at.page, OTHER, "7 ADA")
        assert first != second
        kept = shop.payagent("dashboard", "confirm", first)  # nobody can be asked: it only shows the order
        assert f"to: {SOMEBODY}" in kept.err
        assert "sends: 6 ADA" in kept.err
        at.page.get_by_role("button", name="Withdraw the order").click()
        expect(at.page.get_by_text("The order was withdrawn. Nothing was done.")).to_be_visible()
        assert shop.payagent("dashboard", "confirm", second, "--yes").problem == "not_found"
    assert sends(shop) == before


def test_a_no_in_the_terminal_withdraws_the_order(shop: Shop) -> None:
    me, before = visitor(shop), sends(shop)
    asked = me.post("/ui/wallet/send", me.hidden() | {"address": SOMEBODY, "amount": "5"}).headers["location"]
    found = re.search(r"confirm <strong>(.*?)</strong>", me.get(asked).text)
    assert found is not None
    with at_terminal("dashboard", "confirm", found[1], "--config", shop.config) as session:
        session.expect("Carry it out?")
        session.type("n")
        assert session.end() != 0
        assert "The order is withdrawn. Nothing was done." in session.seen
    assert me.get(asked).status_code == 404
    assert shop.payagent("dashboard", "confirm", found[1], "--yes").problem == "not_found"
    assert sends(shop) == before


def test_a_send_that_cannot_be_is_refused_on_its_form(shop: Shop) -> None:
    me = visitor(shop)
    for address, amount, code in (
        (SOMEBODY[:-1], "5", "transfer_invalid"),
        (SOMEBODY, "5.1234567", "amount_invalid"),
        (SOMEBODY, "1000000", "not_enough_funds"),
    ):
        answer = me.post("/ui/wallet/send", me.hidden() | {"address": address, "amount": amount})
        assert f"<code>{code}" in answer.text
        assert f'value="{amount}"' in answer.text


def test_tokens_and_everything_can_be_sent(shop: Shop, browser: Browser) -> None:
    shop.control("faucet", address=shop.made["address"], assets={TOKEN: "5000"})
    until(lambda: len(shop.payagent("wallet").json["assets"]) == 2, "no token")
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/wallet")
        at.page.get_by_label("Of", exact=True).select_option(TOKEN)
        code = order_send(at.page, SOMEBODY, "7")
        sent = shop.payagent("dashboard", "confirm", code, "--yes")
        assert "sends: 7 COIN" in sent.err
        assert {"asset": TOKEN, "units": "7"}.items() <= sent.json["answer"]["outputs"][0].items()
        at.page.goto(f"{origin}/ui/wallet")
        at.page.get_by_label("Everything").check()
        everything = shop.payagent("dashboard", "confirm", order_send(at.page, SOMEBODY, ""))
        assert "sends: everything that is available and may leave" in everything.err


def test_a_split_is_made_only_by_the_terminal(shop: Shop, browser: Browser) -> None:
    before = len(shop.payments())
    with tab(browser, scripts=False) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/wallet")
        at.page.get_by_role("spinbutton", name="UTxOs").fill("3")
        at.page.get_by_label("ADA in each").fill("4.5")
        at.page.get_by_role("button", name="Split").click()
        assert len(shop.payments()) == before
        done = shop.payagent("dashboard", "confirm", at.page.locator("pre strong").inner_text(), "--yes")
        assert "makes: 3 UTxOs of 4.5 ADA each, in this wallet" in done.err
        assert "asked by: operator, signed in since 2" in done.err
    sizes = [row["lovelace"] for row in shop.payagent("wallet", "utxos").json["utxos"]]
    assert sizes.count("4500000") == 3


def test_the_parts_add_up_to_the_total(shop: Shop, browser: Browser) -> None:
    with tab(browser, width=390) as at:
        origin = sign_in(at.page, shop)
        total, shown = Decimal(0), Decimal(-1)
        while total != shown:  # a payment of an earlier test may still be confirmed between the two looks
            total = Decimal(shop.payagent("wallet").json["assets"][0]["total"]) / 1_000_000
            at.page.goto(f"{origin}/ui/wallet")
            parts = [at.page.locator("#balance .huge .amt").inner_text()]
            parts += at.page.locator("#balance .facts").first.locator("dd .amt").all_inner_texts()
            shown = ada(parts[-1])
        assert sum(map(ada, parts[:-1])) == total
        assert at.page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_frozen_wallet_says_why_and_is_unfrozen_by_the_terminal(shop: Shop, browser: Browser) -> None:
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/wallet")
        tx = spend_elsewhere(shop)
        expect(at.page.get_by_text("another program spent from it")).to_be_visible()
        at.page.get_by_role("button", name="Unfreeze").click()
        code = at.page.locator("pre strong").inner_text()
        unfrozen = shop.payagent("dashboard", "confirm", code, "--yes")
        assert unfrozen.json["answer"]["txs"] == [tx]
