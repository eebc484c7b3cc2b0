"""The links of `approval.asked`, as a browser opens them, on a real daemon with a real webhook."""

import base64
import re
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from kit.browser import needs_browser, tab
from kit.cli import Shop, until, write_private
from kit.dashboard import running_daemon
from kit.http import NO_TLS
from kit.webhook import Receiver, target
from playwright.sync_api import Browser, expect

from payagent.devnet.server import DevnetThread

SECRET = "whsec_" + base64.b64encode(b"signs what is sent to the hook").decode()
HOST = "payagent.localhost"


@dataclass
class Desk:
    """What an operator has: the shop, its port, the webhook that gets the links, a browser."""

    shop: Shop
    port: int
    hook: Receiver
    browser: httpx.Client

    @property
    def origin(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def own_form(self) -> dict[str, str]:
        """What a browser sends with the page's own form."""
        kind = "application/x-www-form-urlencoded"
        return {"Sec-Fetch-Site": "same-origin", "Origin": self.origin, "Content-Type": kind}

    def address(self, link: str) -> str:
        """Where a link leads: browsers know that names under localhost are this machine."""
        return link.replace(HOST, "127.0.0.1")

    def get(self, link: str, **headers: str) -> httpx.Response:
        return self.browser.get(self.address(link), headers={"Host": f"{HOST}:{self.port}"} | headers)

    def post(
        self, link: str, headers: dict[str, str] | None = None, form: dict[str, str] | None = None
    ) -> httpx.Response:
        given = {"Host": f"{HOST}:{self.port}"} | (self.own_form if headers is None else headers)
        return self.browser.post(self.address(link), headers=given, data=form, follow_redirects=True)

    def ask(self, message: str) -> dict[str, str]:
        """Pay above the threshold; returns what the operator is told."""
        count = len(self.told())
        paid = self.shop.payagent("pay", self.shop.saved(message), "--merchant", "t")
        assert paid.code == 8, paid.err
        until(lambda: len(self.told()) > count, "nothing has come")
        return self.told()[-1]

    def told(self) -> list[dict[str, str]]:
        return [call.said for call in self.hook.calls if call.type == "approval.asked"]

    def state(self, payment_id: str) -> str:
        return str(self.shop.payagent("payments", "show", payment_id).json["state"])

    @property
    def log(self) -> str:
        return (self.shop.folder / "daemon.log").read_text()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with (
        Receiver().serving() as receiver,
        DevnetThread(block_time_s=1) as devnet,
        httpx.Client(verify=NO_TLS, trust_env=False, timeout=60) as browser,
    ):
        shop = Shop(devnet, tmp_path_factory.mktemp("shop"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        secret = write_private(shop.folder / "hook", SECRET + "\n")
        with shop.config.open("a") as config:
            config.write(f'\n[approvals]\nrequired_above = "5 ADA"\nlink_origin = "http://{HOST}:{port}"\n')
            config.write(target(receiver.url, secret))
        with shop.http:
            shop.control("faucet", address=shop.made["address"], lovelace="100000000")
            with running_daemon(shop, "--listen", f"127.0.0.1:{port}"):
                until(lambda: shop.payagent("wallet", "utxos").json["utxos"], "no deposit")
                shop.settings(price="6000000", splits=[])
                yield Desk(shop, port, receiver, browser)


def test_an_approval_link_shows_the_payment_and_its_form_decides_once(desk: Desk) -> None:
    told = desk.ask("by link")
    approve, payment_id = told["approve_url"], told["payment"]
    assert approve.startswith(f"{desk.origin}/ui/decide/{payment_id}/approve/")
    opened = [desk.get(approve, **{"Sec-Fetch-Site": site}) for site in ("none", "cross-site")]
    page = opened[0]
    assert (page.status_code, opened[1].status_code, page.headers["content-type"]) == (
        *(200, 200),
        "text/html; charset=utf-8",
    )
    for shown in ("6 ADA", "pay to", "operator", told["ends_at"], payment_id, "change", "daily limit"):
        assert shown in page.text, shown
    assert desk.state(payment_id) == "awaiting_approval", "opening a link must not decide"
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert (page.headers["x-frame-options"], page.headers["referrer-policy"]) == ("DENY", "same-origin")
    assert page.headers["cache-control"] == "no-store"
    assert "set-cookie" not in page.headers
    assert "<script" not in page.text
    done = desk.post(approve)
    assert (done.status_code, "was approved" in done.text, done.history[0].status_code) == (200, True, 303)
    for shown in ("6 ADA", f"<dd>{told['merchant']}</dd>"):
        assert shown in done.text, shown
    assert desk.state(payment_id) != "awaiting_approval"
    for link in (approve, told["deny_url"]):
        again = desk.post(link)
        assert (again.status_code, "does not wait" in again.text) == (409, True)
        assert "was approved" in desk.get(link).text
    shown = desk.shop.payagent("payments", "show", payment_id).json["approval"]
    assert (shown["decision"], shown["via"], shown["by"]) == ("approved", "link", None)


def test_who_opens_the_approve_link_can_deny_there_and_never_the_other_way(desk: Desk) -> None:
    told = desk.ask("on one page")
    page = desk.get(told["approve_url"]).text
    assert 'value="approve"' in page
    assert 'value="deny"' in page
    assert 'value="approve"' not in desk.get(told["deny_url"]).text
    done = desk.post(told["approve_url"], form={"way": "deny"})
    assert "was denied" in done.text
    assert desk.state(told["payment"]) == "denied"
    other = desk.ask("on the other page")
    assert "was denied" in desk.post(other["deny_url"], form={"way": "approve"}).text
    assert desk.state(other["payment"]) == "denied"


def test_text_from_an_app_is_escaped_in_the_page(desk: Desk) -> None:
    first = desk.shop.call("a page")
    body = {
        "origin": desk.shop.devnet.merchant_url,
        "request": {"method": "POST", "path": "/<script>alert(1)</script>", "body_sha256": "ab" * 32},
        "response": {"status": 402, "headers": dict(first.headers), "body": first.json()},
    }
    token = {"Authorization": f"Bearer {desk.shop.made['token']}"}
    asked = desk.browser.post(f"http://127.0.0.1:{desk.port}/v1/payments", json=body, headers=token)
    assert asked.status_code == 202, asked.text
    until(lambda: desk.told() and desk.told()[-1]["payment"] == asked.json()["id"], "nothing has come")
    page = desk.get(desk.told()[-1]["approve_url"]).text
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page


def test_only_the_pages_own_form_decides(desk: Desk) -> None:
    told = desk.ask("by others")
    deny, own = told["deny_url"], desk.own_form
    for headers in (
        {},
        {"Origin": desk.origin},
        {"Sec-Fetch-Site": "same-origin"},
        own | {"Sec-Fetch-Site": "cross-site"},
        own | {"Sec-Fetch-Site": "same-site"},
        own | {"Sec-Fetch-Site": "none"},
        own | {"Origin": "https://evil.example"},
        own | {"Origin": "null"},
    ):
        refused = desk.post(deny, headers)
        assert (refused.status_code, "browser_refused" in refused.text) == (403, True), headers
    rebound = desk.get(deny, Host="evil.example")
    assert (rebound.status_code, rebound.json()["code"]) == (403, "browser_refused")
    for path in ("/v1/pause", f"/v1/payments/{told['payment']}/deny"):
        at_api = desk.browser.post(f"http://127.0.0.1:{desk.port}{path}", headers=own)
        assert (at_api.status_code, at_api.json()["code"]) == (403, "browser_refused")
        elsewhere = desk.post(desk.origin + path)
        assert elsewhere.url.path == "/ui/sign-in", "the API does not answer at the links' host"
    assert desk.state(told["payment"]) == "awaiting_approval"
    assert desk.post(deny).status_code == 200
    assert desk.state(told["payment"]) == "denied"


def test_a_link_is_valid_for_one_payment_and_decision_only_and_is_not_logged(desk: Desk) -> None:
    first, second = desk.ask("one"), desk.ask("two")
    approve, deny = first["approve_url"], first["deny_url"]
    signature = approve.rpartition("/")[2]
    forged = (
        approve.replace(signature, deny.rpartition("/")[2]),
        approve.replace(first["payment"], second["payment"]),
        approve[:-1] + ("A" if approve[-1] != "A" else "B"),
        approve.replace("/approve/", "/resolve/"),
        approve.replace(signature, "\u00e9"),
        approve.replace(first["payment"], "pay_x"),
    )
    for link in forged:
        for answer in (desk.get(link), desk.post(link)):
            assert answer.status_code == 404, link
    key = desk.shop.data_dir / "approval-links.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert desk.state(first["payment"]) == "awaiting_approval"
    assert signature not in desk.log
    assert key.read_text().strip() not in desk.log
    assert re.search(r"approval_needed", desk.log)
    assert signature not in (desk.shop.data_dir / "ledger.db").read_bytes().decode("latin-1")


@needs_browser
def test_the_button_of_a_link_works_in_a_browser_without_javascript_and_without_a_session(
    desk: Desk, browser: Browser
) -> None:
    told = desk.ask("in a browser")
    with tab(browser, 390, scripts=False) as at:
        at.page.goto(told["approve_url"])
        at.page.get_by_role("button", name="Approve 6 ADA").click()
        expect(at.page.get_by_role("heading", level=1)).to_have_text("The payment was approved")
    assert desk.shop.payagent("payments", "show", told["payment"]).json["approval"]["via"] == "link"
