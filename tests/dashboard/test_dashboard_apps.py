"""Apps: one is added in the browser and pays with its token, which is shown once."""

import httpx
import pytest
from kit.browser import needs_browser, sign_in, tab
from kit.canaries import plant
from kit.cli import Shop
from kit.dashboard import visitor
from kit.http import NO_TLS
from playwright.sync_api import Browser, Page, expect

from payagent.dashboard.pages import apps, limits, merchants

pytestmark = [needs_browser, pytest.mark.usefixtures("usual_terms")]


def fill(page: Page, origin: str, name: str, *scopes: str, **amounts: str) -> None:
    """Fill the form of a new app, and send it."""
    page.goto(f"{origin}/ui/apps/new")
    page.get_by_label("Name").fill(name)
    for scope in ("pay", "read", "operate", "approve"):
        page.get_by_label(scope, exact=True).set_checked(scope in scopes)
    for label, amount in amounts.items():
        page.locator(f"#{label}").fill(amount)
    page.get_by_role("button", name="Add the app").click()


def shown_token(page: Page) -> str:
    return plant("a token of the dashboard", page.locator("#token").inner_text())


def names(shop: Shop) -> list[str]:
    return [one["name"] for one in shop.payagent("app").json["apps"]]


def call(origin: str, token: str, path: str, **more: str) -> httpx.Response:
    """A call of a program, which reaches the daemon at the address that the page shows."""
    address = origin.replace("payagent.localhost", "127.0.0.1")
    headers = {"X-Payagent-Token": token, "Authorization": f"Bearer {token}"}
    with httpx.Client(verify=NO_TLS, trust_env=False, timeout=60, base_url=address) as http:
        return http.post(path, json=more, headers=headers) if more else http.get(path, headers=headers)


def test_an_app_with_a_limit_pays_with_its_token_until_the_limit(shop: Shop, browser: Browser) -> None:
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        fill(at.page, origin, "shop-agent", "pay", per_payment="3", per_day="3", per_month="", total="")
        token = shown_token(at.page)
        assert token not in at.page.url
        paid = call(origin, token, "/proxy/t/chat", message="within")
        assert paid.status_code == 200, paid.text
        refused = call(origin, token, "/proxy/t/chat", message="beyond")
        assert (refused.status_code, refused.json()["code"]) == (403, "limit_exceeded")
        at.page.goto(f"{origin}/ui/apps")
        card = at.page.locator("section.card", has=at.page.get_by_role("heading", name="shop-agent"))
        expect(card).to_contain_text("2.")
        expect(card).to_contain_text("of 3 ADA")
        expect(card).not_to_contain_text("none since the daemon started")
    log = (shop.folder / "daemon.log").read_text()
    assert token not in log


def test_reloading_the_page_of_a_token_shows_it_no_more_and_adds_nothing(shop: Shop, browser: Browser) -> None:
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        fill(at.page, origin, "once", "pay")
        token = shown_token(at.page)
        while at.page.locator("#token").count():  # at first it is a double click, which gets the same answer
            at.page.reload()
        expect(at.page.get_by_role("heading", name="Apps", exact=True)).to_be_visible()
        assert token not in at.page.content()
        assert names(shop).count("once") == 1
        fill(at.page, origin, "once", "pay", per_day="7")
        expect(at.page.locator("#refusal")).to_contain_text("already_exists")
        assert at.page.locator("#per_day").input_value() == "7"


def test_a_token_that_may_operate_waits_for_the_terminal_and_is_its_sessions_alone(
    shop: Shop, browser: Browser
) -> None:
    with tab(browser) as at, tab(browser) as other:
        origin = sign_in(at.page, shop)
        sign_in(other.page, shop)
        fill(at.page, origin, "deputy", "operate", "read")
        code = at.page.locator("pre strong").inner_text()
        assert "deputy" not in names(shop)
        done = shop.payagent("dashboard", "confirm", code, "--yes")
        assert "may: read, operate" in done.err
        assert done.json["answer"]["name"] == "deputy"
        assert "token" not in done.json["answer"]
        assert other.page.goto(at.page.url).status == 404  # type: ignore[union-attr]
        show = at.page.get_by_role("button", name="Show the new token, once")
        order = at.page.url
        show.click()
        token = shown_token(at.page)
        assert call(origin, token, "/v1/apps").status_code == 200
        at.page.goto(order)
        expect(at.page.get_by_role("heading", name="The terminal confirmed it")).to_be_visible()
        expect(show).to_have_count(0)


