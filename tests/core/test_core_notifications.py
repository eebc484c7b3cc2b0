"""Which events people are told, in which words, and which target wants which."""

import pytest

from payagent.core.notifications import (
    ALERTS,
    READ_EVENTS,
    TYPES,
    Filter,
    LedgerEvent,
    Notification,
    PaymentFacts,
    notification_of,
    wants,
)

PAYMENT = PaymentFacts("pay_1", "12 ADA", "t", "ab" * 32)
MOVE = PaymentFacts("pay_2", "", "t", None)
"""A split of the wallet's own UTxOs."""


def told(event: str, payment: PaymentFacts | None = PAYMENT, **detail: object) -> Notification | None:
    return notification_of(LedgerEvent("ntf_1", event, 5, detail, payment, "t", "writer"))


@pytest.mark.parametrize(
    ("event", "detail", "expected_type", "title"),
    [
        ("confirm", {}, "payment.confirmed", "Paid 12 ADA to t"),
        ("void", {}, "payment.void", "A payment to t is void"),
        ("delivery_give_up", {}, "payment.paid_not_served", "t did not serve"),
        ("merchant_answered", {"delivery": "give_up"}, "payment.paid_not_served", "t did not serve"),
        ("reserve", {"via": "token"}, "approval.decided", "Approved: 12 ADA to t"),
        ("deny", {"via": "link"}, "approval.decided", "Denied: 12 ADA to t"),
        ("deny", {"via": "clock"}, "approval.decided", "Timed out: 12 ADA to t"),
        ("reject", {"code": "limit_exceeded", "detail": "no room"}, "limit.reached", "A limit is reached"),
        ("refused", {"code": "limit_exceeded"}, "limit.reached", "A limit is reached"),
        ("topup_ended", {"topup": "top_1", "code": None}, "topup.done", "A top-up at t is done"),
        (
            "alert",
            {"kind": "wallet_low", "subject": "wallet", "detail": "low"},
            "balance.low",
            "The wallet runs low",
        ),
        (
            "alert",
            {"kind": "paid_not_served", "subject": "unserved:pay_1", "detail": "t took it", "again": "true"},
            "payment.paid_not_served",
            "t did not serve",
        ),
        ("alert", {"kind": "cleared", "subject": "wallet", "detail": "ok"}, "alert.cleared", "An alert is over"),
    ],
)
def test_an_event_becomes_a_notification(
    event: str, detail: dict[str, object], expected_type: str, title: str
) -> None:
    notification = told(event, **detail)
    assert notification is not None
    assert (notification.type, notification.title, notification.at_ms) == (expected_type, title, 5)
    assert (notification.id, notification.payment_id) == ("ntf_1", "pay_1")
    assert (notification.merchant, notification.app) == ("t", "writer")


@pytest.mark.parametrize(
    ("event", "payment", "detail"),
    [
        ("sign", PAYMENT, {}),
        ("confirm", MOVE, {}),
        ("void", MOVE, {}),
        ("confirm", None, {}),
        ("reserve", PAYMENT, {}),
        ("merchant_answered", PAYMENT, {"delivery": "present"}),
        ("reject", PAYMENT, {"code": "not_enough_funds"}),
        ("reject", PAYMENT, {"code": "limit_exceeded", "limit": "max_total"}),
        ("topup_ended", None, {"topup": "top_1", "code": "topup_stopped"}),
        ("alert", None, {"kind": "cleared", "subject": "approval:pay_1", "detail": "it was approved"}),
    ],
)
def test_nobody_is_told_of_other_events(
    event: str, payment: PaymentFacts | None, detail: dict[str, object]
) -> None:
    assert told(event, payment, **detail) is None


