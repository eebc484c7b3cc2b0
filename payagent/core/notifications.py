"""What people are told: the types of notifications, who wants which, and which event of the ledger becomes one.

Start with `notification_of`. Most events become none.
Never: sends anything; holds a secret or a link that decides something.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

TYPES: Mapping[str, str] = {
    "payment.confirmed": "A payment is confirmed on the chain and posted in the ledger.",
    "payment.void": "A payment ended without paying. Its money is no longer held.",
    "payment.paid_not_served": "A payment stands, and the merchant did not serve what it was for.",
    "payment.reopened": "A payment was in a block and is not any more. Its money is held again.",
    "approval.asked": "A payment waits for a person.",
    "approval.decided": "A payment that waited was approved, denied, or nobody decided in time.",
    "limit.reached": "A payment was refused because a limit has no room for it. Of a series, the first is told.",
    "balance.low": "The wallet or a prepaid balance is below its level.",
    "topup.announced": "The first automatic top-up under new settings comes next. Nothing is paid for it yet.",
    "topup.done": "A top-up is complete.",
    "topup.failed": "An automatic top-up failed.",
    "merchant.stopped": "A merchant repeatedly did not serve what was paid, and is paid no more.",
    "merchant.terms_changed": "An invoice came again with other terms, and was not paid.",
    "channel.trouble": "A merchant claimed more from a channel than was signed, or payagent closes a channel.",
    "provider.trouble": "A chain provider is not believed, cannot be read, or refuses a transaction.",
    "signer.refused": "The signer refused to sign a transaction.",
    "signing.paused": "An operator stopped all signing.",
    "books.wrong": "The ledger and the chain do not agree.",
    "alert.cleared": "An alert is over.",
    "test": "An operator sent it to try the target.",
}
"""Every type with what happened. docs/reference/notifications.md is written from it."""

ROUTINE = ("payment.confirmed", "topup.done")
"""What people are not told unless they choose it: it needs nobody, and there is one for each payment."""

TEST = "test"
APPROVAL_ASKED = "approval.asked"
LIMIT_REACHED = "limit.reached"

ALERTS: Mapping[str, tuple[str, str]] = {
    "wallet_low": ("balance.low", "The wallet runs low"),
    "prepaid_low": ("balance.low", "A prepaid balance runs low"),
    "merchant_stopped": ("merchant.stopped", "A merchant is stopped"),
    "paid_not_served": ("payment.paid_not_served", "A payment was not served"),
    "terms_changed": ("merchant.terms_changed", "An invoice changed its terms"),
    "topup_announced": ("topup.announced", "An automatic top-up comes next"),
    "topup_failed": ("topup.failed", "A top-up failed"),
    "approval_needed": ("approval.asked", "A payment waits for you"),
    "paused": ("signing.paused", "Signing is paused"),
    "channel_disputed": ("channel.trouble", "A merchant claimed more than was signed"),
    "channel_closing": ("channel.trouble", "A channel is being closed"),
    "never_valid": ("provider.trouble", "A provider calls a transaction invalid"),
    "payment_reopened": ("payment.reopened", "A payment lost its block"),
    "submission_refused": ("provider.trouble", "A provider refuses a transaction"),
    "provider_excluded": ("provider.trouble", "A provider is in trouble"),
    "signer_refused": ("signer.refused", "The signer refused to sign"),
    "external_spend": ("books.wrong", "UTxOs were spent elsewhere"),
    "deposit_rolled_back": ("books.wrong", "A deposit is gone"),
    "books_wrong": ("books.wrong", "The books are wrong"),
    "cleared": ("alert.cleared", "An alert is over"),
}
"""The type and the title of each kind of alert (docs/reference/alerts.md)."""


@dataclass(frozen=True, slots=True)
class Notification:
    """One piece of news. `title` and `text` are for people, `data` is for programs.

    `lines`: the text in lines, for a message; empty if it is one line. `merchant` and `app`: the name of the
    merchant and of the app that it is about; None if it is about none.
    """

    id: str
    type: str
    at_ms: int
    title: str
    text: str
    data: Mapping[str, str]
    payment_id: str | None
    merchant: str | None
    app: str | None
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Missed:
    """Why a target did not take a notification, without URL or secret.

    `wait_s`: how long the service asked to wait. `then`: `delivered` if a part of the target has it, and
    `given_up` if another try changes nothing.
    """

    why: str
    wait_s: float | None = None
    then: Literal["waiting", "delivered", "given_up"] = "waiting"


@dataclass(frozen=True, slots=True)
class Filter:
    """What a target wants. An empty part wants everything. A `*` at the end of an event is any ending.

    `has_routine`: whether a target that names no event is told of `ROUTINE` too.
    """

    events: tuple[str, ...] = ()
    merchants: tuple[str, ...] = ()
    apps: tuple[str, ...] = ()
    has_routine: bool = True


def matches(pattern: str, event_type: str) -> bool:
    """Whether a type is the one of the pattern, or begins like one that ends in `*`."""
    return event_type.startswith(pattern[:-1]) if pattern.endswith("*") else event_type == pattern


def wants(target: Filter, notification: Notification) -> bool:
    """Whether a target is to be told. A filter of merchants or apps leaves out what is about none."""
    is_default = not target.events and (target.has_routine or notification.type not in ROUTINE)
    return (
        (is_default or any(matches(pattern, notification.type) for pattern in target.events))
        and (not target.merchants or notification.merchant in target.merchants)
        and (not target.apps or notification.app in target.apps)
    )


@dataclass(frozen=True, slots=True)
class PaymentFacts:
    """A payment in words: `amount` without the fee, and `to`, a merchant's name or an address.

    `amount` is empty if nothing leaves the wallet. `purpose`: the app's words, if it gave some.
    """

    id: str
    amount: str
    to: str
    tx_id: str | None
    purpose: str | None = None


@dataclass(frozen=True, slots=True)
class LedgerEvent:
    """An event of the ledger. `payment`, `merchant` and `app`: what it is about, by its detail or its payment.

    `id`: that of its notification.
    """

    id: str
    event: str
    at_ms: int
    detail: Mapping[str, object]
    payment: PaymentFacts | None = None
    merchant: str | None = None
    app: str | None = None


def notification_of(event: LedgerEvent) -> Notification | None:
    """The notification that an event of the ledger becomes; None for an event without a notification."""
    reads = _READS.get(event.event)
    return None if reads is None else reads(event)


def _news(
    event: LedgerEvent, kind: str, title: str, text: str, data: Mapping[str, str], lines: tuple[str, ...] = ()
) -> Notification:
    payment_id = None if event.payment is None else event.payment.id
    return Notification(
        event.id, kind, event.at_ms, title, text, data, payment_id, event.merchant, event.app, lines
    )


def is_give_up(event: str, detail: Mapping[str, object]) -> bool:
    """Whether an event says that a merchant does not serve a payment. A payment may have several."""
    return event == "delivery_give_up" or (event == "merchant_answered" and detail.get("delivery") == "give_up")


def _confirmed(event: LedgerEvent) -> Notification | None:
    payment = event.payment
    if payment is None or not payment.amount:
        return None
    text = f"{payment.id}: {payment.amount} to {payment.to} are confirmed on the chain."
    return _news(event, "payment.confirmed", f"Paid {payment.amount} to {payment.to}", text, _of_payment(payment))


def _void(event: LedgerEvent) -> Notification | None:
    payment = event.payment
    if payment is None or not payment.amount:
        return None
    text = f"{payment.id}: {payment.amount} to {payment.to} were not paid. The money is available again."
    return _news(event, "payment.void", f"A payment to {payment.to} is void", text, _of_payment(payment))


def _not_served(event: LedgerEvent) -> Notification | None:
    payment = event.payment
    if payment is None or not (is_give_up(event.event, event.detail) or "again" in event.detail):
        return None
    text = (
        f"{payment.id}: {payment.to} got {payment.amount} and did not serve the request. The payment stands. "
        "Ask the merchant."
    )
    return _news(event, "payment.paid_not_served", f"{payment.to} did not serve", text, _of_payment(payment))


def _decided(event: LedgerEvent) -> Notification | None:
    """A decision on an approval. Only such a decision has a `via`."""
    payment, via = event.payment, event.detail.get("via")
    if payment is None or via is None:
        return None
    refusal = "timed_out" if via == "clock" else "denied"
    decision = "approved" if event.event == "reserve" else refusal
    words = decision.replace("_", " ").capitalize()
    data = {**_of_payment(payment), "decision": decision, "via": str(via)}
    text = f"{payment.id}: {payment.amount} to {payment.to}."
    return _news(event, "approval.decided", f"{words}: {payment.amount} to {payment.to}", text, data)


def _refused(event: LedgerEvent) -> Notification | None:
    """A limit without room. `max_total` is an app's own word about one call, and no limit of the operator's."""
    if event.detail.get("code") != "limit_exceeded" or event.detail.get("limit") == "max_total":
        return None
    text = str(event.detail.get("detail", ""))
    data = _texts(event.detail, "code", "reason", "limit", "asset", "scope")
    return _news(event, LIMIT_REACHED, "A limit is reached", f"{text}.", data)


def _topup_ended(event: LedgerEvent) -> Notification | None:
    """A top-up that failed has an alert, if nobody waited for it."""
    if event.detail.get("code") is not None:
        return None
    at = "" if event.merchant is None else f" at {event.merchant}"
    text = f"{event.detail['topup']}{at} is complete."
    return _news(event, "topup.done", f"A top-up{at} is done", text, _texts(event.detail, "topup"))


def _alert(event: LedgerEvent) -> Notification | None:
    """An alert, raised or cleared. Decisions and payments that are not served have events of their own.

    A payment that is confirmed again has no second such event: its alert (`again`) takes that event's place.
    """
    detail = event.detail
    of, _, _ = str(detail["subject"]).partition(":")
    if of == "unserved" or (detail["kind"] == "cleared" and of == "approval"):
        return _not_served(event)  # None, unless the payment is confirmed again
    event_type, title = ALERTS[str(detail["kind"])]
    about: dict[str, str] = {}
    text = str(detail["detail"])
    lines: tuple[str, ...] = ()
    if event_type == APPROVAL_ASKED and event.payment is not None:
        title, about = f"Approve {event.payment.amount} to {event.payment.to}?", _of_payment(event.payment)
        lines = tuple(_asked(event, event.payment, text))
        text = "; ".join(lines)
    data = about | {
        name: str(value) for name, value in detail.items() if name not in ("detail", "merchant", "app")
    }
    return _news(event, event_type, title, text, data, lines)


def _asked(event: LedgerEvent, payment: PaymentFacts, detail: str) -> Iterator[str]:
    """What a person needs to decide on a payment, below its amount and its merchant: the id comes last."""
    ends_at, why = str(event.detail.get("ends_at", "")), detail.partition(" waits for a person: ")[2] or detail
    yield f"App: {event.app}"
    if payment.purpose is not None:
        yield f"Purpose: {' '.join(payment.purpose.split())}"
    yield f"Decide before {ends_at[:16].replace('T', ' ')} UTC"
    yield f"Why you are asked: {' '.join(why.split())}"
    yield payment.id


def _of_payment(payment: PaymentFacts) -> dict[str, str]:
    return {"amount": payment.amount} | ({} if payment.tx_id is None else {"tx_hash": payment.tx_id})


def _texts(detail: Mapping[str, object], *names: str) -> dict[str, str]:
    return {name: str(detail[name]) for name in names if detail.get(name) is not None}


_READS: Mapping[str, Callable[[LedgerEvent], Notification | None]] = {
    "confirm": _confirmed,
    "void": _void,
    "delivery_give_up": _not_served,
    "merchant_answered": _not_served,
    "reserve": _decided,
    "deny": _decided,
    "reject": _refused,
    "refused": _refused,
    "topup_ended": _topup_ended,
    "alert": _alert,
}
"""By the event's name: how it is read. An event that is not here has no notification."""

READ_EVENTS = tuple(_READS)
