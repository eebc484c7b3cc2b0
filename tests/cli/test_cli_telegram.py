"""Approvals from a phone, on a real daemon that tells fakes of Telegram, ntfy, Slack and Discord."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kit.canaries import plant
from kit.cli import Shop, checks, clean_environ, running, until, write_private
from kit.pages import blocks
from kit.push_services import PushService
from kit.telegram import ApiError, BotMessage, Telegram

from payagent.dashboard.app import HOST

TOKEN = plant("the bot's token", "987654:another-canary_of-a-bot")
ANN, BOB, MALLORY = 1001, 1002, 6666


@dataclass
class Phones:
    """The shop with a daemon that tells a Telegram bot and three services."""

    shop: Shop
    telegram: Telegram
    services: dict[str, PushService]
    port: int
    codes: list[str] = field(default_factory=list)
    daemon: ExitStack = field(default_factory=ExitStack)

    def start(self) -> None:
        self.daemon.enter_context(running(self.shop, "--listen", f"127.0.0.1:{self.port}"))

    def pair(self, chat: int) -> None:
        made = self.shop.payagent("notifications", "pair", "phone").json
        self.codes.append(made["code"])
        self.telegram.write(chat, f"/start {made['code']}")
        until(lambda: chat in self.paired(), "the chat is not paired")

    def paired(self) -> list[int]:
        return [one["chat"] for one in self.shop.payagent("notifications", "paired", "phone").json["chats"]]

    def ask(self, words: str, **settings: object) -> tuple[str, BotMessage]:
        """Pay above the threshold. Returns the payment's id, and the message that asks in Ann's chat."""
        self.shop.settings(**{"price": "6000000", "splits": [], **settings})
        count = len(self.asking(ANN))
        paid = self.shop.payagent("pay", self.shop.saved(words), "--merchant", "t")
        assert paid.code == 8, paid.err
        until(lambda: len(self.asking(ANN)) > count, "nobody is asked")
        message = self.asking(ANN)[-1]
        return re.findall(r"pay_[0-9a-f]{24}", message.text)[0], message

    def asking(self, chat: int) -> list[BotMessage]:
        return [one for one in self.telegram.of_chat(chat) if one.text.startswith("Approve ")]

    def press(self, data: str, chat: int, user: int | None = None) -> str:
        """Press a button. Returns what the person is shown."""
        press = self.telegram.press(data, chat, user)
        until(lambda: self.telegram.pressed[press], "the press is not answered")
        return self.telegram.pressed[press]

    def payment(self, payment_id: str) -> dict[str, Any]:
        return dict(self.shop.payagent("payments", "show", payment_id).json)

    def waits(self, payment_id: str) -> bool:
        return bool(self.payment(payment_id)["state"] == "awaiting_approval")

    @property
    def log(self) -> str:
        return (self.shop.folder / "daemon.log").read_text()


@pytest.fixture(scope="module")
def phones(closed_shop: Shop) -> Iterator[Phones]:
    shop = closed_shop
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ExitStack() as stack:
        telegram = stack.enter_context(Telegram(TOKEN).serving())
        services = {
            kind: stack.enter_context(PushService(kind).serving()) for kind in ("ntfy", "slack", "discord")
        }
        secret = write_private(shop.folder / "bot-token", TOKEN + "\n")
        with shop.config.open("a") as config:
            config.write(f'\n[approvals]\nrequired_above = "5 ADA"\nlink_origin = "http://{HOST}:{port}"\n')
            config.write(_table("phone", "telegram", telegram.url) + f'secret_file = "{secret}"\n')
            for kind, service in services.items():
                config.write(_table(kind, kind, service.url) + 'events = ["approval.asked"]\n')
        for _ in range(3):
            shop.control("faucet", address=shop.made["address"], lovelace="100000000")
        phones = Phones(shop, telegram, services, port)
        stack.enter_context(phones.daemon)
        phones.start()
        until(lambda: len(shop.payagent("wallet", "utxos").json["utxos"]) == 3, "no deposit")
        yield phones


def _table(name: str, kind: str, url: str) -> str:
    return f'[[notifications]]\nname = "{name}"\nkind = "{kind}"\nurl = "{url}"\n'


@pytest.fixture
def ann(phones: Phones) -> Phones:
    """Ann's chat is paired."""
    if ANN not in phones.paired():
        phones.pair(ANN)
    return phones


