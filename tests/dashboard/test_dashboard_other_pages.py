"""A browser that is signed in: what other pages in it can do, and how an open page loses its daemon."""

import json
import os
import re
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from kit.browser import needs_browser, sign_in, tab
from kit.cli import Shop, spawn, until
from kit.dashboard import running_daemon, stranger
from playwright.sync_api import Browser, Page, Route, expect

from payagent.devnet.server import DevnetThread

pytestmark = needs_browser

HOSTS = ("127.0.0.1", "localhost", "other.localhost", "payagent.localhost")
"""Names of another local server. The last one shares the dashboard's name, and so its cookie; never its origin."""


@pytest.fixture(scope="module")
def daemon() -> Iterator[ExitStack]:
    """Stops the shop's daemon when it is closed."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, daemon: ExitStack) -> Iterator[Shop]:
    """A wallet without money. Another daemon of it would serve at the same port."""
    with DevnetThread(block_time_s=1) as devnet:
        at = Shop(devnet, tmp_path_factory.mktemp("shop"))
        with at.http:
            daemon.enter_context(running_daemon(at))
            port = stranger(at).host.rpartition(":")[2]
            at.config.write_text(at.config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}"))
            yield at
            daemon.close()


@contextmanager
def serving(html: str, cookies: list[str] | None = None) -> Iterator[int]:
    """Another server of this machine, which answers everything with one page. Yields its port.

    `cookies` gets the cookies of each request.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if cookies is not None:
                cookies.append(self.headers.get("cookie", ""))
            self.send_response(200)
            self.send_header("content-type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def csrf_token(page: Page, origin: str) -> str | None:
    page.goto(f"{origin}/ui/")
    return page.locator("[name=csrf]").first.get_attribute("value")


def is_paused(page: Page, origin: str) -> bool:
    page.goto(f"{origin}/ui/")
    return page.locator("#paused").count() > 0


def test_the_link_stands_in_no_argument_of_the_program_that_opens_it(
    shop: Shop, browser: Browser, tmp_path: Path
) -> None:
    """Every user of the machine can read the arguments of every process."""
    told, opener = tmp_path / "told", tmp_path / "xdg-open"
    opener.write_text(f'#!/bin/sh\nprintf "%s" "$*" >{told}.new && mv {told}.new {told}\n')
    opener.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    process = spawn("dashboard", "--open", "--config", shop.config, environ={"PATH": path}, stdout=subprocess.PIPE)
    link = json.loads(process.communicate()[0])["url"]
    until(told.exists, "no program was called")
    page = Path(told.read_text())
    assert link.rpartition("/")[2] not in str(page)
    assert [stat.S_IMODE(one.stat().st_mode) for one in (page, page.parent)] == [0o600, 0o700]
    with closing(browser.new_page()) as opened:
        opened.goto(page.as_uri())
        opened.get_by_role("button", name="Open the dashboard").click()
        opened.wait_for_url("**/ui/*")


def test_a_form_on_another_page_changes_nothing(shop: Shop, browser: Browser) -> None:
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        fields = f"<input name=csrf value={csrf_token(at.page, origin)}><input name=order value=1>"
        form = f"<form method=post action={origin}/ui/pause>{fields}<button>Win a prize</button></form>"
        with serving(form) as port:
            for name in HOSTS:
                at.page.goto(f"http://{name}:{port}/")
                at.page.get_by_role("button").click()
                at.page.wait_for_url(f"{origin}/ui/pause")
                expect(at.page.locator("code", has_text="browser_refused")).to_have_count(1)
        assert not is_paused(at.page, origin)


def test_a_script_on_another_page_reads_nothing_and_changes_nothing(shop: Shop, browser: Browser) -> None:
    attempts = """async ([origin, csrf]) => {
        const post = {method: "POST", body: new URLSearchParams({csrf, order: "1"})}, told = [];
        const ways = [{}, {credentials: "include"}, post, {...post, mode: "no-cors"},
                      {...post, credentials: "include", mode: "no-cors"}];
        for (const way of ways) {
            try { const answer = await fetch(origin + (way.method ? "/ui/pause" : "/ui/"), way);
                  told.push(answer.type + (await answer.text())); }
            catch (error) { told.push(error.name); }
        }
        return told; }"""
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        csrf = csrf_token(at.page, origin)
        with serving("<p>Hello") as port:
            for name in HOSTS:
                at.page.goto(f"http://{name}:{port}/")
                told = at.page.evaluate(attempts, [origin, csrf])
                assert set(told) <= {"TypeError", "opaque"}, name
        at.wrong.clear()  # the browser says on the other page's console what it forbids
        assert not is_paused(at.page, origin)


def test_another_page_cannot_show_the_dashboard_in_a_frame(shop: Shop, browser: Browser) -> None:
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        with serving(f"<iframe src={origin}/ui/></iframe>") as port:
            for name in HOSTS:
                at.page.goto(f"http://{name}:{port}/", wait_until="load")
                (frame,) = (one for one in at.page.frames if one.parent_frame)
                assert "Overview" not in frame.content(), name
                assert frame.url == "chrome-error://chromewebdata/", name
        at.wrong.clear()


def test_no_server_at_another_name_gets_the_cookie(shop: Shop, browser: Browser) -> None:
    with tab(browser) as at:
        sign_in(at.page, shop)
        for name in HOSTS[:-1]:
            cookies: list[str] = []
            with serving("<p>Hello", cookies) as port:
                at.page.goto(f"http://{name}:{port}/")
                at.page.reload()
                at.page.evaluate("fetch('/again', {credentials: 'include'})")
            assert len(cookies) >= 3
            assert set(cookies) == {""}, name


def test_a_revoked_token_ends_an_open_page(shop: Shop, browser: Browser) -> None:
    shop.payagent("app", "add", "leaver", "--scope", "operate")
    with tab(browser) as at:
        at.page.goto(f"{sign_in(at.page, shop, '--app', 'leaver')}/ui/")
        expect(at.page.locator("#live")).to_contain_text("Live")
        shop.payagent("app", "revoke", "leaver")
        shop.payagent("pause")
        at.page.wait_for_url(re.compile("/ui/sign-in"))
        shop.payagent("resume")


def test_a_page_whose_refresh_failed_once_is_live_again(shop: Shop, browser: Browser) -> None:
    with tab(browser) as at:
        origin, failed = sign_in(at.page, shop), []

        def fail_once(route: Route) -> None:
            if failed:
                route.continue_()
            else:
                failed.append(route.request.url)
                route.fulfill(status=503)

        at.page.goto(f"{origin}/ui/")
        live = at.page.locator("#live")
        expect(live).to_have_text("Live. Times are UTC.")
        at.page.route(f"{origin}/ui/", fail_once)
        shop.payagent("pause")
        expect(live).to_contain_text("Not live since")
        expect(live).to_have_text("Live. Times are UTC.")
        expect(at.page.locator("#paused")).to_be_visible()
        shop.payagent("resume")
        at.wrong.clear()  # the browser notes the failed request


def test_a_page_without_a_stream_sends_its_forms_while_the_daemon_answers(shop: Shop, browser: Browser) -> None:
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        at.page.route(f"{origin}/ui/events", lambda route: route.fulfill(status=429))
        with at.page.expect_response(lambda got: got.request.headers.get("payagent-refresh") == "1"):
            at.page.goto(f"{origin}/ui/")
        expect(at.page.locator("#live")).to_contain_text("Not live since")
        at.page.get_by_role("button", name="Pause signing").click()
        expect(at.page.locator("#paused")).to_be_visible()
        shop.payagent("resume")
        at.wrong.clear()  # the browser notes the refused stream


def test_a_form_is_held_while_the_daemon_is_away_and_what_was_typed_survives_a_new_link(
    shop: Shop, daemon: ExitStack, browser: Browser
) -> None:
    with tab(browser) as at:
        asked = f"{sign_in(at.page, shop)}/ui/limits?merchant=t"
        at.page.goto(asked)
        expect(at.page.locator("#live")).to_contain_text("Live")
        at.page.get_by_label("At most").fill("7.5")
        at.page.get_by_label("Limit", exact=True).select_option("per_week")
        daemon.close()
        expect(at.page.locator("#live")).to_contain_text("Not live since")
        at.page.get_by_role("button", name="Set the limit").click()
        expect(at.page.locator("#held")).to_contain_text("nothing was sent")
        assert at.page.url == asked
        assert at.page.get_by_label("At most").input_value() == "7.5"
        daemon.enter_context(running_daemon(shop))
        at.page.wait_for_url(re.compile("/ui/sign-in.next="))
        at.wrong.clear()  # the browser notes that the stream of an ended session was redirected
        at.page.goto(shop.payagent("dashboard").json["url"])
        at.page.get_by_role("button", name="Open the dashboard").click()
        at.page.wait_for_url(asked)
        assert at.page.get_by_label("At most").input_value() == "7.5"
        at.page.get_by_role("button", name="Set the limit").click()
        expect(at.page.locator("#notice")).to_contain_text("merchant t, last 7 days: 7.5 ADA at most")
        at.page.goto(asked)
        assert at.page.get_by_label("At most").input_value() == ""


@pytest.mark.parametrize(
    ("page", "button", "field", "typed"),
    [("/ui/limits", "Set the limit", "At most", "1,5"), ("/ui/wallet", "Continue to confirm", "Amount", "2.5")],
)
def test_a_refused_form_leads_to_the_sign_in_after_a_restart_and_keeps_what_was_typed(
    shop: Shop, daemon: ExitStack, browser: Browser, page: str, button: str, field: str, typed: str
) -> None:
    with tab(browser) as at:
        asked = f"{sign_in(at.page, shop)}{page}"
        at.page.goto(asked)
        if page == "/ui/wallet":
            at.page.get_by_label("To address").fill("nonsense")
        at.page.get_by_label(field, exact=True).fill(typed)
        at.page.get_by_role("button", name=button).click()
        expect(at.page.locator("#refusal")).to_be_visible()
        expect(at.page.locator("#live")).to_contain_text("As it was at")
        daemon.close()
        expect(at.page.locator("#live")).to_contain_text("Not live since")
        at.page.get_by_role("button", name=button).click()
        expect(at.page.locator("#held")).to_contain_text("nothing was sent")
        daemon.enter_context(running_daemon(shop))
        at.page.wait_for_url(re.compile("/ui/sign-in.next="))
        at.wrong.clear()  # the browser notes that the stream of an ended session was redirected
        at.page.goto(shop.payagent("dashboard").json["url"])
        at.page.get_by_role("button", name="Open the dashboard").click()
        at.page.wait_for_url(asked)
        assert at.page.get_by_label(field, exact=True).input_value() == typed


def test_a_page_says_that_its_daemon_is_gone_and_leads_back_to_itself(
    shop: Shop, daemon: ExitStack, browser: Browser
) -> None:
    with tab(browser) as at:
        origin = sign_in(at.page, shop)
        asked = f"{origin}/ui/?from=a+bookmark"
        at.page.goto(asked)
        live = at.page.locator("#live")
        expect(live).to_contain_text("Live")
        daemon.close()
        expect(live).to_contain_text(re.compile("Not live since [0-9:]{8} UTC"))
        with running_daemon(shop):
            at.page.wait_for_url(re.compile("/ui/sign-in.next="))
            at.wrong.clear()  # the browser notes that the stream of an ended session was redirected
            at.page.get_by_label("Or type the code").fill(shop.payagent("dashboard").json["code"])
            at.page.get_by_role("button", name="Sign in").click()
            at.page.wait_for_url(asked)
            expect(live).to_contain_text("Live")
