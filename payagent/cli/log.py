"""`payagent log`: who changed what, and which requests were refused.

May import: click, core, cli.
Never: changes anything.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import click

from payagent.cli.limits import whose
from payagent.cli.options import (
    Connect,
    example,
    page_options,
    say_more,
    show_asset,
    show_time,
    show_units,
    talks_to_daemon,
)
from payagent.cli.pay import in_words
from payagent.cli.terminal import Terminal
from payagent.core.money import LOVELACE
from payagent.core.problems import name_of

if TYPE_CHECKING:
    from payagent.cli.daemon_client import OperatorClient

POLL_S = 1
WHO_WIDTH = 12
Entry = Mapping[str, Any]


@click.command(
    epilog=example("payagent log", "payagent log --since 2026-11-01T00:00:00Z", "payagent log --follow")
)
@click.option("--since", metavar="TIME", help="Only from this time on, such as 2026-11-01T00:00:00Z.")
@click.option(
    "--follow", is_flag=True, help="Go on with new entries until Ctrl-C. With --json, one object per line."
)
@page_options
@talks_to_daemon
def log(
    terminal: Terminal, connect: Connect, since: str | None, follow: bool, limit: int, cursor: str | None
) -> None:
    """Show who changed what, and which requests were refused.

    It lists changes of limits, apps, merchants and the config, pauses, decisions on approvals, and refusals. A
    token with the scope read is enough. Without --json, the newest entry is the last line. With --since, --follow
    starts with every entry since then.
    """
    client = connect()
    if follow and since is not None:
        _follow(terminal, client, since, _after(client, since, 0))
    answer = client.get("/v1/log", since=since, limit=limit, cursor=cursor)
    if follow:
        _follow(terminal, client, since, answer["log"])

    def human() -> None:
        if answer["log"]:
            _show(terminal, answer["log"])
        else:
            terminal.line("(none)")
        say_more(terminal, answer)

    terminal.give(answer, human)


def _follow(terminal: Terminal, client: "OperatorClient", since: str | None, entries: list[Entry]) -> NoReturn:
    """Show these entries, and every new one within a second."""
    newest = 0
    while True:
        if terminal.is_json:
            for entry in reversed(entries):
                terminal.line(json.dumps(entry))
        else:
            _show(terminal, entries)
        newest = entries[0]["seq"] if entries else newest
        time.sleep(POLL_S)
        entries = _after(client, since, newest)


def _after(client: "OperatorClient", since: str | None, seq: int) -> list[Entry]:
    """The entries after this one, newest first."""
    entries: list[Entry] = []
    cursor = None
    while True:
        page = client.get("/v1/log", since=since, limit=20, cursor=cursor)
        new = [entry for entry in page["log"] if entry["seq"] > seq]
        entries += new
        cursor = page["cursor"]
        if cursor is None or len(new) < len(page["log"]):
            return entries


def _show(terminal: Terminal, entries: list[Entry]) -> None:
    """One line for each entry, the newest last."""
    for entry in reversed(entries):
        words = _WORDS[entry["event"]](entry, entry["detail"])
        terminal.line(f"{show_time(entry['at'])}  {_who(entry).ljust(WHO_WIDTH)}  {words}")


def _who(entry: Entry) -> str:
    """The app that made the change or whose request was refused."""
    if entry["detail"].get("via") == "link":
        return "by link"
    return entry["by"] or (entry["app"] if entry["event"] in _OF_APPS else None) or "payagent"


def _limit(entry: Entry, detail: Entry) -> str:
    most = "as in the config file" if detail["most"] is None else show_units(detail["asset"], detail["most"])
    asset = "" if detail["asset"] == LOVELACE else f" in {show_asset(detail['asset'])}"
    return f"limit {in_words(detail['limit'])} of {whose(entry['app'], entry['merchant'])}{asset}: {most}"


def _refusal(entry: Entry, detail: Entry) -> str:
    request = " ".join(entry[part] for part in ("merchant", "request", "payment") if entry[part])
    return f"refused with {name_of(detail['code'], detail['reason'])}: {request}"


def _changes(_entry: Entry, detail: Entry) -> str:
    changed = (f"{key} from {one['from']} to {one['to']}" for key, one in detail["changed"].items())
    return f"config file read again: {', '.join(changed)}"


_WORDS: Mapping[str, Callable[[Entry, Entry], str]] = {
    "limit_set": _limit,
    "app_added": lambda _, detail: f"app {detail['name']} added ({', '.join(detail['scopes'])})",
    "token_issued": lambda entry, _: f"token issued for the app {entry['app']}",
    "app_revoked": lambda entry, _: f"app {entry['app']} revoked",
    "merchant_added": lambda entry, detail: f"merchant {detail['name']} added",
    "merchant_removed": lambda _, detail: f"merchant {detail['name']} removed",
    "merchant_stopped": lambda entry, detail: (
        f"merchant {entry['merchant']} stopped: {detail['unserved_streak']} payments in a row not served"
    ),
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
}
_OF_APPS = ("refused", "reject")
