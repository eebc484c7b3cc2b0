"""The activity page says what `payagent log` says; the settings page shows health, providers and sessions."""

import json
import re
import tomllib
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest
from kit.browser import needs_browser, sign_in, sign_in_by_link, tab
from kit.cli import Shop
from kit.dashboard import stranger, visitor
from playwright.sync_api import Browser, Route, expect

from payagent.settings.schema import NotificationSettings

pytestmark = [needs_browser, pytest.mark.usefixtures("usual_terms")]

HOSTILE = "<script>alert(1)</script> " + "x" * 60


def test_the_activity_says_what_the_log_says(shop: Shop, browser: Browser) -> None:
    assert shop.payagent("limits", "set", "--per-week", "70 ADA").code == 0
    assert shop.payagent("pause", "--reason", "a drill").code == 0
    assert shop.payagent("resume").code == 0
    with tab(browser, width=390) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/activity")
        rows = at.page.locator("#events tbody tr")
        expect(rows.first).to_contain_text("operator signed in to the dashboard")
        logged = shop.payagent("log", "--human").out.splitlines()
        shown, at_once = at.page.locator("#events").inner_text(), 0
        for line in logged:
            assert line.split(maxsplit=3)[3] in shown
            at_once += "issued a token for the app" in line  # one row with the app
        assert rows.count() == len(logged) - at_once
        at.page.goto(f"{origin}/ui/activity?kind=limits")
        expect(at.page.locator("#events tbody tr")).to_have_count(1)
        expect(at.page.locator("#events")).to_contain_text("operator set the wallet's weekly limit to 70 ADA")
        expect(at.page.locator(".cmd code")).to_have_text("payagent log --kind limits")
        assert at.page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_activity_says_by_which_way_a_change_was_made(shop: Shop, browser: Browser) -> None:
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/")
        at.page.get_by_role("button", name="Pause signing").click()
        assert shop.payagent("resume").code == 0
        at.page.goto(f"{origin}/ui/activity?kind=signing")
        resumed, paused = at.page.locator("#events tbody tr").all()[:2]
        expect(resumed).to_contain_text("operator resumed signing")
        expect(resumed.locator(".sub")).to_have_text("with its token")
        expect(paused).to_contain_text("operator paused signing")
        expect(paused.locator(".sub")).to_have_text("in the dashboard")


def test_changes_stand_before_refusals_and_can_be_chosen_by_who_and_when(shop: Shop, browser: Browser) -> None:
    today, tomorrow = (str(datetime.now(UTC).date() + timedelta(days=days)) for days in (0, 1))
    token = shop.payagent("app", "add", "asker").json["token"]
    assert shop.payagent("pay", shop.saved("dear"), "--merchant", "t", "--max", "1 lovelace").code == 6
    asked = {"authorization": f"Bearer {token}"}
    answer = shop.http.post(f"{visitor(shop).server}/v1/payments", json=body_of(shop), headers=asked)
    assert answer.status_code == 403, answer.text
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/activity")
        lines = [line.replace("\n", " ") for line in at.page.locator("#events tbody tr").all_inner_texts()]
        refused = ["was refused with" in line for line in lines]
        assert refused == sorted(refused), "a refusal stands before a change"
        assert refused.count(True) == 2
        at.page.get_by_label("Who").select_option("asker")
        at.page.get_by_role("button", name="Filter").click()
        expect(at.page.locator("#events tbody tr")).to_have_count(1)
        expect(at.page.locator("#events")).to_contain_text("asker was refused with limit_exceeded")
        command = at.page.locator(".cmd code").inner_text()
        assert command == "payagent log --by asker"
        (line,) = shop.payagent(*command.split()[1:], "--human").out.splitlines()
        assert re.search("asker +was refused with limit_exceeded", line)
        at.page.get_by_label("Who").select_option("operator")
        at.page.get_by_label("Since").fill(tomorrow)
        at.page.get_by_role("button", name="Filter").click()
        expect(at.page.locator("#events tbody tr")).to_have_count(0)
        at.page.get_by_label("Since").fill(today)
        at.page.get_by_label("Until").fill(tomorrow)
        at.page.get_by_role("button", name="Filter").click()
        expect(at.page.locator(".cmd code")).to_have_text(
            f"payagent log --by operator --since {today}T00:00:00Z --until {tomorrow}T00:00:00Z"
        )
        expect(at.page.locator("#events tbody tr")).to_have_count(len(lines) - 1)


