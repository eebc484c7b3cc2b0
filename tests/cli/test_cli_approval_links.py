"""The links of `approval.asked`, as a browser opens them, on a real daemon with a real webhook."""

import base64
import hashlib
import re
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from kit.cli import Shop, running, until, write_private
from kit.http import NO_TLS
from kit.webhook import Receiver, target

SECRET = "whsec_" + base64.b64encode(b"signs what is sent to the hook").decode()
OWN_FORM = {"Sec-Fetch-Site": "same-origin", "Origin": "null", "Content-Type": "application/x-www-form-urlencoded"}
"""What a browser sends with the form of a page that has no referrer."""


@dataclass
class Desk:
    """What an operator has: the shop, the origin of its links, the webhook that gets them, a browser."""

    shop: Shop
    origin: str
    hook: Receiver
    browser: httpx.Client

    def ask(self, message: str) -> dict[str, str]:
        """Pay above the threshold; returns the alert that the operator gets."""
        count = len(self.told())
        paid = self.shop.payagent("pay", self.shop.saved(message), "--merchant", "t")
        assert paid.code == 8, paid.err
        until(lambda: len(self.told()) > count, "no alert has come")
        return self.told()[-1]

    def told(self) -> list[dict[str, str]]:
        return [call.said for call in self.hook.calls if call.type == "approval.asked"]

    def state(self, payment_id: str) -> str:
        return str(self.shop.payagent("payments", "show", payment_id).json["state"])

    @property
    def log(self) -> str:
        return (self.shop.folder / "daemon.log").read_text()


@pytest.fixture
def context(closed_shop: Shop, receiver: Receiver) -> Iterator[Desk]:
    shop = closed_shop
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    plain = shop.config.read_text()
    secret = write_private(shop.folder / "hook", SECRET + "\n")
    origin = f"http://127.0.0.1:{port}"
    with shop.config.open("a") as config:
        config.write(f'\n[approvals]\nrequired_above = "5 ADA"\nlink_origin = "{origin}"\n')
        config.write(target(receiver.url, secret))
    shop.control("faucet", address=shop.made["address"], lovelace="100000000")
    try:
        with (
            running(shop, "--listen", f"127.0.0.1:{port}"),
            httpx.Client(verify=NO_TLS, trust_env=False, timeout=10) as browser,
        ):
            until(lambda: shop.payagent("wallet", "utxos").json["utxos"], "no deposit")
            shop.settings(price="6000000", splits=[])
            yield Desk(shop, origin, receiver, browser)
    finally:
        shop.config.write_text(plain)


def test_an_approval_link_shows_the_payment_and_its_form_decides_once(context: Desk) -> None:
    told = context.ask("by link")
    approve, payment_id = told["approve_url"], told["payment"]
    assert approve.startswith(f"{context.origin}/decide/{payment_id}/approve/")
    opened = [context.browser.get(approve, headers={"Sec-Fetch-Site": site}) for site in ("none", "cross-site")]
    page = opened[0]
    assert (page.status_code, opened[1].status_code, page.headers["content-type"]) == (
        *(200, 200),
        "text/html; charset=utf-8",
    )
    for shown in (
        "6 ADA",
        "pay_to",
        "operator",
        told["ends_at"],
        payment_id,
        "change",
        "left per day",
        "calls bought</th><td>1<",
    ):
        assert shown in page.text, shown
    assert context.state(payment_id) == "awaiting_approval", "opening a link must not decide"
    (style,) = re.findall("<style>(.*?)</style>", page.text)
    own = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    allowed = f"default-src 'none'; style-src 'sha256-{own}'; form-action 'self'"
    assert page.headers["content-security-policy"].startswith(allowed), "a browser blocks what is not listed"
    assert (page.headers["x-frame-options"], page.headers["referrer-policy"]) == ("DENY", "no-referrer")
    assert page.headers["cache-control"] == "no-store"
    assert "set-cookie" not in page.headers
    assert "<script" not in page.text
    done = context.browser.post(approve, headers=OWN_FORM, follow_redirects=True)
    assert (done.status_code, "was approved" in done.text, done.history[0].status_code) == (200, True, 303)
    assert context.state(payment_id) != "awaiting_approval"
    for link in (approve, told["deny_url"]):
        again = context.browser.post(link, headers=OWN_FORM)
        assert (again.status_code, "does not wait" in again.text) == (409, True)
        assert "was approved" in context.browser.get(link).text
    shown = context.shop.payagent("payments", "show", payment_id).json["approval"]
    assert (shown["decision"], shown["via"], shown["by"]) == ("approved", "link", None)


def test_text_from_an_app_is_escaped_in_the_page(context: Desk) -> None:
    first = context.shop.call("a page")
    body = {
        "origin": context.shop.devnet.merchant_url,
        "request": {"method": "POST", "path": "/<script>alert(1)</script>", "body_sha256": "ab" * 32},
        "response": {"status": 402, "headers": dict(first.headers), "body": first.json()},
    }
    token = {"Authorization": f"Bearer {context.shop.made['token']}"}
    asked = context.browser.post(f"{context.origin}/v1/payments", json=body, headers=token)
    assert asked.status_code == 202, asked.text
    until(lambda: context.told() and context.told()[-1]["payment"] == asked.json()["id"], "no alert has come")
    page = context.browser.get(context.told()[-1]["approve_url"]).text
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page


def test_only_the_pages_own_form_decides(context: Desk) -> None:
    told = context.ask("by others")
    deny = told["deny_url"]
    for headers in (
        {},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "same-origin"},
        OWN_FORM | {"Sec-Fetch-Site": "cross-site"},
        OWN_FORM | {"Sec-Fetch-Site": "same-site"},
        OWN_FORM | {"Sec-Fetch-Site": "none"},
        OWN_FORM | {"Origin": "https://evil.example"},
    ):
        refused = context.browser.post(deny, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "browser_refused"), headers
    rebound = context.browser.get(deny, headers={"Host": "evil.example"})
    assert (rebound.status_code, rebound.json()["code"]) == (403, "browser_refused")
    for path in ("/v1/pause", f"/v1/payments/{told['payment']}/deny"):
        refused = context.browser.post(context.origin + path, headers=OWN_FORM)
        assert (refused.status_code, refused.json()["code"]) == (403, "browser_refused")
    assert context.state(told["payment"]) == "awaiting_approval"
    done = context.browser.post(deny, headers=OWN_FORM | {"Origin": context.origin})
    assert (done.status_code, context.state(told["payment"])) == (303, "denied")


def test_a_link_is_valid_for_one_payment_and_decision_only_and_is_not_logged(context: Desk) -> None:
    first, second = context.ask("one"), context.ask("two")
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
        for answer in (context.browser.get(link), context.browser.post(link, headers=OWN_FORM)):
            assert answer.status_code == 404, link
    key = context.shop.data_dir / "approval-links.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert context.state(first["payment"]) == "awaiting_approval"
    assert signature not in context.log
    assert key.read_text().strip() not in context.log
    assert re.search(r"approval_needed", context.log)
    assert signature not in (context.shop.data_dir / "ledger.db").read_bytes().decode("latin-1")
