"""`payagent merchants`: a merchant that changes its addresses and prices, and what the operator can do."""

import json
import re
from collections.abc import Iterator

import pytest
from kit.cli import Result, Shop, running, until

from payagent.devnet.merchant import role_address

NEW = role_address("new").text


@pytest.fixture(scope="module")
def guarded(closed_shop: Shop) -> Iterator[Shop]:
    """The daemon of a wallet with merchant rules, as on every network except the devnet."""
    text = closed_shop.config.read_text()
    held = '[merchants.t]\npin = "first_use"\nprice_rise_percent_max = 25\n'
    assert "[merchants.t]\n" in text
    closed_shop.config.write_text(text.replace("[merchants.t]\n", held))
    for _ in range(6):
        closed_shop.control("faucet", address=closed_shop.made["address"], lovelace="100000000")
    with running(closed_shop):
        until(lambda: len(closed_shop.payagent("wallet", "utxos").json["utxos"]) == 6, "no deposit")
        yield closed_shop


def pay(shop: Shop, message: str) -> Result:
    return shop.payagent("pay", shop.saved(message), "--merchant", "t")


def why_asked(shop: Shop, message: str) -> list[str]:
    """The codes of the reasons for which a payment awaits approval."""
    waits = pay(shop, message)
    told = re.search(r"payment (pay_\w+) is awaiting approval", waits.err)
    assert told is not None, waits
    assert (waits.code, waits.out) == (8, "")
    shown = shop.payagent("payments", "show", told[1]).json
    return [reason["code"] for reason in shown["approval"]["reasons"]]


def buy(shop: Shop, message: str) -> Result:
    body = json.dumps({"message": message})
    return shop.payagent("fetch", f"{shop.devnet.merchant_url}/chat", "-d", body, "-o", shop.folder / "got")


def test_a_payment_to_a_new_address_waits_until_the_operator_pins_it(guarded: Shop) -> None:
    assert pay(guarded, "first").code == 0
    known = guarded.payagent("merchants", "show", "t").json["addresses"]
    assert [one["role"] for one in known] == ["pay_to", "split", "split"]
    guarded.settings(pay_to=NEW)
    until(lambda: guarded.held() == ["0"], "the first payment is not confirmed")
    held = guarded.held()
    assert why_asked(guarded, "second") == ["address_not_pinned"]
    assert guarded.payagent("merchants", "pin", "t", NEW, "--split").code == 0
    assert why_asked(guarded, "as a share it is known, and not as the price") == ["address_not_pinned"]
    assert guarded.held() == held
    assert guarded.payagent("merchants", "pin", "t", NEW).code == 0
    assert pay(guarded, "third").code == 0
    for more in ((), ("--split",)):
        assert guarded.payagent("merchants", "unpin", "t", NEW, *more).code == 0
    gone = guarded.payagent("merchants", "unpin", "t", NEW)
    assert (gone.code, gone.problem) == (2, "not_found")
    assert guarded.payagent("merchants", "show", "t").json["addresses"] == known
    guarded.settings(pay_to=role_address("pay_to").text)


def test_a_price_above_the_allowed_rise_needs_approval(guarded: Shop) -> None:
    assert buy(guarded, "once").code == 0
    until(lambda: guarded.payagent("merchants", "show", "t").json["prices"], "no price was agreed to")
    [price] = guarded.payagent("merchants", "show", "t").json["prices"]
    assert price == {"method": "POST", "path": "/chat", "asset": "lovelace", "calls": 1, "units": "13000000"}
    guarded.settings(price="20000000")
    refused = buy(guarded, "twice")
    assert (refused.code, refused.problem) == (8, "awaiting_approval")
    guarded.settings(price="10000000")
    shown = guarded.payagent("merchants", "show", "t", "--human").out
    assert "ready       auto: 1 block deep, as accepted before" in shown
    assert "POST /chat  ADA        1        13 ADA" in shown
    assert "price rise  25 % at most" in shown


def test_merchants_are_listed_and_an_unknown_one_is_not_found(guarded: Shop) -> None:
    assert [row["name"] for row in guarded.payagent("merchants").json["merchants"]] == ["t"]
    assert guarded.payagent("merchants", "--human").out.split()[:3] == ["name", "origin", "ready"]
    for command in (("show", "u"), ("resume", "u"), ("pin", "u", NEW)):
        refused = guarded.payagent("merchants", *command)
        assert (refused.code, refused.problem) == (2, "not_found")
    wrong = guarded.payagent("merchants", "pin", "t", "addr1nonsense")
    assert (wrong.code, wrong.problem) == (2, "bad_request")
    assert guarded.payagent("merchants", "resume", "t").json["unserved_streak"] == 0
