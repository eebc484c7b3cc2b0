"""The events of a payment's history as people read them, on the command line and in the dashboard.

Never: I/O; decides what anybody may see.
"""

from collections.abc import Mapping
from typing import Any

from payagent.core.money import format_amount
from payagent.core.timestamps import iso_time

EVENTS_IN_WORDS = {
    "reserve": "admitted: money held, UTxOs reserved",
    "request_approval": "approval requested: it counts against the limits, and nothing is signed",
    "deny": "denied",
    "reject": "rejected",
    "sign": "signed and stored",
    "submit": "about to be submitted for the first time",
    "provider_accepted": "a provider accepted the transaction",
    "provider_answered": "a provider answered",
    "seen_in_block": "in a block",
    "block_lost": "the block was rolled back: the money is held again, the same bytes are submitted again",
    "replace": "expired in no block: replaced by another attempt that spends the same nonce UTxO",
    "cancel": "being cancelled: its UTxOs return to the wallet",
    "void": "void: nothing was paid",
    "deposit_rolled_back": "the deposit that it spends was rolled back: it can be neither completed nor cancelled",
    "deposit_restored": "the deposit that it spends is on the chain again",
    "time_over": "all its attempts expired: it is void once no rollback reaches that block",
    "confirm": "confirmed and posted in the ledger",
    "settle": "settled: final",
    "invoiced_again": "the merchant sent another invoice for it, which was not paid",
    "retry_answered": "the merchant answered",
    "decision_refused": "the decision could not be carried out",
    "delivery_present": "the proof was presented, not accepted",
    "delivery_accept": "the request was served",
    "delivery_give_up": "paid, but not served",
}
"""What each event of a payment's history says, for people to read."""


def event_in_words(event: Mapping[str, Any]) -> str:
    """One line of the history: the event as the API gives it, and its details."""
    words, details = name_in_words(event["event"]), details_in_words(event["detail"])
    return f"{words} ({details})" if details else words


def name_in_words(event: str) -> str:
    return EVENTS_IN_WORDS.get(event, _spaced(event))


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


def limit_in_words(limit: Mapping[str, Any]) -> str:
    """Which limit it is: its window, and whose spending it limits."""
    of = " ".join(limit[part] for part in ("app", "merchant") if limit.get(part))
    return f"{_spaced(limit['limit'])}{' of ' + of if of else ''}"


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
    return f"{asked} of {left} left {limit_in_words(limit)}" if left else f"{asked} {limit_in_words(limit)}"


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
