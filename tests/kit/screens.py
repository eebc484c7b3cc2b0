"""Pictures of the dashboard, of a scripted wallet that has paid for 30 days: `scripts/docs --screens FOLDER`.

The agent, the devnet and the API are the real ones; only the clock begins 30 days ago and is moved.
"""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import httpx
from playwright.async_api import Browser, Page, async_playwright

from kit.agent import ADA, Clock, Run, World, world_on
from kit.api import Api, served
from kit.browser import CHROMIUM
from kit.dashboard import PAGES
from kit.http import NO_TLS
from payagent.agent.base.config import MerchantConfig
from payagent.agent.operator.approval_links import KEY_BYTES, ApprovalLinks
from payagent.core.merchant_rules import MerchantRules
from payagent.core.policy import limits_of
from payagent.dashboard.app import COOKIE, HOST
from payagent.devnet.server import DevnetThread

DAYS, DAY_MS = 30, 24 * 3600 * 1000
LOOKS = tuple((width, scheme) for width in (390, 1024, 1280, 1600) for scheme in ("light", "dark"))
SHOPS = {
    "llm": ("/v1/chat/completions", 2_400_000, 6),
    "search": ("/v1/search", 1_300_000, 4),
    "maps": ("/route", 1_700_000, 2),
    "weather": ("/forecast", 1_100_000, 2),
}
"""Each merchant's path, price in lovelace, and how often it is bought from compared with the others."""
TOKEN = "ab" * 28 + "5553444d"
LONG_APP = "quarterly-report-writer-of-north"
LONG_SHOP = "machine-translation-of-long-documents"
APPS = ("research-agent", "support-bot", "newsletter")
PURPOSES = ("Answer ticket 4182", "Plan the tour of 3 December", "Summary of the week", "Compare two suppliers")
SHOWN = {
    "overview-light.png": ("/ui/", 1280, 1180, "light"),
    "overview-dark.png": ("/ui/", 1280, 1180, "dark"),
    "approvals.png": ("/ui/approvals", 1280, 860, "light"),
    "phone.png": ("/ui/", 390, 844, "light"),
}
"""The pictures that pages of the documentation show: address, width, height, colour scheme."""
LAST_MONTH = f"/ui/ledger/month?month={datetime.now(UTC) - timedelta(days=20):%Y-%m}"
SCALE = 0.68
"""Of those pictures, so that each is below 120 KB."""


def screens(images: Path, folder: Path) -> None:
    """Write the pictures of SHOWN into `images`, and those of all pages into `folder`."""
    asyncio.run(_screens(images, folder))


async def _screens(images: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    async with _wallet() as (api, tokens, origin, cookie, addresses), _browser() as browser:
        for name, (address, width, height, scheme) in SHOWN.items():
            async with _page(browser, origin, cookie, width, height, scheme, SCALE) as page:
                await _open(page, origin + address)
                await page.screenshot(path=images / name)
        addresses += [f"/ui/payments/{await _add_what_is_rare(api, tokens)}", LAST_MONTH]
        for width, scheme in LOOKS:
            async with _page(browser, origin, cookie, width, 900, scheme) as page:
                for address in addresses:
                    await _open(page, origin + address)
                    name = re.sub(r"\W+", "_", address.strip("/")) + f"-{width}-{scheme}.png"
                    await page.screenshot(path=folder / name, full_page=True)


async def _open(page: Page, url: str) -> None:
    await page.goto(url)
    await page.get_by_text("Live. Times are UTC.").wait_for()


@asynccontextmanager
async def _page(
    browser: Browser, origin: str, cookie: str, width: int, height: int, scheme: Any, scale: float = 1
) -> AsyncIterator[Page]:
    context = await browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=scale
    )
    name, value = cookie.split("=")
    url = origin.replace("http:", "https:")
    await context.add_cookies([{"name": name, "value": value, "url": url, "secure": True}])
    yield await context.new_page()
    await context.close()


@asynccontextmanager
async def _browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


@asynccontextmanager
async def _wallet() -> AsyncIterator[tuple[Api, dict[str, str], str, str, list[str]]]:
    """A wallet after 30 days, its apps' tokens, the dashboard's origin, an operator's cookie, all addresses."""
    links = ApprovalLinks(f"http://{HOST}", bytes(KEY_BYTES))
    clock = Clock(ahead_ms=-DAYS * DAY_MS)
    with (
        TemporaryDirectory() as scratch,
        DevnetThread(now_ms=clock.now_ms) as devnet,
        world_on(devnet, Path(scratch)) as world,
    ):
        world.clock = clock
        _configure(world)
        world.fund(*[60 * ADA] * 20)
        async with world.run() as run, served(run, links=links) as api:
            await run.run_pass()
            tokens = await _add_apps(api)
            await _pay_for_days(api, tokens)
            await _leave_something_to_do(api, tokens)
            host = f"{HOST}:{urlsplit(api.url).port}"
            link = (await api.http.post("/v1/dashboard/links")).json()["url"]
            own = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
            opened = await api.http.post(urlsplit(link).path, headers=own)
            payments = (await api.http.get("/v1/payments", params={"state": "confirmed"})).json()["payments"]
            named = {"{payment_id}": payments[0]["id"], "merchants/{name}": "merchants/llm", "{name}": APPS[0]}
            addresses = [_address(one.path, named) for one in PAGES if not one.is_form and _is_page(one.path)]
            cookie = opened.headers["set-cookie"].partition(";")[0]
            assert cookie.startswith(COOKIE)
            yield api, tokens, f"http://{host}", cookie, addresses