def test_only_a_paired_chat_is_told_and_a_stranger_is_refused(phones: Phones) -> None:
    (target,) = [
        one for one in phones.shop.payagent("notifications").json["notifications"] if one["name"] == "phone"
    ]
    assert (target["kind"], target["chats"]) == ("telegram", 0)
    assert "pair" in checks(phones.shop.config)["chats of phone"]["detail"]
    phones.telegram.write(MALLORY, "/start")
    phones.pair(ANN)
    phones.telegram.write(MALLORY, f"/start {phones.codes[-1]}")
    until(lambda: len(phones.telegram.of_chat(MALLORY)) == 2, "the stranger is not answered")
    assert phones.paired() == [ANN]
    phones.ask("for Ann alone")
    assert all("not paired" in one.text for one in phones.telegram.of_chat(MALLORY))
    assert checks(phones.shop.config)["chats of phone"]["detail"] == "1 paired"
    paired = [one for one in phones.shop.payagent("log").json["log"] if one["event"] == "chat_paired"]
    assert [(one["by"], one["detail"]["chat"], one["detail"]["target"]) for one in paired] == [
        ("operator", ANN, "phone")
    ]


def test_a_press_decides_once_and_the_message_says_so(ann: Phones) -> None:
    payment_id, message = ann.ask("by phone")
    for shown in ("pay_to: 6", "App: operator", "Decide before ", payment_id):
        assert shown in message.text.replace("\u200b", ""), shown
    approve, deny = message.buttons["Approve"], message.buttons["Deny"]
    assert payment_id not in approve
    assert "Approved by" in ann.press(approve, ANN)
    until(lambda: not message.buttons, "the message is not edited")
    assert "Approved by" in message.text
    approval = ann.payment(payment_id)["approval"]
    assert (approval["decision"], approval["via"], approval["by"]) == (
        *("approved", "telegram"),
        f"phone, chat {ANN}, user {ANN}",
    )
    for data in (approve, deny):
        assert "earlier decision stands" in ann.press(data, ANN)
    assert ann.payment(payment_id)["approval"]["decision"] == "approved"


def test_a_stolen_press_from_another_chat_decides_nothing(ann: Phones) -> None:
    ann.pair(BOB)
    payment_id, message = ann.ask("stolen")
    until(lambda: len(ann.asking(BOB)) == 1, "Bob is not asked")
    data = message.buttons["Approve"]
    for chat, user in ((MALLORY, None), (BOB, None), (ANN, MALLORY), (MALLORY, ANN)):
        assert "Nothing was decided" in ann.press(data, chat, user), (chat, user)
    for made_up in ("approve:button_000000000000000000000000", f"approve:{payment_id}", "resolve:" + data[8:], ""):
        if made_up:
            assert "Nothing was decided" in ann.press(made_up, ANN)
    assert ann.waits(payment_id)
    ann.shop.payagent("notifications", "unpair", "phone", str(BOB))
    assert ann.paired() == [ANN]
    assert "Nothing was decided" in ann.press(ann.asking(BOB)[-1].buttons["Approve"], BOB)
    assert ann.waits(payment_id)
    ann.press(message.buttons["Deny"], ANN)
    assert ann.payment(payment_id)["state"] == "denied"


def test_a_changed_offer_asks_again(ann: Phones) -> None:
    first, message = ann.ask("an offer")
    second, again = ann.ask("an offer", price="7000000")
    assert first != second
    assert message.buttons["Approve"] != again.buttons["Approve"]
    assert "7 ADA" in again.text.splitlines()[0]
    ann.press(message.buttons["Approve"], ANN)
    assert (ann.waits(first), ann.waits(second)) == (False, True)
    ann.press(again.buttons["Deny"], ANN)
    assert ann.payment(second)["state"] == "denied"


