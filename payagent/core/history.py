"""The events of a payment's history as people read them, on the command line and in the dashboard.

Never: I/O; decides what anybody may see.
"""

from collections.abc import Callable, Mapping
from typing import Any

from payagent.core.money import (
    Tokens,
    counted,
    for_people,
    format_amount,
    round_of_limit,
    show_amount,
    show_number,
)
from payagent.core.payment.machine import ENDED_WITHOUT_PAYING, Delivery, Event
from payagent.core.policy import Window, limit_in_words
from payagent.core.timestamps import iso_time

Detail = Mapping[str, Any]

_OF_ONE_NAME: Mapping[str, tuple[tuple[Event, tuple[str, ...]], ...]] = {
    "reserve": ((Event.APPROVE, ("via",)), (Event.RESERVE, ())),
    "block_lost": (
        (Event.BLOCK_LOST, ("in_flight",)),
        (Event.RIVAL_BLOCK_LOST, ("void_tx_id",)),
        (Event.EXTERNAL_SPEND_BLOCK_LOST, ("tx_id",)),
        (Event.CANCEL_BLOCK_LOST, ()),
    ),
    "void": (
        (Event.VOID_BY_TIME, ("time_over",)),
        (Event.VOID_BY_RIVAL, ("counts_from_ms", "code")),
        (Event.VOID_BY_CANCEL, ("counts_from_ms",)),
        (Event.VOID_BY_EXTERNAL_SPEND, ()),
    ),
}
"""Events that share a name in the ledger: the first one whose marks the stored event has, as state or detail."""

_NOW = {
    Window.HOUR: "this hour",
    Window.DAY: "today",
    Window.WEEK: "this week",
    Window.MONTH: "this month",
    Window.TOTAL: "in total",
}


