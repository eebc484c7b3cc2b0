"""Money that was paid and not served: a red mark at every width, and an item until somebody has dealt with it."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from kit.agent import ADA, Clock, World, with_terms, world_on
from kit.api import Api, served
from kit.browser import CHROMIUM, PATIENCE_MS, needs_browser
from kit.merchants import guarded, leave_unserved
from playwright.async_api import Page, Playwright, async_playwright, expect

from payagent.agent.operator.approval_links import KEY_BYTES, ApprovalLinks
from payagent.core.merchant_rules import MerchantRules
from payagent.core.policy import limits_of
from payagent.dashboard.text import amount_text, chip, number
from payagent.devnet.server import DevnetThread

pytestmark = needs_browser
expect.set_options(timeout=PATIENCE_MS)

HOST = "payagent.localhost"
TOKEN = "5c" * 28 + "5553444d"
WIDTHS = (390, 1024, 1280, 1600)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """With a devnet by whose clock an hour can pass."""
    clock = Clock(ahead_ms=-3_600_000)
    with DevnetThread(now_ms=clock.now_ms) as devnet, world_on(devnet, tmp_path) as made:
        made.clock = clock
        yield made


async def signed_in(playwright: Playwright, api: Api) -> tuple[Page, str]:
    """A page of a new browser, and the dashboard's origin."""
    browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    page = await browser.new_page()
    origin = f"http://{HOST}:{urlsplit(api.url).port}"
    link = urlsplit((await api.http.post("/v1/dashboard/links")).json()["url"]).path
    await page.goto(origin + link)
    await page.get_by_role("button", name="Open the dashboard").click()
    return page, origin


async def see_red(page: Page, row: str) -> None:
    for width in WIDTHS:
        await page.set_viewport_size({"width": width, "height": 900})
        red = page.locator(row).locator(".chip.bad", has_text="not served").filter(visible=True)
        assert await red.count() > 0, f"{page.url} at {width}"
        assert await page.locator(row).locator(".chip.ok").filter(visible=True).count() == 0, f"green at {width}"


async def test_a_lost_payment_is_red_and_needs_a_person_until_somebody_has_dealt_with_it(world: World) -> None:
    links = ApprovalLinks(f"http://{HOST}", bytes(KEY_BYTES))
    world.fund(*[100 * ADA] * 4)
    terms = guarded(world, MerchantRules())
    async with world.run(terms=terms) as run, served(run, links=links) as api, async_playwright() as playwright:
        lost = (await leave_unserved(world, run, "lost")).id
        late = (await leave_unserved(world, run, "late")).id
        page, origin = await signed_in(playwright, api)
        needs = page.locator("#needs-you li")
        await expect(needs).to_have_count(2)
        await expect(needs.first).to_contain_text("A payment was not served")
        await see_red(page, f"#row-{lost}")
        await page.goto(f"{origin}/ui/payments")
        await see_red(page, f"#{lost}")
        await run.agent.deliveries.record_delivery(late, 200)  # the merchant served it after all
        await page.goto(f"{origin}/ui/")
        await expect(needs).to_have_count(1)
        await needs.get_by_role("link").click()
        await page.wait_for_url(f"{origin}/ui/payments/{lost}")
        await see_red(page, "#chip")
        await page.get_by_role("button", name="I have dealt with it").click()
        await expect(page.locator("#notice")).to_contain_text("no longer needs you")
        await see_red(page, "#chip")
        await expect(page.get_by_role("button", name="I have dealt with it")).to_have_count(0)
        await expect(page.locator("#happened")).to_contain_text("Closed as not served by an operator")
        await page.goto(f"{origin}/ui/")
        await expect(needs).to_have_count(0)
        await see_red(page, f"#row-{lost}")
        await page.goto(f"{origin}/ui/ledger/month")
        lost_in_month = page.get_by_role("region", name="Paid, not served")
        await expect(lost_in_month).to_contain_text(re.compile(r"1 payment\s+13\.000000 ADA"))
        await page.goto(f"{origin}/ui/activity?kind=merchants")
        await expect(page.get_by_role("main")).to_contain_text(f"closed payment {lost} as not served")


async def test_the_ada_that_goes_along_with_a_token_is_in_what_left_the_wallet(world: World) -> None:
    links = ApprovalLinks(f"http://{HOST}", bytes(KEY_BYTES))
    world.fund(20 * ADA, assets={TOKEN: 50_000_000})
    terms = with_terms(
        limits=limits_of("lovelace", {"per_day": 60 * ADA}) + limits_of(TOKEN, {"per_day": 5_000_000}),
        tokens={"USDM": (TOKEN, 6)},
    )
    async with world.run(terms=terms) as run, served(run, links=links) as api, async_playwright() as playwright:
        await run.run_pass()
        world.settings(price="1543208", asset=TOKEN, splits=[])
        lost = (await leave_unserved(world, run, "lost")).id
        booked = (await api.http.get("/v1/ledger/spend")).json()["spend"]
        ((paid, fee, total),) = [
            [int(one[part]) for part in ("paid", "fees", "total")] for one in booked if one["asset"] == "lovelace"
        ]
        assert paid > ADA, "no ADA goes along"
        page, origin = await signed_in(playwright, api)
        await expect(page.locator("#needs-you li")).to_contain_text(
            f"was paid 1.543208 USDM and {amount_text(paid)}"
        )
        for address, place in ("", f"#row-{lost}"), ("payments", f"#{lost}"), (f"payments/{lost}", "#pays tfoot"):
            await page.goto(f"{origin}/ui/{address}")
            await expect(page.locator(place)).to_contain_text("1.543208 USDM")
            await expect(page.locator(place)).to_contain_text(f"{number(total)} ADA")
        parts = page.locator("#pays tbody")
        await expect(parts).to_contain_text(f"{number(paid)} ADA")
        await expect(parts).to_contain_text(f"{number(fee)} ADA")


def test_a_void_payment_is_not_red() -> None:
    chips = [str(chip({"state": state, "delivery": "paid_not_served"})) for state in ("settled", "void")]
    assert ["not served" in one for one in chips] == [True, False]
