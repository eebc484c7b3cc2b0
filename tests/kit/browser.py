"""A real browser on the dashboard: Debian's Chromium, driven by Playwright. It reaches this machine alone."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, expect, sync_playwright

from kit.cli import Shop
from kit.dashboard import visitor

CHROMIUM = shutil.which("chromium")
PATIENCE_MS = 120_000
"""The limit of every wait, only against hanging: a busy machine may be slow."""
expect.set_options(timeout=PATIENCE_MS)

LOCAL = re.compile(r"(.*\.)?localhost|127\.0\.0\.1")

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing (Debian's package chromium)")


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
            browser.close()


@dataclass
class Tab:
    """A page with what went wrong on it: errors and policy violations on its console, and hosts that it asked."""

    page: Page
    wrong: list[str] = field(default_factory=list)

    def require_clean(self) -> None:
        assert self.wrong == [], self.wrong


@contextmanager
def tab(browser: Browser, width: int = 1280, *, dark: bool = False, scripts: bool = True) -> Iterator[Tab]:
    """A new, empty profile's page. It fails if the page logs an error or asks another host."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if dark else "light",
        java_script_enabled=scripts,
        locale="en-GB",
        timezone_id="Europe/Vienna",
    )
    context.set_default_timeout(PATIENCE_MS)
    opened = Tab(context.new_page())

    def on_console(message: ConsoleMessage) -> None:
        # a page that is shown with the status of its refusal is no error of the page
        if message.type == "error" and "status of 4" not in message.text and "ERR_" not in message.text:
            opened.wrong.append(message.text)

    def watch(route: Route) -> None:
        host = urlsplit(route.request.url).hostname or ""
        if LOCAL.fullmatch(host):
            route.continue_()
        else:
            opened.wrong.append(f"asked {host}")
            route.abort()

    opened.page.on("console", on_console)
    opened.page.on("pageerror", lambda error: opened.wrong.append(str(error)))
    opened.page.route("**/*", watch)
    try:
        yield opened
        opened.require_clean()
    finally:
        context.close()


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
