"""A real browser on the dashboard: Debian's Chromium, driven by Playwright. It reaches this machine alone."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urljoin, urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Route, expect, sync_playwright

from kit.cli import Shop
from kit.dashboard import visitor

CHROMIUM = shutil.which("chromium")
PATIENCE_MS = 120_000
"""The limit of every wait, only against hanging: a busy machine may be slow."""
expect.set_options(timeout=PATIENCE_MS)

LOCAL = re.compile(r"(.*\.)?localhost|127\.0\.0\.1")

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing (Debian's package chromium)")


@dataclass
class Tab:
    """A page with what went wrong on it: errors and policy violations on its console, and hosts that it asked."""

    page: Page
    has_scripts: bool
    wrong: list[str] = field(default_factory=list)

    def require_clean(self) -> None:
        assert self.wrong == [], self.wrong

    def on_console(self, message: ConsoleMessage) -> None:
        # a page that is shown with the status of its refusal is no error of the page
        if message.type == "error" and "status of 4" not in message.text and "ERR_" not in message.text:
            self.wrong.append(message.text)

    def watch(self, route: Route) -> None:
        host = urlsplit(route.request.url).hostname or ""
        if LOCAL.fullmatch(host):
            route.continue_()
        else:
            self.wrong.append(f"asked {host}")
            route.abort()


_idle: list[Tab] = []
"""Tabs of the browser that no test uses. The first page of a new one takes the processor time of four others."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--no-proxy-server"], timeout=PATIENCE_MS
        )
        try:
            yield browser
        finally:
            _idle.clear()
            browser.close()


@contextmanager
def tab(browser: Browser, width: int = 1280, *, scripts: bool = True) -> Iterator[Tab]:
    """A page without cookies. The test fails if the page logs an error or asks another host."""
    opened = next((one for one in _idle if one.has_scripts == scripts), None)
    if opened is None:
        opened = _new_tab(browser, scripts=scripts)
    else:
        _idle.remove(opened)
    opened.wrong.clear()
    opened.page.set_viewport_size({"width": width, "height": 900})
    opened.page.route("**/*", opened.watch)
    try:
        yield opened
        opened.require_clean()
    except BaseException:
        opened.page.context.close()
        raise
    try:
        _leave(opened.page)
    except Error:  # its server is gone
        opened.page.context.close()
    else:
        _idle.append(opened)


def _leave(page: Page) -> None:
    """Sign out, and leave the page for one that does nothing. The browser draws it in the same process."""
    page.unroute_all(behavior="ignoreErrors")
    page.context.clear_cookies()
    page.goto(urljoin(page.url, "/ui/sign-in"))


def _new_tab(browser: Browser, *, scripts: bool) -> Tab:
    context = browser.new_context(
        color_scheme="light", java_script_enabled=scripts, locale="en-GB", timezone_id="Europe/Vienna"
    )
    context.set_default_timeout(PATIENCE_MS)
    opened = Tab(context.new_page(), scripts)
    opened.page.on("console", opened.on_console)
    opened.page.on("pageerror", lambda error: opened.wrong.append(str(error)))
    return opened


def sign_in(page: Page, shop: Shop, *options: str) -> str:
    """Give the page a new session, without opening anything. Returns the dashboard's origin."""
    me = visitor(shop, *options)
    page.context.add_cookies([me.browser_cookie])
    return me.origin


def sign_in_by_link(page: Page, shop: Shop, *options: str) -> str:
    """The same as a person does it: open a new link, and press its button."""
    link = shop.payagent("dashboard", *options).json["url"]
    page.goto(link)
    page.get_by_role("button", name="Open the dashboard").click()
    page.wait_for_url("**/ui/*")
    parts = urlsplit(link)
    return f"{parts.scheme}://{parts.netloc}"