def body_of(shop: Shop) -> dict[str, object]:
    """A 402 to pay, which may take next to nothing."""
    return {
        "origin": shop.devnet.merchant_url,
        "response": {"status": 402, "headers": {}, "body": json.loads(shop.saved("asked").read_bytes())},
        "max_total": "1",
    }


def test_signing_out_is_an_event(shop: Shop, browser: Browser) -> None:
    with tab(browser) as at:
        at.page.goto(f"{sign_in(at.page, shop)}/ui/")
        at.page.get_by_role("button", name="Sign out").click()
        at.page.wait_for_url("**/ui/sign-in")
    last = shop.payagent("log", "--kind", "dashboard", "--human").out.splitlines()[-1]
    assert last.endswith("operator      signed out of the dashboard")


def test_a_live_page_that_signs_out_leads_nowhere_else(shop: Shop, browser: Browser) -> None:
    with tab(browser) as at:

        def after_the_stream_told_of_it(route: Route) -> None:
            asked, host = route.request, origin.removeprefix("http://")
            here = f"http://127.0.0.1:{host.partition(':')[2]}/ui/sign-out"
            with at.page.expect_response(re.compile("/ui/sign-in")):
                headers = {**asked.all_headers(), "host": host, "sec-fetch-site": "same-origin"}
                answer = shop.http.post(here, content=asked.post_data_buffer, headers=headers)
            route.fulfill(status=answer.status_code, headers=dict(answer.headers))

        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/")
        expect(at.page.locator("#live")).to_contain_text("Live")
        at.page.route("**/ui/sign-out", after_the_stream_told_of_it)
        at.page.get_by_role("button", name="Sign out").click()
        at.page.wait_for_url("**/ui/sign-in")


def test_text_of_others_is_shown_and_runs_nothing(shop: Shop) -> None:
    assert shop.payagent("pause", "--reason", HOSTILE).code == 0
    assert shop.payagent("resume").code == 0
    events = visitor(shop).get("/ui/activity").text.partition('id="events"')[2]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in events
    assert "<script>alert" not in events


def test_settings_show_health_and_count_what_a_provider_is_asked(shop: Shop, browser: Browser) -> None:
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/settings")
        assert at.page.locator("#health .chip").all_inner_texts() == ["ok"] * 5
        requests = at.page.locator("#providers tbody td.num").first.inner_text()
        assert int(requests) > 0
        expect(at.page.get_by_text(str(shop.config))).to_be_visible()


def test_settings_show_a_block_to_copy_for_each_way_to_be_told(shop: Shop) -> None:
    setup = visitor(shop).get("/ui/settings").text.partition('id="setup"')[2]
    copied = [unescape(text) for text in re.findall(r'data-copy="(.*?)"', setup, re.S)]
    shown = [unescape(text) for text in re.findall(r"<pre.*?>(.*?)</pre>", setup, re.S)]
    targets = [NotificationSettings.model_validate(tomllib.loads(text)["notifications"][0]) for text in copied]
    assert [one.kind for one in targets] == ["webhook", "ntfy", "telegram"]
    assert shown == copied


def test_sessions_can_be_told_apart(shop: Shop, browser: Browser) -> None:
    phone = stranger(shop)
    phone.enter(
        shop.payagent("dashboard").json["url"],
        user_agent="Mozilla/5.0 (Android 15; Mobile; rv:145.0) Gecko/145.0 Firefox/145.0",
    )
    with tab(browser) as at:
        at.page.goto(f"{sign_in_by_link(at.page, shop)}/ui/settings")
        rows = at.page.locator("#sessions tbody tr").all_inner_texts()
    own = [row for row in rows if "this browser" in row]
    assert ["Chrome on Linux, from 127.0.0.1" in row for row in own] == [True]
    assert sum("Firefox on Android, from 127.0.0.1" in row for row in rows) == 1


def test_all_other_browsers_can_be_signed_out(shop: Shop, browser: Browser) -> None:
    with tab(browser) as other, tab(browser) as at:
        origin = sign_in(other.page, shop)
        sign_in(at.page, shop)
        at.page.goto(f"{origin}/ui/settings")
        at.page.get_by_role("button", name="Sign out all others").click()
        expect(at.page.locator("#sessions tbody tr")).to_have_count(1)
        other.page.goto(f"{origin}/ui/wallet")
        expect(other.page.get_by_role("heading", name="Sign in")).to_be_visible()