def test_the_data_of_a_notification_are_texts_for_programs() -> None:
    confirmed, decided = told("confirm"), told("deny", via="clock")
    alert = told("alert", None, kind="wallet_low", subject="wallet", left=5, merchant="https://a", detail="low")
    assert confirmed is not None
    assert decided is not None
    assert alert is not None
    assert confirmed.data == {"amount": "12 ADA", "tx_hash": "ab" * 32}
    assert decided.data["decision"] == "timed_out"
    assert (alert.text, alert.data) == ("low", {"kind": "wallet_low", "subject": "wallet", "left": "5"})
    limit = {"code": "limit_exceeded", "limit": "per_day", "asset": "lovelace", "scope": "wallet"}
    refused = told("reject", **limit, reason=None, detail="per_day has no room")
    assert refused is not None
    assert (refused.text, refused.data) == ("per_day has no room.", limit)


def test_a_payment_that_waits_is_told_with_its_amount() -> None:
    about = {"kind": "approval_needed", "subject": "approval:pay_1", "detail": "above 5 ADA"}
    asked, unknown = told("alert", **about), told("alert", None, **about)
    assert asked is not None
    assert unknown is not None
    assert (asked.type, asked.title, asked.data["amount"]) == ("approval.asked", "Approve 12 ADA to t?", "12 ADA")
    assert unknown.title == "A payment waits for you"


def test_who_is_asked_reads_first_what_decides_and_the_id_last() -> None:
    payment = PaymentFacts("pay_1", "12 ADA", "t", None, "a\nreport")
    detail = "pay_1 to https://t.example waits for a person: it takes 12 ADA, more than 5 ADA"
    about = {"kind": "approval_needed", "subject": "approval:pay_1", "ends_at": "2026-12-02T13:21:09.000Z"}
    asked = told("alert", payment, detail=detail, **about)
    assert asked is not None
    assert asked.title == "Approve 12 ADA to t?"
    assert asked.lines == (
        "App: writer",
        "Purpose: a report",
        "Decide before 2026-12-02 13:21 UTC",
        "Why you are asked: it takes 12 ADA, more than 5 ADA",
        "pay_1",
    )
    assert asked.text == "; ".join(asked.lines)


def test_a_person_is_told_of_decisions_and_trouble_and_not_of_every_confirmation() -> None:
    confirmed, done = told("confirm"), told("topup_ended", topup="top_1", code=None)
    void, decided = told("void"), told("deny", via="link")
    for notification, is_told in ((confirmed, False), (done, False), (void, True), (decided, True)):
        assert notification is not None
        assert wants(Filter(has_routine=False), notification) is is_told
        assert wants(Filter(), notification)
        assert wants(Filter(events=("*",), has_routine=False), notification)


def test_a_top_up_whose_merchant_is_unknown_is_told_without_one() -> None:
    event = LedgerEvent("ntf_1", "topup_ended", 5, {"topup": "top_1", "code": None})
    notification = notification_of(event)
    assert notification is not None
    assert (notification.title, notification.merchant, notification.data) == (
        *("A top-up is done", None),
        {"topup": "top_1"},
    )


@pytest.mark.parametrize(
    ("target", "is_wanted"),
    [
        (Filter(), True),
        (Filter(events=("payment.*",)), True),
        (Filter(events=("payment.void", "payment.confirmed")), True),
        (Filter(events=("payment",)), False),
        (Filter(events=("approval.*",)), False),
        (Filter(merchants=("t",), apps=("writer",)), True),
        (Filter(merchants=("u",)), False),
        (Filter(merchants=("t",), apps=("bot",)), False),
    ],
)
def test_a_filter_lets_through_what_matches_all_of_its_parts(target: Filter, is_wanted: bool) -> None:
    notification = told("confirm")
    assert notification is not None
    assert wants(target, notification) is is_wanted


def test_every_kind_of_alert_has_a_type_of_the_catalogue() -> None:
    assert {event_type for event_type, _ in ALERTS.values()} <= set(TYPES)
    assert len(set(READ_EVENTS)) == len(READ_EVENTS)
