"""The sentence of every event that the log lists."""

from collections.abc import Mapping
from typing import get_args

import pytest

from payagent.core.operator_log import KINDS, LogKind, sentence, who, whose

TOKEN = "ab" * 28 + "636f696e"
OF_THE_BOT = {"by": None, "app": "bot", "merchant": "t", "request": "POST /chat", "payment": "pay_1"}
BY_OPERATOR = {"by": "operator", "app": "bot", "merchant": "t", "request": None, "payment": None}
OF_NOBODY = {"by": None, "app": None, "merchant": None, "request": None, "payment": None}

SENTENCES = [
    (
        "limit_set",
        {"limit": "per_day", "asset": "lovelace", "most": "5000000"},
        "set bot's daily limit at t to 5 ADA",
    ),
    (
        "limit_set",
        {"limit": "total", "asset": TOKEN, "most": "7"},
        f"set bot's total limit at t to 7 units of {TOKEN}",
    ),
    (
        "limit_set",
        {"limit": "per_day", "asset": "lovelace", "most": None},
        "set bot's daily limit at t back to the config file",
    ),
    ("app_added", {"name": "bot", "scopes": ["pay", "read"]}, "added the app bot (pay, read)"),
    ("token_issued", {}, "issued a token for the app bot"),
    ("app_revoked", {}, "revoked the app bot"),
    ("merchant_added", {"name": "t"}, "added the merchant t"),
    ("merchant_removed", {"name": "t"}, "removed the merchant t"),
    ("merchant_stopped", {"unserved_streak": 3}, "stopped the merchant t: 3 payments in a row not served"),
    ("merchant_resumed", {}, "resumed the merchant t"),
    ("unserved_acknowledged", {"payment": "pay_1"}, "closed payment pay_1 as not served"),
    ("address_pinned", {"address": "addr1"}, "pinned an address of t: addr1"),
    ("address_unpinned", {"address": "addr1"}, "unpinned an address of t: addr1"),
    ("paused", {"reason": "a drill"}, "paused signing: a drill"),
    ("paused", {"reason": ""}, "paused signing"),
    ("resumed", {}, "resumed signing"),
    ("unfrozen", {}, "unfroze the wallet"),
    (
        "config_read",
        {"changed": {"limits.per_day": {"from": 1, "to": 2}}},
        "read the config file again: limits.per_day from 1 to 2",
    ),
    (
        "config_read",
        {"changed": {"limits.per_week": {"from": None, "to": "5 ADA"}, "merchants.t": {"from": "t", "to": None}}},
        "read the config file again: limits.per_week from no limit to 5 ADA, merchants.t from t to nothing",
    ),
    ("channel_ordered", {"channel": "ab", "step": "open", "units": "5000000"}, "ordered to open the channel at t"),
    ("channel_ordered", {"channel": "ab", "step": "add", "units": "1"}, "ordered to add to the channel at t"),
    ("channel_ordered", {"channel": "ab", "step": "close", "units": "0"}, "ordered to close the channel at t"),
    ("channel_recover", {"channel": "ab", "signed": "0"}, "recovered the channel at t from the chain"),
    ("topup_opened", {"topup": "top_1", "unit": "calls", "units": "1"}, "ordered a top-up at t: 1 call"),
    (
        "topup_opened",
        {"topup": "top_1", "unit": "lovelace", "units": "500000000"},
        "ordered a top-up at t: 500 ADA",
    ),
    ("topup_stopped", {"topup": "top_1", "code": "limit_exceeded"}, "stopped top-up top_1: limit_exceeded"),
    ("refused", {"code": "paused", "reason": None}, "was refused with paused: t POST /chat pay_1"),
    (
        "reject",
        {"code": "payment_void", "reason": "expired"},
        "was refused with payment_void/expired: t POST /chat pay_1",
    ),
    ("deny", {"via": "clock"}, "denied pay_1 of bot: nobody decided in time"),
    ("deny", {"via": "token"}, "denied pay_1 of bot"),
    ("reserve", {"via": "token"}, "approved pay_1 of bot"),
    ("chat_paired", {"chat": 7, "target": "phone"}, "paired chat 7 with phone"),
    ("chat_unpaired", {"chat": 7, "target": "phone"}, "unpaired chat 7 from phone"),
    ("dashboard_opened", {}, "signed in to the dashboard"),
    (
        "dashboard_refused",
        {"reason": "the link is not valid"},
        "refused a sign-in to the dashboard: the link is not valid",
    ),
    ("dashboard_confirmed", {"what": "Send 5 ADA"}, "confirmed in the terminal: Send 5 ADA"),
    ("dashboard_closed", {}, "signed out of the dashboard"),
    ("dashboard_closed", {"others": 2}, "signed 2 others out of the dashboard"),
]


@pytest.mark.parametrize(("event", "detail", "words"), SENTENCES)
def test_an_event_has_its_sentence(event: str, detail: Mapping[str, object], words: str) -> None:
    of_whom = OF_THE_BOT if event in (*KINDS["refusals"], *KINDS["decisions"]) else BY_OPERATOR
    assert sentence({"event": event, "detail": detail} | of_whom) == words


def test_every_event_of_every_kind_has_a_sentence() -> None:
    assert KINDS.keys() == set(get_args(LogKind))
    assert {event for event, _, _ in SENTENCES} == {event for events in KINDS.values() for event in events}


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ({"event": "limit_set", "detail": {}} | BY_OPERATOR, "operator"),
        ({"event": "refused", "detail": {}} | OF_THE_BOT, "bot"),
        ({"event": "reserve", "detail": {"via": "link"}} | OF_THE_BOT, "somebody with a link"),
        ({"event": "config_read", "detail": {}} | OF_NOBODY, "payagent"),
    ],
)
def test_an_entry_names_who_made_the_change_or_was_refused(entry: Mapping[str, object], name: str) -> None:
    assert who(entry) == name


@pytest.mark.parametrize(
    ("app", "merchant", "words"),
    [("bot", "t", "bot at t"), ("bot", None, "app bot"), (None, "t", "merchant t"), (None, None, "the wallet")],
)
def test_a_limit_names_whose_spending_it_bounds(app: str | None, merchant: str | None, words: str) -> None:
    assert whose(app, merchant) == words