def test_a_new_token_ends_the_old_one_and_revoking_ends_both(shop: Shop, browser: Browser) -> None:
    before = shop.payagent("app", "add", "bot").json["token"]
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/apps")
        at.page.get_by_role("link", name="New token for bot").click()
        at.page.get_by_role("button", name="Make the new token").click()
        after = shown_token(at.page)
        assert call(origin, before, "/v1/limits").status_code == 401
        assert call(origin, after, "/v1/limits").status_code == 200
        at.page.goto(f"{origin}/ui/apps")
        at.page.get_by_role("button", name="Revoke bot").click()
        expect(at.page.locator("#notice")).to_contain_text("bot is revoked. Its signed payments go on")
        assert call(origin, after, "/v1/limits").status_code == 401


def test_an_app_whose_token_was_revoked_gets_a_new_one(shop: Shop, browser: Browser) -> None:
    shop.payagent("app", "add", "back-again")
    shop.payagent("app", "revoke", "back-again")
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/apps")
        at.page.get_by_role("link", name="New token for back-again").click()
        at.page.get_by_role("button", name="Make the new token").click()
        assert call(origin, shown_token(at.page), "/v1/limits").status_code == 200


def test_a_session_does_not_replace_the_token_that_it_acts_with(shop: Shop) -> None:
    me = visitor(shop)
    for answer in (me.get("/ui/apps/operator/token"), me.post("/ui/apps/operator/token", me.hidden("/ui/apps"))):
        assert answer.status_code == 403
        assert "payagent app rotate-token operator" in answer.text
    assert me.get("/ui/apps").status_code == 200


def test_an_app_that_cannot_be_added_gets_no_code_and_its_form_keeps_what_was_typed(shop: Shop) -> None:
    me = visitor(shop)
    typed = {"name": "operator", "scopes": "operate", "per_day": "7", "expires": "90d"}
    answer = me.post("/ui/apps/new", typed | me.hidden("/ui/apps/new"))
    assert (answer.status_code, "already_exists" in answer.text) == (409, True)
    assert 'name="per_day" type="text" inputmode="decimal" autocomplete="off" value="7"' in answer.text


def test_the_snippets_name_the_daemon_and_hold_no_token(shop: Shop, browser: Browser) -> None:
    shop.payagent("app", "add", "reader-bot")
    with tab(browser, scripts=False) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/apps")
        at.page.get_by_label("App", exact=True).select_option("reader-bot")
        at.page.get_by_role("button", name="Show").click()
        text = at.page.locator("#connect").inner_text()
        assert f"{origin.replace('payagent.localhost', '127.0.0.1')}/proxy/t/v1" in text
        assert '"FOLDER/reader-bot.token"' in text
        assert "pa_" not in text


def test_a_session_that_may_only_read_has_no_form_and_each_post_is_refused(shop: Shop, browser: Browser) -> None:
    shop.payagent("app", "add", "auditor", "--scope", "read")
    with tab(browser) as at:
        origin = sign_in(at.page, shop, "--app", "auditor")
        for path in ("/ui/apps", "/ui/merchants", "/ui/merchants/t", "/ui/limits"):
            assert at.page.goto(origin + path).status == 200  # type: ignore[union-attr]
            assert at.page.locator('main form[method="post"]').count() == 0, path
        posts = [one for module in (apps, merchants, limits) for one in module.PAGES if one.is_form]
        for one in posts:
            path = one.path.format(name="t", order_id="x", topup_id="x")
            assert post(at.page, path) == 403, path
        assert len(posts) > 8


def post(page: Page, path: str) -> int:
    """The status of a form with the session's own CSRF token."""
    csrf = page.locator('input[name="csrf"]').first.input_value()
    send = """async ([path, csrf]) => (await fetch(path, {method: "POST", redirect: "manual",
        body: new URLSearchParams({csrf, order: "o"})})).status"""
    return int(page.evaluate(send, [path, csrf]))
