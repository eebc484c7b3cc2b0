"""A payment's history in words: each event, with its details in one line."""

import pytest

from payagent.core.history import decision_in_words, event_in_words, limit_in_words

TOKEN = "5c" * 28 + "636c69"
DAY = {"limit": "per_day", "app": None, "merchant": None}


@pytest.mark.parametrize(
    ("event", "detail", "words"),
    [
        ("settle", {}, "settled: final"),
        ("purpose", {"purpose": "a report"}, "purpose (purpose a report)"),
        ("confirm", {"depth": 3, "counts_from_ms": 0}, None),
        ("deny", {"by": None, "via": "link"}, "denied (via link)"),
        ("note", {"reasons": [["price_changed", "more"], ["b", "c"]]}, "note (reasons price_changed; more; b; c)"),
        ("note", {"figures": {"left_units": 5, "of": "x"}}, "note (figures left units 5 of x)"),
        (
            "note",
            {"limits": [DAY | {"asset": "lovelace", "asked": "1500000", "left": "2000000"}]},
            "note (1.5 ADA of 2 ADA left per day)",
        ),
        (
            "note",
            {"limits": [DAY | {"app": "bot", "asset": TOKEN, "asked": "7", "left": None}]},
            f"note (7 units of {TOKEN} per day of bot)",
        ),
    ],
)
def test_an_event_is_one_line(event: str, detail: dict[str, object], words: str | None) -> None:
    expected = words or "confirmed and posted in the ledger (depth 3, counts from 1970-01-01T00:00:00.000Z)"
    assert event_in_words({"event": event, "detail": detail}) == expected


def test_a_limit_names_whose_spending_it_limits() -> None:
    assert limit_in_words(DAY | {"app": "bot", "merchant": "t"}) == "per day of bot t"


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
