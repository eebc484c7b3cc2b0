"""The log of changes, decisions and refusals: its events by kind, and the sentence of each event.

`payagent log` and the dashboard's activity page show the same sentences. An entry is an object of `GET /v1/log`.
Never: I/O.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from payagent.core.history import decider
from payagent.core.money import LOVELACE, counted, format_amount
from payagent.core.policy import limit_in_words
from payagent.core.problems import name_of

LogKind = Literal[
    "changes",
    "limits",
    "apps",
    "merchants",
    "signing",
    "config",
    "topups",
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
    "topups": ("topup_stopped",),
    "chats": ("chat_paired", "chat_unpaired"),
    "decisions": ("reserve", "deny"),
    "refusals": ("refused", "reject"),
    "dashboard": ("dashboard_opened", "dashboard_refused", "dashboard_confirmed", "dashboard_closed"),
}  # fmt: skip
KINDS = {**KINDS, "changes": tuple(event for kind in KINDS if kind != "refusals" for event in KINDS[kind])}
"""The events of each kind; `changes` are all but refusals. `reserve` is listed if it decided on an approval."""

Entry = Mapping[str, Any]


def sentence(entry: Entry) -> str:
    """What happened, without who did it."""
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
        return f"{limit}: {format_amount(asset, int(most))}"
    of_asset = "" if asset == LOVELACE else f" in {asset[:56]}.{asset[56:]}"
    return f"{limit}{of_asset}: as in the config file"


def _refusal(entry: Entry, detail: Entry) -> str:
    request = " ".join(entry[part] for part in ("merchant", "request", "payment") if entry[part])
    return f"refused with {name_of(detail['code'], detail['reason'])}: {request}"


def _changes(_entry: Entry, detail: Entry) -> str:
    def shown(key: str, value: object) -> object:
        return value if value is not None else "no limit" if "limits." in key else "nothing"

    changed = (
        f"{key} from {shown(key, one['from'])} to {shown(key, one['to'])}"
        for key, one in detail["changed"].items()
    )
    return f"config file read again: {', '.join(changed)}"


_SENTENCES: Mapping[str, Callable[[Entry, Entry], str]] = {
    "limit_set": _limit,
    "app_added": lambda _, detail: f"app {detail['name']} added ({', '.join(detail['scopes'])})",
    "token_issued": lambda entry, _: f"token issued for the app {entry['app']}",
    "app_revoked": lambda entry, _: f"app {entry['app']} revoked",
    "merchant_added": lambda _, detail: f"merchant {detail['name']} added",
    "merchant_removed": lambda _, detail: f"merchant {detail['name']} removed",
    "merchant_stopped": lambda entry, detail: (
        f"merchant {entry['merchant']} stopped: {counted(detail['unserved_streak'], 'payment')} in a row "
        "not served"
    ),
    "unserved_acknowledged": lambda _, detail: f"payment {detail['payment']} closed as not served",
    "merchant_resumed": lambda entry, _: f"merchant {entry['merchant']} resumed",
    "address_pinned": lambda entry, detail: f"address of {entry['merchant']} pinned: {detail['address']}",
    "address_unpinned": lambda entry, detail: f"address of {entry['merchant']} unpinned: {detail['address']}",
    "paused": lambda _, detail: "signing paused" + (f": {detail['reason']}" if detail["reason"] else ""),
    "resumed": lambda *_: "signing resumed",
    "unfrozen": lambda *_: "wallet unfrozen",
    "config_read": _changes,
    "topup_stopped": lambda _, detail: f"top-up {detail['topup']} stopped: {detail['code']}",
    "chat_paired": lambda _, detail: f"chat {detail['chat']} paired with {detail['target']}",
    "chat_unpaired": lambda _, detail: f"chat {detail['chat']} unpaired from {detail['target']}",
    "refused": _refusal,
    "reject": _refusal,
    "deny": lambda entry, detail: (
        f"{'timed out' if detail.get('via') == 'clock' else 'denied'}: {entry['payment']} of {entry['app']}"
    ),
    "reserve": lambda entry, _: f"approved: {entry['payment']} of {entry['app']}",
    "dashboard_opened": lambda *_: "signed in to the dashboard",
    "dashboard_refused": lambda _, detail: f"sign-in to the dashboard refused: {detail['reason']}",
    "dashboard_confirmed": lambda _, detail: f"confirmed in the terminal: {detail['what']}",
    "dashboard_closed": lambda _, detail: (
        f"signed {detail['others']} others out of the dashboard"
        if "others" in detail
        else "signed out of the dashboard"
    ),
}
