"""Two daemons of one fleet answer the same: the API, its stream of events, the proxy, MCP and the dashboard.

One of them holds the only account. The other has all that it is asked for done by the first.
"""

import hashlib
import json
import re
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from kit.agent import take_only_hashes
from kit.axe import SCRIPT, serious
from kit.browser import chromium, needs_browser, tab
from kit.cli import PATIENCE_S, invoke, until, write_private
from kit.daemons_of_a_fleet import ADDRESSES, TOKEN, Member, add_app, furnish, member
from kit.dashboard import PAGES, Visitor
from kit.effort import long_only
from kit.http import NO_TLS
from kit.mcp import data
from kit.postgresql import Server, needs_postgresql
from mcp import Client
from playwright.sync_api import expect

from payagent.devnet.server import DevnetThread
from payagent.mcp.daemon import AppClient
from payagent.mcp.server import open_server

pytestmark = [needs_postgresql, pytest.mark.timeout(1200)]

OF_A_PROCESS = {
    "/readyz": ("accounts", "lag_s"),
    "/v1/apps": ("last_call_at",),
    "/v1/payments": ("page",),
    "/v1/payments/{payment_id}": ("depth",),
    "/v1/wallet": ("chain", "lag_s", "leased_until"),
}
"""Fields that tell of the daemon that was asked, by path.

They are the accounts that it holds, when an app last called it, the link to its own dashboard, the chain as it
last read it, and how long ago leases were renewed.
"""

NOT_COMPARED = (
    *("/metrics", "/v1/events", "/v1/dashboard/orders/{code}"),
    *("/v1/channels", "/v1/channels/{channel_id}"),
)
"""Counters since the process began; the stream, which has a test; an order of a browser that signed in there;
channels, which are off.
"""

NOT_IN_A_SNAPSHOT = ('INSERT INTO "accounts"', 'INSERT INTO "_sqlite_migrations"')
"""Rows that are not compared: leases, and when the file was made."""

PAGES_ALIKE = [
    one.path
    for one in PAGES
    if not one.is_form
    and one.path not in ("/ui/settings", "/ui/events", "/ui/ledger/export", "/ui/ledger/snapshot", "/ui/channels")
    and "{order_id}" not in one.path
]
"""The pages that are compared: not the one about the daemon, no order of a browser, and no file of the API."""

CONFIG = """
[merchants.t.topup]
path = "/payments/topup"
body = "{}"
[approvals]
required_above = "8 ADA"
[[notifications]]
name = "nobody"
kind = "ntfy"
url = "http://127.0.0.1:9/topic"
"""


@dataclass
class Two:
    """The daemons: one that holds the account, and one that holds none."""

    folder: Path
    devnet: DevnetThread
    holder: Member
    other: Member

    def settings(self, **settings: object) -> None:
        url = f"{self.devnet.merchant_url}/merchant/settings"
        httpx.post(url, json=settings, verify=NO_TLS, trust_env=False).raise_for_status()

    @property
    def both(self) -> tuple[Member, Member]:
        return self.holder, self.other

    def through_proxy(self, daemon: Member, message: str) -> httpx.Response:
        """A client whose base URL is the daemon's proxy, and who is served."""
        answer = daemon.http.post("/proxy/t/chat", json={"message": message}, headers={"x-payagent-token": TOKEN})
        assert answer.status_code == 200, answer.text
        return answer

    def receipts(self, payment_id: str) -> list[Any]:
        """The payment's receipt from each daemon."""
        answers = [daemon.http.get(f"/v1/payments/{payment_id}/receipt") for daemon in self.both]
        assert [answer.status_code for answer in answers] == [200, 200]
        return [answer.json() for answer in answers]

    def require_same(self, payment_id: str) -> None:
        """Both daemons show the payment. It may move on between the two calls."""
        until(lambda: len({json.dumps(one) for one in self.receipts(payment_id)}) == 1, "the receipts differ")

    def call(self, message: str) -> dict[str, object]:
        """The merchant's 402 for a request, as a client forwards it."""
        body = json.dumps({"message": message}).encode()
        headers = {"X-Partner": "demo", "X-Wallet-Address": ADDRESSES[0], "content-type": "application/json"}
        answer = httpx.post(
            f"{self.devnet.merchant_url}/chat", content=body, headers=headers, verify=NO_TLS, trust_env=False
        )
        assert answer.status_code == 402
        return {
            "origin": self.devnet.merchant_url,
            "request": {"method": "POST", "path": "/chat", "body_sha256": hashlib.sha256(body).hexdigest()},
            "response": {"status": 402, "headers": dict(answer.headers), "body": answer.json()},
        }


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, postgresql: Server) -> Iterator[Two]:
    folder = tmp_path_factory.mktemp("fleet")
    url = postgresql.tcp_url(postgresql.new_database())
    with DevnetThread(block_time_s=1) as devnet, ExitStack() as stack:
        take_only_hashes(devnet)
        control = stack.enter_context(httpx.Client(base_url=devnet.origin, verify=NO_TLS, trust_env=False))
        for _ in range(8):
            control.post(
                "/devnet/faucet", json={"address": ADDRESSES[0], "lovelace": "60000000"}
            ).raise_for_status()
        add_app(url, folder)
        members = [
            stack.enter_context(member(furnish(folder / name, devnet, url, CONFIG, accounts=1))) for name in "ab"
        ]
        until(lambda: all(one.ready()["ready"] for one in members), "not ready")
        holder, other = sorted(members, key=lambda one: one.ready()["accounts"] == [])
        assert (holder.ready()["accounts"], other.ready()["accounts"]) == ([0], [])
        yield Two(folder, devnet, holder, other)


