"""`payagent log`: who changed what, and which requests were refused.

Never: changes anything.
"""

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn, get_args

import click

from payagent.cli.options import Connect, example, filter_options, page_options, show_time, talks_to_daemon
from payagent.cli.terminal import Terminal
from payagent.core.operator_log import Entry, LogKind, sentence, who

if TYPE_CHECKING:
    from payagent.cli.daemon_client import OperatorClient

POLL_S = 1
WHO_WIDTH = 12


@click.command(
    epilog=example(
        "payagent log",
        "payagent log --kind limits",
        "payagent log --kind refusals --code limit_exceeded --since 2026-11-01T00:00:00Z",
        "payagent log --follow",
    )
)
@filter_options("--since", "--until")
@click.option("--merchant", metavar="NAME", help="Only what is about this merchant, by name or origin.")
@click.option("--app", metavar="NAME", help="Only what is about this app, by name or id.")
@click.option("--by", metavar="NAME", help="Only what this app did or was refused, by name or id.")
@click.option("--kind", type=click.Choice(get_args(LogKind)), help="Only changes of this kind.")
@click.option("--code", metavar="CODE", help="Only refusals with this code, such as limit_exceeded.")
@click.option(
    "--follow", is_flag=True, help="Go on with new entries until Ctrl-C. With --json, one object per line."
)
@page_options
@talks_to_daemon
def log(
    terminal: Terminal, connect: Connect, follow: bool, limit: int, cursor: str | None, **filters: str | None
) -> None:
    """Show who changed what, and which requests were refused.

    It lists changes of limits, apps, merchants and the config, pauses, decisions on approvals, and refusals. A
    config that changed with a restart is not in it. A token with the scope read is enough. Without --json, the
    newest entry is the last line. With --since, --follow starts with every entry since then.
    """
    client = connect()
    if follow and filters["since"] is not None:
        _follow(terminal, client, filters, _after(client, filters, 0))
    answer = client.get("/v1/log", **filters, limit=limit, cursor=cursor)
    if follow:
        _follow(terminal, client, filters, answer["log"])

    def human() -> None:
        if answer["log"]:
            _show(terminal, answer["log"])
        else:
            terminal.line("(none)")
        terminal.say_more(answer)

    terminal.give(answer, human)


def _follow(
    terminal: Terminal, client: "OperatorClient", filters: Mapping[str, str | None], entries: list[Entry]
) -> NoReturn:
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
        entries = _after(client, filters, newest)


def _after(client: "OperatorClient", filters: Mapping[str, str | None], seq: int) -> list[Entry]:
    """The entries after this one, newest first."""
    entries: list[Entry] = []
    cursor = None
    while True:
        page = client.get("/v1/log", **filters, limit=20, cursor=cursor)
        new = [entry for entry in page["log"] if entry["seq"] > seq]
        entries += new
        cursor = page["cursor"]
        if cursor is None or len(new) < len(page["log"]):
            return entries


def _show(terminal: Terminal, entries: list[Entry]) -> None:
    """One line for each entry, the newest last."""
    for entry in reversed(entries):
        terminal.line(f"{show_time(entry['at'])}  {who(entry).ljust(WHO_WIDTH)}  {sentence(entry)}", " " * 4)