def test_a_decision_elsewhere_takes_the_buttons_away(ann: Phones) -> None:
    payment_id, message = ann.ask("elsewhere")
    ann.shop.payagent("payments", "deny", payment_id)
    until(lambda: not message.buttons, "the message is not edited")
    assert "Denied by" in message.text
    assert "by operator, token" in message.text


def test_a_press_counts_after_a_restart_of_the_daemon(ann: Phones) -> None:
    payment_id, message = ann.ask("across a restart")
    ann.daemon.close()
    press = ann.telegram.press(message.buttons["Approve"], ANN)
    ann.start()
    until(lambda: ann.telegram.pressed[press], "the press is not answered")
    while ann.waits(payment_id):  # the daemon had not read the chain yet, so the person presses again
        ann.press(message.buttons["Approve"], ANN)
    until(lambda: not message.buttons, "the message is not edited")
    assert ann.payment(payment_id)["approval"]["via"] == "telegram"


def test_each_service_is_told_once_also_after_it_failed(ann: Phones) -> None:
    """Telegram asks to wait for two seconds, the others fail. The first retry comes after five."""
    before = {kind: len(service.seen) for kind, service in ann.services.items()}
    refused = {kind: service.refused for kind, service in ann.services.items()}
    for service in ann.services.values():
        service.failures = [(500, {})]
    ann.telegram.failures = [ApiError(429, "Too Many Requests: retry after 2", retry_after=2)]
    payment_id, message = ann.ask("when services fail")
    until(
        lambda: all(len(one.seen) == before[kind] + 1 for kind, one in ann.services.items()),
        "a service was not told",
    )
    assert {kind: service.refused for kind, service in ann.services.items()} == {
        kind: count + 1 for kind, count in refused.items()
    }
    assert [payment_id in one.text for one in ann.asking(ANN)].count(True) == 1
    for service in ann.services.values():
        seen = service.seen[-1]
        assert payment_id in seen.text
        links = list(dict.fromkeys(seen.links))
        assert [link.split("/")[3:7] for link in links] == [
            ["ui", "decide", payment_id, way] for way in ("approve", "deny")
        ]
        here, host = links[0].replace(HOST, "127.0.0.1"), f"{HOST}:{ann.port}"
        assert ann.shop.http.get(here, headers={"Host": host}).status_code == 200
    ann.press(message.buttons["Deny"], ANN)


def test_the_commands_of_the_page_work(ann: Phones) -> None:
    ann.pair(123456789)
    environ = clean_environ() | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PAYAGENT_CONFIG": str(ann.shop.config),
    }
    script = "".join(blocks("Decide by Telegram", "docs/how-to/approve-payments.md"))
    for there, here in {"-o payagent": f"-o {os.geteuid()}", "/etc/payagent": str(ann.shop.folder)}.items():
        assert there in script
        script = script.replace(there, here)
    run = subprocess.run(
        ["bash", "-ec", script], capture_output=True, text=True, timeout=60, check=False, env=environ
    )
    assert run.returncode == 0, run.stderr
    assert ann.paired() == [ANN]
    assert any("A test by payagent" in message.text for message in ann.telegram.of_chat(ANN))


def test_no_secret_of_a_target_is_logged(ann: Phones) -> None:
    _, message = ann.ask("for the log")
    ann.press(message.buttons["Deny"], ANN)
    ledger = (ann.shop.data_dir / "ledger.db").read_bytes() + (ann.shop.data_dir / "ledger.db-wal").read_bytes()
    link = ann.services["ntfy"].seen[-1].links[0].rpartition("/")[2]
    for secret in (TOKEN, *ann.codes, link):
        assert secret not in ann.log
        assert secret.encode() not in ledger
    for service in ann.services.values():
        assert service.url not in ann.log
    assert "/bot" not in ann.log
