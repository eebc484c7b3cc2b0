"""Every page of the dashboard: it fits each screen, axe-core finds nothing, and hostile text is only text."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import unescape

import pytest
from kit.axe import needs_axe, serious
from kit.browser import Tab, needs_browser, tab
from kit.cli import Shop, until
from kit.dashboard import PAGES, Visitor, stranger, visitor
from kit.effort import IS_LONG
from playwright.sync_api import Browser, Page, expect

pytestmark = needs_browser

WIDTHS = (1280, 1024, 761, 390, 320)
READ_AT = (390, 1024, 1280, 1600)
CUT = """() => [...function* () {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), range = document.createRange();
    while (walker.nextNode()) {
        const text = walker.currentNode, at = text.parentElement;
        if (!text.data.trim() || !at.checkVisibility() || at.closest(".vh, .skip, .chart .x")) continue;
        let card = { left: 0, right: document.documentElement.clientWidth };
        for (let one = at; one && card.left !== null; one = one.parentElement) {
            const style = getComputedStyle(one), box = one.getBoundingClientRect();
            if (style.overflowX === "auto" || style.overflowX === "scroll" || style.textOverflow === "ellipsis") {
                card.left = null; // it scrolls, or says itself that there is more
            } else if (style.overflowX === "hidden" || one.matches(".card, .note, .side, .main")) {
                card = { left: Math.max(card.left, box.left), right: Math.min(card.right, box.right) };
            }
        }
        if (card.left === null) continue;
        range.selectNodeContents(text);
        for (const line of range.getClientRects()) {
            if (line.left < card.left - 1 || line.right > card.right + 1) yield text.data.trim().slice(0, 60);
        }
    }
}()]"""
"""The texts that reach beyond their card, or beyond the screen."""
LOOKS = ((1280, "light"), (390, "dark"), (1280, "dark"), (390, "light"))
LONG = "Research-Agent-Of-The-Department-For-Questions-Of-All-Customers"
SCRIPT = "<script>window.isHacked=1</script><img/src=x/onerror=window.isHacked=1>\"'{{7*7}}"
NOT_HTML = (
    "/ui/events",
    "/ui/ledger/export",
    "/ui/ledger/report",
    "/ui/ledger/snapshot",
    "/ui/payments/{payment_id}/receipt",
)
GETS = [one.path for one in PAGES if not one.is_form]
SHOWN = [path for path in GETS if path not in NOT_HTML]
LINK = re.compile(r'href="(/ui/[^"#]*)')


@pytest.fixture(scope="module")
def me(shop: Shop) -> Visitor:
    """An operator of a shop where each page has something to show, much of it hostile."""
    shop.settings(price="2000000", splits=[], batch=1, confirmations=0)
    shop.payagent("app", "add", "reader", "--scope", "read")
    shop.payagent("app", "add", "buyer", "--merchant", "t", "--per-day", "5 ADA", "--expires", "90d")
    shop.payagent("merchants", "add", LONG.lower(), "--origin", "https://a.example", "--partner", "p" * 120)
    token = shop.payagent("app", "add", LONG, "--per-month", "1234567.654321 ADA").json["token"]
    for number in range(3):
        assert shop.payagent("pay", shop.saved(f"good {number}"), "--merchant", "t").code == 0
    buy(shop, "long account", "/chat", "", 201, origin="https://a.example")
    until(lambda: "merchant:https://a.example" in shop.payagent("ledger", "balance").out, "not paid")
    shop.settings(price="7000000")
    for purpose, path in ((SCRIPT, f"/{SCRIPT}"), ("long " * 40, f"/{'long' * 2000}"), ("why", "/chat")):
        buy(shop, purpose, path)
    buy(shop, "", "/chat", token)
    buy(shop, "too dear", "/dear", token, 403, max_total="1")
    assert shop.payagent("payments", "deny", buy(shop, "denied", f"/{'no' * 60}", token)).code == 0
    shop.payagent("pause", "--reason", f"{SCRIPT} {'x' * 60}")  # stands on every page
    operator = visitor(shop)
    until(lambda: "if nobody decides" in operator.get("/ui/").text, "no approval")
    return operator


def buy(shop: Shop, purpose: str, path: str, token: str = "", status: int = 202, **more: str) -> str:
    """Forward a 402 with a request and a purpose of the app's choice. By default it waits for a person."""
    invoice = json.loads(shop.saved(purpose).read_bytes())
    body = {
        "origin": shop.devnet.merchant_url,
        "request": {"method": "POST", "path": path.replace(" ", ""), "body_sha256": "ab" * 32},
        "response": {"status": 402, "headers": {"content-type": "application/json"}, "body": invoice},
        "purpose": purpose.strip(),
        **more,
    }
    server = stranger(shop).server
    headers = {"authorization": f"Bearer {token or shop.made['token']}"}
    answer = shop.http.post(f"{server}/v1/payments", json=body, headers=headers)
    assert answer.status_code == status, answer.text
    return str(answer.json().get("id"))


