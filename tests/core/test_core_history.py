"""A payment's history in words: the sentence of each event, and its details in one line."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import payagent
from payagent.core.history import (
    SENTENCES,
    decision_in_words,
    details_in_words,
    event_in_words,
    happened,
    is_unserved,
)
from payagent.core.money import LOVELACE
from payagent.core.payment.machine import Event
from payagent.core.policy import limit_in_words

TOKEN = "5c" * 28 + "636c69"
TOKENS = {"USDM": (TOKEN, 6)}
DAY = {"limit": "per_day", "app": None, "merchant": None}
HOUR = {"limit": "per_hour", "asset": LOVELACE, "asked": "1790001", "left": "40000000", "most": "40000000"}
PAYMENT = HOUR | {"limit": "per_payment", "left": "5000000", "most": "5000000"}


def sentence(event: str, detail: dict[str, Any], state: str = "settled") -> str:
    return event_in_words({"event": event, "state": state, "detail": detail}, TOKENS)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ([PAYMENT, HOUR], "Reserved 1.790001 ADA; 38.2 of 40 ADA left this hour"),
        # the tightest is named
        (
            [HOUR, HOUR | {"limit": "per_day", "left": "12000000", "most": "100000000", "app": "app_1"}],
            "Reserved 1.790001 ADA; 10.2 of 100 ADA left today for this app",
        ),
        (
            [HOUR | {"limit": "total", "merchant": "https://t.example", "app": "app_1"}],
            "Reserved 1.790001 ADA; 38.2 of 40 ADA left in total for this app at this merchant",
        ),
        (
            [HOUR | {"asset": TOKEN, "asked": "5000000", "left": "1250500000", "most": "2000000000"}],
            "Reserved 5 USDM; 1\u202f245 of 2\u202f000 USDM left this hour",
        ),
        (
            [
                {"limit": "per_week", "asset": TOKEN, "asked": "5000000", "left": None},
                {"limit": "per_week", "asset": LOVELACE, "asked": "1400000", "left": "2000000"},
                {"limit": "max_total", "asset": LOVELACE, "asked": "1400000", "left": "2000000"},
            ],
            "Reserved 5 USDM and 1.4 ADA",
        ),
    ],
)
def test_a_reservation_says_what_it_takes_and_what_the_tightest_limit_leaves(
    limits: list[dict[str, Any]], words: str
) -> None:
    assert sentence("reserve", {"limits": limits}) == words
    assert sentence("reserve", {"limits": limits, "via": "link"}) == f"Approved. {words}"


def test_what_an_operator_sends_counts_against_no_limit() -> None:
    assert sentence("reserve", {"nonce_utxo": "a#0"}) == "Reserved the money"


@pytest.mark.parametrize(
    ("event", "detail", "words"),
    [
        ("submit", {}, "Submitted to the chain"),
        ("submit", {"to": "merchant"}, "Handed to the merchant, which submits it"),
        ("seen_in_block", {"block_height": 4112872}, "In block 4\u202f112\u202f872"),
        ("confirm", {"depth": 3}, "Confirmed, 3 blocks deep, and booked as paid"),
        (
            "request_approval",
            {"reasons": [["approval_required", f"it takes 12500000 units of {TOKEN}, more than 5 ADA"]]},
            "Waits for approval: it takes 12.5 USDM, more than 5 ADA",
        ),
        ("deny", {"detail": "a person denied it"}, "Denied: a person denied it. Nothing was signed"),
        ("merchant_answered", {"status": 402, "said": "used_up"}, "The merchant answered 402: used up"),
        ("of_a_newer_daemon", {"limits": 7}, "of a newer daemon"),
    ],
)
def test_an_event_is_a_sentence(event: str, detail: dict[str, Any], words: str) -> None:
    assert sentence(event, detail) == words


def noted() -> Iterator[str]:
    """The name of each event that the package notes about a payment, as the source has it."""
    for path in sorted(Path(payagent.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                arguments = node.args[1:] if called == "writes.note" else node.args if called == "Note" else ()
                if arguments and ast.unparse(arguments[0]) not in ("None", "change.payment_id"):
                    yield ast.unparse(arguments[1])


NAMED = {
    "PURPOSE": {"purpose"},
    "ALERT_KIND": {"deposit_rolled_back"},
    "event": {"provider_accepted", "provider_answered"},
    "name": {"delivery_present", "delivery_accept", "delivery_give_up"},
}
"""Events whose name is no text at the place where they are noted."""


def test_each_event_that_moves_no_money_has_its_sentence() -> None:
    names = set[str]().union(*(NAMED.get(name, {name.strip("'")}) for name in noted()))
    assert names == SENTENCES.keys() - set(Event)


@pytest.mark.parametrize("event", sorted(SENTENCES.keys() - set(Event)))
def test_the_sentence_of_a_note_is_made_of_its_details(event: str) -> None:
    facts = {"provider": "blockfrost", "kind": "spent_all", "status": 402, "said": "pending", "detail": "no room"}
    told = sentence(event, facts | {"purpose": "a report"})
    assert told[0].isupper() or told.startswith("blockfrost")
    assert "_" not in told
    assert happened({"event": event, "state": "settled", "detail": facts}) == event


@pytest.mark.parametrize(
    ("detail", "words"),
    [
        ({"purpose": "a report", "tx_id": None}, "purpose a report"),
        ({"depth": 3, "counts_from_ms": 0}, "depth 3, counts from 1970-01-01T00:00:00.000Z"),
        ({"reasons": [["price_changed", "more"], ["b", "c"]]}, "reasons price_changed; more; b; c"),
        ({"figures": {"left_units": 5, "of": "x"}}, "figures left units 5 of x"),
        (
            {"limits": [DAY | {"asset": "lovelace", "asked": "1500000", "left": "2000000"}]},
            "1.5 ADA of 2 ADA left of the wallet's daily limit",
        ),
        (
            {"limits": [DAY | {"app": "bot", "asset": TOKEN, "asked": "7", "left": None}]},
            f"7 units of {TOKEN} of bot's daily limit",
        ),
    ],
)
def test_the_details_are_one_line(detail: dict[str, object], words: str) -> None:
    assert details_in_words(detail) == words


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (DAY, "the wallet's daily limit"),
        (DAY | {"app": "bot"}, "bot's daily limit"),
        (DAY | {"merchant": "t"}, "the daily limit at t"),
        (DAY | {"app": "bot", "merchant": "t", "limit": "per_payment"}, "bot's limit per payment at t"),
        ({"limit": "max_total"}, "the call's own limit"),
    ],
)
def test_a_limit_names_whose_spending_it_limits(limit: dict[str, str | None], words: str) -> None:
    assert limit_in_words(limit) == words


@pytest.mark.parametrize(
    ("approval", "words"),
    [
        ({"decision": "approved", "via": "token", "by": "anna"}, "Approved by anna, token"),
        ({"decision": "denied", "via": "link"}, "Denied by somebody with a link"),
        ({"decision": "denied", "via": "token", "by": None}, "Denied by an app, token"),
        ({"decision": "timed_out", "via": "clock"}, "Timed out: nobody decided in time"),
    ],
)
def test_a_decision_says_who_made_it_and_how(approval: dict[str, object], words: str) -> None:
    assert decision_in_words(approval) == words


def test_money_is_lost_only_if_it_was_paid() -> None:
    payments = [{"state": state, "delivery": "paid_not_served"} for state in ("confirmed", "in_flight", "void")]
    assert [is_unserved(one) for one in payments] == [True, True, False]
    assert not is_unserved({"state": "confirmed", "delivery": "accepted"})
