"""The log of changes, decisions and refusals: its events by kind, and the sentence of each event.

`payagent log` and the dashboard's activity page show the same sentences. An entry is an object of `GET /v1/log`.
Never: I/O.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from payagent.core.history import decider
from payagent.core.money import LOVELACE, counted, format_amount
from payagent.core.policy import limit_in_words
from payagent.core.prepaid_balance import CALLS
from payagent.core.problems import name_of

LogKind = Literal[
    "changes",
    "limits",
    "apps",
    "merchants",
    "signing",
    "config",
    "topups",
    "channels",
    "chats",
    "decisions",
    "refusals",
    "dashboard",
]

KINDS: Mapping[LogKind, tuple[str, ...]] = {
    "limits": ("limit_set",),
    "apps": ("app_added", "token_issued", "app_revoked"),
    "merchants": (
        "merchant_added", "merchant_removed", "merchant_stopped", "merchant_resumed", "address_pinned",
        "address_unpinned", "unserved_acknowledged",
    ),
    "signing": ("paused", "resumed", "unfrozen"),
    "config": ("config_read",),
    "topups": ("topup_opened", "topup_stopped"),
    "channels": ("channel_ordered", "channel_recover"),
    "chats": ("chat_paired", "chat_unpaired"),
    "decisions": ("reserve", "deny"),
    "refusals": ("refused", "reject"),
    "dashboard": ("dashboard_opened", "dashboard_refused", "dashboard_confirmed", "dashboard_closed"),
}  # fmt: skip
KINDS = {**KINDS, "changes": tuple(event for kind in KINDS if kind != "refusals" for event in KINDS[kind])}
"""The events of each kind; `changes` are all but refusals. `reserve` is listed if it decided on an approval."""

Entry = Mapping[str, Any]


def sentence(entry: Entry) -> str:
    """What happened, to be read after who did it (`who`): "set the wallet's daily limit to 5 ADA"."""
    return _SENTENCES[entry["event"]](entry, entry["detail"])


def who(entry: Entry) -> str:
    """The app that made the change or whose request was refused."""
    if entry["detail"].get("via") == "link":
        return decider(entry["detail"])
    return entry["by"] or (entry["app"] if entry["event"] in KINDS["refusals"] else None) or "payagent"


def whose(app: str | None, merchant: str | None) -> str:
    """Whose spending a limit bounds, for people."""
    if app is not None and merchant is not None:
        return f"{app} at {merchant}"
    return f"app {app}" if app else f"merchant {merchant}" if merchant else "the wallet"


def _limit(entry: Entry, detail: Entry) -> str:
    asset, most = detail["asset"], detail["most"]
    limit = limit_in_words({**detail, "app": entry["app"], "merchant": entry["merchant"]})
    if most is not None:
        return f"set {limit} to {format_amount(asset, int(most))}"
    of_asset = "" if asset == LOVELACE else f" in {asset[:56]}.{asset[56:]}"
    return f"set {limit}{of_asset} back to the config file"


def _topup(entry: Entry, detail: Entry) -> str:
    unit, units = detail["unit"], int(detail["units"])
    goal = counted(units, "call") if unit == CALLS else format_amount(unit, units)
    return f"ordered a top-up at {entry['merchant']}: {goal}"


def _refusal(entry: Entry, detail: Entry) -> str:
    request = " ".join(entry[part] for part in ("merchant", "request", "payment") if entry[part])
    return f"was refused with {name_of(detail['code'], detail['reason'])}: {request}"


def _changes(_entry: Entry, detail: Entry) -> str:
    def shown(key: str, value: object) -> object:
        return value if value is not None else "no limit" if "limits." in key else "nothing"

    changed = (
        f"{key} from {shown(key, one['from'])} to {shown(key, one['to'])}"
        for key, one in detail["changed"].items()
    )
    return f"read the config file again: {', '.join(changed)}"


_SENTENCES: Mapping[str, Callable[[Entry, Entry], str]] = {
    "limit_set": _limit,
    "app_added": lambda _, detail: f"added the app {detail['name']} ({', '.join(detail['scopes'])})",
    "token_issued": lambda entry, _: f"issued a token for the app {entry['app']}",
    "app_revoked": lambda entry, _: f"revoked the app {entry['app']}",
    "merchant_added": lambda _, detail: f"added the merchant {detail['name']}",
    "merchant_removed": lambda _, detail: f"removed the merchant {detail['name']}",
    "merchant_stopped": lambda entry, detail: (
        f"stopped the merchant {entry['merchant']}: {counted(detail['unserved_streak'], 'payment')} in a row "
        "not served"
    ),
    "unserved_acknowledged": lambda _, detail: f"closed payment {detail['payment']} as not served",
    "merchant_resumed": lambda entry, _: f"resumed the merchant {entry['merchant']}",
    "address_pinned": lambda entry, detail: f"pinned an address of {entry['merchant']}: {detail['address']}",
    "address_unpinned": lambda entry, detail: f"unpinned an address of {entry['merchant']}: {detail['address']}",
    "paused": lambda _, detail: "paused signing" + (f": {detail['reason']}" if detail["reason"] else ""),
    "resumed": lambda *_: "resumed signing",
    "unfrozen": lambda *_: "unfroze the wallet",
    "config_read": _changes,
    "topup_opened": _topup,
    "topup_stopped": lambda _, detail: f"stopped top-up {detail['topup']}: {detail['code']}",
    "channel_ordered": lambda entry, detail: (
        f"ordered to {'add to' if detail['step'] == 'add' else detail['step']} the channel at {entry['merchant']}"
    ),
    "channel_recover": lambda entry, _: f"recovered the channel at {entry['merchant']} from the chain",
    "chat_paired": lambda _, detail: f"paired chat {detail['chat']} with {detail['target']}",
    "chat_unpaired": lambda _, detail: f"unpaired chat {detail['chat']} from {detail['target']}",
    "refused": _refusal,
    "reject": _refusal,
    "deny": lambda entry, detail: (
        f"denied {entry['payment']} of {entry['app']}"
        + (": nobody decided in time" if detail.get("via") == "clock" else "")
    ),
    "reserve": lambda entry, _: f"approved {entry['payment']} of {entry['app']}",
    "dashboard_opened": lambda *_: "signed in to the dashboard",
    "dashboard_refused": lambda _, detail: f"refused a sign-in to the dashboard: {detail['reason']}",
    "dashboard_confirmed": lambda _, detail: f"confirmed in the terminal: {detail['what']}",
    "dashboard_closed": lambda _, detail: (
        f"signed {counted(detail['others'], 'other')} out of the dashboard"
        if "others" in detail
        else "signed out of the dashboard"
    ),
}