@dataclass
class Crawl:
    """What following every link finds: an address for each page's path, and links that lead to no page."""

    addresses: dict[str, str] = field(default_factory=dict)
    dead: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def crawl(me: Visitor) -> Crawl:
    found, to_open, seen = Crawl(), ["/ui/", me.post("/ui/resume", me.hidden()).headers["location"]], set[str]()
    while to_open:
        address = to_open.pop(0)
        bare = address.partition("?")[0]
        path = next((one for one in GETS if re.fullmatch(re.sub(r"{\w+}", "[^/]+", one), bare)), None)
        if path in found.addresses or path in NOT_HTML:
            continue
        answer = me.get(address)
        if path is None or answer.status_code != 200:
            found.dead.append(f"{address}: {answer.status_code}")
            continue
        found.addresses[path] = address
        links = {unescape(link) for link in LINK.findall(answer.text)} - seen
        seen |= links
        to_open += sorted(link for link in links if not link.startswith("/ui/static/"))
    return found


@pytest.fixture(scope="module")
def opened(me: Visitor, browser: Browser) -> Iterator[Tab]:
    """A tab in the operator's session."""
    with tab(browser) as at:
        at.page.context.add_cookies([me.browser_cookie])
        yield at


@pytest.fixture(scope="module")
def plain(me: Visitor, browser: Browser) -> Iterator[Tab]:
    """The same without JavaScript."""
    with tab(browser, scripts=False) as at:
        at.page.context.add_cookies([me.browser_cookie])
        yield at


@pytest.fixture(scope="module", params=SHOWN)
def path(request: pytest.FixtureRequest, crawl: Crawl) -> str:
    assert request.param in crawl.addresses, "no link leads to the page"
    return str(request.param)


@pytest.fixture(scope="module")
def page(me: Visitor, opened: Tab, crawl: Crawl, path: str) -> Page:
    """The page of a path, which is loaded once for all tests of it."""
    return show(opened, me, crawl.addresses[path])


def show(at: Tab, me: Visitor, address: str) -> Page:
    at.page.set_viewport_size({"width": WIDTHS[0], "height": 900})
    answer = at.page.goto(me.origin + address)
    assert answer is not None
    assert answer.status == 200
    return at.page


def test_a_payment_scrolls_sideways_on_no_screen_whatever_its_request_is_called(me: Visitor, opened: Tab) -> None:
    waiting = me.get("/ui/payments?state=awaiting_approval").text  # it is their requests that have odd names
    addresses = set(re.findall(r"/ui/payments/pay_\w+", waiting))
    assert len(addresses) == 4
    for address in addresses:
        page = show(opened, me, address)
        page.set_viewport_size({"width": min(WIDTHS), "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= min(WIDTHS), page.inner_text("main .head")


def test_a_page_scrolls_sideways_on_no_screen(opened: Tab, page: Page) -> None:
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{page.url} is {wide} wide at {width}"
    assert page.evaluate("window.isHacked") is None, "a stored script ran"
    assert SCRIPT in page.locator("#paused").inner_text()
    opened.require_clean()


def test_no_text_of_a_page_is_cut_off(page: Page) -> None:
    cut = []
    for width in READ_AT:
        page.set_viewport_size({"width": width, "height": 900})
        cut += [(width, text) for text in page.evaluate(CUT)]
    assert cut == [], page.url


@needs_axe
def test_axe_finds_nothing_serious_on_a_page(opened: Tab, page: Page, path: str) -> None:
    """The long run looks at each page in four ways; the sample in one, which alternates between two."""
    sample = SHOWN.index(path) % 2
    for width, scheme in LOOKS if IS_LONG else LOOKS[sample : sample + 1]:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert serious(page) == [], f"{page.url} at {width}, {scheme}"
    opened.require_clean()


def test_a_page_says_the_same_without_javascript(
    me: Visitor, page: Page, plain: Tab, crawl: Crawl, path: str
) -> None:
    page.set_viewport_size({"width": WIDTHS[0], "height": 900})
    without = show(plain, me, crawl.addresses[path])
    with_scripts, without_scripts = (one.locator("h1, h2, th").all_inner_texts() for one in (page, without))
    assert without_scripts == with_scripts
    plain.require_clean()


def test_every_link_leads_to_a_page(crawl: Crawl) -> None:
    assert crawl.dead == []


def test_the_keyboard_alone_signs_in_approves_and_signs_out(shop: Shop, me: Visitor, browser: Browser) -> None:
    shop.payagent("resume")
    with tab(browser) as at:
        page = at.page
        page.goto(f"{me.origin}/ui/approvals")
        tab_to(page, "Or type the code")
        page.keyboard.type(shop.payagent("dashboard").json["code"])
        page.keyboard.press("Enter")
        page.wait_for_url(f"{me.origin}/ui/approvals")
        page.keyboard.press("Tab")
        assert focused(page) == "Skip to the page"
        page.keyboard.press("Enter")
        waiting = page.get_by_role("button", name="Approve").count()
        tab_to(page, "Approve 7 ADA")
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Approve")).to_have_count(waiting - 1)
        tab_to(page, "Sign out")
        page.keyboard.press("Enter")
        page.wait_for_url(f"{me.origin}/ui/sign-in")


def focused(page: Page) -> str:
    """The name of the element that has the focus, which must be visible there."""
    name, is_seen = page.evaluate("""() => {
        const here = document.activeElement, box = here.getBoundingClientRect(), style = getComputedStyle(here);
        const name = here.labels?.[0]?.textContent ?? here.textContent;
        return [name.trim(), box.width > 1 && box.height > 1 && style.outlineStyle !== "none"]; }""")
    assert is_seen, f"the focus on {name!r} cannot be seen"
    return str(name)


def tab_to(page: Page, name: str) -> None:
    """Press Tab until an element of this name has the focus."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if focused(page).startswith(name):
            return
    raise AssertionError(f"the keyboard does not reach {name!r}")