def _is_page(path: str) -> bool:
    return (
        not path.endswith(("/events", "/export", "/report", "/snapshot", "/receipt")) and "{order_id}" not in path
    )


def _address(path: str, named: dict[str, str]) -> str:
    for name, value in named.items():
        path = path.replace(name, value)
    return path


def _configure(world: World) -> None:
    """Four merchants with names of their own, limits for people, and a person to ask above 8 ADA."""
    rules = MerchantRules(first_use=True, price_rise_percent_max=50, stop_after_unserved=3)
    shops = {
        f"https://{name}.example": MerchantConfig(
            name, f"https://{name}.example", None, None, "auto", 1, rules=rules
        )
        for name in (*SHOPS, LONG_SHOP)
    }
    most = {"per_payment": 15, "per_hour": 40, "per_day": 60, "per_week": 120, "per_month": 300}
    world.terms = replace(
        world.terms,
        merchants=shops,
        limits=(
            *limits_of("lovelace", {name: ada * ADA for name, ada in most.items()}),
            *limits_of(TOKEN, {"per_day": 5_000_000}),
        ),
        tokens={"USDM": (TOKEN, 6)},
        approval_required_above={"lovelace": 8 * ADA},
    )
    world.settings(splits=[], confirmations=0, timeout=3000)


async def _add_apps(api: Api) -> dict[str, str]:
    """The token of each app."""
    tokens = {}
    for number, name in enumerate(APPS, 2):
        limits = {"per_day": str(number * 10 * ADA), "per_month": str(number * 40 * ADA)}
        made = await api.http.post("/v1/apps", json={"name": name, "limits": limits})
        assert made.status_code == 201, made.text
        tokens[name] = made.json()["token"]
    await api.http.post("/v1/apps", json={"name": "auditor", "scopes": ["read"]})
    return tokens


async def _pay_for_days(api: Api, tokens: dict[str, str]) -> None:
    chance = random.Random(402)
    names, weights = list(SHOPS), [often for _, _, often in SHOPS.values()]
    for day in range(DAYS):
        count = chance.randint(2, 6) if day % 7 < 5 else chance.randint(0, 2)
        for _ in range(count):
            await _move(api.run, DAY_MS // (count + 1))
            await _buy(api, tokens[chance.choice(APPS)], chance.choices(names, weights)[0], chance)
        await _move(api.run, DAY_MS // (count + 1))


async def _move(run: Run, ms: int) -> None:
    run.world.clock.ahead_ms = min(0, run.world.clock.ahead_ms + ms)
    await run.settle_down(2)


async def _buy(
    api: Api, token: str, shop: str, chance: random.Random, times: float = 1, *, is_served: bool = True
) -> None:
    path, price, _ = SHOPS.get(shop, ("/documents", 1_234_567, 0))
    api.world.settings(price=str(int(price * times * chance.choice((1, 1, 1, 1.25)))))
    body = api.body(f"{shop} {chance.random()}") | {
        "origin": f"https://{shop}.example",
        "request": {"method": "POST", "path": path, "body_sha256": f"{chance.getrandbits(256):064x}"},
        "purpose": chance.choice(PURPOSES),
    }
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=api.url, headers=headers, verify=NO_TLS, trust_env=False) as app:
        made = await app.post("/v1/payments", json=body)
        assert made.status_code in (201, 202), made.text
        if made.status_code == 201 and is_served:
            await api.run.agent.submitter.drain(10)
            await api.run.settle_down()
            await app.post(f"/v1/payments/{made.json()['id']}/delivery", json={"status": 200})


async def _leave_something_to_do(api: Api, tokens: dict[str, str]) -> None:
    """Two payments that wait for a person, and two that are on their way."""
    chance = random.Random(403)
    await _buy(api, tokens[APPS[0]], "llm", chance, 4)
    await _buy(api, tokens[APPS[1]], "maps", chance, 2.4)
    for shop in ("search", "weather"):
        await _buy(api, tokens[APPS[2]], shop, chance, is_served=False)
    await api.run.agent.submitter.drain(10)


async def _add_what_is_rare(api: Api, tokens: dict[str, str]) -> str:
    """A token with decimals, long names, a payment that was not served, a refused top-up, and an idle app.

    Returns the id of the payment that was not served.
    """
    chance, world = random.Random(404), api.world
    made = await api.http.post("/v1/apps", json={"name": LONG_APP, "limits": {"per_day": str(5 * ADA)}})
    assert made.status_code == 201, made.text
    token = made.json()["token"]
    world.fund(20 * ADA, assets={TOKEN: 50_000_000})
    await api.run.settle_down()
    world.settings(asset=TOKEN)
    await _buy(api, token, LONG_SHOP, chance)
    await _buy(api, token, LONG_SHOP, chance, is_served=False)
    await api.run.agent.submitter.drain(10)
    await api.run.settle_down(2)
    request = {"method": "POST", "path": "/topup", "body": "{}"}
    goal = {"merchant": "search", "units": str(500 * ADA), "request": request}
    ordered = await api.http.post("/v1/prepaid/topups", json=goal)
    assert ordered.status_code in (200, 201, 202), ordered.text
    await api.run.topups.run_once()
    world.clock.ahead_ms += 3_100_000
    await api.run.settle_down(2)
    lost = (await api.http.get("/v1/payments", params={"app": LONG_APP})).json()["payments"][0]
    await api.http.post(f"/v1/payments/{lost['id']}/delivery", json={"status": 500})
    idle = await api.http.post("/v1/apps", json={"name": "idle", "limits": {"per_day": str(5 * ADA)}})
    assert idle.status_code == 201, idle.text
    return str(lost["id"])