@pytest.fixture(scope="module")
def bought(two: Two) -> dict[str, str]:
    """What was bought at the daemon that holds no account: the ids that paths of the API name."""
    http = two.other.http
    two.settings(price="2000000", splits=[], batch=1, confirmations=0)
    paid = two.other.pay(two.call("at the one without an account"), "once")
    two.settings(price="9000000")
    assert http.post("/v1/payments", json=two.call("waits for a person")).status_code == 202
    two.settings(price="6000000", batch=3)
    topup = http.post("/v1/prepaid/topups", json={"merchant": "t", "units": "6000000"}).json()["id"]
    until(lambda: http.get(f"/v1/prepaid/topups/{topup}").json()["state"] == "done", "the top-up is not done")
    for number, daemon in enumerate((two.other, two.holder, two.other)):  # uses it up
        assert two.through_proxy(daemon, f"prepaid {number}").headers.get("x-payagent-payment") is None
    assert http.post("/v1/apps", json={"name": "buyer", "limits": {"per_day": "9000000"}}).status_code == 201
    assert http.post("/v1/limits", json={"limits": {"per_day": "100000000"}}).status_code == 200
    two.settings(price="2000000", batch=1)
    return {"payment_id": paid["id"], "topup_id": topup, "name": "t", "month": paid["created_at"][:7]}


def test_every_get_of_the_api_has_the_same_answer_at_each_daemon(
    two: Two, bought: dict[str, str], tmp_path: Path
) -> None:
    paths = [path for path, calls in two.other.http.get("/openapi.json").json()["paths"].items() if "get" in calls]
    asked = [path for path in paths if path not in NOT_COMPARED]
    assert len(asked) > 25
    for path in asked:
        address = path.replace("/notifications/{name}", "/notifications/nobody").format(**bought)
        query = {"month": bought["month"]} if path == "/v1/ledger/report" else {}
        # a payment may move on between the two calls
        until(lambda: len(said(two, path, address, query, tmp_path)) == 1, f"{path} differs")  # noqa: B023


def said(two: Two, path: str, address: str, query: dict[str, str], folder: Path) -> set[str]:
    """The different answers of both daemons."""
    answers = [daemon.http.get(address, params=query) for daemon in two.both]
    return {json.dumps(shown(one, folder, OF_A_PROCESS.get(path, ()))) for one in answers}


def shown(answer: httpx.Response, folder: Path, apart: tuple[str, ...]) -> object:
    """What an answer says, without the fields that are of its process."""
    kind = answer.headers["content-type"]
    assert answer.status_code == 200 or answer.request.url.path.endswith("/chats"), answer.text
    if "json" in kind:
        return without(answer.json(), {"instance", *apart})
    if kind.startswith("text/"):
        return answer.text
    (folder / "snapshot.db").write_bytes(answer.content)
    with closing(sqlite3.connect(folder / "snapshot.db")) as conn:
        return [row for row in conn.iterdump() if not row.startswith(NOT_IN_A_SNAPSHOT)]


def without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {name: without(one, names) for name, one in value.items() if name not in names}
    return [without(one, names) for one in value] if isinstance(value, list) else value


def test_a_client_of_the_proxy_is_served_at_the_daemon_that_holds_no_account(two: Two) -> None:
    two.settings(price="2000000", batch=1)
    two.require_same(two.through_proxy(two.other, "by proxy").headers["x-payagent-payment"])


async def test_an_agent_pays_by_mcp_at_the_daemon_that_holds_no_account(two: Two) -> None:
    two.settings(price="2000000", batch=1)
    environ = {"PAYAGENT_URL": str(two.other.http.base_url)}
    asked = {"url": f"{two.devnet.merchant_url}/chat", "body": json.dumps({"message": "by mcp"})}
    async with open_server(AppClient(TOKEN, environ)) as server, Client(server) as client:
        got = data(await client.call_tool("fetch", asked))
    assert (got["outcome"], got["status"]) == ("paid_and_served", 200), got
    two.require_same(got["payment_id"])


def read_events(daemon: Member, last: str, until_event: str, count: int = 0) -> list[tuple[str, ...]]:
    """Events after `last`, as (id, event, data), up to the first of that name or to `count` of them."""
    found: list[tuple[str, ...]] = []
    end_s = time.monotonic() + PATIENCE_S
    with daemon.http.stream("GET", "/v1/events", headers={"Last-Event-ID": last}) as answer:
        assert answer.status_code == 200
        lines: list[str] = []
        for line in answer.iter_lines():
            assert time.monotonic() < end_s, found
            if line.startswith(":"):
                continue
            if line:
                lines.append(line.partition(": ")[2])
                continue
            if lines:
                found.append(tuple(lines))
                lines = []
            if found and (found[-1][1] == until_event or len(found) == count):
                return found
    raise EOFError