def _reserved(detail: Detail, tokens: Tokens) -> str:
    """What was reserved, and what the tightest limit over a time leaves. A transfer counts against no limit."""
    limits = detail.get("limits", ())
    takes = {one["asset"]: int(one["asked"]) for one in limits if int(one["asked"])}
    amounts = " and ".join(show_amount(asset, units, tokens) for asset, units in takes.items())
    left = [
        (one, int(one["left"]) - int(one["asked"]), int(one["most"]))
        for one in limits
        if one["limit"] in _NOW and one["left"] and one.get("most", "0") != "0"
    ]
    if not left:
        return f"Reserved {amounts or 'the money'}"
    limit, units, most = min(left, key=lambda one: one[1] * 1000 // one[2])
    short = show_amount(limit["asset"], round_of_limit(units, limit["asset"], tokens), tokens).partition(" ")[0]
    whose = (" for this app" if limit.get("app") else "") + (" at this merchant" if limit.get("merchant") else "")
    whole = show_amount(limit["asset"], most, tokens)
    return f"Reserved {amounts}; {short} of {whole} left {_NOW[limit['limit']]}{whose}"


def _depth(detail: Detail) -> str:
    return f"{counted(detail['depth'], 'block')} deep"


_UNDONE = "the payment is being cancelled again, and its money is reserved again"

SENTENCES: Mapping[str, Callable[[Detail, Tokens], str]] = {
    Event.RESERVE: _reserved,
    Event.APPROVE: lambda detail, tokens: f"Approved. {_reserved(detail, tokens)}",
    Event.REQUEST_APPROVAL: lambda detail, _: (
        f"Waits for approval: {'; '.join(reason for _, reason in detail['reasons'])}"
    ),
    Event.DENY: lambda detail, _: f"Denied: {detail['detail']}. Nothing was signed",
    Event.REJECT: lambda detail, _: f"Rejected: {detail['detail']}. Nothing was signed",
    Event.SIGN: lambda *_: "Signed, and stored before anything left",
    Event.SUBMIT: lambda detail, _: (
        "Handed to the merchant, which submits it" if "to" in detail else "Submitted to the chain"
    ),
    Event.SEEN_IN_BLOCK: lambda detail, _: f"In block {show_number(detail['block_height'], 0)}",
    Event.CONFIRM: lambda detail, _: f"Confirmed, {_depth(detail)}, and booked as paid",
    Event.SETTLE: lambda detail, _: f"Final, {_depth(detail)}: no rollback reaches it",
    Event.REPLACE: lambda *_: "Expired in no block; the next attempt spends the same input",
    Event.CANCEL: lambda detail, _: f"Being cancelled: {detail['detail']}",
    Event.VOID_BY_CANCEL: lambda *_: "Void: cancelled. Only the fee of the cancel was paid",
    Event.VOID_BY_RIVAL: lambda detail, _: f"Void: {detail['detail']}. Nothing was paid",
    Event.VOID_BY_EXTERNAL_SPEND: lambda detail, _: f"Void: {detail['detail']}. Nothing was paid",
    Event.VOID_BY_TIME: lambda detail, _: f"Void: {detail['detail']}. Nothing was paid",
    Event.BLOCK_LOST: lambda *_: "Rolled back: its money is reserved again, and it is submitted again unchanged",
    Event.CANCEL_BLOCK_LOST: lambda *_: f"The cancel was rolled back: {_UNDONE}",
    Event.RIVAL_BLOCK_LOST: lambda *_: f"What made it void was rolled back: {_UNDONE}",
    Event.EXTERNAL_SPEND_BLOCK_LOST: lambda *_: f"The other wallet's spend was rolled back: {_UNDONE}",
    "purpose": lambda detail, _: f"Purpose, in the app's words: {detail['purpose']}",
    "provider_accepted": lambda detail, _: f"{detail['provider']} accepted the transaction",
    "provider_answered": lambda detail, _: f"{detail['provider']} answered: {_spaced(detail['kind'])}",
    "invoiced_again": lambda *_: "The merchant sent another invoice for it, which was not paid",
    "merchant_answered": lambda detail, _: (
        f"The merchant answered {detail['status']}"
        + (" and did not serve" if detail.get("delivery") == "give_up" else f": {_spaced(detail['said'])}")
    ),
    "merchant_refused": lambda *_: "The merchant refused the transaction",
    "retry_answered": lambda detail, _: f"The merchant calls it {detail['status']}",
    "decision_refused": lambda detail, _: f"The decision could not be carried out: {detail['detail']}",
    "delivery_present": lambda *_: "The proof was presented, not accepted yet",
    "delivery_accept": lambda *_: "The request was served",
    "delivery_give_up": lambda *_: "Paid, but not served",
    "unserved_acknowledged": lambda *_: "Closed as not served by an operator",
    "deposit_rolled_back": lambda *_: (
        "The deposit that it spends was rolled back: it can be neither completed nor cancelled"
    ),
    "deposit_restored": lambda *_: "The deposit that it spends is on the chain again",
    "time_over": lambda *_: "All its attempts expired: it is void once no rollback reaches that block",
}
"""The sentence of each event, by what happened (`happened`), without its full stop."""


def is_unserved(payment: Mapping[str, Any]) -> bool:
    """Whether a payment of the API is paid and not served. A void one paid nothing."""
    return payment["delivery"] == Delivery.PAID_NOT_SERVED and payment["state"] not in ENDED_WITHOUT_PAYING


def happened(event: Mapping[str, Any]) -> str:
    """The machine's event that the ledger has under this name, or the name of an event that moves no money."""
    marks = {event["state"], *event["detail"]}
    shared = _OF_ONE_NAME.get(event["event"], ())
    return next((one for one, needed in shared if marks.issuperset(needed)), event["event"])


def event_in_words(event: Mapping[str, Any], tokens: Tokens) -> str:
    """The sentence of an event of the API. An event of a newer daemon is its name."""
    sentence = SENTENCES.get(happened(event))
    return _spaced(event["event"]) if sentence is None else for_people(sentence(event["detail"], tokens), tokens)


def details_in_words(detail: Mapping[str, Any]) -> str:
    return ", ".join(_fact(key, value) for key, value in detail.items() if value is not None)


def decision_in_words(approval: Mapping[str, Any]) -> str:
    """The decision on an approval and who made it, such as `Approved by anna, token`."""
    decision = str(approval["decision"]).replace("_", " ").capitalize()
    return (
        f"{decision}: nobody decided in time"
        if approval["via"] == "clock"
        else f"{decision} by {decider(approval)}"
    )


def decider(approval: Mapping[str, Any]) -> str:
    """Who decided on an approval, and by which way. `by` is left out where it is not to be seen."""
    nameless = {"clock": "nobody in time", "link": "somebody with a link"}
    return nameless.get(approval["via"]) or f"{approval.get('by') or 'an app'}, {approval['via']}"


def _fact(name: str, value: Any) -> str:
    """One detail of an event. Times are readable; of a limit, what was left then."""
    if name == "counts_from_ms":
        return f"counts from {iso_time(value)}"
    if name == "limits":
        return "; ".join(map(_left, value))
    return f"{_spaced(name)} {_in_line(value)}"


def _left(limit: Mapping[str, Any]) -> str:
    """The amount asked and what the limit left. An app does not see the latter for a limit that it shares."""
    asked, left = (_units(limit["asset"], limit[part]) for part in ("asked", "left"))
    return f"{asked} of {left} left of {limit_in_words(limit)}" if left else f"{asked} of {limit_in_words(limit)}"


def _units(asset: str, units: str | None) -> str:
    return "" if units is None else format_amount(asset, int(units))


def _in_line(value: object) -> str:
    if isinstance(value, list):
        return "; ".join(_in_line(one) for one in value)
    if isinstance(value, dict):
        return " ".join(f"{_spaced(key)} {_in_line(one)}" for key, one in value.items())
    return str(value)


def _spaced(name: object) -> str:
    return str(name).replace("_", " ")