def test_each_daemon_streams_all_events_in_order_and_either_resumes_the_other(two: Two) -> None:
    two.settings(price="2000000", batch=1)
    start = two.holder.http.get("/v1/log").json()["log"][0]["seq"]
    with ThreadPoolExecutor() as pool:
        readers = [pool.submit(read_events, daemon, str(start), "resumed") for daemon in two.both]
        for number, daemon in enumerate(two.both * 2):
            daemon.pay(two.call(f"streamed {number}"), f"streamed-{number}")
        two.other.http.post("/v1/pause").raise_for_status()
        two.holder.http.post("/v1/resume").raise_for_status()
        one, other = (reader.result(60) for reader in readers)
    assert one == other
    assert [int(row[0]) for row in one] == list(range(start + 1, start + 1 + len(one)))
    first = read_events(two.holder, str(start), "resumed", count=len(one) // 2)
    rest = read_events(two.other, first[-1][0], "resumed")
    assert first + rest == one


def signed_in(daemon: Member) -> Visitor:
    """A browser at the daemon's dashboard."""
    link = daemon.http.post("/v1/dashboard/links").json()["url"]
    found = Visitor(daemon.http, str(daemon.http.base_url).rstrip("/"), urlsplit(link).netloc)
    assert found.enter(link).status_code == 303
    return found


def shown_page(browser: Visitor, path: str) -> str:
    """A page without what is of the browser's session, such as hidden fields, and without times and ports."""
    answer = browser.get(path)
    assert answer.status_code == 200, f"{path}: {answer.status_code}"
    text = re.sub(r'<input type="hidden"[^>]*>|<time[^>]*>[^<]*</time>|Block [0-9]+', "", answer.text)
    return re.sub(r"(?<=:)[0-9]{4,5}\b", "PORT", text)


def test_every_page_of_the_dashboard_is_the_same_at_each_daemon(two: Two, bought: dict[str, str]) -> None:
    browsers = [signed_in(daemon) for daemon in two.both]
    for path in PAGES_ALIKE:
        address = path.replace("merchants/{name}", "merchants/t").format(**bought | {"name": "buyer"})
        # a payment may move on between the two visits
        until(lambda: len({shown_page(one, address) for one in browsers}) == 1, f"{path} differs")  # noqa: B023


def test_the_dashboard_of_any_daemon_shows_who_holds_what(two: Two) -> None:
    page = signed_in(two.other).get("/ui/settings").text
    fleet = page[page.index('id="fleet"') : page.index('id="targets"')]
    held = re.findall(r"living</span></td>\s*<td>(0|none)</td><td[^>]*>[0-9]+</td>", fleet)
    assert sorted(held) == ["0", "none"]
    assert re.findall(r">(Account [0-9]+)\s*<", fleet) == ["Account 0"]
    health = page[page.index('id="health"') : page.index('id="providers"')]
    assert re.findall(r'<span class="chip [a-z]+">([^<]*)<', health) == ["ok"] * 6


@long_only
@needs_browser
def test_the_fleets_tables_fit_each_screen_and_are_accessible(two: Two) -> None:
    with chromium() as browser, tab(browser) as at:
        link = two.other.http.post("/v1/dashboard/links").json()["url"]
        at.page.goto(link)
        at.page.get_by_role("button", name="Open the dashboard").click()
        at.page.goto(f"http://{urlsplit(link).netloc}/ui/settings")
        expect(at.page.locator("#fleet tbody tr")).to_have_count(3)
        for width in (1280, 390, 320):
            at.page.set_viewport_size({"width": width, "height": 900})
            assert at.page.evaluate("document.documentElement.scrollWidth") <= width
        for scheme in ("light", "dark") if SCRIPT.is_file() else ():
            at.page.emulate_media(color_scheme=scheme)
            assert serious(at.page) == [], scheme


def test_status_and_metrics_show_the_fleet(two: Two) -> None:
    token = write_private(two.folder / "token", TOKEN)
    shown = invoke("status", "--human", "--config", two.folder / "b/config.toml", "--token-file", token)
    assert shown.code == 0, shown.err
    assert re.search(r"account 0 +held by .*/[ab]/data#[0-9a-f]{16}$", shown.out, re.M)
    assert len(re.findall(r"daemon .*/[ab]/data#[0-9a-f]{16} +renewed its leases [0-9]+ s ago", shown.out)) == 2
    ready = two.other.ready()
    assert (ready["daemons"], ready["lag_s"] < 10) == (2, True)
    told = set(re.findall(r"^# TYPE (payagent_fleet_[a-z_]+)", two.other.http.get("/metrics").text, re.M))
    page = (Path(__file__).parents[2] / "docs/reference/metrics.md").read_text()
    assert told == set(re.findall(r"^\| `(payagent_fleet_[a-z_]+)", page, re.M))
